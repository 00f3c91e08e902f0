//! Sync tokens and places in timelines from anybody: nothing panics, and what is read is written as it was meant.

#![no_main]

use hearth::{rooms::Place, sync::token::Token};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(token) = text.parse::<Token>() {
        assert_eq!(token.to_string().parse(), Ok(token));
    }
    if let Ok(place) = text.parse::<Place>() {
        assert_eq!(place.to_string().parse(), Ok(place));
    }
});

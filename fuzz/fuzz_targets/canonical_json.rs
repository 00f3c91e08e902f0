//! Canonical JSON: what is read is written in one form, the library's, and that form is read back as the same.

#![no_main]

use hearth::events::canonical;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let Ok(object) = canonical::parse(text) else {
        return;
    };
    let written = canonical::to_vec(&object);
    assert_eq!(
        written,
        serde_json::to_vec(&object).expect("canonical JSON is JSON")
    );
    assert_eq!(
        canonical::parse(&written).expect("it was just written"),
        object
    );
});

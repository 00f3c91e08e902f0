//! The authorization header of other servers: nothing panics, and what is read can be written and read again.

#![no_main]

use hearth::api::auth::x_matrix;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|header: &[u8]| {
    let Ok(credentials) = x_matrix(header) else {
        return;
    };
    let written = credentials.to_string();
    let again = x_matrix(written.as_bytes()).expect("it was just written");
    assert_eq!(
        (again.origin, again.destination, again.key, again.sig),
        (
            credentials.origin,
            credentials.destination,
            credentials.key,
            credentials.sig
        )
    );
});

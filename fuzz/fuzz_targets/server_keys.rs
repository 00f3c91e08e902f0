//! The keys of other servers, and what notaries say of them: nothing panics, and only what is signed is taken.

#![no_main]

use hearth::federation::server_keys::read_document;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let server = "domain".try_into().expect("a server name");
    if let Ok(document) = read_document(server, text) {
        assert_eq!(document.server, "domain");
    }
});

//! Well-known files and their headers, as other servers send them: nothing panics, what is read is a server name, and the
//! time a file counts stays within its bounds.

#![no_main]

use std::time::Duration;

use hearth::federation::discovery::well_known_file;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|answer: &[u8]| {
    let (head, body) = match answer.iter().position(|byte| *byte == b'\n') {
        Some(end) => (&answer[..end], &answer[end + 1..]),
        None => (&[][..], answer),
    };
    let (cache_control, expires) = match head.iter().position(|byte| *byte == b';') {
        Some(middle) => (&head[..middle], &head[middle + 1..]),
        None => (head, &[][..]),
    };
    let (server, lifetime) = well_known_file(cache_control, expires, body);
    if let Some(server) = server {
        assert!(!server.host().is_empty());
        let _port = server.port();
    }
    let hour = Duration::from_secs(3600);
    assert!(lifetime >= hour / 12 && lifetime <= hour * 48);
});

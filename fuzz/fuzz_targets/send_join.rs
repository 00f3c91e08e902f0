//! Answers to `send_join`: nothing panics, whatever the state and the auth chain hold.

#![no_main]

use hearth::{events::version, federation::fuzzing};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    let room_id = "!r:domain".try_into().expect("a room ID");
    for version in version::SERVED {
        let rules = version::rules(&version).expect("served versions have rules");
        for event_id in fuzzing::send_join(body, room_id, rules).unwrap_or_default() {
            assert_eq!(event_id.as_str().len(), 44);
        }
    }
});

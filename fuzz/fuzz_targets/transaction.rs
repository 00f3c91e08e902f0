//! Transactions of other servers: nothing panics, and what is taken out of one has the ID that its room would give it.

#![no_main]

use hearth::{events::version, federation::fuzzing};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    for version in version::SERVED {
        let rules = version::rules(&version).expect("served versions have rules");
        for event_id in fuzzing::transaction(body, rules).unwrap_or_default() {
            assert_eq!(event_id.as_str().len(), 44);
        }
    }
});

//! Filters from anybody: nothing panics, and excluding wins over including.

#![no_main]

use hearth::sync::Filter;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let Ok(definition) = serde_json::from_slice(text) else {
        return;
    };
    let filter = Filter::new(&definition);
    assert_eq!(filter.hash, Filter::new(&definition).hash);
    for event_type in ["m.room.message", "m.room.member", "", "*", "m.*"] {
        let accepts = filter.timeline.accepts_type(event_type);
        if filter.timeline.accepts_all() {
            assert!(accepts);
        }
    }
    // The form as it is stored reads back as the same filter.
    let stored = serde_json::to_vec(&definition).expect("what was read can be written");
    let again = serde_json::from_slice(&stored).expect("what was written can be read");
    assert_eq!(Filter::new(&again).hash, filter.hash);
});

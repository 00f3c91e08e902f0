//! What the log tells of changes; the bytes of rows.

use super::*;
use crate::storage::Record;

#[test]
fn a_change_reads_back_from_the_log() {
    for device in [None, Some("D".into())] {
        let change = ListChange {
            user: UserNumber(7),
            stream_id: 1 << 40,
            is_deleted: device.is_some(),
            device,
        };
        let store = Store::memory();
        let mut batch = Batch::new();
        change.log(&mut batch);
        store.submit(batch).wait_blocking().unwrap();
        let page = store
            .snapshot()
            .unwrap()
            .log(Position::default(), 10)
            .unwrap();
        let read: Vec<_> = page.entries.iter().filter_map(ListChange::logged).collect();
        assert_eq!(read, [change]);
    }
}

#[test]
fn rows_have_these_bytes() {
    fn check<R: Record + PartialEq + std::fmt::Debug>(record: &R, expected: &str) {
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, expected);
        assert_eq!(R::decode(&bytes).as_ref(), Ok(record));
    }
    let local = LastChange { stream_id: Some(7) };
    check(
        &Stamped(Position(9), local),
        "0000000000000009a16973747265616d5f696407",
    );
    check(
        &Stamped(Position(9), LastChange::default()),
        "0000000000000009a0",
    );
}

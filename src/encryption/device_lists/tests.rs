//! What follows what, in the numbers of other servers; the bytes of rows.

use super::*;
use crate::storage::Record;

#[test]
fn a_change_that_comes_after_what_is_known_leaves_nothing_out() {
    let known = |stream_id, is_stale| RemoteList {
        stream_id,
        is_stale,
    };
    let check = |known: Option<&RemoteList>, prev_ids: &[u64], expected| {
        assert_eq!(follows(known, prev_ids), expected, "{known:?} {prev_ids:?}");
    };
    check(None, &[], false);
    check(None, &[1], false);
    check(Some(&known(5, false)), &[5], true);
    check(Some(&known(5, false)), &[3, 5], true);
    check(Some(&known(5, false)), &[], false);
    check(Some(&known(5, false)), &[4], false);
    check(Some(&known(5, false)), &[5, 6], false);
    check(Some(&known(5, true)), &[5], false);
}

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
    let remote = RemoteList {
        stream_id: 5,
        is_stale: true,
    };
    check(
        &Cbor(remote),
        "a26973747265616d5f6964056869735f7374616c65f5",
    );
}

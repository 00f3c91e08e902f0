//! The bytes of rows, so that a change of them is seen; how many EDUs are read at once.

use super::*;
use crate::federation::sender::destinations::{Behind, Failure};

#[track_caller]
fn check<R: storage::Record + PartialEq + std::fmt::Debug>(record: &R, expected: &str) {
    let mut bytes = Vec::new();
    record.encode(&mut bytes);
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, expected);
    assert_eq!(R::decode(&bytes).as_ref(), Ok(record));
}

#[test]
fn a_destination_has_these_bytes() {
    let row = DestinationRow {
        behind: Some(Behind {
            after: Position(5),
            since_ms: 6,
        }),
        failure: Some(Failure {
            since_ms: 1,
            tried_ms: 2,
            retry_ms: 3,
            attempts: 4,
            woken: 0,
        }),
    };
    let bytes = concat!(
        "a266626568696e64a2656166746572056873696e63655f6d7306",
        "676661696c757265a56873696e63655f6d73016874726965645f6d7302",
        "6872657472795f6d730368617474656d7074730465776f6b656e00",
    );
    check(&Cbor(row), bytes);
}

#[test]
fn an_edu_has_these_bytes() {
    let row = EduRow {
        queued_ms: 7,
        json: "{}".to_owned(),
    };
    let bytes = "a2697175657565645f6d7307646a736f6e627b7d";
    check(&Cbor(row), bytes);
}

#[test]
fn edus_are_read_up_to_a_number_and_a_size() {
    let store = storage::Store::memory();
    let server = ServerNumber(1);
    let mut batch = Batch::new();
    for number in 0..5 {
        let row = EduRow {
            queued_ms: 0,
            json: "x".repeat(100),
        };
        put_edu_at(&mut batch, (server, Position(3)), number, row);
    }
    store.submit(batch).wait_blocking().unwrap();
    let snapshot = store.snapshot().unwrap();
    let read = |limit, bytes| {
        let (found, has_more) = edus(&snapshot, server, (limit, bytes)).unwrap();
        (found.len(), has_more)
    };
    assert_eq!(read(10, 1_000), (5, false));
    assert_eq!(read(5, 1_000), (5, false));
    assert_eq!(read(4, 1_000), (4, true));
    assert_eq!(read(10, 250), (2, true));
    assert_eq!(read(10, 1), (1, true), "one in any case");
}

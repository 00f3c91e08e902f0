//! Tests of the log's rows and ring.

use super::*;

fn row(entries: &[(u8, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, payload) in entries {
        encode_entry(*kind, payload, &mut bytes);
    }
    bytes
}

#[test]
fn entries_of_any_length_come_back() {
    let long = vec![7; 70_000];
    let mut entries = Vec::new();
    push_entries(
        Position(3),
        row(&[
            (1, b""),
            (2, b"ab"),
            (3, &long),
            (4, &[0; 127]),
            (5, &[0; 128]),
        ])
        .into(),
        &mut entries,
    )
    .unwrap();
    let lengths: Vec<_> = entries
        .iter()
        .map(|entry| (entry.kind, entry.payload.len()))
        .collect();
    assert_eq!(lengths, [(1, 0), (2, 2), (3, 70_000), (4, 127), (5, 128)]);
    assert_eq!(entries[2].payload, long);
}

#[test]
fn a_malformed_row_is_refused() {
    for bytes in [
        &[1u8][..],
        &[1, 5, 0],
        &[1, 0x80],
        &[1, 0xff, 0xff, 0xff, 0xff],
    ] {
        assert!(push_entries(Position(3), Bytes::copy_from_slice(bytes), &mut Vec::new()).is_err());
    }
}

#[test]
fn the_ring_shows_what_is_published_and_says_what_it_does_not_know() {
    let ring = Ring::new(Position(10));
    for position in [11, 12, 14] {
        ring.push(Position(position), &row(&[(1, b"x"), (2, b"y")]));
    }
    let page = |after, published, limit| {
        ring.page(Position(after), Position(published), limit)
            .map(Result::unwrap)
    };
    assert_eq!(page(9, 14, 10), None);
    let all = page(10, 14, 10).unwrap();
    assert_eq!((all.entries.len(), all.upto), (6, Position(14)));
    let published = page(10, 13, 10).unwrap();
    assert_eq!((published.entries.len(), published.upto), (4, Position(13)));
    let limited = page(11, 14, 1).unwrap();
    assert_eq!((limited.entries.len(), limited.upto), (2, Position(12)));
    let none = page(14, 14, 1).unwrap();
    assert_eq!((none.entries.len(), none.upto), (0, Position(14)));
}

#[test]
fn the_ring_is_bounded() {
    let ring = Ring::new(Position(0));
    for position in 1..=RING_ROWS as u64 + 5 {
        ring.push(Position(position), &[1, 0]);
    }
    assert_eq!(ring.lock().rows.len(), RING_ROWS);
    assert_eq!(ring.lock().start, Position(5));
    ring.push(Position(99_999), &vec![0; RING_BYTES]);
    assert_eq!(ring.lock().rows.len(), 1);
}

//! The rows keep their bytes; the extremities of a graph are found by what is cited.

use std::collections::BTreeMap;

use super::{Noted, ends_of};
use crate::{
    events::{EventNumber, RootNumber},
    rooms::{EventMeta, event::flag},
    storage::{Cbor, Position, Record as _},
};

fn bytes(noted: Noted) -> Vec<u8> {
    let mut bytes = Vec::new();
    Cbor(noted).encode(&mut bytes);
    let Cbor(read) = Cbor::<Noted>::decode(&bytes).unwrap();
    assert_eq!(read, noted);
    bytes
}

#[test]
fn what_is_noted_of_an_event_has_these_bytes() {
    assert_eq!(bytes(Noted::default()), b"\xa0");
    assert_eq!(
        bytes(Noted::new(Some(RootNumber(5)), true)),
        b"\xa2\x64told\x05\x6dlacks_members\xf5"
    );
}

#[test]
fn the_ends_of_a_graph_are_what_nothing_accepted_reaches() {
    let meta = |index: i64, flags: u32, prevs: &[u32]| EventMeta {
        position: Position(1),
        flags,
        index,
        prev_events: prevs.iter().copied().map(EventNumber).collect(),
        ..EventMeta::default()
    };
    let old = meta(1, 0, &[]);
    let join = meta(5, 0, &[1]);
    let refused = meta(5, flag::REJECTED_BY_STATE, &[2]);
    let after_refused = meta(6, 0, &[3]);
    let beside = meta(7, 0, &[1]);
    let history = EventMeta {
        position: Position::default(),
        ..meta(8, 0, &[])
    };
    let all = [old, join, refused, after_refused, beside, history];
    let metas: BTreeMap<_, _> = (1..).map(EventNumber).zip(all).collect();
    let ends: Vec<_> = ends_of(&metas, 5).into_iter().map(|end| end.0).collect();
    assert_eq!(ends, [4, 5]);
}

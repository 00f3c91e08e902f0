//! What of a timeline is shown, and in which order.

use ruma::owned_event_id;

use super::*;
use crate::{
    events::{EventNumber, Pdu},
    rooms::EventMeta,
};

/// An event at an index that comes right after another.
fn at(index: i64, follows: i64) -> Found {
    let json = serde_json::json!({
        "type": "m.room.name", "room_id": "!r:x.test", "sender": "@a:x.test", "state_key": "",
        "content": {}, "origin_server_ts": 1, "depth": 1, "prev_events": [], "auth_events": [],
        "hashes": { "sha256": "" }, "signatures": {},
    });
    let pdu = Pdu::from_stored(owned_event_id!("$x"), json.to_string().into(), false);
    let event = StoredEvent {
        number: EventNumber::default(),
        meta: EventMeta::default(),
        pdu: Arc::new(pdu.expect("an event")),
    };
    Found {
        index,
        follows,
        event: Arc::new(event),
        class: Class::Join,
    }
}

/// The indexes shown of events that are looked at from the newest on, and where paging goes on.
fn shown(limit: usize, newest_first: &[(i64, i64)]) -> (Vec<i64>, Option<i64>) {
    let mut finds = Finds::new(limit);
    for (index, follows) in newest_first {
        assert!(!finds.is_full(), "{index} is not needed");
        finds.push(at(*index, *follows));
    }
    let ordered = finds.ordered();
    let indexes = ordered.found.iter().map(|found| found.index);
    (indexes.collect(), ordered.start)
}

#[test]
fn what_came_in_order_stays_in_order() {
    assert_eq!(shown(2, &[(3, 2), (2, 1)]), (vec![2, 3], Some(2)));
    assert_eq!(shown(9, &[(3, 2), (2, 1)]), (vec![2, 3], Some(2)));
    assert_eq!(shown(2, &[]), (vec![], None));
}

#[test]
fn a_late_event_stands_where_it_belongs() {
    let all = [(4, 1), (3, 2), (2, 1), (1, 0)];
    assert_eq!(shown(9, &all), (vec![1, 2, 4, 3], Some(1)));
    assert_eq!(shown(3, &all), (vec![2, 4, 3], Some(2)));
}

#[test]
fn a_late_event_before_the_first_is_left_out_but_comes_when_paging_back() {
    assert_eq!(shown(1, &[(4, 1), (3, 2)]), (vec![3], Some(5)));
    assert_eq!(shown(2, &[(5, 4), (4, 1), (3, 2)]), (vec![3, 5], Some(5)));
}

#[test]
fn many_late_events_stay_where_they_came() {
    let late = i64::try_from(MAX_LATE).expect("few");
    let mut finds = Finds::new(1);
    for index in (0..=late).rev() {
        finds.push(at(100 + index, 0));
    }
    assert!(finds.is_full());
    let found = finds.ordered().found;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].index, 100);
}

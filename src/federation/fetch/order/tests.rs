//! Orders of events.

use ruma::{
    CanonicalJsonObject, MilliSecondsSinceUnixEpoch, OwnedEventId, UInt, owned_room_id,
    owned_server_name, owned_user_id, room_version_rules::RoomVersionRules,
};

use super::*;
use crate::events::{NewPdu, Signer};

/// An event of this depth that cites others.
fn event(depth: u64, prev_events: &[&Verified]) -> Verified {
    let signer = Signer::generate(owned_server_name!("a.test"), &[7; 32]);
    let new = NewPdu {
        room_id: Some(owned_room_id!("!room:a.test")),
        sender: owned_user_id!("@alice:a.test"),
        event_type: "m.room.message".into(),
        state_key: None,
        content: CanonicalJsonObject::new(),
        origin_server_ts: MilliSecondsSinceUnixEpoch(UInt::new_saturating(depth)),
        depth,
        prev_events: prev_events
            .iter()
            .map(|event| event.event_id.clone())
            .collect(),
        auth_events: Vec::new(),
        redacts: None,
        named: None,
    };
    signer
        .build(new, &RoomVersionRules::V11)
        .expect("the event is small")
}

fn ids(events: &[Verified]) -> Vec<OwnedEventId> {
    events.iter().map(|event| event.event_id.clone()).collect()
}

#[test]
fn events_come_after_those_that_they_cite_whatever_their_depths_say() {
    let root = event(50, &[]);
    let left = event(3, &[&root]);
    let right = event(2, &[&root]);
    let merge = event(1, &[&left, &right]);
    let wanted = ids(&[root.clone(), right.clone(), left.clone(), merge.clone()]);
    let one = vec![merge.clone(), left.clone(), right.clone(), root.clone()];
    assert_eq!(ids(&in_order(one)), wanted);
    let other = vec![right, root, merge, left];
    assert_eq!(ids(&in_order(other)), wanted);
}

#[test]
fn what_is_cited_and_not_there_does_not_matter() {
    let absent = event(1, &[]);
    let first = event(2, &[&absent]);
    let second = event(3, &[&first, &absent]);
    let wanted = ids(&[first.clone(), second.clone()]);
    assert_eq!(ids(&in_order(vec![second, first])), wanted);
}

#[test]
fn events_in_a_circle_are_left_out() {
    let alone = event(1, &[]);
    let mut one = event(2, &[]).into_pdu();
    let mut other = event(3, &[]).into_pdu();
    one.prev_events = vec![other.event_id.clone()];
    other.prev_events = vec![one.event_id.clone()];
    let circle = [one, other].map(Verified::from_stored);
    let events = circle.into_iter().chain([alone.clone()]).collect();
    assert_eq!(ids(&in_order(events)), ids(&[alone]));
}

//! What counts as history.

use ruma::{
    CanonicalJsonObject, MilliSecondsSinceUnixEpoch, UInt, owned_room_id, owned_server_name,
    owned_user_id, room_version_rules::RoomVersionRules,
};

use super::*;
use crate::events::{NewPdu, Signer};

fn event(depth: u64, prev_events: &[&Verified]) -> Verified {
    let signer = Signer::generate(owned_server_name!("a.test"), &[7; 32]);
    let ids = prev_events.iter().map(|event| event.event_id.clone());
    let new = NewPdu {
        room_id: Some(owned_room_id!("!room:a.test")),
        sender: owned_user_id!("@alice:a.test"),
        event_type: "m.room.message".into(),
        state_key: None,
        content: CanonicalJsonObject::new(),
        origin_server_ts: MilliSecondsSinceUnixEpoch(UInt::new_saturating(depth)),
        depth,
        prev_events: ids.collect(),
        auth_events: Vec::new(),
        redacts: None,
        named: None,
    };
    signer
        .build(new, &RoomVersionRules::V11)
        .expect("the event is small")
}

#[test]
fn only_what_leads_to_the_gap_is_history() {
    let first = event(1, &[]);
    let second = event(2, &[&first]);
    let aside = event(3, &[&first]);
    let wanted: BTreeSet<_> = [&first, &second].map(|event| event.event_id.clone()).into();
    let events = vec![aside, first, second.clone()];
    let found = connected(events, std::slice::from_ref(&second.event_id));
    let found: BTreeSet<_> = found
        .into_iter()
        .map(|event| event.event_id.clone())
        .collect();
    assert_eq!(found, wanted);
}

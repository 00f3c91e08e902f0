//! Reading events that were fetched.

use ruma::{
    CanonicalJsonObject, MilliSecondsSinceUnixEpoch, UInt, owned_server_name, owned_user_id,
    room_id, room_version_rules::RoomVersionRules,
};

use super::*;
use crate::events::{NewPdu, Signer};

static V11: RoomVersionRules = RoomVersionRules::V11;
static V12: RoomVersionRules = RoomVersionRules::V12;

fn event(room_id: Option<&RoomId>, event_type: &str, rules: &RoomVersionRules) -> Verified {
    let signer = Signer::generate(owned_server_name!("a.test"), &[7; 32]);
    let new = NewPdu {
        room_id: room_id.map(ToOwned::to_owned),
        sender: owned_user_id!("@alice:a.test"),
        event_type: event_type.into(),
        state_key: (event_type == "m.room.create").then(String::new),
        content: CanonicalJsonObject::new(),
        origin_server_ts: MilliSecondsSinceUnixEpoch(UInt::from(1_u32)),
        depth: 1,
        prev_events: Vec::new(),
        auth_events: Vec::new(),
        redacts: None,
        named: None,
    };
    signer.build(new, rules).expect("the event is small")
}

fn raw(event: &Verified) -> Box<RawValue> {
    serde_json::from_slice(&event.json).expect("canonical JSON")
}

#[test]
fn an_event_of_another_room_is_not_taken() {
    let (here, there) = (room_id!("!here:a.test"), room_id!("!there:a.test"));
    let event = event(Some(there), "m.room.message", &V11);
    assert!(parse_of_room(&raw(&event), there, &V11).is_some());
    assert!(parse_of_room(&raw(&event), here, &V11).is_none());
}

#[test]
fn a_create_event_without_a_room_is_that_of_the_room_named_after_it() {
    let create = event(None, "m.room.create", &V12);
    let room = format!("!{}", create.event_id.as_str().trim_start_matches('$'));
    let room = RoomId::parse(room).expect("a hash makes a room ID");
    assert!(parse_of_room(&raw(&create), &room, &V12).is_some());
    let other = room_id!("!04rONMzootFsCEgDpC5h7wz7zpq9Khvx4rDN6snL-X4");
    assert!(parse_of_room(&raw(&create), other, &V12).is_none());
}

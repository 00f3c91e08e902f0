//! Errors, cache keys and rooms without join rules. The algorithm itself is in `tests/it/resolution.rs` and `tests/it/vectors.rs`.

use ruma::event_id;
use serde_json::{Value, json};

use super::*;

const ALICE: &str = "@alice:x.example";
const BOB: &str = "@bob:x.example";

/// An event with the first of these IDs, citing the others; the users are its sender and its state key.
fn event(ids: &[&str], event_type: &str, users: [&str; 2], content: &Value) -> Arc<Pdu> {
    event_at(1, ids, event_type, users, content)
}

/// The same at a depth.
pub(super) fn event_at(
    depth: u64,
    ids: &[&str],
    event_type: &str,
    users: [&str; 2],
    content: &Value,
) -> Arc<Pdu> {
    let (id, auth_events) = ids.split_first().expect("an event has an ID");
    let [sender, state_key] = users;
    let json = json!({
        "type": event_type, "sender": sender, "state_key": state_key, "content": content, "depth": depth, "room_id": "!r:x.example",
        "origin_server_ts": 1, "prev_events": [], "auth_events": auth_events,
    });
    let id = EventId::parse(*id).expect("this is an event ID");
    Arc::new(Pdu::from_stored(id, json.to_string().into(), false).expect("all fields are there"))
}

/// Bob was invited into a room without join rules; on one side he has joined.
fn without_join_rules() -> Resolution {
    let key = (StateEventType::RoomMember, BOB.to_owned());
    let membership = |membership: &str| json!({ "membership": membership });
    let events = [
        event(&["$create"], "m.room.create", [ALICE, ""], &json!({})),
        event(
            &["$alice", "$create"],
            "m.room.member",
            [ALICE, ALICE],
            &membership("join"),
        ),
        event(
            &["$invite", "$create", "$alice"],
            "m.room.member",
            [ALICE, BOB],
            &membership("invite"),
        ),
        event(
            &["$join", "$create", "$invite"],
            "m.room.member",
            [BOB, BOB],
            &membership("join"),
        ),
    ];
    let state = |id: &EventId| StateMap::from([(key.clone(), id.to_owned())]);
    let create = (StateEventType::RoomCreate, String::new());
    let alice = (StateEventType::RoomMember, ALICE.to_owned());
    Resolution {
        version: RoomVersionId::V11,
        conflicted: vec![state(event_id!("$invite")), state(event_id!("$join"))],
        base: [
            (create, event_id!("$create").to_owned()),
            (alice, event_id!("$alice").to_owned()),
        ]
        .into(),
        difference: vec![event_id!("$join").to_owned()],
        subgraph: Vec::new(),
        bodies: events
            .into_iter()
            .map(|event| (event.event_id.clone(), event))
            .collect(),
    }
}

#[test]
fn a_resolution_allows_what_the_rules_allow_in_a_room_without_join_rules() {
    let resolution = without_join_rules();
    let resolved = resolve(&resolution).expect("everything was loaded");
    let key = (StateEventType::RoomMember, BOB.to_owned());
    assert_eq!(
        resolved,
        StateMap::from([(key.clone(), event_id!("$join").to_owned())])
    );
    assert_eq!(
        changes(&resolution, &resolved),
        [(key, Some(event_id!("$join").to_owned()))]
    );
}

#[test]
fn an_event_that_was_not_loaded_is_an_error() {
    let mut resolution = without_join_rules();
    resolution.bodies.remove(event_id!("$alice"));
    let error = resolve(&resolution).expect_err("an event is missing");
    assert!(matches!(error, ResolveError::NotLoaded(id) if id == "$alice"));
}

#[test]
fn a_version_that_is_not_served_is_an_error() {
    let unknown = RoomVersionId::try_from("17").expect("room versions are free text");
    let resolution = Resolution {
        version: unknown.clone(),
        ..without_join_rules()
    };
    assert!(matches!(
        resolve(&resolution),
        Err(ResolveError::Version(version)) if version == unknown
    ));
}

#[test]
fn equal_resolutions_have_equal_cache_keys_whatever_their_order() {
    let resolution = without_join_rules();
    let mut reversed = resolution.clone();
    reversed.conflicted.reverse();
    assert_eq!(resolution.cache_key(), reversed.cache_key());

    let mut other = resolution.clone();
    other.difference.push(event_id!("$alice").to_owned());
    assert_ne!(resolution.cache_key(), other.cache_key());
    let mut other = resolution.clone();
    other.base.clear();
    assert_ne!(resolution.cache_key(), other.cache_key());
    let other = Resolution {
        version: RoomVersionId::V10,
        ..resolution.clone()
    };
    assert_ne!(resolution.cache_key(), other.cache_key());
}

#[test]
fn base_keys_are_those_of_the_events_and_of_their_rules() {
    let rules = version::rules(&RoomVersionId::V11).expect("version 11 is served");
    let resolution = without_join_rules();
    let keys = base_keys(
        &rules.authorization,
        [&**resolution
            .bodies
            .get(event_id!("$join"))
            .expect("it was put there")],
    );
    let expected = [
        (StateEventType::RoomCreate, String::new()),
        (StateEventType::RoomJoinRules, String::new()),
        (StateEventType::RoomPowerLevels, String::new()),
        (StateEventType::RoomMember, BOB.to_owned()),
    ];
    assert_eq!(keys, expected.into());

    // Old join rules in the difference must not replace those that all states have.
    let join_rules = event(
        &["$rules"],
        "m.room.join_rules",
        [ALICE, ""],
        &json!({ "join_rule": "public" }),
    );
    let keys = base_keys(&rules.authorization, [&*join_rules]);
    assert!(keys.contains(&(StateEventType::RoomJoinRules, String::new())));
}

//! Answers as they should not be.

use ruma::{owned_room_id, room_version_rules::RoomVersionRules};
use serde_json::json;

use super::*;

fn event(room_id: Option<&str>, state_key: Option<&str>) -> Bytes {
    let mut event = json!({
        "auth_events": [],
        "content": {},
        "depth": 1,
        "hashes": {},
        "origin_server_ts": 1,
        "prev_events": [],
        "sender": "@zoe:away.org",
        "signatures": {},
        "type": "m.room.topic",
    });
    if let Some(room_id) = room_id {
        event["room_id"] = json!(room_id);
    }
    if let Some(key) = state_key {
        event["state_key"] = json!(key);
    }
    event.to_string().into_bytes().into()
}

#[test]
fn events_of_other_rooms_and_messages_are_no_state() {
    let room_id = owned_room_id!("!far:away.org");
    let texts = [
        event(Some("!far:away.org"), Some("")),
        event(Some("!other:away.org"), Some("")),
        event(Some("!far:away.org"), None),
        event(None, Some("")),
        Bytes::from_static(b"{}"),
    ];

    let found = parsed(&texts, &room_id, &RoomVersionRules::V11);

    assert_eq!(found.len(), 1);
}

#[test]
fn the_texts_of_events_are_parts_of_the_answer() {
    let body = Bytes::from_static(
        br#"{"origin":"away.org","state":[{"a":1},{"b":2}],"auth_chain":[{"c":3}],"event":{"d":4},"more":[]}"#,
    );

    let found = texts(&body).unwrap();

    assert_eq!(found.state, [&b"{\"a\":1}"[..], b"{\"b\":2}"]);
    assert_eq!(found.auth_chain, [&b"{\"c\":3}"[..]]);
    assert_eq!(found.event.as_deref(), Some(&b"{\"d\":4}"[..]));
    for malformed in [
        "",
        "[]",
        "{}",
        r#"{"state":{},"auth_chain":[]}"#,
        r#"{"state":[],"auth_chain":[1"#,
    ] {
        assert!(
            texts(&Bytes::from_static(malformed.as_bytes())).is_err(),
            "{malformed}"
        );
    }
}

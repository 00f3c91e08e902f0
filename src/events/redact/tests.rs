//! Redaction against the library's, and its targets.

use proptest::prelude::*;
use ruma::{CanonicalJsonValue, room_version_rules::RoomVersionRules};

use super::*;
use crate::events::{
    canonical::{self, tests::any_value},
    version,
};

const TYPES: [&str; 10] = [
    "m.room.member",
    "m.room.create",
    "m.room.join_rules",
    "m.room.power_levels",
    "m.room.history_visibility",
    "m.room.redaction",
    "m.room.aliases",
    "m.room.message",
    "m.room.server_acl",
    "org.example.other",
];

const KEYS: [&str; 14] = [
    "membership",
    "join_authorised_via_users_server",
    "third_party_invite",
    "creator",
    "join_rule",
    "allow",
    "users",
    "invite",
    "notifications",
    "history_visibility",
    "redacts",
    "aliases",
    "body",
    "deny",
];

/// A content whose keys are those that redaction looks at.
pub(in crate::events) fn any_content() -> impl Strategy<Value = CanonicalJsonObject> {
    let signed = any_value().prop_map(|value| {
        CanonicalJsonValue::Object(
            [
                ("signed".to_owned(), value),
                ("display_name".to_owned(), "x".into()),
            ]
            .into(),
        )
    });
    let key = prop::sample::select(KEYS.to_vec()).prop_map(str::to_owned);
    prop::collection::btree_map(key, prop_oneof![any_value(), signed], 0..8)
}

pub(in crate::events) fn any_type() -> impl Strategy<Value = &'static str> {
    prop::sample::select(TYPES.to_vec())
}

pub(in crate::events) fn any_rules() -> impl Strategy<Value = &'static RoomVersionRules> {
    prop::sample::select(version::SERVED.to_vec())
        .prop_map(|version| version::rules(&version).expect("served versions have rules"))
}

proptest! {
    #[test]
    fn redacting_twice_changes_nothing_and_is_what_the_library_does(
        event_type in any_type(),
        event_content in any_content(),
        other in prop::collection::btree_map("origin|membership|prev_state|redacts|state_key|x", any_value(), 0..4),
        rules in any_rules(),
    ) {
        let mut event = other;
        event.insert("type".to_owned(), event_type.into());
        event.insert("content".to_owned(), event_content.clone().into());
        let by_library = ruma::canonical_json::redact(event.clone(), &rules.redaction, None).expect("the event has a type");

        let once = redact(&canonical::to_vec(&event), &rules.redaction).expect("the event has a type");
        prop_assert_eq!(&once, &canonical::to_vec(&by_library));
        prop_assert_eq!(&redact(&once, &rules.redaction).expect("the event has a type"), &once);
        prop_assert_eq!(CanonicalJsonValue::from(content(event_type, &event_content, &rules.redaction)), by_library["content"].clone());
    }
}

#[test]
fn the_target_is_where_the_version_says() {
    let redaction = |top_level: &str, content: &str| {
        let json = format!(
            r#"{{{top_level}"auth_events":[],"content":{content},"depth":1,"origin_server_ts":1,"prev_events":[],"room_id":"!r:x.example","sender":"@a:x.example","type":"m.room.redaction"}}"#
        );
        Pdu::from_stored(ruma::event_id!("$e").to_owned(), json.into(), false)
            .expect("the event has all fields")
    };
    let both = redaction(r#""redacts":"$old","#, r#"{"redacts":"$new"}"#);
    assert_eq!(
        target(&both, &RedactionRules::V9).as_deref(),
        Some(ruma::event_id!("$old"))
    );
    assert_eq!(
        target(&both, &RedactionRules::V11).as_deref(),
        Some(ruma::event_id!("$new"))
    );
    let neither = redaction("", r#"{"redacts":7}"#);
    assert_eq!(target(&neither, &RedactionRules::V9), None);
    assert_eq!(target(&neither, &RedactionRules::V11), None);
}

#[test]
fn a_redacted_event_keeps_its_identity() {
    let json = r#"{"auth_events":[],"content":{"body":"x"},"depth":1,"hashes":{"sha256":"h"},"origin_server_ts":1,"prev_events":[],"room_id":"!r:x.example","sender":"@a:x.example","signatures":{},"type":"m.room.message"}"#;
    let pdu = Pdu::from_stored(ruma::event_id!("$e").to_owned(), json.into(), true)
        .expect("the event has all fields");
    let redacted = redacted(&pdu, &RedactionRules::V11).expect("the event is canonical");
    assert_eq!(redacted.json, json.replace(r#"{"body":"x"}"#, "{}"));
    assert_eq!(redacted.content.get(), "{}");
    assert_eq!((redacted.event_id, redacted.rejected), (pdu.event_id, true));
}

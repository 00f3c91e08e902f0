//! What is dropped, kept, and kept as rejected.

use proptest::prelude::*;
use ruma::room_version_rules::RoomVersionRules;
use serde_json::{Value, json};

use super::*;
use crate::events::{
    Pdu,
    canonical::tests::any_value,
    redact::{
        self,
        tests::{any_content, any_rules, any_type},
    },
};

fn message() -> Value {
    json!({
        "auth_events": ["$a"], "content": { "body": "hi" }, "depth": 12, "hashes": { "sha256": "x" }, "origin_server_ts": 1,
        "prev_events": ["$p"], "room_id": "!r:x.example", "sender": "@a:x.example",
        "signatures": { "x.example": { "ed25519:1": "s" } }, "type": "m.room.message",
    })
}

fn with(field: &str, value: Value) -> Value {
    let mut event = message();
    event[field] = value;
    event
}

fn parsed(event: &Value, rules: &RoomVersionRules) -> Result<Parsed, FormatError> {
    parse(event.to_string().as_bytes(), rules)
}

#[test]
fn a_sound_event_is_kept_without_what_is_not_signed() {
    let plain = parsed(&message(), &RoomVersionRules::V10).expect("the event is sound");
    assert!(!plain.rejected);
    for field in ["unsigned", "event_id"] {
        let more = parsed(&with(field, json!({ "age": 1 })), &RoomVersionRules::V10)
            .expect("the event is sound");
        assert_eq!(more.object, plain.object);
        assert_eq!(more.event_id, plain.event_id);
    }
}

#[test]
fn fields_of_a_wrong_type_or_missing_are_refused() {
    for field in [
        "auth_events",
        "content",
        "depth",
        "hashes",
        "origin_server_ts",
        "prev_events",
        "room_id",
        "sender",
        "signatures",
        "type",
    ] {
        let mut event = message();
        event
            .as_object_mut()
            .expect("an event is an object")
            .remove(field);
        assert!(
            parsed(&event, &RoomVersionRules::V11).is_err(),
            "without {field}"
        );
        assert!(
            parsed(&with(field, Value::Null), &RoomVersionRules::V11).is_err(),
            "{field} is null"
        );
    }
    for (field, value) in [
        ("state_key", json!(null)),
        ("state_key", json!(1)),
        ("depth", json!(-1)),
        ("depth", json!(9_007_199_254_740_992_u64)),
        ("origin_server_ts", json!(-1)),
        ("prev_events", json!([1])),
        ("prev_events", json!(["p"])),
        ("auth_events", json!([["$a", {}]])),
        ("sender", json!("@a")),
        ("room_id", json!("r:x.example")),
    ] {
        assert!(
            parsed(&with(field, value.clone()), &RoomVersionRules::V11).is_err(),
            "{field} is {value}"
        );
    }
}

#[test]
fn only_the_create_event_of_version_12_lacks_a_room_id() {
    let mut create = with("type", json!("m.room.create"));
    create
        .as_object_mut()
        .expect("an event is an object")
        .remove("room_id");
    assert!(parsed(&create, &RoomVersionRules::V12).is_ok());
    assert!(parsed(&create, &RoomVersionRules::V11).is_err());
}

#[test]
fn references_are_limited_in_number() {
    let references = |count: usize| {
        Value::from(
            (0..count)
                .map(|number| format!("${number}"))
                .collect::<Vec<_>>(),
        )
    };
    for (field, most) in [("prev_events", 20), ("auth_events", 10)] {
        assert!(parsed(&with(field, references(most)), &RoomVersionRules::V11).is_ok());
        assert!(parsed(&with(field, references(most + 1)), &RoomVersionRules::V11).is_err());
    }
}

#[test]
fn the_size_limit_is_inclusive() {
    let empty = with("content", json!({ "body": "" })).to_string().len();
    let of_size = |bytes: usize| with("content", json!({ "body": "x".repeat(bytes - empty) }));
    assert_eq!(of_size(65_536).to_string().len(), 65_536);
    assert!(parsed(&of_size(65_536), &RoomVersionRules::V11).is_ok());
    assert!(matches!(
        parsed(&of_size(65_537), &RoomVersionRules::V11),
        Err(FormatError::TooLarge)
    ));
}

#[test]
fn identifiers_long_in_bytes_only_are_rejected_in_old_versions_and_dropped_in_new_ones() {
    let check = |state_key: String, in_v10: Option<bool>, in_v11: Option<bool>| {
        let event = with("state_key", state_key.into());
        let rejected = |rules| parsed(&event, rules).ok().map(|parsed| parsed.rejected);
        assert_eq!(
            (
                rejected(&RoomVersionRules::V10),
                rejected(&RoomVersionRules::V11)
            ),
            (in_v10, in_v11)
        );
    };
    check("x".repeat(255), Some(false), Some(false));
    check("x".repeat(256), None, None);
    check("é".repeat(127), Some(false), Some(false));
    check("é".repeat(128), Some(true), None);
    check("é".repeat(255), Some(true), None);
    check("é".repeat(256), None, None);
}

/// An event in which some fields are replaced.
fn any_event() -> impl Strategy<Value = CanonicalJsonObject> {
    const FIELDS: [&str; 16] = [
        "auth_events",
        "content",
        "depth",
        "hashes",
        "origin_server_ts",
        "prev_events",
        "room_id",
        "sender",
        "signatures",
        "type",
        "state_key",
        "redacts",
        "unsigned",
        "event_id",
        "membership",
        "x",
    ];
    let id = |sigil: char| move |text: String| CanonicalJsonValue::String(format!("{sigil}{text}"));
    let value = prop_oneof![
        any_value(),
        any_type().prop_map(CanonicalJsonValue::from),
        any_content().prop_map(CanonicalJsonValue::Object),
        "\\PC{0,5}(:x\\.example)?".prop_map(id('@')),
        "\\PC{0,5}(:x\\.example)?".prop_map(id('!')),
        "\\PC{0,5}(:x\\.example)?".prop_map(id('$')),
        prop::collection::vec("\\PC{0,5}(:x\\.example)?".prop_map(id('$')), 0..4)
            .prop_map(CanonicalJsonValue::Array),
    ];
    prop::collection::btree_map(prop::sample::select(FIELDS.to_vec()), value, 0..4).prop_map(
        |replaced| {
            let mut event =
                canonical::parse(message().to_string().as_bytes()).expect("the event is canonical");
            event.extend(
                replaced
                    .into_iter()
                    .map(|(field, value)| (field.to_owned(), value)),
            );
            event
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn what_passes_can_be_stored_and_redacted(event in any_event(), rules in any_rules()) {
        if let Ok(parsed) = check(event.into(), rules) {
            let json = parsed.to_vec();
            let pdu = Pdu::from_stored(parsed.event_id.clone(), json.into(), parsed.rejected);
            let pdu = pdu.expect("what passes the format check can be stored");
            let redacted = redact::redacted(&pdu, &rules.redaction).expect("a stored event can be redacted");
            let again = parse(&redacted.json, rules).expect("a redacted event is sound");
            prop_assert_eq!(again.event_id, parsed.event_id);
        }
    }
}

//! Tests of the client form.

use std::sync::Arc;

use ruma::{EventId, owned_event_id, room_id};
use serde_json::{Value, json};

use super::{EventForm, Unsigned, event_json};
use crate::{
    events::{EventNumber, Pdu},
    rooms::{Class, EventMeta, StoredEvent},
};

fn stored(event_id: &EventId, json: &Value) -> StoredEvent {
    let text = json.to_string();
    let pdu = Pdu::from_stored(event_id.to_owned(), text.into(), false).expect("a PDU");
    let timestamp = u64::from(pdu.origin_server_ts.0);
    StoredEvent {
        number: EventNumber(1),
        meta: EventMeta {
            timestamp,
            ..EventMeta::default()
        },
        pdu: Arc::new(pdu),
    }
}

fn message() -> Value {
    json!({
        "auth_events": [], "content": { "body": "a \"b\"", "msgtype": "m.text" }, "depth": 3,
        "hashes": { "sha256": "" }, "origin_server_ts": 1_000, "prev_events": [], "room_id": "!r:hearth.test",
        "sender": "@alice:hearth.test", "signatures": {}, "type": "m.room.message",
    })
}

fn form(event: &StoredEvent, form: EventForm<'_>, unsigned: &Unsigned) -> Value {
    serde_json::from_str(event_json(event, form, unsigned, 1_500).get()).expect("JSON")
}

#[test]
fn a_message_has_the_fields_of_the_client_format() {
    let event = stored(&owned_event_id!("$one"), &message());
    let sync = json!({
        "content": { "body": "a \"b\"", "msgtype": "m.text" }, "event_id": "$one", "origin_server_ts": 1_000,
        "sender": "@alice:hearth.test", "type": "m.room.message", "unsigned": { "age": 500 },
    });
    let unsigned = Unsigned::default();
    assert_eq!(form(&event, EventForm::Sync, &unsigned), sync);
    let mut client = sync;
    client["room_id"] = "!r:hearth.test".into();
    let room_id = room_id!("!r:hearth.test");
    assert_eq!(form(&event, EventForm::Client(room_id), &unsigned), client);
    let mut federation = message();
    federation["event_id"] = "$one".into();
    federation["unsigned"] = json!({ "age": 500 });
    assert_eq!(form(&event, EventForm::Federation, &unsigned), federation);
}

#[test]
fn text_that_needs_escaping_is_escaped() {
    let mut topic = message();
    topic["type"] = "my\"type\\".into();
    topic["state_key"] = "a\n\"b\"".into();
    let event = stored(&owned_event_id!("$one"), &topic);
    let shown = form(&event, EventForm::Sync, &Unsigned::default());
    assert_eq!(shown["type"], topic["type"]);
    assert_eq!(shown["state_key"], topic["state_key"]);
}

#[test]
fn a_redaction_names_its_target_in_both_places() {
    let mut old = message();
    old["type"] = "m.room.redaction".into();
    old["redacts"] = "$target".into();
    old["content"] = json!({});
    let mut with_reason = old.clone();
    with_reason["content"] = json!({ "reason": "spam" });
    let mut new = message();
    new["type"] = "m.room.redaction".into();
    new["content"] = json!({ "redacts": "$target", "reason": "spam" });
    for redaction in [old, with_reason, new] {
        let event = stored(&owned_event_id!("$one"), &redaction);
        let shown = form(&event, EventForm::Sync, &Unsigned::default());
        assert_eq!(shown["redacts"], "$target");
        assert_eq!(shown["content"]["redacts"], "$target");
        let reason = redaction["content"].get("reason");
        assert_eq!(shown["content"].get("reason"), reason);
    }
}

#[test]
fn unsigned_says_what_was_replaced_and_redacted() {
    let mut name = message();
    name["type"] = "m.room.name".into();
    name["state_key"] = "".into();
    let before = stored(&owned_event_id!("$before"), &name);
    let mut redaction = message();
    redaction["type"] = "m.room.redaction".into();
    redaction["content"] = json!({ "redacts": "$one" });
    let event = stored(&owned_event_id!("$one"), &name);
    let unsigned = Unsigned {
        transaction_id: Some("t\"1".to_owned()),
        replaces: Some(Arc::new(before)),
        redacted_because: Some(Arc::new(stored(&owned_event_id!("$redaction"), &redaction))),
        membership: Some(Class::Join),
        relations: serde_json::value::to_raw_value(&json!({ "m.thread": {} })).ok(),
    };
    let shown = form(&event, EventForm::Sync, &unsigned)["unsigned"].clone();
    assert_eq!(shown["age"], 500);
    assert_eq!(shown["transaction_id"], "t\"1");
    assert_eq!(shown["prev_content"], name["content"]);
    assert_eq!(shown["replaces_state"], "$before");
    assert_eq!(shown["membership"], "join");
    assert_eq!(shown["m.relations"], json!({ "m.thread": {} }));
    assert_eq!(shown["redacted_because"]["event_id"], "$redaction");
    assert_eq!(shown["redacted_because"]["redacts"], "$one");
}

//! Threads and relations: their rows, and what random events make of them.

use proptest::prelude::*;
use ruma::OwnedEventId;
use serde_json::json;

use super::*;
use crate::{
    rooms::{
        Extra, NewEvent, Preset, TypeNumber, object,
        relations::RelationRow,
        tests::{alice, bob, message, plan, rooms},
    },
    storage::Record,
};

#[test]
fn the_rows_keep_their_bytes() {
    let mut bytes = Vec::new();
    let thread = ThreadRow {
        count: 2,
        latest: EventNumber(7),
        latest_index: -3,
    };
    Stamped(Position(1), thread).encode(&mut bytes);
    assert_eq!(
        Stamped::<ThreadRow>::decode(&bytes),
        Ok(Stamped(Position(1), thread))
    );
    assert_eq!(
        bytes,
        [
            &[0, 0, 0, 0, 0, 0, 0, 1, 0xa3][..],
            b"\x65count\x02",
            b"\x66latest\x07",
            b"\x6clatest_index\x22"
        ]
        .concat()
    );

    let mut bytes = Vec::new();
    let row = RelationRow {
        event: EventNumber(1),
        sender: UserNumber(2),
        event_type: TypeNumber(3),
    };
    row.encode(&mut bytes);
    assert_eq!(bytes, [0, 0, 0, 1, 0, 0, 0, 2, 0, 3]);
    assert_eq!(RelationRow::decode(&bytes), Ok(row));
}

/// What is done to the event of that number, counted from the newest.
#[derive(Clone, Copy, Debug)]
enum Step {
    Say,
    Reply(usize),
    Edit(usize),
    Redact(usize),
}

fn steps() -> impl Strategy<Value = Vec<(bool, Step)>> {
    let step = prop_oneof![
        Just(Step::Say),
        (0..6_usize).prop_map(Step::Reply),
        (0..6_usize).prop_map(Step::Edit),
        (0..6_usize).prop_map(Step::Redact),
    ];
    prop::collection::vec((any::<bool>(), step), 1..40)
}

async fn check(steps: Vec<(bool, Step)>) {
    let rooms = rooms().await;
    let room = plan(&alice(), Preset::PublicChat, ruma::RoomVersionId::V12);
    let room_id = rooms.create(room).await.unwrap();
    rooms.join(&bob(), &room_id, Extra::new()).await.unwrap();
    let room = rooms.resident(&room_id).unwrap();
    let mut events: Vec<OwnedEventId> = Vec::new();
    let mut in_flight = Vec::new();
    for (is_alice, step) in steps {
        let sender = if is_alice { alice() } else { bob() };
        let target = |back: usize| events.iter().rev().nth(back).cloned();
        let related = |rel_type: &str, back: usize| {
            let relates_to = json!({ "rel_type": rel_type, "event_id": target(back)? });
            let content = object(json!({ "body": "x", "m.relates_to": relates_to })).unwrap();
            Some(NewEvent {
                content,
                ..message(&sender, "x")
            })
        };
        let event = match step {
            Step::Say => Some(message(&sender, "x")),
            Step::Reply(back) => related("m.thread", back),
            Step::Edit(back) => related("m.replace", back),
            Step::Redact(back) => target(back).map(|target| NewEvent {
                event_type: ruma::events::TimelineEventType::RoomRedaction,
                redacts: Some(target),
                content: ruma::CanonicalJsonObject::new(),
                ..message(&sender, "x")
            }),
        };
        let Some(event) = event else { continue };
        let is_message = event.redacts.is_none();
        let mut writer = rooms.write(room).await.unwrap();
        // What the rules refuse did not happen.
        if let Ok(sent) = writer.send(event).await {
            if is_message {
                events.push(sent.event_id.clone());
            }
            in_flight.push(sent);
        }
    }
    for sent in in_flight {
        sent.durable().await.unwrap();
    }
    let snapshot = rooms.store.snapshot().unwrap();
    assert_eq!(rooms.verify(&snapshot, room).unwrap(), []);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn rows_agree_with_the_events_whatever_is_said_and_redacted(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(check(steps));
    }
}

//! Places in a timeline as text.

use serde_json::json;

use super::*;
use crate::{
    clock::Clock,
    rooms::{
        Extra, NewEvent, Preset, Rendering,
        client_event::{EventForm, Viewer},
        object,
        tests::{alice, bob, message, on, plan},
    },
    storage::Store,
};

#[test]
fn a_place_survives_being_printed() {
    for index in [0, 1, -1, 35, 36, -36, 1 << 40, i64::MAX, i64::MIN] {
        let place = Place(index);
        assert_eq!(place.to_string().parse(), Ok(place));
    }
    assert_eq!(Place(36).to_string(), "t10");
}

#[test]
fn other_text_is_no_place() {
    for text in [
        "",
        "t",
        "s1.2~3.4",
        "t+1",
        "t1.5",
        "tzzzzzzzzzzzzzzzz",
        "10",
    ] {
        assert_eq!(text.parse::<Place>(), Err(NoPlace), "{text}");
    }
}

/// A room of so many messages, each with an edit and a reply in its thread, on a store that nothing is remembered of.
async fn busy_room(messages: usize) -> (Rooms, Store, ruma::OwnedRoomId) {
    let (store, clock) = (Store::memory(), Clock::seeded(1_700_000_000_000, 7));
    let rooms = on(store.clone(), clock.clone()).await;
    let plan = plan(&alice(), Preset::PublicChat, ruma::RoomVersionId::V12);
    let room_id = rooms.create(plan).await.unwrap();
    rooms.join(&bob(), &room_id, Extra::new()).await.unwrap();
    for _ in 0..messages {
        let event_id = rooms.send(&room_id, message(&alice(), "x")).await.unwrap();
        for rel_type in ["m.replace", "m.thread"] {
            let relates_to = json!({ "rel_type": rel_type, "event_id": event_id });
            let content = json!({ "m.relates_to": relates_to, "m.new_content": {} });
            let content = object(content).unwrap();
            let event = NewEvent {
                content,
                ..message(&alice(), "x")
            };
            rooms.send(&room_id, event).await.unwrap();
        }
    }
    let cold = on(store.clone(), clock).await;
    (cold, store, room_id)
}

/// Calls into the engine for one page of this length, with all that is told of its events.
async fn reads_for(limit: usize) -> u64 {
    let (rooms, store, room_id) = busy_room(60).await;
    let room = rooms.resident(&room_id).unwrap();
    let user = rooms.accounts.intern(&[&bob()]).await.unwrap()[0];
    let snapshot = store.snapshot().unwrap();
    let before = store.stats().reads;

    let mut sight = rooms.sight(&snapshot, &bob(), user, room).unwrap();
    let query = PageQuery {
        order: Order::Backward,
        from: Place(i64::MAX),
        to: None,
        limit,
    };
    let page = rooms.page(&snapshot, &mut sight, query, |_| true).unwrap();
    let events: Vec<_> = page.events.into_iter().map(|placed| placed.event).collect();
    let mut unsigned = rooms.unsigned(&snapshot, room, &events).unwrap();
    let viewer = Viewer { user, device: 1 };
    rooms
        .transaction_ids(&snapshot, room, viewer, &events, &mut unsigned)
        .unwrap();
    let rendering = Rendering {
        form: EventForm::Client(&room_id),
        now_ms: 0,
    };
    rooms
        .bundle(&snapshot, &mut sight, rendering, &events, &mut unsigned)
        .unwrap();

    assert_eq!(events.len(), limit);
    let told = unsigned
        .iter()
        .filter(|unsigned| unsigned.relations.is_some())
        .count();
    assert_eq!(told, limit / 3);
    store.stats().reads - before
}

#[tokio::test]
async fn a_long_page_takes_no_more_reads_than_a_short_one() {
    let (short, long) = (reads_for(9).await, reads_for(150).await);

    assert!(long <= short, "{short} reads for 9 events, {long} for 150");
    assert!(long <= 30, "{long} reads");
}

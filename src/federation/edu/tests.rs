//! What other servers tell of their users, true and false.

use std::time::Duration;

use ruma::{events::room::member::MembershipState, server_name};
use serde_json::{Value, json, value::to_raw_value};

use super::*;
use crate::{
    ephemeral::Volatile,
    federation::sender::tests::{World, alice, bob, carol},
    storage::Order,
};

fn two() -> &'static ServerName {
    server_name!("two.example")
}

fn three() -> &'static ServerName {
    server_name!("three.example")
}

impl World {
    async fn hear(&self, origin: &ServerName, edu_type: &str, content: Value) {
        let edu = json!({ "edu_type": edu_type, "content": content });
        let edu = Raw::from_json(to_raw_value(&edu).unwrap());
        self.federation.receive_edu(origin, edu).await;
    }

    fn typing(&self) -> Vec<OwnedUserId> {
        let room = self.rooms.resident(&self.room).unwrap();
        let typing = self.ephemeral.typing_since(room, None);
        typing.unwrap_or_default()
    }

    fn receipts(&self) -> Vec<(String, String, u64)> {
        let snapshot = self.federation.inner.store.snapshot().unwrap();
        let room = self.rooms.resident(&self.room).unwrap();
        let reader = UserNumber(u32::MAX);
        let receipts = self
            .ephemeral
            .receipts_since(&snapshot, room, Position::default(), reader);
        let mut found = Vec::new();
        for (event, kinds) in receipts.unwrap().unwrap_or_default() {
            for (user, receipt) in kinds.into_values().flatten() {
                found.push((event.to_string(), user.to_string(), receipt.ts));
            }
        }
        found
    }

    fn newest_event(&self) -> OwnedEventId {
        let snapshot = self.federation.inner.store.snapshot().unwrap();
        let room = self.rooms.resident(&self.room).unwrap();
        let newest = self
            .rooms
            .timeline(&snapshot, room, i64::MAX, Order::Backward, 1);
        newest.unwrap()[0].event.event_id().to_owned()
    }
}

#[tokio::test]
async fn typing_is_believed_of_own_users_in_the_room_only() {
    let world = World::new().await;
    let typing = |user: OwnedUserId, is_typing: bool| json!({ "room_id": world.room, "user_id": user, "typing": is_typing });
    world.hear(two(), "m.typing", typing(bob(), true)).await;
    assert_eq!(world.typing(), [bob()]);
    world.hear(three(), "m.typing", typing(bob(), false)).await;
    world.hear(two(), "m.typing", typing(carol(), true)).await;
    world.hear(two(), "m.typing", typing(alice(), true)).await;
    assert_eq!(world.typing(), [bob()]);
    world.hear(two(), "m.typing", typing(bob(), false)).await;
    assert!(world.typing().is_empty());

    world.set(&bob(), MembershipState::Leave).await;
    world.hear(two(), "m.typing", typing(bob(), true)).await;
    let elsewhere = json!({ "room_id": "!other:two.example", "user_id": bob(), "typing": true });
    world.hear(two(), "m.typing", elsewhere).await;
    for malformed in [json!({}), json!([]), json!({ "room_id": 5 })] {
        for edu_type in ["m.typing", "m.receipt", "m.presence", "m.unheard_of"] {
            world.hear(two(), edu_type, malformed.clone()).await;
        }
    }
    let none = Raw::from_json(to_raw_value(&json!(7)).unwrap());
    world.federation.receive_edu(two(), none).await;
    assert!(world.typing().is_empty());
}

#[tokio::test]
async fn receipts_are_believed_of_own_users_and_wait_for_their_events() {
    let world = World::new().await;
    world.say("a").await;
    let event = world.newest_event();
    let receipt = |event: &str, ts: u64| json!({ "event_ids": [event], "data": { "ts": ts } });
    let content = json!({
        world.room.as_str(): {
            "m.read": {
                bob().as_str(): receipt(event.as_str(), 5),
                carol().as_str(): receipt(event.as_str(), 6),
                "@eve:two.example": receipt(event.as_str(), 7),
                "nobody": receipt(event.as_str(), 8),
            },
            "m.read.private": { bob().as_str(): receipt(event.as_str(), 9) },
        },
        "!other:two.example": { "m.read": { bob().as_str(): receipt(event.as_str(), 10) } },
        "nowhere": 5,
    });
    world.hear(two(), "m.receipt", content).await;
    let of_bob = (event.to_string(), bob().to_string(), 5);
    assert_eq!(world.receipts(), [of_bob]);

    // What names no event is passed over; what names one of the future waits, and the one of the past changes nothing.
    let read =
        |receipt: Value| json!({ world.room.as_str(): { "m.read": { bob().as_str(): receipt } } });
    let nothing = json!({ "event_ids": [], "data": { "ts": 1 } });
    world.hear(two(), "m.receipt", read(nothing)).await;
    let future = read(receipt("$not-here-yet", 11));
    world.hear(two(), "m.receipt", future).await;
    assert_eq!(world.receipts().len(), 1);
    let waiting = &world.federation.inner.sender.receipts;
    let found = waiting.take(ruma::event_id!("$not-here-yet"));
    assert_eq!(found.len(), 1);
    assert!(waiting.take(ruma::event_id!("$not-here-yet")).is_empty());
}

#[tokio::test]
async fn a_receipt_that_names_no_event_is_told_until_one_does() {
    let world = World::new().await;
    world.say("a").await;
    let event = world.newest_event();
    let read = |event: &str, ts: u64| {
        let receipt = json!({ "event_ids": [event], "data": { "ts": ts } });
        json!({ world.room.as_str(): { "m.read": { bob().as_str(): receipt } } })
    };
    let of_bob = |event: &str, ts: u64| [(event.to_owned(), bob().to_string(), ts)];
    world.hear(two(), "m.receipt", read("something", 5)).await;
    assert_eq!(world.receipts(), of_bob("something", 5));
    world.hear(two(), "m.receipt", read("other", 6)).await;
    assert_eq!(world.receipts(), of_bob("other", 6));
    for nothing in ["", &"a".repeat(256), &format!("${}", "a".repeat(255))] {
        world.hear(two(), "m.receipt", read(nothing, 7)).await;
    }
    assert_eq!(world.receipts(), of_bob("other", 6));

    let known = read(event.as_str(), 8);
    world.hear(two(), "m.receipt", known).await;
    assert_eq!(world.receipts(), of_bob(event.as_str(), 8));
    world.hear(two(), "m.receipt", read("something", 9)).await;
    assert_eq!(world.receipts(), of_bob(event.as_str(), 8));
}

#[tokio::test]
async fn presence_is_believed_of_own_users_in_shared_rooms() {
    let world = World::new().await;
    let reader = world.who(alice()).await.number;
    let update =
        |user: &str| json!({ "user_id": user, "presence": "online", "last_active_ago": 5 });
    let content = json!({ "push": [
        update("@stranger:two.example"),
        update(carol().as_str()),
        { "user_id": "@bob:two.example" },
        update(bob().as_str()),
    ] });
    world.hear(two(), "m.presence", content).await;
    world.ephemeral.tell_presence().await.unwrap();
    let snapshot = world.federation.inner.store.snapshot().unwrap();
    let since = Some(Volatile {
        count: 0,
        ..world.ephemeral.volatile()
    });
    let told = world
        .ephemeral
        .presence_since(&snapshot, reader, since, &[]);
    let told: Vec<_> = told.unwrap().into_iter().map(|told| told.sender).collect();
    assert_eq!(told, [bob()]);
    world.later(Duration::from_secs(60).as_secs()).await;
}

#[test]
fn waiting_receipts_are_bounded_and_the_old_ones_go_first() {
    let waiting = WaitingReceipts::default();
    let receipt = |number: usize| RemoteReceipt {
        user: UserNumber(1),
        new: NewReceipt {
            kind: ReceiptKind::Public,
            event: OwnedEventId::try_from(format!("$event{number}")).unwrap(),
            thread: ReceiptThread::Unthreaded,
        },
        ts: 0,
    };
    let has = |number: usize| {
        let event = receipt(number).new.event;
        !waiting.take(&event).is_empty()
    };
    waiting.add(RoomNumber(1), vec![receipt(1)], 0);
    let many = (2..=10_000).map(receipt).collect();
    waiting.add(RoomNumber(1), many, 400_000);
    waiting.add(RoomNumber(1), vec![receipt(10_001)], 500_000);
    assert!(!has(10_001), "there is no place");
    waiting.add(RoomNumber(1), vec![receipt(10_002)], 601_000);
    assert!(has(10_002) && !has(1) && has(2));
}

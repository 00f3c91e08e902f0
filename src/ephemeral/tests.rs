//! Typing, presence and receipts on a store in memory, with a clock that is moved by hand.

use std::time::Duration;

use ruma::{OwnedRoomId, RoomVersionId, UserId, presence::PresenceState, server_name};

use super::*;
use crate::{
    accounts::Settings,
    rooms::{CreateRoom, Extra, Preset, identity},
    telemetry::Metrics,
};

struct World {
    ephemeral: Ephemeral,
    room_id: OwnedRoomId,
    room: RoomNumber,
    alice: Who,
    bob: Who,
}

impl World {
    async fn new() -> Self {
        let clock = Clock::seeded(1_700_000_000_000, 7);
        let store = Store::memory_with(clock.clone());
        let name = server_name!("example.org").to_owned();
        let signer = identity::signer(&store, &clock, name.clone())
            .await
            .unwrap();
        let metrics = Metrics::new();
        let accounts = Accounts::new(
            store.clone(),
            clock.clone(),
            name,
            Settings::default(),
            &metrics,
        );
        let config = rooms::Config::default();
        let rooms = Rooms::new(
            store.clone(),
            clock.clone(),
            signer,
            accounts.clone(),
            config,
        )
        .unwrap();
        let (alice, bob) = (who(&accounts, "alice").await, who(&accounts, "bob").await);
        let plan = CreateRoom {
            creator: alice.id.clone(),
            preset: Preset::PublicChat,
            is_published: false,
            version: Some(RoomVersionId::V11),
            alias: None,
            name: None,
            topic: None,
            invite: Vec::new(),
            is_direct: false,
            creation_content: Extra::new(),
            initial_state: Vec::new(),
            power_levels: Extra::new(),
        };
        let room_id = rooms.create(plan).await.unwrap();
        rooms.join(&bob.id, &room_id, Extra::new()).await.unwrap();
        let room = rooms.resident(&room_id).unwrap();
        let ephemeral = Ephemeral::new(store, clock, accounts, rooms, Config::default());
        Self {
            ephemeral,
            room_id,
            room,
            alice,
            bob,
        }
    }

    fn later(&self, seconds: u64) {
        self.ephemeral
            .inner
            .clock
            .advance(Duration::from_secs(seconds));
    }

    /// What bob is told of alice's presence.
    fn alice_since(&self, since: Volatile) -> Option<PresenceContent> {
        let snapshot = self.ephemeral.inner.store.snapshot().unwrap();
        let told = self
            .ephemeral
            .presence_since(&snapshot, self.bob.number, Some(since), &[]);
        let told = told
            .unwrap()
            .into_iter()
            .find(|event| event.sender == self.alice.id);
        told.map(|event| event.content)
    }
}

async fn who(accounts: &Accounts, name: &str) -> Who {
    let id = UserId::parse(format!("@{name}:example.org")).unwrap();
    let number = accounts.intern(&[&id]).await.unwrap()[0];
    Who { number, id }
}

#[tokio::test]
async fn typing_ends_by_itself_and_old_tokens_are_told() {
    let world = World::new().await;
    let ephemeral = &world.ephemeral;
    let before = ephemeral.volatile();
    let timeout = Some(Duration::from_secs(10));
    ephemeral
        .set_typing(&world.alice, &world.room_id, timeout)
        .await
        .unwrap();
    let during = ephemeral.volatile();

    assert_eq!(
        ephemeral.typing_since(world.room, Some(before)),
        Some(vec![world.alice.id.clone()])
    );
    assert_eq!(ephemeral.typing_since(world.room, Some(during)), None);
    assert!(ephemeral.typing_since(world.room, None).is_some());
    assert_eq!(ephemeral.end_typing(), Some(Duration::from_secs(10)));
    // Typing on is no news, but goes on for longer.
    world.later(8);
    ephemeral
        .set_typing(&world.alice, &world.room_id, timeout)
        .await
        .unwrap();
    world.later(8);
    assert_eq!(ephemeral.end_typing(), Some(Duration::from_secs(2)));
    assert_eq!(ephemeral.typing_since(world.room, Some(during)), None);
    world.later(2);
    assert_eq!(ephemeral.end_typing(), None);
    for since in [before, during] {
        assert_eq!(
            ephemeral.typing_since(world.room, Some(since)),
            Some(Vec::new())
        );
    }
    assert_eq!(ephemeral.typing_since(world.room, None), None);
    let of_another_process = Volatile {
        start: before.start + 1,
        count: 0,
    };
    assert_eq!(
        ephemeral.typing_since(world.room, Some(of_another_process)),
        None
    );
}

#[tokio::test]
async fn who_is_not_heard_of_becomes_idle_and_then_offline() {
    let world = World::new().await;
    let ephemeral = &world.ephemeral;
    let start = ephemeral.volatile();
    let syncing = ephemeral.syncing(&world.alice, &PresenceState::Online);
    assert_eq!(world.alice_since(start), None, "nobody was told yet");
    assert!(ephemeral.tell_presence().await.unwrap());
    let told = world.alice_since(start).unwrap();
    assert_eq!(
        (told.presence, told.currently_active),
        ("online", Some(true))
    );
    assert!(!ephemeral.tell_presence().await.unwrap());

    let online = ephemeral.volatile();
    world.later(300);
    assert!(ephemeral.end_presence().is_some());
    ephemeral.tell_presence().await.unwrap();
    assert_eq!(world.alice_since(online).unwrap().presence, "unavailable");
    drop(syncing);
    world.later(59);
    ephemeral.end_presence();
    assert!(!ephemeral.tell_presence().await.unwrap());
    world.later(1);
    assert_eq!(ephemeral.end_presence(), None);
    ephemeral.tell_presence().await.unwrap();
    assert_eq!(world.alice_since(online).unwrap().presence, "offline");
}

#[tokio::test]
async fn many_changes_are_told_once_and_own_ones_only_if_made_by_hand() {
    let world = World::new().await;
    let ephemeral = &world.ephemeral;
    let start = ephemeral.volatile();
    drop(ephemeral.syncing(&world.alice, &PresenceState::Online));
    drop(ephemeral.syncing(&world.alice, &PresenceState::Unavailable));
    ephemeral.tell_presence().await.unwrap();
    assert_eq!(ephemeral.volatile().count, start.count + 1);
    let own = |since| {
        let snapshot = ephemeral.inner.store.snapshot().unwrap();
        let told = ephemeral.presence_since(&snapshot, world.alice.number, since, &[]);
        told.unwrap().len()
    };
    assert_eq!((own(Some(start)), own(None)), (0, 0));

    let status = Some("Lunch".to_owned());
    ephemeral
        .set_presence(&world.alice, &PresenceState::Online, status)
        .unwrap();
    ephemeral.tell_presence().await.unwrap();
    assert_eq!(own(Some(start)), 1);
    assert_eq!(
        world.alice_since(start).unwrap().status_msg.as_deref(),
        Some("Lunch")
    );
    assert!(
        ephemeral
            .syncing(&world.alice, &PresenceState::Offline)
            .is_none()
    );
}

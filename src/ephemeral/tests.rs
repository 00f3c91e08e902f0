//! Typing, presence and receipts on a store in memory, with a clock that is moved by hand.

use std::time::Duration;

use ruma::{OwnedRoomId, RoomVersionId, UserId, presence::PresenceState, server_name};

use super::*;
use crate::rooms::{
    Extra, Preset,
    tests::{Parts, plan},
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
        Self::with(Config::default()).await
    }

    async fn with(config: Config) -> Self {
        let clock = Clock::seeded(1_700_000_000_000, 7);
        let store = Store::memory_with(clock.clone());
        let name = server_name!("example.org");
        let parts = Parts::new(store.clone(), clock.clone(), name, Default::default()).await;
        let Parts {
            accounts, rooms, ..
        } = parts;
        let (alice, bob) = (who(&accounts, "alice").await, who(&accounts, "bob").await);
        let plan = plan(&alice.id, Preset::PublicChat, RoomVersionId::V11);
        let room_id = rooms.create(plan).await.unwrap();
        rooms.join(&bob.id, &room_id, Extra::new()).await.unwrap();
        let room = rooms.resident(&room_id).unwrap();
        let ephemeral = Ephemeral::new(store, clock, accounts, rooms, config);
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

async fn eve(world: &World) -> Who {
    let id = UserId::parse("@eve:two.example").unwrap();
    let accounts = &world.ephemeral.inner.accounts;
    let number = accounts.intern(&[&id]).await.unwrap()[0];
    Who { number, id }
}

#[tokio::test]
async fn other_servers_are_told_when_typing_begins_goes_on_and_ends() {
    let world = World::new().await;
    let ephemeral = &world.ephemeral;
    let typing = async |timeout: Option<u64>| {
        let timeout = timeout.map(Duration::from_secs);
        let done = ephemeral.set_typing(&world.alice, &world.room_id, timeout);
        done.await.unwrap();
    };
    let told = || -> Vec<bool> {
        let changes = ephemeral.take_local().typing.into_iter();
        changes.map(|change| change.is_typing).collect()
    };
    typing(Some(30)).await;
    assert_eq!(told(), [false; 0], "nobody listens");
    typing(None).await;
    ephemeral.watch_local();

    typing(Some(30)).await;
    assert!(!ephemeral.has_nothing_local());
    assert_eq!(told(), [true]);
    for _ in 0..3 {
        world.later(20);
        typing(Some(30)).await;
    }
    assert_eq!(told(), [true], "once again after 40 s");
    world.later(30);
    ephemeral.end_typing();
    assert_eq!(told(), [false]);
    ephemeral.remote_typing(world.room, &eve(&world).await.id, true);
    assert!(ephemeral.has_nothing_local(), "they know of their own");
}

#[tokio::test]
async fn a_user_of_another_server_types_for_a_minute_unless_it_says_more() {
    let world = World::new().await;
    let ephemeral = &world.ephemeral;
    let eve = eve(&world).await.id;
    ephemeral.remote_typing(world.room, &eve, true);
    world.later(59);
    ephemeral.end_typing();
    let now = ephemeral.typing_since(world.room, None);
    assert_eq!(now, Some(vec![eve.clone()]));
    world.later(1);
    ephemeral.end_typing();
    assert_eq!(ephemeral.typing_since(world.room, None), None);
    ephemeral.remote_typing(world.room, &eve, true);
    ephemeral.remote_typing(world.room, &eve, false);
    assert_eq!(ephemeral.typing_since(world.room, None), None);
}

#[tokio::test]
async fn receipts_of_other_servers_are_shown_and_unknown_events_are_named() {
    let world = World::new().await;
    let ephemeral = &world.ephemeral;
    let eve = eve(&world).await;
    let snapshot = ephemeral.inner.store.snapshot().unwrap();
    let order = storage::Order::Backward;
    let placed = ephemeral
        .inner
        .rooms
        .timeline(&snapshot, world.room, i64::MAX, order, 2)
        .unwrap();
    let receipt = |event: &ruma::EventId, ts| RemoteReceipt {
        user: eve.number,
        new: NewReceipt {
            kind: ReceiptKind::Public,
            event: event.to_owned(),
            thread: ReceiptThread::Unthreaded,
        },
        ts,
    };
    let (newest, older) = (placed[0].event.event_id(), placed[1].event.event_id());
    let unknown = ruma::event_id!("$of-the-future");
    let receipts = vec![receipt(newest, 7), receipt(unknown, 8), receipt(older, 9)];
    let left = ephemeral
        .remote_receipts(world.room, receipts)
        .await
        .unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].new.event, unknown);

    let snapshot = ephemeral.inner.store.snapshot().unwrap();
    let shown = ephemeral
        .receipts_since(
            &snapshot,
            world.room,
            storage::Position::default(),
            world.bob.number,
        )
        .unwrap()
        .unwrap();
    let shown: Vec<_> = shown.into_iter().collect();
    assert_eq!(shown.len(), 1);
    assert_eq!(*shown[0].0, *newest.as_str());
    assert_eq!(shown[0].1["m.read"][&eve.id].ts, 7);
    let place = ReceiptPlace {
        room: world.room,
        user: eve.number,
        thread: rooms::ReadThread::All.key(),
        kind: ReceiptKind::Public,
    };
    let at = ephemeral.receipt_at(&snapshot, place).unwrap().unwrap();
    assert_eq!((&*at.event, at.ts, at.thread), (newest, 7, None));
    assert_eq!(ReceiptPlace::decode(&place.encode()), Some(place));
}

#[tokio::test]
async fn presence_of_other_servers_is_seen_in_shared_rooms_until_it_is_old() {
    let config = Config {
        federate_in: true,
        ..Config::default()
    };
    let world = World::with(config).await;
    let ephemeral = &world.ephemeral;
    let eve = eve(&world).await;
    let tell = |state: &str, rooms: Vec<RoomNumber>| {
        ephemeral.remote_presence(vec![RemotePresence {
            user: eve.clone(),
            state: PresenceState::from(state),
            status: Some("Here".to_owned()),
            active_ago_ms: 1_000,
            rooms,
        }]);
    };
    let seen = |since| {
        let snapshot = ephemeral.inner.store.snapshot().unwrap();
        let told = ephemeral.presence_since(&snapshot, world.bob.number, since, &[]);
        let told = told.unwrap().into_iter();
        let mut of_eve = told.filter(|event| event.sender == eve.id);
        of_eve.next().map(|event| event.content)
    };
    let start = ephemeral.volatile();
    tell("online", Vec::new());
    ephemeral.tell_presence().await.unwrap();
    assert_eq!(seen(Some(start)), None, "they share no room");
    tell("unavailable", vec![world.room]);
    ephemeral.tell_presence().await.unwrap();
    let content = seen(Some(start)).unwrap();
    assert_eq!(
        (content.presence, content.status_msg.as_deref()),
        ("unavailable", Some("Here"))
    );
    assert_eq!(content.last_active_ago, Some(1_000));
    let of = ephemeral.presence_of(world.bob.number, &eve.id).await;
    assert_eq!(of.unwrap().presence, "unavailable");

    world.later(20 * 60);
    ephemeral.end_presence();
    assert!(!ephemeral.tell_presence().await.unwrap());
    tell("unavailable", vec![world.room]);
    world.later(20 * 60);
    ephemeral.end_presence();
    assert!(!ephemeral.tell_presence().await.unwrap());
    world.later(10 * 60);
    ephemeral.end_presence();
    assert!(ephemeral.tell_presence().await.unwrap());
    assert_eq!(seen(Some(start)).unwrap().presence, "offline");
}

#[tokio::test]
async fn other_servers_are_told_of_presence_and_again_before_they_forget() {
    let config = Config {
        federate_out: true,
        ..Config::default()
    };
    let world = World::with(config).await;
    let ephemeral = &world.ephemeral;
    ephemeral.watch_local();
    let syncing = ephemeral.syncing(&world.alice, &PresenceState::from("busy"));
    ephemeral.tell_presence().await.unwrap();
    let told = ephemeral.take_local().presence;
    assert_eq!(told.len(), 1);
    assert_eq!(
        (&*told[0].user, told[0].state),
        (&*world.alice.id, "online")
    );
    for (minutes, again) in [(24, 0), (1, 1), (1, 0)] {
        world.later(minutes * 60);
        ephemeral.end_presence();
        ephemeral.tell_presence().await.unwrap();
        let told = ephemeral.take_local().presence.len();
        assert_eq!(told, again, "after {minutes} minutes");
    }
    drop(syncing);
}

//! Creating, sending and reading on a store in memory.

use ruma::{
    OwnedUserId, RoomVersionId, ServerName, UserId, events::TimelineEventType, owned_user_id,
    server_name,
};
use serde_json::json;

use super::*;
use crate::{
    accounts::Settings,
    events::Signer,
    storage::{Batch, Order, Store},
    telemetry::Metrics,
};

pub(super) async fn rooms() -> Rooms {
    let clock = Clock::seeded(1_700_000_000_000, 7);
    on(Store::memory(), clock).await
}

pub(super) async fn on(store: Store, clock: Clock) -> Rooms {
    configured(store, clock, Config::default()).await
}

async fn configured(store: Store, clock: Clock, config: Config) -> Rooms {
    Parts::new(store, clock, server_name!("example.org"), config)
        .await
        .rooms
}

/// The rooms of a server and what they are made of.
pub(crate) struct Parts {
    pub(crate) store: Store,
    pub(crate) clock: Clock,
    pub(crate) signer: Arc<Signer>,
    pub(crate) metrics: Metrics,
    pub(crate) accounts: Accounts,
    pub(crate) rooms: Rooms,
}

impl Parts {
    pub(crate) async fn new(store: Store, clock: Clock, name: &ServerName, config: Config) -> Self {
        let signer = identity::signer(&store, &clock, name.to_owned())
            .await
            .unwrap();
        let metrics = Metrics::new();
        let accounts = Accounts::new(
            store.clone(),
            clock.clone(),
            name.to_owned(),
            Settings::default(),
            &metrics,
        );
        let rooms = Rooms::new(
            store.clone(),
            clock.clone(),
            Arc::clone(&signer),
            accounts.clone(),
            config,
        );
        Self {
            store,
            clock,
            signer,
            metrics,
            accounts,
            rooms: rooms.unwrap(),
        }
    }
}

pub(super) fn alice() -> OwnedUserId {
    owned_user_id!("@alice:example.org")
}

pub(super) fn bob() -> OwnedUserId {
    owned_user_id!("@bob:example.org")
}

pub(crate) fn plan(creator: &UserId, preset: Preset, version: RoomVersionId) -> CreateRoom {
    CreateRoom {
        creator: creator.to_owned(),
        preset,
        is_published: false,
        version: Some(version),
        alias: None,
        name: Some("A room".to_owned()),
        topic: None,
        invite: Vec::new(),
        is_direct: false,
        creation_content: CanonicalJsonObject::new(),
        initial_state: Vec::new(),
        power_levels: CanonicalJsonObject::new(),
    }
}

pub(super) fn message(sender: &UserId, body: &str) -> NewEvent {
    NewEvent {
        sender: sender.to_owned(),
        event_type: TimelineEventType::RoomMessage,
        state_key: None,
        content: object(json!({ "msgtype": "m.text", "body": body })).unwrap(),
        redacts: None,
        transaction: None,
        timestamp: None,
    }
}

fn bodies(rooms: &Rooms, room: RoomNumber) -> Vec<String> {
    let snapshot = rooms.store.snapshot().unwrap();
    assert_eq!(rooms.verify(&snapshot, room).unwrap(), []);
    let page = rooms
        .timeline(&snapshot, room, i64::MIN, Order::Forward, 10_000)
        .unwrap();
    let messages = page
        .iter()
        .filter(|placed| placed.event.pdu.event_type == TimelineEventType::RoomMessage);
    messages
        .map(|placed| {
            let content = placed.event.pdu.content_as::<serde_json::Value>().unwrap();
            content["body"].as_str().unwrap_or("(redacted)").to_owned()
        })
        .collect()
}

#[tokio::test]
async fn rooms_of_every_creatable_version_take_messages_from_members_only() {
    for version in crate::events::version::CREATABLE {
        let rooms = rooms().await;
        let room_id = rooms
            .create(plan(&alice(), Preset::PublicChat, version))
            .await
            .unwrap();
        let room = rooms.resident(&room_id).unwrap();

        rooms
            .send(&room_id, message(&alice(), "one"))
            .await
            .unwrap();
        let refused = rooms.send(&room_id, message(&bob(), "not yet")).await;
        assert!(matches!(refused, Err(Error::NotAllowed(_))), "{refused:?}");
        rooms.join(&bob(), &room_id, Extra::new()).await.unwrap();
        rooms.send(&room_id, message(&bob(), "two")).await.unwrap();

        assert_eq!(bodies(&rooms, room), ["one", "two"]);
        let head = rooms.published(room).unwrap();
        assert_eq!((head.head.joined, head.head.local), (2, 2));
    }
}

#[tokio::test]
async fn many_messages_in_flight_keep_their_order_and_survive_reopening() {
    let clock = Clock::seeded(1_700_000_000_000, 7);
    let store = Store::memory();
    let rooms = on(store.clone(), clock.clone()).await;
    let room_id = rooms
        .create(plan(&alice(), Preset::PrivateChat, RoomVersionId::V12))
        .await
        .unwrap();
    let room = rooms.resident(&room_id).unwrap();

    let mut waiting = Vec::new();
    let wanted: Vec<String> = (0..200).map(|number| number.to_string()).collect();
    for body in &wanted {
        let mut writer = rooms.write(room).await.unwrap();
        waiting.push(writer.send(message(&alice(), body)).await.unwrap());
    }
    for sent in waiting {
        sent.durable().await.unwrap();
    }

    assert_eq!(bodies(&rooms, room), wanted);
    let reopened = on(store, clock).await;
    assert_eq!(bodies(&reopened, room), wanted);
    reopened
        .send(&room_id, message(&alice(), "after"))
        .await
        .unwrap();
    assert_eq!(bodies(&reopened, room).last().unwrap(), "after");
}

#[tokio::test]
async fn a_room_that_cannot_be_made_whole_leaves_nothing_behind() {
    let rooms = rooms().await;
    let mut wrong = plan(&alice(), Preset::PrivateChat, RoomVersionId::V11);
    let content = object(json!({ "membership": "join" })).unwrap();
    wrong.initial_state.push((
        TimelineEventType::RoomMember,
        "@carol:example.org".to_owned(),
        content,
    ));

    let refused = rooms.create(wrong).await;

    assert!(matches!(refused, Err(Error::NotAllowed(_))), "{refused:?}");
    assert!(rooms.all().is_empty());
}

#[tokio::test]
async fn the_same_transaction_sends_once() {
    let rooms = rooms().await;
    let room_id = rooms
        .create(plan(&alice(), Preset::PrivateChat, RoomVersionId::V11))
        .await
        .unwrap();
    let room = rooms.resident(&room_id).unwrap();
    let user = rooms.accounts.intern(&[&alice()]).await.unwrap()[0];
    let again = || NewEvent {
        transaction: Some(Transaction {
            user,
            device: 1,
            id: "t1".into(),
        }),
        ..message(&alice(), "once")
    };

    let (first, second) =
        tokio::join!(rooms.send(&room_id, again()), rooms.send(&room_id, again()));
    let third = rooms.send(&room_id, again()).await.unwrap();

    assert_eq!(first.unwrap(), third);
    assert_eq!(second.unwrap(), third);
    assert_eq!(bodies(&rooms, room), ["once"]);
}

#[tokio::test]
async fn the_same_transaction_on_two_events_redacts_both() {
    let rooms = rooms().await;
    let room_id = rooms
        .create(plan(&alice(), Preset::PrivateChat, RoomVersionId::V11))
        .await
        .unwrap();
    let room = rooms.resident(&room_id).unwrap();
    let user = rooms.accounts.intern(&[&alice()]).await.unwrap()[0];
    let one = rooms
        .send(&room_id, message(&alice(), "one"))
        .await
        .unwrap();
    let two = rooms
        .send(&room_id, message(&alice(), "two"))
        .await
        .unwrap();

    for redacts in [one, two] {
        let redaction = NewEvent {
            event_type: TimelineEventType::RoomRedaction,
            content: CanonicalJsonObject::new(),
            redacts: Some(redacts),
            transaction: Some(Transaction {
                user,
                device: 1,
                id: "t1".into(),
            }),
            ..message(&alice(), "")
        };
        rooms.send(&room_id, redaction).await.unwrap();
    }

    assert_eq!(bodies(&rooms, room), ["(redacted)", "(redacted)"]);
}

#[tokio::test]
async fn memberships_follow_joins_leaves_and_bans() {
    let rooms = rooms().await;
    let room_id = rooms
        .create(plan(&alice(), Preset::PublicChat, RoomVersionId::V12))
        .await
        .unwrap();
    let room = rooms.resident(&room_id).unwrap();
    let user = rooms.accounts.intern(&[&bob()]).await.unwrap()[0];
    let class = |rooms: &Rooms| {
        let snapshot = rooms.store.snapshot().unwrap();
        let listed = rooms
            .user_room(&snapshot, user, room)
            .unwrap()
            .map(|entry| entry.class);
        assert_eq!(listed, rooms.class_of(&snapshot, user, room).unwrap());
        listed
    };
    let act = |sender: OwnedUserId, membership: &str| MembershipAction {
        sender,
        target: bob(),
        membership: membership.into(),
        extra: Extra::new(),
        before: &[],
    };

    assert_eq!(class(&rooms), None);
    rooms
        .set_membership(&room_id, act(alice(), "invite"))
        .await
        .unwrap();
    assert_eq!(class(&rooms), Some(Class::Invite));
    let stripped = rooms
        .stripped_state(&rooms.store.snapshot().unwrap(), user, room)
        .unwrap()
        .unwrap();
    assert!(stripped.contains("A room"), "{stripped}");
    rooms.join(&bob(), &room_id, Extra::new()).await.unwrap();
    assert_eq!(class(&rooms), Some(Class::Join));
    rooms
        .set_membership(&room_id, act(alice(), "ban"))
        .await
        .unwrap();
    assert_eq!(class(&rooms), Some(Class::Ban));
    assert!(rooms.join(&bob(), &room_id, Extra::new()).await.is_err());
    rooms.forget(&bob(), room).await.unwrap();
    assert_eq!(
        rooms
            .user_room(&rooms.store.snapshot().unwrap(), user, room)
            .unwrap(),
        None
    );
    assert_eq!(rooms.published(room).unwrap().head.joined, 1);
}

#[tokio::test]
async fn a_redacted_event_loses_its_content_for_every_reader() {
    let rooms = rooms().await;
    let room_id = rooms
        .create(plan(&alice(), Preset::PublicChat, RoomVersionId::V11))
        .await
        .unwrap();
    let room = rooms.resident(&room_id).unwrap();
    let event_id = rooms
        .send(&room_id, message(&alice(), "secret"))
        .await
        .unwrap();
    let redaction = NewEvent {
        event_type: TimelineEventType::RoomRedaction,
        content: CanonicalJsonObject::new(),
        redacts: Some(event_id.clone()),
        ..message(&alice(), "")
    };

    let redaction_id = rooms.send(&room_id, redaction).await.unwrap();

    assert_eq!(bodies(&rooms, room), ["(redacted)"]);
    let snapshot = rooms.store.snapshot().unwrap();
    let (_, redacted) = rooms.event_by_id(&snapshot, &event_id).unwrap().unwrap();
    let (_, redaction) = rooms
        .event_by_id(&snapshot, &redaction_id)
        .unwrap()
        .unwrap();
    assert_eq!(redacted.meta.redacted_by, Some(redaction.number));
    assert_eq!(redaction.meta.redacts, Some(redacted.number));
}

#[tokio::test]
async fn a_position_leads_to_the_newest_event_that_was_visible_then() {
    let rooms = rooms().await;
    let room_id = rooms
        .create(plan(&alice(), Preset::PrivateChat, RoomVersionId::V11))
        .await
        .unwrap();
    let room = rooms.resident(&room_id).unwrap();
    let mut seen = Vec::new();
    for number in 0..150 {
        rooms
            .send(&room_id, message(&alice(), &number.to_string()))
            .await
            .unwrap();
        let published = rooms.published(room).unwrap();
        seen.push((published.position, published.head.high));
        if number % 3 == 0 {
            // Positions that belong to other rooms lie between.
            rooms.store.submit(Batch::new()).await.unwrap();
        }
    }

    let snapshot = rooms.store.snapshot().unwrap();
    for (position, index) in seen {
        assert_eq!(rooms.index_at(&snapshot, room, position).unwrap(), index);
    }
    assert_eq!(
        rooms.index_at(&snapshot, room, Position(0)).unwrap(),
        i64::MIN
    );
}

#[tokio::test]
async fn the_checker_finds_rows_that_contradict_each_other() {
    let rooms = rooms().await;
    let room_id = rooms
        .create(plan(&alice(), Preset::PublicChat, RoomVersionId::V12))
        .await
        .unwrap();
    let room = rooms.resident(&room_id).unwrap();
    rooms
        .send(&room_id, message(&alice(), "one"))
        .await
        .unwrap();
    let last = EventNumber(rooms.published(room).unwrap().head.next_event - 1);
    let found = async |batch: Batch| {
        rooms.store.submit(batch).await.unwrap();
        let found = rooms
            .verify(&rooms.store.snapshot().unwrap(), room)
            .unwrap();
        found
            .into_iter()
            .map(|violation| violation.invariant)
            .collect::<Vec<_>>()
    };
    assert!(found(Batch::new()).await.is_empty());

    let mut batch = Batch::new();
    batch.delete(&event::BODIES, &(room, last));
    assert_eq!(found(batch).await, ["I1"]);
    let mut batch = Batch::new();
    batch.delete(&event::METAS, &(room, last));
    assert_eq!(found(batch).await, ["I7", "I6", "I10", "I12"]);
}

#[tokio::test]
async fn a_send_that_is_given_up_at_any_moment_does_not_lose_the_head() {
    let rooms = rooms().await;
    let room_id = rooms
        .create(plan(&alice(), Preset::PublicChat, RoomVersionId::V12))
        .await
        .unwrap();
    let room = rooms.resident(&room_id).unwrap();

    for polls in 0..40 {
        // A sender that nobody has heard of makes the writer read.
        let user = UserId::parse(format!("@user{polls}:example.org")).unwrap();
        let rooms_of_task = rooms.clone();
        let room_of_task = room_id.clone();
        let mut joining =
            Box::pin(async move { rooms_of_task.join(&user, &room_of_task, Extra::new()).await });
        for _ in 0..polls {
            if futures_util::FutureExt::now_or_never(&mut joining).is_some() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(joining);
        rooms
            .send(&room_id, message(&alice(), &polls.to_string()))
            .await
            .unwrap();
    }

    let wanted: Vec<String> = (0..40).map(|number| number.to_string()).collect();
    assert_eq!(bodies(&rooms, room), wanted);
}

#[test]
fn metadata_of_events_round_trips() {
    use crate::storage::Record;
    let meta = EventMeta {
        position: Position(77),
        flags: flag::STATE | flag::LOCAL,
        event_type: TypeNumber::MEMBER,
        sender: UserNumber(9),
        timestamp: 1_700_000_000_123,
        received: 1_700_000_000_456,
        root_before: RootNumber(3),
        root_after: RootNumber(4),
        index: -12,
        depth: (1 << 53) - 1,
        ord_all: 300,
        ord_thread: 200,
        ord_room: 1,
        state: Some(StateNumber(0)),
        prev_events: [EventNumber(5), EventNumber(600)].into_iter().collect(),
        auth_states: [StateNumber(1), StateNumber(2)].into_iter().collect(),
        relation: Some((Relation::Thread, EventNumber(4))),
        redacts: Some(EventNumber(0)),
        redacted_by: None,
        thread_root: Some(EventNumber(4)),
    };
    let mut bytes = Vec::new();
    meta.encode(&mut bytes);
    assert_eq!(EventMeta::decode(&bytes).unwrap(), meta);
    for length in 0..bytes.len() {
        assert!(EventMeta::decode(&bytes[..length]).is_err());
    }
}

/// Polls `future` at most `times` times, then drops it: what happens to a request whose client goes away.
async fn give_up_after<F: Future>(times: u32, future: F) {
    let mut future = std::pin::pin!(future);
    for _ in 0..times {
        let poll = |context: &mut std::task::Context<'_>| {
            std::task::Poll::Ready(future.as_mut().poll(context).is_ready())
        };
        if std::future::poll_fn(poll).await {
            return;
        }
        // The closures on other threads, and the committer, get on meanwhile.
        tokio::time::sleep(std::time::Duration::from_micros(100)).await;
    }
}

#[tokio::test]
async fn requests_that_go_away_at_any_moment_leave_the_room_whole() {
    let clock = Clock::seeded(1_700_000_000_000, 7);
    let store = Store::memory();
    // Without caches every event needs a read on another thread, during which the request may go.
    let nothing_cached = Config {
        event_cache: ByteSize(0),
        state_cache: ByteSize(0),
        ..Config::default()
    };
    let rooms = configured(store.clone(), clock.clone(), nothing_cached).await;
    let room_id = rooms
        .create(plan(&alice(), Preset::PublicChat, RoomVersionId::V12))
        .await
        .unwrap();
    let room = rooms.resident(&room_id).unwrap();

    let mut acknowledged = Vec::new();
    for round in 0..300u32 {
        let body = format!("dropped {round}");
        give_up_after(round % 9, rooms.send(&room_id, message(&alice(), &body))).await;
        if round % 7 == 0 {
            let user = UserId::parse(format!("@user{round}:example.org")).unwrap();
            give_up_after(round % 11, rooms.join(&user, &room_id, Extra::new())).await;
        }
        if round % 3 == 0 {
            let body = format!("sent {round}");
            rooms
                .send(&room_id, message(&alice(), &body))
                .await
                .unwrap();
            acknowledged.push(body);
        }
    }

    // What nobody waits for may be in flight still.
    rooms.store.submit(Batch::new()).await.unwrap();
    let found = bodies(&rooms, room);
    let sent: Vec<_> = found
        .iter()
        .filter(|body| body.starts_with("sent"))
        .collect();
    assert!(sent.into_iter().eq(&acknowledged));
    let distinct: std::collections::BTreeSet<_> = found.iter().collect();
    assert_eq!(distinct.len(), found.len(), "nothing is there twice");
    assert_eq!(bodies(&on(store, clock).await, room), found);
}

#[tokio::test]
async fn users_keep_numbers_of_their_own_when_requests_go_away() {
    let rooms = rooms().await;
    let mut numbers = std::collections::BTreeMap::new();
    for round in 0..200u32 {
        let gone = UserId::parse(format!("@gone{round}:example.org")).unwrap();
        give_up_after(round % 5, rooms.accounts.intern(&[&gone])).await;
        let stays = UserId::parse(format!("@stays{round}:example.org")).unwrap();
        for user in [stays, gone] {
            let number = rooms.accounts.intern(&[&user]).await.unwrap()[0];
            let before = numbers.insert(number, user.clone());
            assert!(before.is_none(), "{user} got the number of {before:?}");
        }
    }
}

#[tokio::test]
async fn an_event_that_is_redacted_while_in_flight_keeps_its_position() {
    let clock = Clock::seeded(1_700_000_000_000, 7);
    let store = Store::memory();
    let rooms = on(store.clone(), clock.clone()).await;
    let room_id = rooms
        .create(plan(&alice(), Preset::PrivateChat, RoomVersionId::V11))
        .await
        .unwrap();
    let room = rooms.resident(&room_id).unwrap();

    let mut writer = rooms.write(room).await.unwrap();
    let sent = writer.send(message(&alice(), "regretted")).await.unwrap();
    let redaction = NewEvent {
        event_type: TimelineEventType::RoomRedaction,
        redacts: Some(sent.event_id.clone()),
        content: object(json!({ "redacts": sent.event_id })).unwrap(),
        ..message(&alice(), "")
    };
    let redaction = writer.send(redaction).await.unwrap();
    drop(writer);
    let target = sent.durable().await.unwrap();
    redaction.durable().await.unwrap();

    for rooms in [rooms, on(store, clock).await] {
        assert_eq!(bodies(&rooms, room), ["(redacted)"]);
        let snapshot = rooms.store.snapshot().unwrap();
        let target = rooms.event_in_room(&snapshot, room, &target).unwrap();
        let placed = rooms
            .timeline(&snapshot, room, i64::MIN, Order::Forward, 10_000)
            .unwrap();
        let row = placed
            .iter()
            .find(|placed| Some(placed.event.number) == target.as_ref().map(|event| event.number))
            .unwrap();
        assert_eq!(target.unwrap().meta.position, row.event.meta.position);
        assert_ne!(row.event.meta.position, Position::default());
    }
}

#[tokio::test]
async fn power_levels_that_are_redacted_lose_their_effect_at_once() {
    let clock = Clock::seeded(1_700_000_000_000, 7);
    let store = Store::memory();
    let rooms = on(store.clone(), clock.clone()).await;
    let room_id = rooms
        .create(plan(&alice(), Preset::PublicChat, RoomVersionId::V10))
        .await
        .unwrap();
    let room = rooms.resident(&room_id).unwrap();
    let levels = object(json!({ "users": { alice(): 100 }, "invite": 70 })).unwrap();
    let levels = NewEvent::state(alice(), TimelineEventType::RoomPowerLevels, "", levels);
    let levels = rooms.send(&room_id, levels).await.unwrap();
    let may_invite = async |rooms: &Rooms| {
        let mut writer = rooms.write(room).await.unwrap();
        writer.power_levels().await.unwrap().may_invite(&bob())
    };
    assert!(!may_invite(&rooms).await);

    let redaction = NewEvent {
        event_type: TimelineEventType::RoomRedaction,
        redacts: Some(levels),
        content: CanonicalJsonObject::new(),
        ..message(&alice(), "")
    };
    rooms.send(&room_id, redaction).await.unwrap();

    // In version 10 the level for invites does not survive.
    assert!(may_invite(&rooms).await);
    assert!(may_invite(&on(store, clock).await).await);
}

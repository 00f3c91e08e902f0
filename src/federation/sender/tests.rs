//! The sender on a store in memory, with a clock that is moved by hand and servers that are functions.
//!
//! Users of other servers are in rooms here because the tests join them as if they were of this server: what is tested is
//! who gets what.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use ruma::{
    CanonicalJsonObject, OwnedRoomId, OwnedServerName, OwnedUserId, RoomVersionId, UserId,
    events::room::member::MembershipState, room_id, server_name, user_id,
};
use serde_json::{Value, json};

use super::*;
use crate::{
    accounts::Accounts,
    encryption::Encryption,
    ephemeral::{self, Ephemeral, NewReceipt, ReceiptThread, Who},
    federation::{Config, Parts, Simulated},
    rooms::{CreateRoom, Extra, MembershipAction, NewEvent, Preset, tests::Parts as RoomsParts},
};

/// A test that waits longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// The other servers: what each has got, and which are away.
#[derive(Clone, Default)]
struct Others {
    inner: Arc<Mutex<OthersInner>>,
}

#[derive(Default)]
struct OthersInner {
    away: BTreeSet<OwnedServerName>,
    attempts: usize,
    transactions: Vec<(OwnedServerName, String, Value)>,
}

impl Others {
    fn lock(&self) -> MutexGuard<'_, OthersInner> {
        self.inner.lock().unwrap()
    }

    fn answer(&self, server: OwnedServerName, request: &http::Request<Bytes>) -> bool {
        let mut inner = self.lock();
        inner.attempts += 1;
        if inner.away.contains(&server) {
            return false;
        }
        let body = serde_json::from_slice(request.body()).unwrap();
        let path = request.uri().path().to_owned();
        assert!(
            inner
                .transactions
                .iter()
                .all(|(_, known, _)| *known != path)
        );
        inner.transactions.push((server, path, body));
        true
    }

    fn simulated(&self) -> Simulated {
        let others = self.clone();
        Arc::new(move |server, request| {
            let is_here = others.answer(server, &request);
            Box::pin(async move {
                match is_here {
                    true => Ok(http::Response::new(Bytes::from_static(b"{\"pdus\":{}}"))),
                    false => Err("there is nobody".into()),
                }
            })
        })
    }

    fn leave(&self, server: &ruma::ServerName) {
        self.lock().away.insert(server.to_owned());
    }

    fn come_back(&self) {
        self.lock().away.clear();
    }

    /// The bodies and memberships of all events that a server has got, in order.
    fn events_of(&self, server: &ruma::ServerName) -> Vec<String> {
        let inner = self.lock();
        let mine = inner.transactions.iter().filter(|(to, ..)| to == server);
        let pdus = mine.flat_map(|(_, _, body)| body["pdus"].as_array().unwrap());
        pdus.map(|pdu| {
            let content = &pdu["content"];
            let text = content["body"].as_str().or(content["membership"].as_str());
            text.unwrap().to_owned()
        })
        .collect()
    }

    fn edus_of(&self, server: &ruma::ServerName) -> Vec<Value> {
        let inner = self.lock();
        let mine = inner.transactions.iter().filter(|(to, ..)| to == server);
        let edus = mine.filter_map(|(_, _, body)| body["edus"].as_array());
        edus.flatten().cloned().collect()
    }
}

/// A server with the sender, and a room.
pub(in crate::federation) struct World {
    pub(in crate::federation) clock: Clock,
    others: Others,
    pub(in crate::federation) federation: Federation,
    pub(in crate::federation) rooms: Rooms,
    pub(in crate::federation) ephemeral: Ephemeral,
    accounts: Accounts,
    tasks: Tasks,
    pub(in crate::federation) room: OwnedRoomId,
}

pub(in crate::federation) fn alice() -> OwnedUserId {
    user_id!("@alice:one.example").to_owned()
}

pub(in crate::federation) fn bob() -> OwnedUserId {
    user_id!("@bob:two.example").to_owned()
}

pub(in crate::federation) fn carol() -> OwnedUserId {
    user_id!("@carol:three.example").to_owned()
}

impl World {
    /// A room of alice, with bob and carol of two other servers.
    pub(in crate::federation) async fn new() -> Self {
        let clock = Clock::seeded(1_700_000_000_000, 7);
        let store = Store::memory_with(clock.clone());
        let mut world = Self::on(store, clock, Others::default()).await;
        let plan = CreateRoom {
            creator: alice(),
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
        world.room = world.rooms.create(plan).await.unwrap();
        for user in [bob(), carol()] {
            let joined = world.rooms.join(&user, &world.room, Extra::new());
            joined.await.unwrap();
        }
        world.quiet().await;
        world.others.lock().transactions.clear();
        world.others.lock().attempts = 0;
        world
    }

    async fn on(store: Store, clock: Clock, others: Others) -> Self {
        let name = server_name!("one.example");
        let made = RoomsParts::new(store, clock, name, Default::default()).await;
        let RoomsParts {
            store,
            clock,
            signer,
            metrics,
            accounts,
            rooms,
        } = made;
        let config = ephemeral::Config {
            federate_out: true,
            federate_in: true,
            ..ephemeral::Config::default()
        };
        let ephemeral = Ephemeral::new(
            store.clone(),
            clock.clone(),
            accounts.clone(),
            rooms.clone(),
            config,
        );
        let tasks = Tasks::new(&metrics);
        let encryption = Encryption::new(
            store.clone(),
            clock.clone(),
            accounts.clone(),
            rooms.clone(),
        )
        .unwrap();
        let parts = Parts {
            store,
            clock: clock.clone(),
            signer,
            accounts: accounts.clone(),
            rooms: rooms.clone(),
            ephemeral: ephemeral.clone(),
            encryption,
            metrics: &metrics,
        };
        let federation = Federation::new(parts, others.simulated(), Config::default()).unwrap();
        federation.start(&tasks);
        Self {
            clock,
            others,
            federation,
            rooms,
            ephemeral,
            accounts,
            tasks,
            room: room_id!("!none:one.example").to_owned(),
        }
    }

    /// Stops the sender, as when the process ends, and starts another on the same store.
    async fn restart(self) -> Self {
        self.tasks.stop(Stage::Followers, PATIENCE).await;
        let store = self.federation.inner.store.clone();
        let mut next = Self::on(store, self.clock, self.others).await;
        next.room = self.room;
        next
    }

    /// Waits until nothing is left but what waits for its time.
    pub(in crate::federation) async fn quiet(&self) {
        let quiet = async {
            while !self.federation.is_sender_idle() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(PATIENCE, quiet).await.unwrap();
    }

    pub(in crate::federation) async fn later(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
        self.quiet().await;
    }

    pub(in crate::federation) async fn say(&self, text: &str) {
        let content = CanonicalJsonObject::from([
            ("msgtype".to_owned(), "m.text".to_owned().into()),
            ("body".to_owned(), text.to_owned().into()),
        ]);
        let event = NewEvent {
            sender: alice(),
            event_type: "m.room.message".into(),
            state_key: None,
            content,
            redacts: None,
            transaction: None,
            timestamp: None,
        };
        self.rooms.send(&self.room, event).await.unwrap();
    }

    pub(in crate::federation) async fn set(&self, target: &UserId, membership: MembershipState) {
        let action = MembershipAction {
            sender: alice(),
            target: target.to_owned(),
            membership,
            extra: CanonicalJsonObject::new(),
            before: &[],
        };
        self.rooms.set_membership(&self.room, action).await.unwrap();
    }

    pub(in crate::federation) async fn who(&self, id: OwnedUserId) -> Who {
        let number = self.accounts.intern(&[&id]).await.unwrap()[0];
        Who { number, id }
    }
}

fn two() -> &'static ruma::ServerName {
    server_name!("two.example")
}

fn three() -> &'static ruma::ServerName {
    server_name!("three.example")
}

#[tokio::test]
async fn every_server_of_a_room_gets_every_event_once_and_in_order() {
    let world = World::new().await;
    let texts: Vec<String> = (0..120).map(|number| number.to_string()).collect();
    for text in &texts {
        world.say(text).await;
    }
    world.quiet().await;
    for server in [two(), three()] {
        assert_eq!(world.others.events_of(server), texts);
    }
    for (_, _, body) in &world.others.lock().transactions {
        assert_eq!(body["origin"], "one.example");
        assert!(body["pdus"].as_array().unwrap().len() <= 50);
    }
    assert_eq!(world.federation.destinations(), []);
}

#[tokio::test]
async fn who_is_moved_out_learns_of_it_and_gets_nothing_more() {
    let world = World::new().await;
    world.set(&bob(), MembershipState::Ban).await;
    world.say("Good riddance").await;
    // Who was invited only gets what takes the invitation back.
    let dave = user_id!("@dave:four.example");
    let four = dave.server_name();
    world.set(dave, MembershipState::Invite).await;
    world.say("Shall he come?").await;
    world.set(dave, MembershipState::Leave).await;
    world.quiet().await;
    assert_eq!(world.others.events_of(two()), ["ban"]);
    assert_eq!(world.others.events_of(four), ["leave"]);
    let all = ["ban", "Good riddance", "invite", "Shall he come?", "leave"];
    assert_eq!(world.others.events_of(three()), all);
}

#[tokio::test]
async fn each_who_is_moved_out_while_a_server_is_away_is_told_of() {
    let world = World::new().await;
    let dave = user_id!("@dave:two.example");
    let joined = world.rooms.join(dave, &world.room, Extra::new());
    joined.await.unwrap();
    world.quiet().await;
    world.others.lock().transactions.clear();
    world.others.leave(two());
    world.set(&bob(), MembershipState::Leave).await;
    world.quiet().await;
    // Its server would look for events of a room that nobody of it is in.
    world.set(dave, MembershipState::Ban).await;
    world.quiet().await;
    world.others.come_back();
    world.later(10).await;
    assert_eq!(world.others.events_of(two()), ["leave", "ban"]);
    // A walk through the room finds such an event too, while others stay.
    world.others.leave(three());
    let erin = user_id!("@erin:three.example");
    let joined = world.rooms.join(erin, &world.room, Extra::new());
    joined.await.unwrap();
    world.others.lock().transactions.clear();
    world.set(erin, MembershipState::Leave).await;
    world.quiet().await;
    world.others.come_back();
    world.later(10).await;
    let told = world.others.events_of(three());
    assert_eq!(told.iter().filter(|event| *event == "leave").count(), 1);
}

#[tokio::test]
async fn a_server_that_is_away_gets_everything_when_it_is_back() {
    let world = World::new().await;
    world.others.leave(two());
    for text in ["a", "b", "c"] {
        world.say(text).await;
        world.quiet().await;
    }
    assert_eq!(world.others.events_of(three()), ["a", "b", "c"]);
    let waiting = world.federation.destinations();
    assert_eq!(waiting.len(), 1);
    assert_eq!(waiting[0].state, DestinationState::Waiting);
    assert_eq!((&*waiting[0].server, waiting[0].attempts), (two(), 1));
    for (seconds, attempts) in [(2, 2), (3, 3), (5, 4)] {
        world.later(seconds).await;
        assert_eq!(world.federation.destinations()[0].attempts, attempts);
    }
    world.others.come_back();
    world.later(10).await;
    assert_eq!(world.others.events_of(two()), ["a", "b", "c"]);
    assert_eq!(world.federation.destinations(), []);
}

#[tokio::test]
async fn a_server_that_is_heard_of_is_tried_at_once() {
    let world = World::new().await;
    world.others.leave(two());
    world.say("a").await;
    world.set(&bob(), MembershipState::Leave).await;
    world.quiet().await;
    for _ in 0..10 {
        world.federation.heard_from(two());
        world.federation.heard_from(three());
        world.federation.heard_from(server_name!("unknown.example"));
        world.quiet().await;
    }
    assert_eq!(world.federation.destinations()[0].attempts, 2);
    world.others.come_back();
    world.later(1).await;
    world.federation.heard_from(two());
    world.quiet().await;
    // The message went to a server that is not in the room any more, the parting is what it has to know.
    assert_eq!(world.others.events_of(two()), ["leave"]);
    world.others.leave(three());
    world.say("b").await;
    world.quiet().await;
    world.others.come_back();
    assert!(world.federation.retry(three()));
    assert!(!world.federation.retry(two()));
    world.quiet().await;
    assert_eq!(world.others.events_of(three()), ["a", "leave", "b"]);
}

#[tokio::test]
async fn nothing_is_lost_when_the_process_ends() {
    let world = World::new().await;
    world.others.leave(two());
    world.say("a").await;
    world.set(&bob(), MembershipState::Leave).await;
    world.quiet().await;
    let world = world.restart().await;
    world.quiet().await;
    let waiting = world.federation.destinations();
    assert_eq!(waiting.len(), 1);
    assert_eq!(waiting[0].attempts, 1);
    world.say("b").await;
    world.others.come_back();
    world.later(2).await;
    assert_eq!(world.others.events_of(two()), ["leave"]);
    assert_eq!(world.others.events_of(three()), ["a", "leave", "b"]);
    world.later(2).await;
    let world = world.restart().await;
    world.quiet().await;
    assert_eq!(world.others.events_of(two()), ["leave"]);
    assert_eq!(world.federation.destinations(), []);
}

#[tokio::test]
async fn a_process_that_is_killed_sends_some_events_twice_and_none_never() {
    let world = World::new().await;
    world.later(2).await;
    world.others.leave(two());
    world.say("a").await;
    world.quiet().await;
    // Nothing was written since: the next process finds it all in the log.
    let store = world.federation.inner.store.clone();
    let (clock, others) = (world.clock.clone(), world.others.clone());
    let after = World::on(store, clock, others).await;
    after.others.come_back();
    after.quiet().await;
    assert_eq!(after.others.events_of(two()), ["a"]);
    assert_eq!(after.others.events_of(three()), ["a", "a"]);
}

#[tokio::test]
async fn who_was_away_too_long_gets_the_newest_event_of_each_room() {
    let world = World::new().await;
    world.others.leave(two());
    for text in ["a", "b", "c"] {
        world.say(text).await;
    }
    world.quiet().await;
    for _ in 0..40 {
        world.later(3_600).await;
    }
    let attempts = world.others.lock().attempts;
    assert!(attempts < 40, "{attempts} attempts in 40 hours");
    world.others.come_back();
    world.federation.heard_from(two());
    world.quiet().await;
    assert_eq!(world.others.events_of(two()), ["c"]);
}

#[tokio::test]
async fn typing_receipts_and_presence_go_out_to_the_servers_of_the_room() {
    let world = World::new().await;
    let alice = world.who(alice()).await;
    let typing = world
        .ephemeral
        .set_typing(&alice, &world.room, Some(Duration::from_secs(5)));
    typing.await.unwrap();
    world.quiet().await;
    let expected = json!({ "edu_type": "m.typing", "content": {
        "room_id": world.room, "user_id": alice.id, "typing": true,
    } });
    assert_eq!(world.others.edus_of(two()), [expected]);

    world.say("a").await;
    let event = {
        let snapshot = world.federation.inner.store.snapshot().unwrap();
        let room = world.rooms.resident(&world.room).unwrap();
        let order = crate::storage::Order::Backward;
        let newest = world.rooms.timeline(&snapshot, room, i64::MAX, order, 1);
        newest.unwrap()[0].event.event_id().to_owned()
    };
    let receipt = |kind| NewReceipt {
        kind,
        event: event.clone(),
        thread: ReceiptThread::Main,
    };
    for kind in [ReceiptKind::Private, ReceiptKind::Public] {
        let read = world
            .ephemeral
            .read_up_to(&alice, &world.room, vec![receipt(kind)], None);
        read.await.unwrap();
    }
    world.quiet().await;
    let expected = json!({ "edu_type": "m.receipt", "content": { world.room.as_str(): {
        "m.read": { alice.id.as_str(): {
            "event_ids": [event], "data": { "ts": world.clock.now_ms(), "thread_id": "main" },
        } },
    } } });
    assert_eq!(world.others.edus_of(three())[1..], [expected]);

    // A server that is away is not told later what was then.
    world.others.leave(two());
    let state = ruma::presence::PresenceState::Unavailable;
    let status = Some("Lunch".to_owned());
    world
        .ephemeral
        .set_presence(&alice, &state, status)
        .unwrap();
    world.ephemeral.tell_presence().await.unwrap();
    world.quiet().await;
    assert_eq!(
        world.others.edus_of(three()).len(),
        2,
        "presence is gathered"
    );
    world.later(5).await;
    let edus = world.others.edus_of(three());
    let push = &edus[2]["content"]["push"][0];
    assert_eq!(edus[2]["edu_type"], "m.presence");
    assert_eq!(push["user_id"], alice.id.as_str());
    assert_eq!(push["presence"], "unavailable");
    assert_eq!(push["status_msg"], "Lunch");
    world.others.come_back();
    world.later(60).await;
    assert_eq!(world.others.edus_of(two()).len(), 2);
    assert_eq!(world.federation.destinations(), []);
}

#[tokio::test]
async fn who_comes_to_share_a_room_learns_who_is_online() {
    let world = World::new().await;
    let alice = world.who(alice()).await;
    let state = ruma::presence::PresenceState::Online;
    world.ephemeral.set_presence(&alice, &state, None).unwrap();
    world.ephemeral.tell_presence().await.unwrap();
    world.quiet().await;
    world.later(5).await;
    let before = world.others.edus_of(two()).len();
    let dave = user_id!("@dave:four.example");
    world
        .rooms
        .join(dave, &world.room, Extra::new())
        .await
        .unwrap();
    world.quiet().await;
    let edus = world.others.edus_of(dave.server_name());
    assert_eq!(edus.len(), 1);
    let push = edus[0]["content"]["push"].as_array().unwrap();
    assert_eq!(push.len(), 1);
    assert_eq!(push[0]["user_id"], alice.id.as_str());
    assert_eq!(world.others.edus_of(two()).len(), before, "the others know");
}

#[tokio::test]
async fn queued_edus_wait_until_the_server_has_them() {
    let world = World::new().await;
    world.others.leave(two());
    let servers = [two().to_owned(), server_name!("one.example").to_owned()];
    let store = world.federation.inner.store.clone();
    for number in 0..150_u32 {
        let content =
            CanonicalJsonObject::from([("number".to_owned(), ruma::Int::from(number).into())]);
        let batch = world.federation.queue_edu(&servers, "m.test", content);
        store.submit(batch).await.unwrap();
    }
    world.quiet().await;
    assert_eq!(world.others.edus_of(two()), [Value::Null; 0]);
    let world = world.restart().await;
    world.others.come_back();
    world.later(10).await;
    let numbers = |world: &World| -> Vec<u64> {
        let edus = world.others.edus_of(two()).into_iter();
        edus.map(|edu| edu["content"]["number"].as_u64().unwrap())
            .collect()
    };
    assert_eq!(numbers(&world), (0..150).collect::<Vec<_>>());
    let world = world.restart().await;
    world.quiet().await;
    assert_eq!(numbers(&world).len(), 150);
    assert_eq!(world.federation.destinations(), []);
}

//! Classic sync on a store in memory, against what the rooms say: clients that sync at different moments agree.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ruma::{
    CanonicalJsonObject, OwnedRoomId, OwnedUserId, RoomVersionId, UserId,
    canonical_json::CanonicalJsonValue,
    events::{TimelineEventType, room::member::MembershipState},
    server_name,
};
use serde_json::{Value, json};

use super::*;
use crate::{
    accounts::UserNumber,
    encryption::{Encryption, RemoteChange},
    ephemeral,
    events::Verified,
    rooms::{
        CreateRoom, Extra, Intake, MembershipAction, NewEvent, Preset, Received,
        tests::{Parts as RoomsParts, plan},
    },
    storage::Batch,
    tasks::{Stage, Tasks},
};

struct World {
    sync: Sync,
    accounts: Accounts,
    rooms: Rooms,
    clock: Clock,
    users: Vec<(OwnedUserId, UserNumber)>,
    room_ids: Vec<OwnedRoomId>,
    sent: u64,
    /// Events that were made on the state of a moment and come later, as from another server.
    held: Vec<(OwnedRoomId, Verified)>,
    has_forks: bool,
    /// How often the devices of each user have changed.
    devices: Vec<u64>,
}

/// Stories that are played; each takes half a second.
const SEEDS: u64 = 12;
const USERS: usize = 3;
const ROOMS: usize = 2;

impl World {
    async fn new(seed: u64, has_forks: bool) -> Self {
        let clock = Clock::seeded(1_700_000_000_000, seed);
        let name = server_name!("example.org");
        let made = RoomsParts::new(Store::memory(), clock, name, Default::default()).await;
        let RoomsParts {
            store,
            clock,
            metrics,
            accounts,
            rooms,
            ..
        } = made;
        let config = ephemeral::Config::default();
        let (clock2, accounts2) = (clock.clone(), accounts.clone());
        let ephemeral = Ephemeral::new(store.clone(), clock2, accounts2, rooms.clone(), config);
        let closing = Tasks::new(&metrics).stop_signal(Stage::Requests);
        let parts = Parts {
            accounts: accounts.clone(),
            rooms: rooms.clone(),
            ephemeral,
            encryption: Encryption::new(
                store.clone(),
                clock.clone(),
                accounts.clone(),
                rooms.clone(),
            )
            .unwrap(),
        };
        let mut world = Self {
            sync: Sync::new(store, clock.clone(), parts, closing, &metrics),
            accounts,
            rooms,
            clock,
            users: Vec::new(),
            room_ids: Vec::new(),
            sent: 0,
            held: Vec::new(),
            has_forks,
            devices: vec![0; USERS],
        };
        for name in 0..USERS {
            let user = UserId::parse(format!("@u{name}:example.org")).unwrap();
            let number = world.accounts.intern(&[&user]).await.unwrap()[0];
            world.users.push((user, number));
        }
        for room in 0..ROOMS {
            let visibility = ["shared", "joined", "invited", "world_readable"];
            let visibility = visibility[world.pick(visibility.len())];
            world.create(room, visibility).await;
        }
        world
    }

    fn pick(&self, below: usize) -> usize {
        usize::try_from(self.clock.random_below(below as u64)).unwrap()
    }

    async fn create(&mut self, creator: usize, visibility: &str) {
        let content = object(json!({ "history_visibility": visibility }));
        let creator = &self.users[creator].0;
        let plan = CreateRoom {
            name: None,
            initial_state: vec![(
                TimelineEventType::RoomHistoryVisibility,
                String::new(),
                content,
            )],
            power_levels: object(json!({ "state_default": 0 })),
            ..plan(creator, Preset::PublicChat, RoomVersionId::V12)
        };
        self.room_ids.push(self.rooms.create(plan).await.unwrap());
    }

    /// The devices of a user change.
    async fn change_devices(&mut self, user: usize) {
        self.devices[user] += 1;
        let encryption = &self.sync.inner.encryption;
        let change = RemoteChange::default();
        let changed = encryption.remote_change(self.users[user].1, &[], change);
        changed.await.unwrap();
    }

    /// The other users with whom a room is shared, and how often their devices have changed.
    fn sharing(&self, user: usize) -> BTreeMap<String, u64> {
        let own = self.rooms_of(user, Class::Join);
        let others = (0..USERS).filter(|other| *other != user);
        let sharing = others.filter(|other| !self.rooms_of(*other, Class::Join).is_disjoint(&own));
        sharing
            .map(|other| (self.users[other].0.to_string(), self.devices[other]))
            .collect()
    }

    /// Something happens, or is refused.
    async fn act(&mut self) {
        let room = self.room_ids[self.pick(ROOMS)].clone();
        let (user, other) = (self.pick(USERS), self.pick(USERS));
        let (user, other) = (self.users[user].0.clone(), self.users[other].0.clone());
        self.sent += 1;
        let text = format!("{}", self.sent);
        if self.has_forks && self.pick(2) == 0 {
            return self.act_elsewhere(room, (user, other), text).await;
        }
        match self.pick(16) {
            0..=1 => drop(self.rooms.join(&user, &room, Extra::new()).await),
            2 => {
                self.change(&room, &user, &user, MembershipState::Leave)
                    .await
            }
            3 => {
                self.change(&room, &user, &other, MembershipState::Invite)
                    .await
            }
            4 => {
                self.change(&room, &user, &other, MembershipState::Leave)
                    .await
            }
            5 => {
                self.change(&room, &user, &other, MembershipState::Ban)
                    .await
            }
            6..=7 => {
                let content = object(json!({ "topic": text }));
                let event = NewEvent::state(user, TimelineEventType::RoomTopic, "", content);
                drop(self.rooms.send(&room, event).await);
            }
            8 => {
                let content = object(json!({ "a": text }));
                let key = format!("{}", self.pick(3));
                let event =
                    NewEvent::state(user, TimelineEventType::from("org.example"), key, content);
                drop(self.rooms.send(&room, event).await);
            }
            _ => {
                let content = object(json!({ "msgtype": "m.text", "body": text }));
                let mut event = NewEvent::state(user, TimelineEventType::RoomMessage, "", content);
                event.state_key = None;
                drop(self.rooms.send(&room, event).await);
            }
        }
    }

    /// Something happens on another server that has not heard of the latest, or what happened there is told here.
    async fn act_elsewhere(
        &mut self,
        room: OwnedRoomId,
        (user, other): (OwnedUserId, OwnedUserId),
        text: String,
    ) {
        if self.pick(3) == 0 && !self.held.is_empty() {
            let at = self.pick(self.held.len());
            let (room, event) = self.held.remove(at);
            let room = self.rooms.resident(&room).unwrap();
            let mut writer = self.rooms.write(room).await.unwrap();
            let received = writer.receive(event.clone(), Intake::Live, Batch::new());
            match received.await.unwrap() {
                Received::Settled {
                    commit: Some(commit),
                    ..
                } => drop(commit.await.unwrap()),
                Received::Settled { .. } => {}
                _ => panic!("all that it cites is here"),
            }
            return;
        }
        let member = |membership: &str| object(json!({ "membership": membership }));
        let event = match self.pick(8) {
            0 => NewEvent::state(user.clone(), "m.room.member", user.as_str(), member("join")),
            1 => NewEvent::state(user, "m.room.member", other.as_str(), member("ban")),
            2 => NewEvent::state(user, "m.room.member", other.as_str(), member("leave")),
            3 => NewEvent::state(user, "m.room.member", other.as_str(), member("invite")),
            4..=5 => {
                let content = object(json!({ "topic": text }));
                NewEvent::state(user, TimelineEventType::RoomTopic, "", content)
            }
            _ => {
                let content = object(json!({ "msgtype": "m.text", "body": text }));
                let mut event = NewEvent::state(user, TimelineEventType::RoomMessage, "", content);
                event.state_key = None;
                event
            }
        };
        let number = self.rooms.resident(&room).unwrap();
        let mut writer = self.rooms.write(number).await.unwrap();
        if let Ok(event) = writer.propose(event).await {
            self.held.push((room, event));
        }
    }

    async fn change(
        &self,
        room: &OwnedRoomId,
        sender: &UserId,
        target: &UserId,
        to: MembershipState,
    ) {
        let action = MembershipAction {
            sender: sender.to_owned(),
            target: target.to_owned(),
            membership: to,
            extra: Extra::new(),
            before: &[],
        };
        drop(self.rooms.set_membership(room, action).await);
    }

    /// The current state of a room as the server has it: event IDs by type and key.
    fn truth(&self, room: &OwnedRoomId) -> BTreeMap<(String, String), String> {
        let snapshot = self.sync.inner.store.snapshot().unwrap();
        let number = self.rooms.resident(room).unwrap();
        let root = self.rooms.head(&snapshot, number).unwrap().unwrap().root;
        let mut events = self.rooms.core_state(&snapshot, number, root).unwrap();
        events.extend(self.rooms.member_state(&snapshot, number, root).unwrap());
        let entry = |event: &Arc<rooms::StoredEvent>| {
            let key = event.pdu.state_key.clone().unwrap();
            (
                (event.pdu.event_type.to_string(), key),
                event.event_id().to_string(),
            )
        };
        events.iter().map(entry).collect()
    }

    /// The rooms that a user is in or invited to.
    fn rooms_of(&self, user: usize, class: Class) -> BTreeSet<OwnedRoomId> {
        let snapshot = self.sync.inner.store.snapshot().unwrap();
        let rooms = self.rooms.rooms_of(&snapshot, self.users[user].1).unwrap();
        let rooms = rooms.iter().filter(|room| room.class == class);
        rooms
            .map(|room| self.rooms.room_id(room.room).unwrap())
            .collect()
    }
}

fn object(value: Value) -> CanonicalJsonObject {
    match CanonicalJsonValue::try_from(value) {
        Ok(CanonicalJsonValue::Object(object)) => object,
        _ => panic!("an object"),
    }
}

/// A client that does what the specification says with what it is told.
struct Client {
    user: usize,
    filter: Arc<Filter>,
    state_place: StatePlace,
    since: Option<String>,
    joined: BTreeMap<String, Room>,
    invited: BTreeSet<String>,
    /// Users whose devices it follows, and how often these had changed when it looked last.
    followed: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Default)]
struct Room {
    state: BTreeMap<(String, String), String>,
    timeline: Vec<String>,
    joined: u64,
    is_cut: bool,
}

impl Client {
    fn new(user: usize, filter: Value, state_place: StatePlace) -> Self {
        Self {
            user,
            filter: Arc::new(Filter::new(&serde_json::from_value(filter).unwrap())),
            state_place,
            since: None,
            joined: BTreeMap::new(),
            invited: BTreeSet::new(),
            followed: BTreeMap::new(),
        }
    }

    async fn sync(&mut self, world: &World) {
        let (user, number) = world.users[self.user].clone();
        let request = Request {
            user,
            viewer: Viewer {
                user: number,
                device: 1,
            },
            since: self.since.clone(),
            filter: Arc::clone(&self.filter),
            is_full_state: false,
            state_place: self.state_place,
            timeout: Duration::ZERO,
        };
        let body = world.sync.sync(request).await.unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        let sharing = world.sharing(self.user);
        if self.since.is_none() {
            self.followed.clone_from(&sharing);
        }
        let users = |name: &str| body["device_lists"][name].as_array().unwrap().clone();
        for user in users("left") {
            self.followed.remove(user.as_str().unwrap());
        }
        let own = world.users[self.user].0.as_str();
        for user in users("changed").iter().map(|user| user.as_str().unwrap()) {
            if user != own {
                assert!(sharing.contains_key(user), "{user} is followed in vain");
                self.followed.insert(user.to_owned(), sharing[user]);
            }
        }
        assert_eq!(self.followed, sharing, "since {:?}", self.since);
        self.since = Some(body["next_batch"].as_str().unwrap().to_owned());
        for (name, section) in body["rooms"].as_object().into_iter().flatten() {
            for (room, news) in section.as_object().unwrap() {
                self.invited.remove(room);
                match name.as_str() {
                    "join" => self
                        .joined
                        .entry(room.clone())
                        .or_default()
                        .take(news, self.state_place),
                    "invite" => drop(self.invited.insert(room.clone())),
                    _ => drop(self.joined.remove(room)),
                }
                if name != "join" {
                    self.joined.remove(room);
                }
            }
        }
    }
}

impl Room {
    fn take(&mut self, news: &Value, place: StatePlace) {
        let field = if place == StatePlace::Start {
            "state"
        } else {
            "state_after"
        };
        for event in news[field]["events"].as_array().unwrap() {
            self.set(event);
        }
        if news["timeline"]["limited"] == true {
            self.timeline.clear();
            self.is_cut = true;
        }
        for event in news["timeline"]["events"].as_array().unwrap() {
            self.timeline
                .push(event["event_id"].as_str().unwrap().to_owned());
            if event.get("state_key").is_some() && place == StatePlace::Start {
                self.set(event);
            }
        }
        if let Some(joined) = news["summary"]["m.joined_member_count"].as_u64() {
            self.joined = joined;
        }
    }

    fn set(&mut self, event: &Value) {
        let text = |name: &str| event[name].as_str().unwrap().to_owned();
        self.state
            .insert((text("type"), text("state_key")), text("event_id"));
    }
}

/// Clients that ask often, seldom and hardly ever, with filters or without, know the same in the end: what is true.
#[expect(clippy::too_many_lines, reason = "one story")]
async fn clients_agree(seed: u64, has_forks: bool) {
    let mut world = World::new(seed, has_forks).await;
    let all = json!({ "room": { "timeline": { "limit": 500 } } });
    let short = json!({ "room": { "timeline": { "limit": 2 } } });
    let none = json!({ "room": { "timeline": { "limit": 0 } } });
    let messages = json!({ "room": { "timeline": { "limit": 4, "types": ["m.room.message"] } } });
    let lazy =
        json!({ "room": { "timeline": { "limit": 3 }, "state": { "lazy_load_members": true } } });
    let hidden = json!({ "room": { "timeline": { "types": ["m.room.message"] }, "state": { "lazy_load_members": true } } });
    let mut clients = Vec::new();
    for user in 0..USERS {
        for place in [StatePlace::Start, StatePlace::End] {
            for filter in [&all, &short, &none, &messages, &lazy, &hidden] {
                for pace in [1, 3, 11] {
                    clients.push((pace, Client::new(user, filter.clone(), place)));
                }
            }
        }
    }
    for step in 0..60 {
        world.act().await;
        if step % 7 == 0 {
            let user = world.pick(USERS);
            world.change_devices(user).await;
        }
        for (pace, client) in &mut clients {
            if step % *pace == 0 {
                client.sync(&world).await;
            }
        }
    }
    for (_, client) in &mut clients {
        client.sync(&world).await;
    }
    for (pace, client) in &clients {
        let about = format!(
            "seed {seed}, user {}, every {pace}, {:?}",
            client.user, client.filter
        );
        let is =
            |ids: BTreeSet<OwnedRoomId>| ids.into_iter().map(String::from).collect::<BTreeSet<_>>();
        let joined: BTreeSet<String> = client.joined.keys().cloned().collect();
        assert_eq!(
            joined,
            is(world.rooms_of(client.user, Class::Join)),
            "{about}"
        );
        assert_eq!(
            client.invited,
            is(world.rooms_of(client.user, Class::Invite)),
            "{about}"
        );
        for (id, room) in &client.joined {
            let truth = world.truth(&OwnedRoomId::try_from(id.as_str()).unwrap());
            if has_forks {
                // What comes later in a timeline may have lost against what came before, and what is no more is not told:
                // only a client that asks for the state at the end knows what is.
                for (key, event) in &truth {
                    let is_told = client.state_place == StatePlace::Start
                        || (client.filter.has_lazy_members && key.0 == "m.room.member")
                        || room.state.get(key) == Some(event);
                    assert!(is_told, "{about}: {key:?} in {id}");
                }
                continue;
            }
            let known: BTreeMap<_, _> = match client.filter.has_lazy_members {
                true => truth
                    .into_iter()
                    .filter(|(key, _)| key.0 != "m.room.member" || room.state.contains_key(key))
                    .collect(),
                false => truth,
            };
            assert_eq!(room.state, known, "{about}");
            let number = world
                .rooms
                .number(&OwnedRoomId::try_from(id.as_str()).unwrap())
                .unwrap();
            assert_eq!(
                room.joined,
                world.rooms.published(number).unwrap().head.joined,
                "{about}"
            );
        }
    }
    for room in world.rooms.all() {
        let snapshot = world.sync.inner.store.snapshot().unwrap();
        assert_eq!(
            world.rooms.verify(&snapshot, room).unwrap(),
            [],
            "seed {seed}"
        );
    }
    // The first of each user hears of every step; the timelines of the others are a part of its own.
    for user in 0..USERS {
        let of_user: Vec<&Client> = clients
            .iter()
            .map(|(_, client)| client)
            .filter(|client| client.user == user)
            .collect();
        let whole = of_user[0];
        for client in &of_user {
            for (id, room) in client
                .joined
                .iter()
                .filter(|_| client.filter.timeline.accepts_all())
            {
                let timeline = &whole.joined[id].timeline;
                let is_part = match has_forks {
                    // Where a timeline begins anew, late state events stand elsewhere, or not in it at all.
                    true => room.timeline.iter().all(|id| timeline.contains(id)),
                    false => timeline.ends_with(&room.timeline),
                };
                let is_right = is_part
                    && (room.is_cut
                        || client.filter.timeline_limit < 500
                        || room.timeline.len() == timeline.len());
                assert!(
                    is_right,
                    "seed {seed}, user {user}: {:?} against {timeline:?}",
                    room.timeline
                );
            }
        }
    }
}

#[tokio::test]
async fn clients_that_sync_at_different_moments_agree_with_each_other_and_with_the_rooms() {
    for seed in 0..SEEDS {
        clients_agree(seed, false).await;
    }
}

#[tokio::test]
async fn clients_that_sync_at_different_moments_agree_where_the_room_forks() {
    for seed in 0..SEEDS {
        clients_agree(seed, true).await;
    }
}

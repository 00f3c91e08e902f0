//! A room of another server, which the test plays, for the faster join: what it answers and what it sends.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hearth::events::Verified;
use ruma::RoomId;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    harness::{Answer, TestServer, User},
    peer::{Peer, pdu_json},
    room_words::{escaped, room_path},
    sync_words::Synced,
};

/// A test that waits longer than this has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// A version in which room IDs are free to choose.
const VERSION: &str = "10";

/// A room of a server that the test plays.
pub(crate) struct FarRoom {
    pub(crate) peer: Arc<Peer>,
    pub(crate) id: String,
    pub(crate) shared: Arc<Mutex<Shared>>,
    /// Whether the server tells the state.
    pub(crate) tells: Arc<AtomicBool>,
}

/// What the room is, and what its server answers from.
#[derive(Default)]
pub(crate) struct Shared {
    pub(crate) events: Vec<Verified>,
    /// By type and state key.
    pub(crate) state: BTreeMap<(String, String), Verified>,
    /// The state before the joins of other servers, by the event that they follow.
    pub(crate) told: BTreeMap<String, Vec<Verified>>,
    pub(crate) servers: Vec<String>,
}

impl Shared {
    pub(crate) fn event(&self, id: &str) -> Option<&Verified> {
        self.events.iter().find(|event| event.event_id == id)
    }

    pub(crate) fn ids(events: &[Verified]) -> Value {
        events.iter().map(|event| event.event_id.as_str()).collect()
    }

    /// Everything that events cite, directly or through others.
    pub(crate) fn auth_chain(&self, of: &[Verified]) -> Vec<Verified> {
        let mut chain: BTreeMap<String, Verified> = BTreeMap::new();
        let mut next: Vec<Verified> = of.to_vec();
        while let Some(event) = next.pop() {
            for cited in &event.auth_events {
                let cited = self.event(cited.as_str()).expect("it is of the room");
                if chain
                    .insert(cited.event_id.to_string(), cited.clone())
                    .is_none()
                {
                    next.push(cited.clone());
                }
            }
        }
        chain.into_values().collect()
    }

    pub(crate) fn add(&mut self, event: &Verified) {
        self.events.push(event.clone());
        if let Some(key) = &event.state_key {
            let key = (event.event_type.to_string(), key.clone());
            self.state.insert(key, event.clone());
        }
    }

    pub(crate) fn current(&self, event_type: &str, key: &str) -> Option<&Verified> {
        self.state.get(&(event_type.to_owned(), key.to_owned()))
    }

    pub(crate) fn cited(&self, event_type: &str, sender: &str, key: Option<&str>) -> Vec<String> {
        let mut keys = vec![("m.room.create", ""), ("m.room.power_levels", "")];
        keys.push(("m.room.member", sender));
        if event_type == "m.room.member" {
            keys.extend(
                key.filter(|key| *key != sender)
                    .map(|key| ("m.room.member", key)),
            );
        }
        let found = keys.iter().filter_map(|(of, key)| self.current(of, key));
        found.map(|event| event.event_id.to_string()).collect()
    }

    pub(crate) fn cited_by_join(&self, user: &str) -> Vec<String> {
        let mut cited = self.cited("m.room.member", user, Some(user));
        let rules = self.current("m.room.join_rules", "");
        cited.extend(rules.map(|event| event.event_id.to_string()));
        cited
    }

    pub(crate) fn pdus(events: &[Verified]) -> Vec<Value> {
        events.iter().map(pdu_json).collect()
    }
}

impl FarRoom {
    /// A public room with charlie, who has made it, and derek, who may send state.
    pub(crate) async fn new() -> Self {
        let peer = Arc::new(Peer::start().await);
        let id = format!("!far:{}", peer.name);
        let shared = Shared {
            servers: vec![peer.name.to_string()],
            ..Shared::default()
        };
        let room = Self {
            peer,
            id,
            shared: Arc::new(Mutex::new(shared)),
            tells: Arc::default(),
        };
        let charlie = room.peer.user("charlie");
        let create = json!({ "creator": charlie, "room_version": VERSION });
        room.add("charlie", "m.room.create", Some(""), &create);
        room.join("charlie");
        let levels = json!({ "users": { charlie: 100, room.peer.user("derek"): 50 } });
        room.add("charlie", "m.room.power_levels", Some(""), &levels);
        room.add(
            "charlie",
            "m.room.join_rules",
            Some(""),
            &json!({ "join_rule": "public" }),
        );
        room.join("derek");
        room.serve(&room.peer);
        room
    }

    pub(crate) fn shared(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().expect("a lock")
    }

    pub(crate) fn join(&self, localpart: &str) -> Verified {
        self.membership(localpart, "join")
    }

    /// Somebody joined with all rights, which nobody takes away, and left: the join.
    pub(crate) fn lose_a_moderator(&self, localpart: &str) -> Verified {
        let levels = json!({ "users": {
            self.peer.user("charlie"): 100, self.peer.user(localpart): 100,
        } });
        self.add("charlie", "m.room.power_levels", Some(""), &levels);
        let joined = self.membership(localpart, "join");
        self.membership(localpart, "leave");
        joined
    }

    pub(crate) fn membership(&self, localpart: &str, membership: &str) -> Verified {
        let user = self.peer.user(localpart);
        let content = json!({ "membership": membership });
        let cited = (membership == "join").then(|| self.shared().cited_by_join(&user));
        let event = self.make(localpart, "m.room.member", Some(&user), &content, cited);
        self.shared().add(&event);
        event
    }

    /// An event after the last one.
    pub(crate) fn make(
        &self,
        sender: &str,
        event_type: &str,
        key: Option<&str>,
        content: &Value,
        auth_events: Option<Vec<String>>,
    ) -> Verified {
        let template = self.template((sender, event_type, key), content, auth_events);
        self.peer.complete(&template, VERSION)
    }

    pub(crate) fn template(
        &self,
        (sender, event_type, key): (&str, &str, Option<&str>),
        content: &Value,
        auth_events: Option<Vec<String>>,
    ) -> Value {
        let shared = self.shared();
        let sender = self.peer.user(sender);
        let auth_events = auth_events.unwrap_or_else(|| shared.cited(event_type, &sender, key));
        let last = shared.events.last();
        json!({
            "room_id": self.id,
            "sender": sender,
            "type": event_type,
            "state_key": key,
            "content": content,
            "origin_server_ts": 1_700_000_000_000_u64 + shared.events.len() as u64,
            "depth": last.map_or(1, |last| last.depth + 1),
            "prev_events": last.map(|last| last.event_id.to_string()).into_iter().collect::<Vec<_>>(),
            "auth_events": auth_events,
        })
    }

    pub(crate) fn add(
        &self,
        sender: &str,
        event_type: &str,
        key: Option<&str>,
        content: &Value,
    ) -> Verified {
        let event = self.make(sender, event_type, key, content, None);
        self.shared().add(&event);
        event
    }

    pub(crate) fn say(&self, sender: &str, text: &str) -> Verified {
        let content = json!({ "msgtype": "m.text", "body": text });
        self.add(sender, "m.room.message", None, &content)
    }

    /// Has `peer` answer for the room.
    pub(crate) fn serve(&self, peer: &Peer) {
        self.serve_joins(peer);
        self.serve_state(peer);
        peer.answer("PUT", "/_matrix/federation/v1/send/*", |_| {
            (200, json!({ "pdus": {} }))
        });
    }

    pub(crate) fn serve_joins(&self, peer: &Peer) {
        let (shared, id) = (Arc::clone(&self.shared), self.id.clone());
        peer.answer(
            "GET",
            "/_matrix/federation/v1/make_join/*",
            move |request| {
                let user = last_part(request.uri().path());
                let shared = shared.lock().expect("a lock");
                let last = shared.events.last().expect("there are some");
                let event = json!({
                    "room_id": id,
                    "sender": user,
                    "type": "m.room.member",
                    "state_key": user,
                    "content": { "membership": "join" },
                    "origin_server_ts": 1_700_000_000_000_u64,
                    "depth": last.depth + 1,
                    "prev_events": [last.event_id],
                    // Whatever the user was before is kept back.
                "auth_events": shared.cited_by_join(""),
                });
                (200, json!({ "event": event, "room_version": VERSION }))
            },
        );
        let shared = Arc::clone(&self.shared);
        peer.answer(
            "PUT",
            "/_matrix/federation/v2/send_join/*",
            move |request| {
                assert_eq!(request.uri().query(), Some("omit_members=true"));
                let mut shared = shared.lock().expect("a lock");
                let state: Vec<_> = shared.state.values().cloned().collect();
                let is_told = |event: &&Verified| event.event_type.to_string() != "m.room.member";
                let told: Vec<_> = state.iter().filter(is_told).cloned().collect();
                let answer = json!({
                    "state": Shared::pdus(&told),
                    "auth_chain": Shared::pdus(&shared.auth_chain(&told)),
                    "members_omitted": true,
                    "servers_in_room": shared.servers,
                    "origin": "peer",
                });
                let last = shared
                    .events
                    .last()
                    .expect("there are some")
                    .event_id
                    .to_string();
                shared.told.insert(last, state);
                let join = std::str::from_utf8(request.body()).expect("text");
                let join: Value = serde_json::from_str(join).expect("JSON");
                let rules = hearth::events::version::rules(&VERSION.try_into().expect("a version"));
                let rules = rules.expect("it is served");
                let bytes = join.to_string();
                let parsed =
                    hearth::events::format::parse(bytes.as_bytes(), rules).expect("an event");
                let json = hearth::events::canonical::to_vec(&parsed.object);
                let pdu = hearth::events::Pdu::from_stored(parsed.event_id, json.into(), false);
                shared.add(&Verified::from_stored(pdu.expect("an event")));
                (200, answer)
            },
        );
    }

    pub(crate) fn serve_state(&self, peer: &Peer) {
        for (path, whole) in [("state_ids", false), ("state", true)] {
            let (shared, tells) = (Arc::clone(&self.shared), Arc::clone(&self.tells));
            let path = format!("/_matrix/federation/v1/{path}/*");
            peer.answer("GET", &path, move |request| {
                if !tells.load(Ordering::SeqCst) {
                    return (503, json!({ "errcode": "M_UNKNOWN", "error": "not yet" }));
                }
                let shared = shared.lock().expect("a lock");
                let at = request
                    .uri()
                    .query()
                    .and_then(|query| query.strip_prefix("event_id="));
                let Some(state) = shared.told.get(&last_part(at.unwrap_or_default())) else {
                    return (404, json!({ "errcode": "M_NOT_FOUND", "error": "no" }));
                };
                let chain = shared.auth_chain(state);
                let answer = match whole {
                    true => json!({
                        "pdus": Shared::pdus(state),
                        "auth_chain": Shared::pdus(&chain),
                    }),
                    false => json!({
                        "pdu_ids": Shared::ids(state),
                        "auth_chain_ids": Shared::ids(&chain),
                    }),
                };
                (200, answer)
            });
        }
        let shared = Arc::clone(&self.shared);
        peer.answer("GET", "/_matrix/federation/v1/event/*", move |request| {
            let id = last_part(request.uri().path());
            let shared = shared.lock().expect("a lock");
            match shared.event(&id) {
                Some(event) => (
                    200,
                    json!({
                        "origin": "peer",
                        "origin_server_ts": 1,
                        "pdus": [pdu_json(event)],
                    }),
                ),
                None => (404, json!({ "errcode": "M_NOT_FOUND", "error": "no" })),
            }
        });
    }

    /// Puts a user out of the room by somebody who may not, citing memberships that are over. The event stands in the graph, and
    /// has no part in the state.
    pub(crate) fn put_out(
        &self,
        by: &str,
        (user, membership): (&str, &str),
        cited: &[&Verified],
    ) -> Verified {
        let cited = self.citing(cited);
        let content = json!({ "membership": membership });
        let event = self.make(by, "m.room.member", Some(user), &content, Some(cited));
        self.shared().events.push(event.clone());
        event
    }

    /// Takes an event back by somebody who may not, as [`Self::put_out`].
    pub(crate) fn take_back(&self, by: &str, sender: &Verified, target: &Verified) -> Verified {
        let cited = self.citing(&[sender]);
        let kind = (by, "m.room.redaction", None);
        let mut template = self.template(kind, &json!({}), Some(cited));
        template["redacts"] = target.event_id.as_str().into();
        let event = self.peer.complete(&template, VERSION);
        self.shared().events.push(event.clone());
        event
    }

    /// What an event cites by which the memberships are these.
    pub(crate) fn citing(&self, members: &[&Verified]) -> Vec<String> {
        let shared = self.shared();
        let fixed = ["m.room.create", "m.room.power_levels"];
        let fixed = fixed.iter().filter_map(|of| shared.current(of, ""));
        let cited = fixed.chain(members.iter().copied());
        cited.map(|event| event.event_id.to_string()).collect()
    }

    /// Tells a server that the devices of users have changed.
    pub(crate) async fn send_lists(&self, server: &TestServer, localparts: &[&str]) {
        let edus = localparts.iter().map(|localpart| {
            json!({ "edu_type": "m.device_list_update", "content": {
                "user_id": self.peer.user(localpart), "device_id": "D", "stream_id": 3,
            } })
        });
        let body = json!({
            "origin": self.peer.name, "origin_server_ts": 1, "pdus": [],
            "edus": edus.collect::<Vec<_>>(),
        });
        let target = format!("/_matrix/federation/v1/send/{}", localparts.concat());
        self.peer.put(server, &target, body).await.ok();
    }

    /// From now on the server tells the state.
    pub(crate) fn tell(&self) {
        self.tells.store(true, Ordering::SeqCst);
    }

    /// Sends events to a server.
    pub(crate) async fn send(&self, server: &TestServer, events: &[&Verified]) {
        let pdus: Vec<Value> = events.iter().map(|event| pdu_json(event)).collect();
        let last = events.last().expect("there are some");
        let target = format!(
            "/_matrix/federation/v1/send/{}",
            escaped(last.event_id.as_str())
        );
        let body = json!({ "origin": self.peer.name, "origin_server_ts": 1, "pdus": pdus });
        self.peer.put(server, &target, body).await.ok();
    }
}

/// The last part of a path, decoded.
pub(crate) fn last_part(path: &str) -> String {
    let last = path.rsplit('/').next().unwrap_or_default();
    let decoded = last
        .replace("%21", "!")
        .replace("%24", "$")
        .replace("%40", "@");
    decoded
        .replace("%3A", ":")
        .replace("%2B", "+")
        .replace("%2F", "/")
}

/// What users of partial rooms say besides.
impl User {
    pub(crate) async fn join_far(&self, room: &FarRoom) {
        let (id, via) = (escaped(&room.id), escaped(room.peer.name.as_str()));
        let path = format!("/_matrix/client/v3/join/{id}?via={via}");
        self.post(&path, json!({})).await.ok();
    }

    /// Syncs with members loaded lazily, until something is as it should be.
    pub(crate) async fn lazily(&self, is_there: impl Fn(&Synced) -> bool) -> Synced {
        let deadline = Instant::now() + PATIENCE;
        let mut synced = self.sync_filtered(&lazy(), "").await;
        while !is_there(&synced) {
            assert!(Instant::now() < deadline, "it never came: {}", synced.body);
            let query = format!("since={}&timeout=2000", synced.next);
            synced = self.sync_filtered(&lazy(), &query).await;
        }
        synced
    }

    pub(crate) async fn far_event(&self, room: &FarRoom, event: &Verified) -> Answer {
        let id = escaped(event.event_id.as_str());
        self.get(&room_path(&room.id, &format!("/event/{id}")))
            .await
    }

    /// All members of a room, by user ID; waits for them.
    pub(crate) async fn members(&self, room: &FarRoom) -> BTreeMap<String, String> {
        let answer = self.get(&room_path(&room.id, "/members")).await.ok();
        let members = answer["chunk"].as_array().expect("a list").iter();
        let pair = |event: &Value| {
            let key = event["state_key"].as_str().expect("a key");
            let membership = event["content"]["membership"].as_str().expect("a text");
            (key.to_owned(), membership.to_owned())
        };
        members.map(pair).collect()
    }
}

impl Synced {
    /// Whose devices have changed.
    pub(crate) fn changed_lists(&self) -> Vec<&str> {
        let users = self.body["device_lists"]["changed"].as_array();
        let users = users.into_iter().flatten();
        users.filter_map(Value::as_str).collect()
    }
}

pub(crate) fn lazy() -> Value {
    json!({ "room": {
        "state": { "lazy_load_members": true },
        "timeline": { "lazy_load_members": true },
    } })
}

/// Whether the timeline of a room has an event.
pub(crate) fn has(room: &FarRoom, event: &Verified) -> impl Fn(&Synced) -> bool {
    let (room, id) = (room.id.clone(), event.event_id.to_string());
    move |synced| {
        let events = synced.joined(&room)["timeline"]["events"].as_array();
        events.is_some_and(|events| events.iter().any(|event| event["event_id"] == id.as_str()))
    }
}

/// The IDs of the state before an event, as a server tells them; sorted.
pub(crate) async fn state_before(
    server: &TestServer,
    room: &FarRoom,
    event: &Verified,
) -> Vec<String> {
    let target = format!(
        "/_matrix/federation/v1/state_ids/{}?event_id={}",
        escaped(&room.id),
        escaped(event.event_id.as_str())
    );
    let answer = room.peer.get(server, &target).await.ok();
    let ids = answer["pdu_ids"].as_array().expect("a list").iter();
    let mut ids: Vec<_> = ids.filter_map(|id| Some(id.as_str()?.to_owned())).collect();
    ids.sort_unstable();
    ids
}

/// The IDs of the state of a room as its own server has it; sorted.
pub(crate) fn own_state(room: &FarRoom) -> Vec<String> {
    let shared = room.shared();
    let ids = shared
        .state
        .values()
        .map(|event| event.event_id.to_string());
    let mut ids: Vec<_> = ids.collect();
    ids.sort_unstable();
    ids
}

/// Asserts that all rows of a room agree.
pub(crate) fn check(server: &TestServer, room: &FarRoom) {
    let server = &server.running.server;
    let snapshot = server.store.snapshot().expect("a snapshot");
    let id = RoomId::parse(&room.id).expect("a room ID");
    let number = server.rooms.resident(&id).expect("it is here");
    let found = server
        .rooms
        .verify(&snapshot, number)
        .expect("it can be read");
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert!(found.is_empty(), "{found:#?}");
}

pub(crate) fn is_partial(server: &TestServer, room: &FarRoom) -> bool {
    let id = RoomId::parse(&room.id).expect("a room ID");
    let rooms = &server.running.server.rooms;
    rooms.number(&id).is_some_and(|room| rooms.is_partial(room))
}

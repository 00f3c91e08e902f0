//! A user of another server in one of our rooms, whose server says whatever a test wants.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use hearth::{
    events::{NewPdu, Verified, version},
    rooms::{Intake, RoomNumber},
    storage::{Batch, Snapshot},
};
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedUserId, RoomVersionId, UInt,
    UserId, room_version_rules::RoomVersionRules,
};
use serde_json::{Value, json};

use crate::{
    harness::{Answer, TestServer, User},
    peer::{Peer, object, pdu_json},
    room_words::{escaped, room_path},
};

/// What waits longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// Somebody of another server who is joined.
pub struct Guest<'a> {
    pub peer: Peer,
    pub server: &'a TestServer,
    pub room: String,
    pub user: OwnedUserId,
    pub join: Verified,
    rules: &'static RoomVersionRules,
    /// What allows the guest to speak.
    pub auth_events: Vec<OwnedEventId>,
}

/// What a test says of an event; the rest is as it should be.
pub struct Draft {
    pub event_type: &'static str,
    pub state_key: Option<String>,
    pub content: Value,
    pub prev_events: Vec<OwnedEventId>,
    pub auth_events: Option<Vec<OwnedEventId>>,
    pub depth: u64,
}

impl Draft {
    /// A message after these events.
    pub fn message(body: &str, prev_events: &[&Verified]) -> Self {
        let prevs = prev_events.iter().map(|event| event.event_id.clone());
        let depth = prev_events.iter().map(|event| event.depth).max();
        Self {
            event_type: "m.room.message",
            state_key: None,
            content: json!({ "msgtype": "m.text", "body": body }),
            prev_events: prevs.collect(),
            auth_events: None,
            depth: depth.unwrap_or_default() + 1,
        }
    }
}

impl<'a> Guest<'a> {
    /// A user of a new server joins a public room of `server`.
    pub async fn join(server: &'a TestServer, room: &str) -> Self {
        let peer = Peer::start().await;
        let user = UserId::parse(peer.user("guest")).expect("a user ID");
        let rooms = &server.running.server.rooms;
        let room_id = OwnedRoomId::try_from(room).expect("a room ID");
        let number = rooms.resident(&room_id).expect("the room is here");
        let state = |event_type: &str| event_of(server, number, event_type, "");
        let (create, power) = (state("m.room.create"), state("m.room.power_levels"));
        let rules = rules_of(server, number);
        let mut auth_events: Vec<_> = power.into_iter().collect();
        if !rules.authorization.room_create_event_id_as_room_id {
            auth_events.extend(create);
        }
        let mut of_join = auth_events.clone();
        of_join.extend(state("m.room.join_rules"));
        let (ends, depth) = ends_of(server, number);
        let new = NewPdu {
            room_id: Some(room_id),
            sender: user.clone(),
            event_type: "m.room.member".into(),
            state_key: Some(user.to_string()),
            content: object(json!({ "membership": "join" })),
            origin_server_ts: now(),
            depth: depth + 1,
            prev_events: ends,
            auth_events: of_join,
            redacts: None,
            named: None,
        };
        let join = peer.signer.build(new, rules).expect("a join");
        auth_events.push(join.event_id.clone());
        let mut writer = rooms.write(number).await.expect("the room is here");
        let received = writer.receive(join.clone(), Intake::Vouched, Batch::new());
        let hearth::rooms::Received::Settled { commit, .. } = received.await.expect("it may join")
        else {
            panic!("nothing is missing");
        };
        commit.expect("it is new").await.expect("it is written");
        drop(writer);
        Self {
            peer,
            server,
            room: room.to_owned(),
            user,
            join,
            rules,
            auth_events,
        }
    }

    /// An event of the guest, signed.
    pub fn event(&self, draft: Draft) -> Verified {
        let new = NewPdu {
            room_id: Some(self.room.as_str().try_into().expect("a room ID")),
            sender: self.user.clone(),
            event_type: draft.event_type.into(),
            state_key: draft.state_key,
            content: object(draft.content),
            origin_server_ts: now(),
            depth: draft.depth,
            prev_events: draft.prev_events,
            auth_events: draft
                .auth_events
                .unwrap_or_else(|| self.auth_events.clone()),
            redacts: None,
            named: None,
        };
        self.peer.signer.build(new, self.rules).expect("an event")
    }

    /// A message after these events.
    pub fn message(&self, body: &str, prev_events: &[&Verified]) -> Verified {
        self.event(Draft::message(body, prev_events))
    }

    /// A message after events of others.
    pub fn message_after(&self, body: &str, prev_events: Vec<OwnedEventId>) -> Verified {
        self.event(Draft {
            prev_events,
            ..Draft::message(body, &[])
        })
    }

    /// Sends a transaction of PDUs.
    pub async fn send(&self, transaction: &str, pdus: &[&Verified]) -> Answer {
        let pdus: Vec<_> = pdus.iter().map(|event| pdu_json(event)).collect();
        self.send_json(transaction, json!(pdus)).await
    }

    pub async fn send_json(&self, transaction: &str, pdus: Value) -> Answer {
        self.peer
            .send(self.server, transaction, pdus, json!([]))
            .await
    }

    /// Answers `/event` with these events, whoever asks.
    pub fn answer_events(&self, events: Vec<Value>, ids: &[OwnedEventId]) {
        let by_id: HashMap<_, _> = ids
            .iter()
            .map(|id| escaped(id.as_str()))
            .zip(events)
            .collect();
        let name = self.peer.name.clone();
        let start = "/_matrix/federation/v1/event/*";
        self.peer.answer("GET", start, move |request| {
            let id = request.uri().path().rsplit('/').next().unwrap_or_default();
            match by_id.get(&id.replace('$', "%24")) {
                Some(event) => (
                    200,
                    json!({ "origin": name, "origin_server_ts": 1, "pdus": [event] }),
                ),
                None => (404, json!({ "errcode": "M_NOT_FOUND", "error": "no" })),
            }
        });
    }

    /// Answers one endpoint of the room, whatever is asked.
    pub fn answer(&self, method: &str, endpoint: &str, answer: Value) {
        let start = format!("/_matrix/federation/v1/{endpoint}/*");
        self.peer
            .answer(method, &start, move |_| (200, answer.clone()));
    }

    /// How many requests for an endpoint have come.
    pub fn asked(&self, endpoint: &str) -> usize {
        let part = format!("/_matrix/federation/v1/{endpoint}/");
        let seen = self.peer.seen();
        seen.iter()
            .filter(|request| request.contains(&part))
            .count()
    }

    /// Waits until `reader` sees the event.
    pub async fn is_seen(&self, reader: &User, event: &Verified) {
        let path = room_path(
            &self.room,
            &format!("/event/{}", escaped(event.event_id.as_str())),
        );
        let until = Instant::now() + PATIENCE;
        while reader.get(&path).await.status != 200 {
            assert!(Instant::now() < until, "the event does not come");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whether `reader` sees the event now.
    pub async fn sees(&self, reader: &User, event: &Verified) -> bool {
        let path = room_path(
            &self.room,
            &format!("/event/{}", escaped(event.event_id.as_str())),
        );
        reader.get(&path).await.status == 200
    }

    /// The forward extremities of the room, and the greatest depth.
    pub fn ends(&self) -> (Vec<OwnedEventId>, u64) {
        ends_of(self.server, self.number())
    }

    /// Those of `ids` that the server does not have.
    pub fn unknown(&self, ids: &[OwnedEventId]) -> Vec<OwnedEventId> {
        let rooms = &self.server.running.server.rooms;
        let unknown = rooms.unknown(&snapshot(self.server), self.number(), ids);
        unknown.expect("the store answers")
    }

    /// Waits until the server has done with all that it was sent.
    pub async fn is_settled(&self) {
        let until = Instant::now() + PATIENCE;
        let metrics = &self.server.running.server.metrics;
        let nothing_waits = "\nhearth_federation_in_waiting 0\n";
        while !metrics.encode().expect("metrics").contains(nothing_waits) {
            assert!(Instant::now() < until, "the inbox stays full");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The current state of the room.
    pub fn state(&self) -> Vec<OwnedEventId> {
        let (rooms, room) = (&self.server.running.server.rooms, self.number());
        let root = rooms.published(room).expect("the room is here").head.root;
        let snapshot = snapshot(self.server);
        let mut state = rooms.core_state(&snapshot, room, root).expect("a state");
        state.extend(rooms.member_state(&snapshot, room, root).expect("a state"));
        state
            .iter()
            .map(|event| event.pdu.event_id.clone())
            .collect()
    }

    fn number(&self) -> RoomNumber {
        let room_id = OwnedRoomId::try_from(self.room.as_str()).expect("a room ID");
        let rooms = &self.server.running.server.rooms;
        rooms.resident(&room_id).expect("the room is here")
    }
}

fn now() -> MilliSecondsSinceUnixEpoch {
    let now = hearth::clock::Clock::system().now_ms();
    MilliSecondsSinceUnixEpoch(UInt::new_saturating(now))
}

fn snapshot(server: &TestServer) -> Snapshot {
    server.running.server.store.snapshot().expect("a snapshot")
}

fn rules_of(server: &TestServer, room: RoomNumber) -> &'static RoomVersionRules {
    let published = server.running.server.rooms.published(room);
    let published = published.expect("the room is here");
    let version = RoomVersionId::try_from(published.head.version.as_str()).expect("a version");
    version::rules(&version).expect("one that is served")
}

/// The ID of a current state event.
fn event_of(
    server: &TestServer,
    room: RoomNumber,
    event_type: &str,
    key: &str,
) -> Option<OwnedEventId> {
    let rooms = &server.running.server.rooms;
    let root = rooms.published(room)?.head.root;
    let event = rooms.state_event(&snapshot(server), (room, root), event_type, key);
    Some(event.expect("a state")?.pdu.event_id.clone())
}

fn ends_of(server: &TestServer, room: RoomNumber) -> (Vec<OwnedEventId>, u64) {
    let rooms = &server.running.server.rooms;
    let snapshot = snapshot(server);
    let head = rooms
        .head(&snapshot, room)
        .expect("a head")
        .expect("a room");
    let ends = rooms
        .events(&snapshot, room, &head.extremities)
        .expect("events");
    let ids = ends.iter().flatten();
    (
        ids.map(|event| event.pdu.event_id.clone()).collect(),
        head.max_depth,
    )
}

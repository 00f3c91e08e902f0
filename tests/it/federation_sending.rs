//! What goes from one server to others: events in order, what is about the moment, and what waits for who is away.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hearth::admin::{self, Command, FederationCommand};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    harness::{TestServer, User},
    peer::Peer,
    room_words::{escaped, room_path},
    sync_words::Synced,
};

/// A test that waits longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// The transactions that a peer has got, and whether it takes them.
#[derive(Clone, Default)]
struct Inbox {
    bodies: Arc<Mutex<Vec<Value>>>,
    is_away: Arc<AtomicBool>,
}

impl Inbox {
    fn of(peer: &Peer) -> Self {
        let inbox = Self::default();
        let (bodies, is_away) = (Arc::clone(&inbox.bodies), Arc::clone(&inbox.is_away));
        let take = move |request: &http::Request<bytes::Bytes>| {
            if is_away.load(Ordering::SeqCst) {
                return (503, json!({}));
            }
            let body = serde_json::from_slice(request.body()).expect("JSON");
            bodies.lock().expect("a lock").push(body);
            (200, json!({ "pdus": {} }))
        };
        peer.answer("PUT", "/_matrix/federation/v1/send/*", take);
        inbox
    }

    fn pdus(&self) -> Vec<Value> {
        let bodies = self.bodies.lock().expect("a lock");
        let pdus = bodies.iter().filter_map(|body| body["pdus"].as_array());
        pdus.flatten().cloned().collect()
    }

    fn messages(&self) -> Vec<String> {
        let pdus = self.pdus().into_iter();
        let bodies = pdus.filter_map(|pdu| pdu["content"]["body"].as_str().map(str::to_owned));
        bodies.collect()
    }

    async fn wait_for_messages(&self, count: usize) -> Vec<String> {
        wait_for(|| Some(self.messages()).filter(|messages| messages.len() >= count)).await
    }
}

/// Waits until `find` finds something.
async fn wait_for<T>(mut find: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = find() {
            return found;
        }
        assert!(Instant::now() < deadline, "it never came");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What `hearth federation` prints.
async fn federation(server: &TestServer, command: FederationCommand) -> Value {
    let command = Command::Federation(command);
    let done = admin::run(&server.running.server, command).await;
    done.expect("it is done")
}

impl User {
    pub(crate) async fn join_over(&self, room: &str, server: &TestServer) {
        let (room, via) = (escaped(room), escaped(server.name()));
        let path = format!("/_matrix/client/v3/join/{room}?via={via}");
        self.post(&path, json!({})).await.ok();
    }

    /// Syncs until `find` finds something.
    async fn sync_for<T>(&self, find: impl Fn(&Value) -> Option<T>) -> T {
        let synced = self.sync().await;
        self.sync_on_for(synced, find).await
    }

    /// The same, going on from an earlier sync: for what an initial sync would not tell.
    async fn sync_on_for<T>(&self, mut synced: Synced, find: impl Fn(&Value) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = find(&synced.body) {
                return found;
            }
            assert!(Instant::now() < deadline, "it never came: {}", synced.body);
            synced = self.wait_since(&synced).await;
        }
    }

    /// Syncs until an ephemeral event of the room is as it should be.
    async fn wait_for_ephemeral(
        &self,
        room: &str,
        event_type: &str,
        is_right: impl Fn(&Value) -> bool,
    ) {
        let find = |body: &Value| {
            let events = &body["rooms"]["join"][room]["ephemeral"]["events"];
            let events = events.as_array()?.iter();
            let mut of_type = events.filter(|event| event["type"] == event_type);
            of_type.find(|event| is_right(&event["content"])).map(drop)
        };
        self.sync_for(find).await;
    }

    async fn wait_for_message(&self, room: &str, text: &str) {
        let find = |body: &Value| {
            let events = &body["rooms"]["join"][room]["timeline"]["events"];
            let mut events = events.as_array()?.iter();
            events
                .find(|event| event["content"]["body"] == text)
                .map(drop)
        };
        self.sync_for(find).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_reaches_the_servers_of_the_room_in_order() {
    let server = TestServer::federating(&[]).await;
    let (alice, peer) = (server.user("alice").await, Peer::start().await);
    let inbox = Inbox::of(&peer);
    let room = alice.create_room().await;
    alice.say(&room, "before").await;
    peer.join(&server, &room, "bob").await;
    let texts: Vec<String> = (0..30).map(|number| number.to_string()).collect();
    for text in &texts {
        alice.say(&room, text).await;
    }
    assert_eq!(inbox.wait_for_messages(30).await, texts);
    let bodies = inbox.bodies.lock().expect("a lock").clone();
    for body in &bodies {
        assert_eq!(body["origin"], server.name());
        assert!(body["origin_server_ts"].is_u64());
    }
    for pdu in inbox.pdus() {
        assert_ne!(
            pdu["type"], "m.room.member",
            "its own join does not come back"
        );
        assert!(pdu["signatures"][server.name()].is_object());
        assert!(pdu.get("unsigned").is_none() && pdu.get("event_id").is_none());
    }
    let page = server.running.server.metrics.encode().expect("metrics");
    let line = "hearth_federation_out_units_total{class=\"pdu\"} 30";
    assert!(page.contains(line), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_away_gets_what_it_missed_when_it_is_heard_of() {
    let server = TestServer::federating(&[]).await;
    let (alice, peer) = (server.user("alice").await, Peer::start().await);
    let inbox = Inbox::of(&peer);
    let room = alice.create_room().await;
    peer.join(&server, &room, "bob").await;
    inbox.is_away.store(true, Ordering::SeqCst);
    for text in ["one", "two", "three"] {
        alice.say(&room, text).await;
    }
    let waiting = loop {
        let status = federation(&server, FederationCommand::Status).await;
        let is_waiting = |row: &&Value| row["state"] == "waiting" && row["attempts"] == 3;
        if let Some(row) = status
            .as_array()
            .and_then(|rows| rows.iter().find(is_waiting))
        {
            break row.clone();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(waiting["server"], peer.name.as_str());
    assert_eq!(waiting["is_behind"], true);
    inbox.is_away.store(false, Ordering::SeqCst);
    // Any request that it has signed will do.
    let target = format!("/_matrix/federation/v1/query/profile?user_id={}", alice.id);
    peer.get(&server, &target).await;
    assert_eq!(inbox.wait_for_messages(3).await, ["one", "two", "three"]);
    wait_for(|| {
        let left = server.running.server.federation.destinations();
        left.is_empty().then_some(())
    })
    .await;

    inbox.is_away.store(true, Ordering::SeqCst);
    alice.say(&room, "four").await;
    let destinations = || server.running.server.federation.destinations();
    wait_for(|| destinations().into_iter().find(|row| row.attempts > 0)).await;
    inbox.is_away.store(false, Ordering::SeqCst);
    let name = Some(peer.name.to_string());
    let retried = federation(&server, FederationCommand::Retry { server: name }).await;
    assert_eq!(retried[0]["retried"], true);
    assert_eq!(inbox.wait_for_messages(4).await[3], "four");
    let none = federation(&server, FederationCommand::Retry { server: None }).await;
    assert!(none.is_array());
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_typing_and_receipts_go_both_ways() {
    let [here, there] = TestServer::federated().await;
    let (alice, bob) = (here.user("alice").await, there.user("bob").await);
    let room = alice.create_room().await;
    bob.join_over(&room, &here).await;

    let event = alice.say(&room, "hello").await;
    bob.wait_for_message(&room, "hello").await;
    let receipt = format!("/receipt/m.read/{}", escaped(&event));
    let thread = json!({ "thread_id": "main" });
    bob.post(&room_path(&room, &receipt), thread).await.ok();
    alice
        .wait_for_ephemeral(&room, "m.receipt", |content| {
            content[&event]["m.read"][&bob.id]["thread_id"] == "main"
        })
        .await;

    for (user, other) in [(&alice, &bob), (&bob, &alice)] {
        let path = room_path(&room, &format!("/typing/{}", escaped(&user.id)));
        let body = json!({ "typing": true, "timeout": 30_000 });
        user.put(&path, body).await.ok();
        other
            .wait_for_ephemeral(&room, "m.typing", |content| {
                content["user_ids"] == json!([user.id])
            })
            .await;
        let synced = other.sync().await;
        user.put(&path, json!({ "typing": false })).await.ok();
        let nobody_types = |body: &Value| {
            let events = &body["rooms"]["join"][&room]["ephemeral"]["events"];
            let mut typing = events.as_array()?.iter();
            typing
                .find(|event| event["content"]["user_ids"] == json!([]))
                .map(drop)
        };
        other.sync_on_for(synced, nobody_types).await;
    }
    bob.say(&room, "hello yourself").await;
    alice.wait_for_message(&room, "hello yourself").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn presence_goes_to_other_servers_where_both_want_it() {
    let settings = ["presence.federate_in=true", "presence.federate_out=true"];
    let [here, there] = TestServer::federated_with(&settings).await;
    let (alice, bob) = (here.user("alice").await, there.user("bob").await);
    let room = alice.create_room().await;
    bob.join_over(&room, &here).await;
    let path = format!("/_matrix/client/v3/presence/{}/status", escaped(&alice.id));
    let body = json!({ "presence": "unavailable", "status_msg": "Lunch" });
    alice.put(&path, body).await.ok();
    let find = |body: &Value| {
        let mut events = body["presence"]["events"].as_array()?.iter();
        events
            .find(|event| {
                event["sender"] == alice.id.as_str() && event["content"]["status_msg"] == "Lunch"
            })
            .cloned()
    };
    let event = bob.sync_for(find).await;
    assert_eq!(event["content"]["presence"], "unavailable");
    let path = format!("/_matrix/client/v3/presence/{}/status", escaped(&alice.id));
    let found = bob.get(&path).await.ok();
    assert_eq!(found["presence"], "unavailable");
}

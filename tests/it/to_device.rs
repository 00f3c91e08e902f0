//! Messages from device to device, on one server and between two.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    harness::{
        Answer, PASSWORD, TestServer, User,
        federated::{federation_settings, free_address},
    },
    peer::Peer,
    sync_words::Synced,
};

/// A test that waits longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(20);

impl User {
    /// Sends `text` to a device, or to all of them.
    async fn tell(&self, user: &str, device: &str, text: &str) {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let transaction = format!("d{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let messages = json!({ user: { device: { "body": text } } });
        self.tell_with(&transaction, messages).await.ok();
    }

    async fn tell_with(&self, transaction: &str, messages: Value) -> Answer {
        let path = format!("/_matrix/client/v3/sendToDevice/m.test/{transaction}");
        self.put(&path, json!({ "messages": messages })).await
    }

    /// Syncs on until so many messages have come.
    async fn hear(&self, mut synced: Synced, count: usize) -> (Vec<String>, Synced) {
        let deadline = Instant::now() + PATIENCE;
        let mut heard = told(&synced);
        while heard.len() < count {
            assert!(Instant::now() < deadline, "only {heard:?} came");
            synced = self.wait_since(&synced).await;
            heard.extend(told(&synced));
        }
        (heard, synced)
    }
}

/// The bodies of the messages from devices.
fn told(synced: &Synced) -> Vec<String> {
    let events = synced.body["to_device"]["events"].as_array();
    let events = events.expect("there is always a list").iter();
    let body = |event: &Value| event["content"]["body"].as_str().map(str::to_owned);
    events.filter_map(body).collect()
}

const NOTHING: Vec<String> = Vec::new();

#[tokio::test(flavor = "multi_thread")]
async fn a_message_comes_to_one_device_and_stays_until_it_is_acknowledged() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let other = server.login("bob", PASSWORD).await;
    let (before, other_before) = (bob.sync().await, other.sync().await);

    alice.tell(&bob.id, &bob.device, "hello").await;

    let synced = bob.sync_since(&before).await;
    let event = json!({ "sender": alice.id, "type": "m.test", "content": { "body": "hello" } });
    assert_eq!(synced.body["to_device"]["events"], json!([event]));
    let again = bob.sync_since(&before).await;
    assert_eq!(
        told(&again),
        ["hello"],
        "the same token gives the same answer"
    );
    let next = bob.sync_since(&synced).await;
    assert_eq!(told(&next), NOTHING);
    assert_eq!(told(&bob.sync().await), NOTHING);
    assert_eq!(told(&other.sync_since(&other_before).await), NOTHING);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_wakes_who_waits() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let before = bob.sync().await;
    let waits = async { bob.wait_since(&before).await };
    let sends = async {
        // The sync waits, or comes later: both must find it.
        alice.tell(&bob.id, "*", "hello").await;
    };
    let (synced, ()) = tokio::join!(waits, sends);
    assert_eq!(bob.hear(synced, 1).await.0, ["hello"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_star_means_all_devices_and_unknown_ones_are_skipped() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let other = server.login("bob", PASSWORD).await;
    let nobody = format!("@nobody:{}", server.name());
    let messages = json!({
        bob.id.clone(): { "*": { "body": "to all" }, "NONE": { "body": "lost" } },
        nobody: { "*": { "body": "lost" } },
        "@away:nowhere.test": { "*": { "body": "elsewhere" } },
        alice.id.clone(): { alice.device.clone(): { "body": "to me" } },
    });
    alice.tell_with("t1", messages).await.ok();
    for (user, expected) in [(&alice, "to me"), (&bob, "to all"), (&other, "to all")] {
        assert_eq!(told(&user.sync().await), [expected]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_transaction_sends_once_for_each_device() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let other = server.login("alice", PASSWORD).await;
    let messages = || json!({ bob.id.clone(): { bob.device.clone(): { "body": "hello" } } });
    for user in [&alice, &alice, &other] {
        user.tell_with("t1", messages()).await.ok();
    }
    assert_eq!(told(&bob.sync().await), ["hello", "hello"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_message_is_refused() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let to = |content: Value| json!({ alice.id.clone(): { "*": content } });
    for (content, status, code) in [
        (json!("text"), 400, "M_BAD_JSON"),
        (json!({ "a": "x".repeat(65_536) }), 413, "M_TOO_LARGE"),
    ] {
        alice.tell_with("t1", to(content)).await.fails(status, code);
    }
    let devices: serde_json::Map<String, Value> = (0..10_001)
        .map(|number| (format!("D{number}"), json!({})))
        .collect();
    let many = json!({ alice.id.clone(): devices });
    alice.tell_with("t1", many).await.fails(413, "M_TOO_LARGE");
    let path = format!("/_matrix/client/v3/sendToDevice/{}/t1", "m".repeat(256));
    let body = json!({ "messages": to(json!({})) });
    alice.put(&path, body).await.fails(400, "M_INVALID_PARAM");
    assert_eq!(alice.sync().await.body["to_device"]["events"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn more_messages_than_an_answer_holds_come_with_the_next_ones() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let before = alice.sync().await;
    let texts: Vec<String> = (0..130).map(|number| number.to_string()).collect();
    for text in &texts {
        alice.tell(&alice.id, &alice.device, text).await;
    }
    let first = alice.sync_since(&before).await;
    assert_eq!(told(&first), texts[..100]);
    let second = alice.sync_since(&first).await;
    assert_eq!(told(&second), texts[100..]);
    assert_eq!(told(&alice.sync_since(&second).await), NOTHING);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_outlive_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = TestServer::start_in(folder.path(), &[]).await;
    let (alice, mut bob) = (server.user("alice").await, server.user("bob").await);
    let before = bob.sync().await;
    let messages = json!({ bob.id.clone(): { "*": { "body": "hello" } } });
    alice.tell_with("t1", messages.clone()).await.ok();
    server.stop().await;

    let server = TestServer::start_in(folder.path(), &[]).await;
    bob.server = server.base.clone();
    let mut alice = alice;
    alice.server = server.base.clone();
    alice.tell_with("t1", messages).await.ok();
    let synced = bob.sync_since(&before).await;
    assert_eq!(told(&synced), ["hello"]);
    assert_eq!(told(&bob.sync_since(&synced).await), NOTHING);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_reach_devices_of_other_servers() {
    let [here, there] = TestServer::federated().await;
    let (alice, bob) = (here.user("alice").await, there.user("bob").await);
    let before = bob.sync().await;
    for text in ["one", "two", "three"] {
        alice.tell(&bob.id, &bob.device, text).await;
    }
    alice.tell(&bob.id, "*", "four").await;
    let (heard, synced) = bob.hear(before, 4).await;
    assert_eq!(heard, ["one", "two", "three", "four"]);
    let events = synced.body["to_device"]["events"].as_array();
    let last = events.and_then(|events| events.last());
    assert_eq!(last.expect("an event")["sender"], alice.id.as_str());
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_wait_for_a_server_that_is_away_also_through_a_restart() {
    let folders = [tempfile::tempdir(), tempfile::tempdir()].map(|folder| folder.expect("one"));
    let addresses = [free_address(), free_address()];
    let settings = addresses.map(federation_settings);
    let start = async |at: usize| {
        let settings: Vec<&str> = settings[at].iter().map(String::as_str).collect();
        TestServer::start_in(folders[at].path(), &settings).await
    };
    let (here, there) = (start(0).await, start(1).await);
    let (mut alice, mut bob) = (here.user("alice").await, there.user("bob").await);
    let before = bob.sync().await;
    there.stop().await;
    alice.tell(&bob.id, &bob.device, "one").await;
    let failing = || {
        let all = here.running.server.federation.destinations();
        all.into_iter().any(|row| row.attempts > 0)
    };
    let deadline = Instant::now() + PATIENCE;
    while !failing() {
        assert!(Instant::now() < deadline, "it is never tried");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    here.stop().await;

    let here = start(0).await;
    alice.server = here.base.clone();
    alice.tell(&bob.id, &bob.device, "two").await;
    let there = start(1).await;
    bob.server = there.base.clone();
    let name = ruma::ServerName::parse(there.name()).expect("a name");
    here.running.server.federation.retry(&name);
    let (heard, synced) = bob.hear(before, 2).await;
    assert_eq!(heard, ["one", "two"]);
    alice.tell(&bob.id, &bob.device, "three").await;
    assert_eq!(
        bob.hear(bob.sync_since(&synced).await, 1).await.0,
        ["three"]
    );
    here.stop().await;
    there.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_server_sends_a_message_once_and_for_its_own_users() {
    let server = TestServer::federating(&[]).await;
    let (bob, peer) = (server.user("bob").await, Peer::start().await);
    let edu = |sender: &str, id: &str, device: &str, text: &str| {
        json!({
            "edu_type": "m.direct_to_device",
            "content": {
                "sender": sender, "type": "m.test", "message_id": id,
                "messages": { bob.id.clone(): { device: { "body": text } } },
            },
        })
    };
    let alice = peer.user("alice");
    let first = edu(&alice, "m1", &bob.device, "one");
    peer.send(&server, "1", json!([]), json!([first, first]))
        .await
        .ok();
    // As after an answer that was lost.
    peer.send(&server, "2", json!([]), json!([first]))
        .await
        .ok();
    let stranger = edu("@mallory:elsewhere.test", "m2", "*", "false");
    let no_device = edu(&alice, "m3", "NONE", "lost");
    let second = edu(&alice, "m4", "*", "two");
    let nonsense = json!({ "edu_type": "m.direct_to_device", "content": { "sender": 1 } });
    let edus = json!([stranger, no_device, nonsense, second]);
    peer.send(&server, "3", json!([]), edus).await.ok();
    assert_eq!(told(&bob.sync().await), ["one", "two"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_to_another_server_are_in_edus_that_it_can_take() {
    let server = TestServer::federating(&[]).await;
    let (alice, peer) = (server.user("alice").await, Peer::start().await);
    let edus = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = std::sync::Arc::clone(&edus);
    peer.answer("PUT", "/_matrix/federation/v1/send/*", move |request| {
        let body: Value = serde_json::from_slice(request.body()).expect("JSON");
        let new = body["edus"].as_array().expect("EDUs").iter().cloned();
        seen.lock().expect("a lock").extend(new);
        (200, json!({ "pdus": {} }))
    });
    let (bob, carol) = (peer.user("bob"), peer.user("carol"));
    let messages = json!({
        bob.clone(): { "*": { "a": "x".repeat(40_000) } },
        carol.clone(): { "D": { "a": "y".repeat(40_000) } },
    });
    for _ in 0..2 {
        alice.tell_with("t1", messages.clone()).await.ok();
    }
    let deadline = Instant::now() + PATIENCE;
    while edus.lock().expect("a lock").len() < 2 {
        assert!(Instant::now() < deadline, "they never came");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let edus = edus.lock().expect("a lock").clone();
    assert_eq!(edus.len(), 2, "once, though the client asked twice");
    for (edu, (user, device)) in edus.iter().zip([(&bob, "*"), (&carol, "D")]) {
        assert_eq!(edu["edu_type"], "m.direct_to_device");
        let content = &edu["content"];
        assert_eq!(content["sender"], alice.id.as_str());
        assert_eq!(content["type"], "m.test");
        assert_eq!(
            content["message_id"].as_str().map(str::len),
            Some(32),
            "{content}"
        );
        let messages = content["messages"].as_object().expect("messages");
        assert_eq!(messages.keys().collect::<Vec<_>>(), [user]);
        assert!(messages[user][device]["a"].is_string());
    }
}

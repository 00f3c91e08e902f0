//! Keys of devices: published, looked up and claimed, on one server and between two.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    harness::{Answer, PASSWORD, TestServer, User},
    peer::Peer,
    sync_words::Synced,
};

/// A test that waits longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(20);
const QUERY: &str = "/_matrix/client/v3/keys/query";
const CLAIM: &str = "/_matrix/client/v3/keys/claim";
const UPLOAD: &str = "/_matrix/client/v3/keys/upload";

/// Keys of a device, of which `identity` stands for the public key.
fn device_keys(user: &str, device: &str, identity: &str) -> Value {
    json!({
        "user_id": user,
        "device_id": device,
        "algorithms": ["m.megolm.v1.aes-sha2"],
        "keys": { (format!("ed25519:{device}")): identity },
        "signatures": { user: { (format!("ed25519:{device}")): "sig" } },
    })
}

fn one_time_key(text: &str) -> Value {
    json!({ "key": text, "signatures": { "@a:b.test": { "ed25519:D": "c2ln" } } })
}

/// One-time keys of these names.
fn one_time_keys(names: &[&str]) -> Value {
    let keys = names.iter().map(|name| {
        let id = format!("signed_curve25519:{name}");
        (id, one_time_key("a2V5"))
    });
    Value::Object(keys.collect())
}

impl User {
    async fn upload(&self, body: Value) -> Answer {
        self.post(UPLOAD, body).await
    }

    /// Publishes device keys with this identity and these one-time keys.
    async fn publish(&self, identity: &str, names: &[&str]) {
        let body = json!({
            "device_keys": device_keys(&self.id, &self.device, identity),
            "one_time_keys": one_time_keys(names),
        });
        let counts = self.upload(body).await.ok();
        let count = &counts["one_time_key_counts"]["signed_curve25519"];
        assert_eq!(*count, names.len());
    }

    async fn query(&self, user: &str) -> Value {
        let body = json!({ "device_keys": { user: [] } });
        self.post(QUERY, body).await.ok()
    }

    /// The identity of a device, if its keys are told.
    async fn identity(&self, user: &str, device: &str) -> Option<String> {
        let found = self.query(user).await;
        let keys = &found["device_keys"][user][device]["keys"];
        let identity = keys[format!("ed25519:{device}")].as_str();
        identity.map(str::to_owned)
    }

    async fn claim(&self, user: &str, device: &str) -> Value {
        let body = json!({ "one_time_keys": { user: { device: "signed_curve25519" } } });
        self.post(CLAIM, body).await.ok()
    }

    /// The name of the key that a claim gives.
    async fn claim_one(&self, user: &str, device: &str) -> Option<String> {
        let claimed = self.claim(user, device).await;
        let keys = claimed["one_time_keys"][user][device].as_object()?;
        assert_eq!(keys.len(), 1, "{claimed}");
        let id = keys.keys().next()?;
        Some(id.strip_prefix("signed_curve25519:")?.to_owned())
    }
}

/// The one-time keys that are left, and the types of unused fallback keys.
fn counts(synced: &Synced) -> (u64, Value) {
    let count = &synced.body["device_one_time_keys_count"]["signed_curve25519"];
    let unused = &synced.body["device_unused_fallback_key_types"];
    (count.as_u64().expect("a count"), unused.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn published_keys_are_told_with_the_name_of_the_device_until_it_ends() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let nobody = format!("@nobody:{}", server.name());
    let found = alice.query(&bob.id).await;
    assert_eq!(found["device_keys"], json!({ bob.id.clone(): {} }));
    assert_eq!(alice.query(&nobody).await["device_keys"], json!({}));

    bob.publish("one", &["a", "b"]).await;
    let path = format!("/_matrix/client/v3/devices/{}", bob.device);
    let name = json!({ "display_name": "Phone" });
    bob.put(&path, name).await.ok();
    let mut expected = device_keys(&bob.id, &bob.device, "one");
    expected["unsigned"] = json!({ "device_display_name": "Phone" });
    let found = alice.query(&bob.id).await;
    assert_eq!(found["device_keys"][&bob.id][&bob.device], expected);
    assert_eq!(found["failures"], json!({}));

    let of = |devices: Value| json!({ "device_keys": { bob.id.clone(): devices } });
    let found = alice.post(QUERY, of(json!(["NONE"]))).await.ok();
    assert_eq!(found["device_keys"][&bob.id], json!({}));
    let found = alice.post(QUERY, of(json!([bob.device]))).await.ok();
    assert_eq!(found["device_keys"][&bob.id][&bob.device], expected);

    let second = server.login("bob", PASSWORD).await;
    second.publish("two", &["c"]).await;
    bob.post("/_matrix/client/v3/logout", json!({})).await.ok();
    let found = alice.query(&bob.id).await;
    let devices = found["device_keys"][&bob.id].as_object().expect("devices");
    assert_eq!(devices.keys().collect::<Vec<_>>(), [&second.device]);
    assert_eq!(alice.claim_one(&bob.id, &bob.device).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_are_no_keys_of_the_own_device_is_refused() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let without = json!({ "user_id": bob.id, "device_id": bob.device });
    let many: Vec<String> = (0..501).map(|number| format!("k{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let large = json!({ "signed_curve25519:a": one_time_key(&"a".repeat(8_192)) });
    for (body, status, code) in [
        (json!({ "device_keys": without }), 400, "M_BAD_JSON"),
        (
            json!({ "device_keys": device_keys(&alice.id, &alice.device, "x") }),
            400,
            "M_INVALID_PARAM",
        ),
        (
            json!({ "device_keys": device_keys(&bob.id, "OTHER", "x") }),
            400,
            "M_INVALID_PARAM",
        ),
        (json!({ "one_time_keys": { "a": "x" } }), 400, "M_BAD_JSON"),
        (json!({ "one_time_keys": { "a:b": 1 } }), 400, "M_BAD_JSON"),
        (
            json!({ "one_time_keys": { "signed_curve25519:b": {} } }),
            400,
            "M_BAD_JSON",
        ),
        (json!({ "one_time_keys": large }), 413, "M_TOO_LARGE"),
        (
            json!({ "one_time_keys": one_time_keys(&many) }),
            400,
            "M_INVALID_PARAM",
        ),
        (
            json!({ "fallback_keys": one_time_keys(&["a", "b"]) }),
            400,
            "M_INVALID_PARAM",
        ),
    ] {
        bob.upload(body).await.fails(status, code);
    }
    let found = alice.query(&bob.id).await;
    assert_eq!(found["device_keys"][&bob.id], json!({}));
    bob.publish("one", &["a"]).await;
    let other = json!({ "one_time_keys": { "signed_curve25519:a": one_time_key("b3RoZXI") } });
    bob.upload(other).await.fails(400, "M_INVALID_PARAM");
}

#[tokio::test(flavor = "multi_thread")]
async fn new_keys_are_a_change_of_devices_and_the_same_ones_are_none() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = alice.create_room().await;
    bob.join(&room).await.ok();
    let changed = |synced: &Synced| synced.body["device_lists"]["changed"].clone();
    let mut synced = alice.sync().await;
    loop {
        let query = format!("since={}&timeout=300", synced.next);
        let next = alice.sync_with(&query).await;
        if changed(&next) == json!([]) {
            synced = next;
            break;
        }
        synced = next;
    }
    bob.publish("one", &[]).await;
    let told = alice.sync_since(&synced).await;
    assert_eq!(changed(&told), json!([bob.id]));
    bob.publish("one", &[]).await;
    assert_eq!(changed(&alice.sync_since(&told).await), json!([]));
    bob.publish("two", &[]).await;
    let told = alice.sync_since(&told).await;
    assert_eq!(changed(&told), json!([bob.id]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_says_what_is_left_and_wakes_when_a_key_was_claimed() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    assert_eq!(counts(&bob.sync().await), (0, json!([])));
    bob.publish("one", &["a", "b"]).await;
    let fallback = json!({ "fallback_keys": one_time_keys(&["f"]) });
    bob.upload(fallback).await.ok();
    let before = bob.sync().await;
    assert_eq!(counts(&before), (2, json!(["signed_curve25519"])));
    assert_eq!(counts(&alice.sync().await), (0, json!([])));

    let started = Instant::now();
    let waits = async { bob.wait_since(&before).await };
    let claims = async { alice.claim_one(&bob.id, &bob.device).await };
    let (mut synced, claimed) = tokio::join!(waits, claims);
    assert_eq!(claimed.as_deref(), Some("a"));
    while counts(&synced).0 != 1 {
        assert!(started.elapsed() < Duration::from_secs(10), "nobody wakes");
        synced = bob.wait_since(&synced).await;
    }
    assert_eq!(
        alice.claim_one(&bob.id, &bob.device).await.as_deref(),
        Some("b")
    );
    for _ in 0..2 {
        let key = alice.claim_one(&bob.id, &bob.device).await;
        assert_eq!(key.as_deref(), Some("f"), "as often as asked");
    }
    assert_eq!(counts(&bob.sync_since(&synced).await), (0, json!([])));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_outlive_a_restart_and_claimed_ones_do_not_come_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = TestServer::start_in(folder.path(), &[]).await;
    let (mut alice, bob) = (server.user("alice").await, server.user("bob").await);
    bob.publish("one", &["a", "b"]).await;
    let first = alice.claim_one(&bob.id, &bob.device).await;
    server.stop().await;
    let server = TestServer::start_in(folder.path(), &[]).await;
    alice.server = server.base.clone();
    let identity = alice.identity(&bob.id, &bob.device).await;
    assert_eq!(identity.as_deref(), Some("one"));
    let second = alice.claim_one(&bob.id, &bob.device).await;
    assert_eq!(
        (first.as_deref(), second.as_deref()),
        (Some("a"), Some("b"))
    );
    assert_eq!(alice.claim_one(&bob.id, &bob.device).await, None);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_told_and_claimed_between_servers() {
    let [here, there] = TestServer::federated().await;
    let (alice, bob) = (here.user("alice").await, there.user("bob").await);
    bob.publish("one", &["a", "b", "c"]).await;
    // Before a room is shared, and while one is.
    let identity = alice.identity(&bob.id, &bob.device).await;
    assert_eq!(identity.as_deref(), Some("one"));
    let room = alice.create_room().await;
    bob.join_over(&room, &here).await;
    let identity = alice.identity(&bob.id, &bob.device).await;
    assert_eq!(identity.as_deref(), Some("one"));
    let name = async || {
        let found = alice.query(&bob.id).await;
        found["device_keys"][&bob.id][&bob.device]["unsigned"]["device_display_name"].clone()
    };
    assert_eq!(name().await, Value::Null, "names stay there");

    let mut claimed = BTreeSet::new();
    for user in [&alice, &bob, &alice] {
        claimed.extend(user.claim_one(&bob.id, &bob.device).await);
    }
    let expected = ["a", "b", "c"].map(str::to_owned);
    assert_eq!(claimed, BTreeSet::from(expected));
    assert_eq!(alice.claim_one(&bob.id, &bob.device).await, None);

    bob.publish("two", &[]).await;
    let deadline = Instant::now() + PATIENCE;
    while alice.identity(&bob.id, &bob.device).await.as_deref() != Some("two") {
        assert!(Instant::now() < deadline, "the change never comes");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let second = there.login("bob", PASSWORD).await;
    second.publish("three", &["d"]).await;
    while alice.identity(&bob.id, &second.device).await.is_none() {
        assert!(Instant::now() < deadline, "the device never comes");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    second
        .post("/_matrix/client/v3/logout", json!({}))
        .await
        .ok();
    while alice.identity(&bob.id, &second.device).await.is_some() {
        assert!(Instant::now() < deadline, "the device never goes");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_may_tell_others_what_devices_are_called() {
    let settings = ["federation.tell_device_names=true"];
    let [here, there] = TestServer::federated_with(&settings).await;
    let (alice, bob) = (here.user("alice").await, there.user("bob").await);
    let path = format!("/_matrix/client/v3/devices/{}", bob.device);
    let rename = async |name: &str| {
        let body = json!({ "display_name": name });
        bob.put(&path, body).await.ok();
    };
    let name = async || {
        let found = alice.query(&bob.id).await;
        let device = &found["device_keys"][&bob.id][&bob.device];
        device["unsigned"]["device_display_name"].clone()
    };
    rename("one").await;
    bob.publish("one", &[]).await;
    assert_eq!(name().await, "one");
    let room = alice.create_room().await;
    bob.join_over(&room, &here).await;
    assert_eq!(name().await, "one");
    rename("two").await;
    let deadline = Instant::now() + PATIENCE;
    while name().await != "two" {
        assert!(Instant::now() < deadline, "the name never comes");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A peer whose bob has one device `D`, and how often its list is asked for.
struct Far {
    peer: Peer,
    bob: String,
    /// Stands for the identity and the number of the list.
    stream_id: Arc<AtomicU64>,
}

impl Far {
    async fn start() -> Self {
        let peer = Peer::start().await;
        let bob = peer.user("bob");
        let stream_id = Arc::new(AtomicU64::new(1));
        let (user, number) = (bob.clone(), Arc::clone(&stream_id));
        peer.answer("PUT", "/_matrix/federation/v1/send/*", |_| {
            (200, json!({ "pdus": {} }))
        });
        let path = "/_matrix/federation/v1/user/devices/*";
        peer.answer("GET", path, move |_| {
            let number = number.load(Ordering::Relaxed);
            let keys = device_keys(&user, "D", &number.to_string());
            let device = json!({ "device_id": "D", "keys": keys });
            let list = json!({ "user_id": user, "stream_id": number, "devices": [device] });
            (200, list)
        });
        let user = bob.clone();
        peer.answer(
            "POST",
            "/_matrix/federation/v1/user/keys/query",
            move |_| {
                let keys = device_keys(&user, "D", "asked");
                (
                    200,
                    json!({ "device_keys": { user.clone(): { "D": keys } } }),
                )
            },
        );
        Self {
            peer,
            bob,
            stream_id,
        }
    }

    /// How often the list and single keys were asked for.
    fn asked(&self) -> (usize, usize) {
        let seen = self.peer.seen();
        let count = |path: &str| seen.iter().filter(|request| request.contains(path)).count();
        (count("/user/devices/"), count("/user/keys/query"))
    }

    async fn transaction(&self, server: &TestServer, edu: Value) {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let body = json!({
            "origin": self.peer.name, "origin_server_ts": 1, "pdus": [], "edus": [edu],
        });
        let target = format!("/_matrix/federation/v1/send/k{id}");
        self.peer.put(server, &target, body).await.ok();
    }

    /// The devices change, and everybody is told, with the keys or without.
    async fn change(&self, server: &TestServer, by: u64, has_keys: bool) {
        let number = self.stream_id.fetch_add(by, Ordering::Relaxed) + by;
        let mut content = json!({
            "user_id": self.bob, "device_id": "D", "stream_id": number, "prev_id": [number - 1],
        });
        if has_keys {
            content["keys"] = device_keys(&self.bob, "D", &number.to_string());
        }
        let edu = json!({ "edu_type": "m.device_list_update", "content": content });
        self.transaction(server, edu).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_fetched_once_while_its_changes_are_told() {
    let server = TestServer::federating(&[]).await;
    let (alice, far) = (server.user("alice").await, Far::start().await);
    let identity = async || alice.identity(&far.bob, "D").await.expect("keys");
    assert_eq!(identity().await, "asked");
    assert_eq!(identity().await, "asked");
    assert_eq!(far.asked(), (0, 2), "nobody would tell changes");

    let room = alice.create_room().await;
    far.peer.join(&server, &room, "bob").await;
    for _ in 0..3 {
        assert_eq!(identity().await, "1");
    }
    assert_eq!(far.asked(), (1, 2));
    // A change that says all is followed; others are not.
    far.change(&server, 1, true).await;
    assert_eq!(identity().await, "2");
    assert_eq!(far.asked(), (1, 2));
    far.change(&server, 1, false).await;
    assert_eq!(identity().await, "3");
    assert_eq!(identity().await, "3");
    assert_eq!(far.asked(), (2, 2));
    far.change(&server, 2, true).await;
    assert_eq!(identity().await, "5");
    assert_eq!(identity().await, "5");
    assert_eq!(far.asked(), (3, 2));
    let signing = json!({
        "edu_type": "m.signing_key_update",
        "content": { "user_id": far.bob },
    });
    far.transaction(&server, signing).await;
    assert_eq!(identity().await, "5");
    assert_eq!(identity().await, "5");
    assert_eq!(far.asked(), (4, 2));
    let ended = json!({ "edu_type": "m.device_list_update", "content": {
        "user_id": far.bob, "device_id": "D", "stream_id": 6, "prev_id": [5], "deleted": true,
    } });
    far.transaction(&server, ended).await;
    assert_eq!(alice.identity(&far.bob, "D").await, None);
    assert_eq!(far.asked(), (4, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_not_kept_of_who_has_left_even_if_the_user_comes_back() {
    let server = TestServer::federating(&[]).await;
    let (alice, far) = (server.user("alice").await, Far::start().await);
    let room = alice.create_room().await;
    far.peer.join(&server, &room, "bob").await;
    let identity = async || alice.identity(&far.bob, "D").await.expect("keys");
    assert_eq!(identity().await, "1");
    let path = format!("/_matrix/client/v3/rooms/{room}/kick");
    let body = json!({ "user_id": far.bob });
    alice.post(&path, body).await.ok();
    assert_eq!(identity().await, "asked");
    assert_eq!(far.asked(), (1, 1));
    // Nobody told of this.
    far.stream_id.store(7, Ordering::Relaxed);
    far.peer.join(&server, &room, "bob").await;
    assert_eq!(identity().await, "7");
    assert_eq!(identity().await, "7");
    assert_eq!(far.asked(), (2, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_answer_is_named_and_costs_nobody_else_anything() {
    let server = TestServer::federating(&[]).await;
    let (alice, far) = (server.user("alice").await, Far::start().await);
    let room = alice.create_room().await;
    far.peer.join(&server, &room, "bob").await;
    alice.publish("own", &["a"]).await;
    let broken = |_: &http::Request<bytes::Bytes>| (500, json!({ "errcode": "M_UNKNOWN" }));
    for path in ["devices/*", "keys/query", "keys/claim"] {
        let method = if path == "devices/*" { "GET" } else { "POST" };
        let path = format!("/_matrix/federation/v1/user/{path}");
        far.peer.answer(method, &path, broken);
    }
    let wanted = json!({ far.bob.clone(): [], alice.id.clone(): [] });
    let body = json!({ "device_keys": wanted, "timeout": 5_000 });
    let found = alice.post(QUERY, body).await.ok();
    assert!(found["failures"][far.peer.name.as_str()].is_object());
    assert_eq!(found["device_keys"].as_object().expect("users").len(), 1);
    let claims = json!({
        far.bob.clone(): { "D": "signed_curve25519" },
        alice.id.clone(): { alice.device.clone(): "signed_curve25519" },
    });
    let claimed = alice
        .post(CLAIM, json!({ "one_time_keys": claims }))
        .await
        .ok();
    assert!(claimed["failures"][far.peer.name.as_str()].is_object());
    assert_eq!(
        claimed["one_time_keys"].as_object().expect("users").len(),
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_publishes_keys_tells_them_to_other_servers_with_the_change() {
    let server = TestServer::federating(&[]).await;
    let (alice, peer) = (server.user("alice").await, Peer::start().await);
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let sink = Arc::clone(&seen);
    peer.answer("PUT", "/_matrix/federation/v1/send/*", move |request| {
        let body: Value = serde_json::from_slice(request.body()).expect("JSON");
        let edus = body["edus"].as_array().into_iter().flatten().cloned();
        let lists = edus.filter(|edu| edu["edu_type"] == "m.device_list_update");
        sink.lock().expect("a lock").extend(lists);
        (200, json!({ "pdus": {} }))
    });
    let room = alice.create_room().await;
    peer.join(&server, &room, "bob").await;
    alice.publish("one", &[]).await;
    let expected = device_keys(&alice.id, &alice.device, "one");
    let deadline = Instant::now() + PATIENCE;
    let has_come = || {
        let seen = seen.lock().expect("a lock");
        seen.iter().any(|edu| edu["content"]["keys"] == expected)
    };
    while !has_come() {
        assert!(Instant::now() < deadline, "the keys never come: {seen:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

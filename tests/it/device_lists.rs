//! Whose devices have changed, as those are told who share a room: on one server and between two.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    harness::{
        PASSWORD, TestServer, User,
        federated::{federation_settings, free_address},
    },
    peer::Peer,
    room_words::escaped,
    sync_words::Synced,
};

/// A test that waits longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// `device_lists` of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Lists {
    changed: BTreeSet<String>,
    left: BTreeSet<String>,
}

impl Lists {
    fn of(lists: &Value) -> Self {
        let users = |name: &str| {
            let users = lists[name].as_array().expect("there is always a list");
            let users = users.iter().map(|user| user.as_str().expect("a user"));
            users.map(str::to_owned).collect()
        };
        Self {
            changed: users("changed"),
            left: users("left"),
        }
    }

    fn changed(users: &[&User]) -> Self {
        Self {
            changed: users.iter().map(|user| user.id.clone()).collect(),
            left: BTreeSet::new(),
        }
    }

    fn left(users: &[&User]) -> Self {
        Self {
            changed: BTreeSet::new(),
            left: users.iter().map(|user| user.id.clone()).collect(),
        }
    }
}

impl Synced {
    fn lists(&self) -> Lists {
        Lists::of(&self.body["device_lists"])
    }
}

impl User {
    /// Syncs on until the lists are these.
    async fn wait_for_lists(&self, before: &Synced, expected: Lists) -> Synced {
        let deadline = Instant::now() + PATIENCE;
        let mut synced = self.sync_since(before).await;
        while synced.lists() != expected {
            assert!(Instant::now() < deadline, "{:?} never came", expected);
            // Where members of a room are not known yet, not all come at once.
            let lists = synced.lists();
            let is_part =
                lists.changed.is_subset(&expected.changed) && lists.left.is_subset(&expected.left);
            assert!(is_part, "{lists:?} instead of {expected:?}");
            synced = self.wait_since(&synced).await;
        }
        synced
    }

    /// A sync that knows of all devices that there are: what becomes of them is told a moment later.
    async fn settled(&self) -> Synced {
        let deadline = Instant::now() + PATIENCE;
        let mut synced = self.sync().await;
        loop {
            let next = self
                .sync_with(&format!("since={}&timeout=200", synced.next))
                .await;
            if next.lists() == Lists::default() {
                return next;
            }
            assert!(Instant::now() < deadline, "it never ends");
            synced = next;
        }
    }

    async fn changes(&self, from: &Synced, to: &Synced) -> Lists {
        let query = format!("from={}&to={}", from.next, to.next);
        let path = format!("/_matrix/client/v3/keys/changes?{query}");
        Lists::of(&self.get(&path).await.ok())
    }

    async fn rename(&self, device: &str, name: &str) {
        let path = format!("/_matrix/client/v3/devices/{device}");
        let body = json!({ "display_name": name });
        self.put(&path, body).await.ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_shares_a_room_is_told_of_new_renamed_and_ended_devices() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let carol = server.user("carol").await;
    let room = alice.create_room().await;
    bob.join(&room).await.ok();
    let start = alice.settled().await;
    let (bobs, carols) = (bob.settled().await, carol.settled().await);

    let second = server.login("bob", PASSWORD).await;
    let made = alice.wait_for_lists(&start, Lists::changed(&[&bob])).await;
    bob.wait_for_lists(&bobs, Lists::changed(&[&bob])).await;

    second.rename(&second.device, "Phone").await;
    let renamed = alice.wait_for_lists(&made, Lists::changed(&[&bob])).await;
    second
        .post("/_matrix/client/v3/logout", json!({}))
        .await
        .ok();
    let ended = alice
        .wait_for_lists(&renamed, Lists::changed(&[&bob]))
        .await;

    assert_eq!(alice.sync_since(&ended).await.lists(), Lists::default());
    assert_eq!(
        alice.sync_since(&start).await.lists(),
        Lists::changed(&[&bob])
    );
    assert_eq!(carol.sync_since(&carols).await.lists(), Lists::default());
    assert_eq!(alice.changes(&start, &ended).await, Lists::changed(&[&bob]));
    assert_eq!(alice.changes(&ended, &ended).await, Lists::default());
    assert_eq!(carol.changes(&carols, &carols).await, Lists::default());
    let path = "/_matrix/client/v3/keys/changes?from=nonsense&to=nonsense";
    alice.get(path).await.fails(400, "M_INVALID_PARAM");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_in_a_room_is_no_change_of_devices() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = alice.create_room().await;
    bob.join(&room).await.ok();
    let start = alice.settled().await;
    let content = json!({ "membership": "join", "displayname": "Bobby" });
    bob.set_state(&room, "m.room.member", &bob.id, content)
        .await
        .ok();
    alice.say(&room, "hello").await;
    let synced = alice.sync_since(&start).await;
    assert_eq!(synced.messages(&room), ["hello"]);
    assert_eq!(synced.lists(), Lists::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_is_told_and_who_is_in_no_shared_room_any_more() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let (one, two) = (alice.create_room().await, alice.create_room().await);
    let (start, bobs) = (alice.settled().await, bob.settled().await);

    bob.join(&one).await.ok();
    let joined = alice.wait_for_lists(&start, Lists::changed(&[&bob])).await;
    let bobs = bob
        .wait_for_lists(&bobs, Lists::changed(&[&alice, &bob]))
        .await;
    bob.join(&two).await.ok();
    bob.leave(&one).await.ok();
    let moved = alice.sync_since(&joined).await;
    assert_eq!(moved.lists().left, BTreeSet::new(), "a room is shared");
    bob.leave(&two).await.ok();
    let left = alice.sync_since(&moved).await;
    assert_eq!(left.lists(), Lists::left(&[&bob]));
    let again = alice.sync_since(&moved).await;
    assert_eq!(again.lists(), Lists::left(&[&bob]), "as often as asked");
    assert_eq!(bob.sync_since(&bobs).await.lists(), Lists::left(&[&alice]));
    assert_eq!(alice.changes(&joined, &left).await, Lists::left(&[&bob]));
    assert_eq!(alice.changes(&start, &left).await, Lists::default());

    // What happens to devices of somebody with whom no room is shared is not told, until one is shared again.
    server.login("bob", PASSWORD).await;
    bob.settled().await;
    assert_eq!(alice.sync_since(&left).await.lists(), Lists::default());
    bob.join(&one).await.ok();
    let back = alice.sync_since(&left).await;
    assert_eq!(back.lists(), Lists::changed(&[&bob]));
    // Who knew the first room with bob in it learns that he has been away.
    assert_eq!(
        alice.sync_since(&joined).await.lists(),
        Lists::changed(&[&bob])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_and_lazy_members_hide_no_device_lists() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = alice.create_room().await;
    let start = alice.settled().await;
    bob.join(&room).await.ok();
    for number in 0..30 {
        alice.say(&room, &format!("{number}")).await;
    }
    let lazy = json!({ "room": {
        "timeline": { "lazy_load_members": true, "limit": 5 },
        "state": { "lazy_load_members": true },
    } });
    let none = json!({ "room": { "rooms": [] } });
    for filter in [&lazy, &none] {
        let synced = alice
            .sync_filtered(filter, &format!("since={}", start.next))
            .await;
        assert_eq!(synced.lists(), Lists::changed(&[&bob]));
    }
    let joined = alice.sync_since(&start).await;
    bob.leave(&room).await.ok();
    for filter in [&lazy, &none] {
        let synced = alice
            .sync_filtered(filter, &format!("since={}", joined.next))
            .await;
        assert_eq!(synced.lists(), Lists::left(&[&bob]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ban_and_an_own_leave_end_the_tracking() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let carol = server.user("carol").await;
    let room = alice.create_room().await;
    for user in [&bob, &carol] {
        user.join(&room).await.ok();
    }
    let (start, bobs, carols) = (
        alice.settled().await,
        bob.settled().await,
        carol.settled().await,
    );
    alice.change_member(&room, "ban", &bob).await.ok();
    assert_eq!(alice.sync_since(&start).await.lists(), Lists::left(&[&bob]));
    assert_eq!(
        bob.sync_since(&bobs).await.lists(),
        Lists::left(&[&alice, &carol])
    );
    carol.leave(&room).await.ok();
    let lists = carol.sync_since(&carols).await.lists();
    assert!(lists.left.contains(&alice.id), "{lists:?}");
    assert!(lists.changed.is_empty(), "{lists:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_outlives_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = TestServer::start_in(folder.path(), &[]).await;
    let (mut alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = alice.create_room().await;
    bob.join(&room).await.ok();
    let start = alice.settled().await;
    server.login("bob", PASSWORD).await;
    server.stop().await;
    let server = TestServer::start_in(folder.path(), &[]).await;
    alice.server = server.base.clone();
    alice.wait_for_lists(&start, Lists::changed(&[&bob])).await;
    server.stop().await;
}

/// The EDUs that a peer has got.
#[derive(Clone, Default)]
struct Edus(Arc<Mutex<Vec<Value>>>);

impl Edus {
    fn of(peer: &Peer) -> Self {
        let edus = Self::default();
        let seen = edus.clone();
        peer.answer("PUT", "/_matrix/federation/v1/send/*", move |request| {
            let body: Value = serde_json::from_slice(request.body()).expect("JSON");
            let new = body["edus"].as_array().into_iter().flatten();
            let new = new.filter(|edu| edu["edu_type"] == "m.device_list_update");
            let mut seen = seen.0.lock().expect("a lock");
            seen.extend(new.map(|edu| edu["content"].clone()));
            (200, json!({ "pdus": {} }))
        });
        edus
    }

    async fn wait(&self, count: usize) -> Vec<Value> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = self.0.lock().expect("a lock").clone();
            if seen.len() >= count {
                return seen;
            }
            assert!(Instant::now() < deadline, "only {seen:?} came");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_servers_are_told_what_becomes_of_devices() {
    let server = TestServer::federating(&[]).await;
    let (alice, peer) = (server.user("alice").await, Peer::start().await);
    let edus = Edus::of(&peer);
    let room = alice.create_room().await;
    peer.join(&server, &room, "bob").await;
    alice.settled().await;
    let second = server.login("alice", PASSWORD).await;
    second.rename(&second.device, "Phone").await;
    second
        .post("/_matrix/client/v3/logout", json!({}))
        .await
        .ok();
    let seen = edus.wait(3).await;
    for (at, edu) in seen.iter().enumerate() {
        assert_eq!(edu["user_id"], alice.id.as_str());
        assert_eq!(edu["device_id"], second.device.as_str());
        assert_eq!(edu["stream_id"], at + 2, "the first device was the first");
        assert_eq!(edu["prev_id"], json!([at + 1]));
        assert_eq!(edu["deleted"] == true, at == 2, "{edu}");
    }
    let path = format!("/_matrix/federation/v1/user/devices/{}", escaped(&alice.id));
    let list = peer.get(&server, &path).await.ok();
    assert_eq!(list["stream_id"], 4);
    assert_eq!(list["devices"], json!([]), "none of them has keys");
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_users_of_other_servers_are_told_once() {
    let server = TestServer::federating(&[]).await;
    let (alice, peer) = (server.user("alice").await, Peer::start().await);
    let _edus = Edus::of(&peer);
    let room = alice.create_room().await;
    peer.join(&server, &room, "bob").await;
    let update = |user: &str, stream_id: u64| {
        json!({
            "edu_type": "m.device_list_update",
            "content": {
                "user_id": user, "device_id": "D", "stream_id": stream_id, "prev_id": [],
            },
        })
    };
    let (bob, stranger) = (peer.user("bob"), peer.user("stranger"));
    let told = |synced: &Synced| synced.lists().changed.into_iter().collect::<Vec<_>>();
    let mut synced = alice.settled().await;
    peer.send(&server, "1", json!([]), json!([update(&bob, 5)]))
        .await
        .ok();
    synced = alice.sync_since(&synced).await;
    assert_eq!(told(&synced), [bob.clone()]);
    let others = json!([
        update(&bob, 5),
        update(&stranger, 1),
        update(&alice.id, 9),
        { "edu_type": "m.device_list_update", "content": {} },
    ]);
    peer.send(&server, "2", json!([]), others).await.ok();
    let synced = alice.sync_since(&synced).await;
    assert_eq!(synced.lists(), Lists::default());
    let signing = json!({
        "edu_type": "m.signing_key_update",
        "content": { "user_id": bob, "master_key": {} },
    });
    peer.send(&server, "3", json!([]), json!([signing]))
        .await
        .ok();
    let synced = alice.sync_since(&synced).await;
    assert_eq!(told(&synced), [bob.clone()]);
    // A server that starts its numbers anew is believed.
    peer.send(&server, "4", json!([]), json!([update(&bob, 2)]))
        .await
        .ok();
    assert_eq!(told(&alice.sync_since(&synced).await), [bob]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_shares_a_room_over_servers_is_told_and_changes_wait_for_who_is_away() {
    let addresses = [free_address(), free_address()];
    let settings = addresses.map(federation_settings);
    let folders = [tempfile::tempdir(), tempfile::tempdir()].map(|folder| folder.expect("one"));
    let start = async |at: usize| {
        let settings: Vec<&str> = settings[at].iter().map(String::as_str).collect();
        TestServer::start_in(folders[at].path(), &settings).await
    };
    let (here, there) = (start(0).await, start(1).await);
    let (alice, mut bob) = (here.user("alice").await, there.user("bob").await);
    let room = alice.create_room().await;
    let (alices, bobs) = (alice.settled().await, bob.settled().await);
    bob.join_over(&room, &here).await;
    let bobs = bob
        .wait_for_lists(&bobs, Lists::changed(&[&alice, &bob]))
        .await;
    alice.wait_for_lists(&alices, Lists::changed(&[&bob])).await;

    there.stop().await;
    here.login("alice", PASSWORD).await;
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
    let (here, there) = (start(0).await, start(1).await);
    bob.server = there.base.clone();
    let name = ruma::ServerName::parse(there.name()).expect("a name");
    here.running.server.federation.retry(&name);
    bob.wait_for_lists(&bobs, Lists::changed(&[&alice])).await;
    here.stop().await;
    there.stop().await;
}

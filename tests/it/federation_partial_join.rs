//! The faster join: a room is used while its members are still being fetched, and is as it should be afterwards.

use std::{collections::BTreeMap, time::Duration};

use serde_json::json;
use tokio::time::Instant;

use crate::{
    far_room::{FarRoom, PATIENCE, check, has, is_partial, lazy, own_state, state_before},
    harness::{PASSWORD, TestServer, federated},
    peer::Peer,
    room_words::{escaped, room_path},
    sync_words::find,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_room_is_used_while_its_members_are_fetched_and_whole_afterwards() {
    let server = TestServer::federating(&[]).await;
    let (alice, room) = (server.user("alice").await, FarRoom::new().await);
    let before = alice.sync().await;
    alice.join_far(&room).await;
    assert!(is_partial(&server, &room));
    check(&server, &room);

    // Who loads members lazily has the room at once, with those who speak in it; others do not have it yet.
    let said = room.say("derek", "hello");
    room.send(&server, &[&said]).await;
    let synced = alice.lazily(has(&room, &said)).await;
    let derek = room.peer.user("derek");
    let is_told = find(&synced.joined(&room.id)["state"], "m.room.member", &derek).is_some();
    assert!(is_told, "{}", synced.body);
    check(&server, &room);
    let eager = alice.sync_since(&before).await;
    assert!(eager.joined(&room.id).is_null(), "{}", eager.body);
    // What is said here goes to the servers that were told of.
    alice.say(&room.id, "hi").await;
    // Nobody is let in by who does not know who is in.
    let target = format!(
        "/_matrix/federation/v1/make_join/{}/{}?ver=10",
        escaped(&room.id),
        escaped(&room.peer.user("eve"))
    );
    room.peer
        .get(&server, &target)
        .await
        .fails(404, "M_NOT_FOUND");

    let members = alice.members(&room);
    let waiting = alice.wait_since(&eager);
    room.tell();
    let (members, woken) = tokio::join!(members, waiting);
    let charlie = room.peer.user("charlie");
    let joined = [alice.id.to_string(), charlie.clone(), derek.clone()];
    let joined: BTreeMap<_, _> = joined.map(|user| (user, "join".to_owned())).into();
    assert_eq!(members, joined);
    let section = woken.joined(&room.id);
    for user in [&charlie, &derek] {
        let is_told = find(&section["state"], "m.room.member", user).is_some();
        assert!(is_told, "{}", woken.body);
    }
    assert!(!is_partial(&server, &room));
    check(&server, &room);
    assert_eq!(state_before(&server, &room, &said).await, own_state(&room));
    let sent = room.peer.seen();
    assert!(
        sent.iter()
            .any(|seen| seen.starts_with("PUT /_matrix/federation/v1/send/"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_should_not_have_been_accepted_goes_and_what_should_have_been_counts() {
    let server = TestServer::federating(&[]).await;
    let (alice, room) = (server.user("alice").await, FarRoom::new().await);
    // Elsie may send state. Derek has left, which the server that joins is not told.
    let elsie = room.peer.user("elsie");
    let levels = json!({ "users": {
        room.peer.user("charlie"): 100, room.peer.user("derek"): 100, elsie.clone(): 50,
    } });
    room.add("charlie", "m.room.power_levels", Some(""), &levels);
    let derek_joined = room.membership("derek", "join");
    room.membership("derek", "leave");
    let elsie_joined = room.join("elsie");
    alice.join_far(&room).await;

    let ban = room.put_out("derek", (&elsie, "ban"), &[&derek_joined, &elsie_joined]);
    let set = room.add("elsie", "m.room.test", Some(""), &json!({ "by": "elsie" }));
    let said = room.say("charlie", "what happens?");
    room.send(&server, &[&ban, &set, &said]).await;

    let synced = alice.lazily(has(&room, &said)).await;
    assert!(has(&room, &ban)(&synced) || alice.far_event(&room, &ban).await.status == 200);
    alice.far_event(&room, &set).await.fails(404, "M_NOT_FOUND");
    check(&server, &room);

    room.tell();
    let members = alice.members(&room).await;
    assert_eq!(members.get(&elsie).map(String::as_str), Some("join"));
    let left = members.get(&room.peer.user("derek"));
    assert_eq!(left.map(String::as_str), Some("leave"));
    alice.far_event(&room, &ban).await.fails(404, "M_NOT_FOUND");
    let found = alice.state(&room.id, "m.room.test", "").await.ok();
    assert_eq!(found["by"], "elsie");
    assert_eq!(state_before(&server, &room, &said).await, own_state(&room));
    check(&server, &room);
    // A client that was told otherwise is told what is so.
    let query = format!("since={}", synced.next);
    let corrected = alice.sync_filtered(&lazy(), &query).await;
    let section = &corrected.joined(&room.id)["state"];
    assert!(
        find(section, "m.room.test", "").is_some(),
        "{}",
        corrected.body
    );
    // The room goes on as if nothing had been.
    let after = room.say("elsie", "I am here");
    room.send(&server, &[&after]).await;
    alice.lazily(has(&room, &after)).await;
    check(&server, &room);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_server_of_the_room_is_asked_when_one_fails() {
    let server = TestServer::federating(&[]).await;
    let (alice, room) = (server.user("alice").await, FarRoom::new().await);
    let other = Peer::start().await;
    room.serve(&other);
    room.shared().servers.push(other.name.to_string());
    room.peer
        .answer("GET", "/_matrix/federation/v1/state_ids/*", |_| {
            (200, json!({}))
        });
    room.tell();
    alice.join_far(&room).await;

    let members = alice.members(&room).await;

    assert!(
        members.contains_key(&room.peer.user("derek")),
        "{members:?}"
    );
    let asked = |peer: &Peer| {
        let seen = peer.seen();
        seen.iter()
            .any(|seen| seen.starts_with("GET /_matrix/federation/v1/state_ids/"))
    };
    assert!(asked(&room.peer) && asked(&other));
    check(&server, &room);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_goes_on_with_what_is_left() {
    let folder = tempfile::tempdir().expect("a folder");
    let address = federated::free_address();
    let server = TestServer::federating_on(address, federated::open_store(folder.path())).await;
    let (alice, room) = (server.user("alice").await, FarRoom::new().await);
    alice.join_far(&room).await;
    let said = room.say("derek", "hello");
    room.send(&server, &[&said]).await;
    alice.lazily(has(&room, &said)).await;
    server.stop().await;

    let server = TestServer::federating_on(address, federated::open_store(folder.path())).await;
    let alice = server.login("alice", PASSWORD).await;
    assert!(is_partial(&server, &room));
    let eager = alice.sync().await;
    assert!(eager.joined(&room.id).is_null(), "{}", eager.body);
    room.tell();

    let members = alice.members(&room).await;
    assert!(
        members.contains_key(&room.peer.user("charlie")),
        "{members:?}"
    );
    assert_eq!(state_before(&server, &room, &said).await, own_state(&room));
    check(&server, &room);
}

#[tokio::test(flavor = "multi_thread")]
async fn users_leave_and_come_back_before_the_members_are_known() {
    let server = TestServer::federating(&[]).await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = FarRoom::new().await;
    alice.join_far(&room).await;
    bob.join_far(&room).await;
    alice.leave(&room.id).await.ok();
    let seen = bob.lazily(|synced| {
        let events = synced.joined(&room.id)["timeline"]["events"].as_array();
        events.is_some_and(|events| {
            events.iter().any(|event| {
                event["state_key"] == alice.id.as_str() && event["content"]["membership"] == "leave"
            })
        })
    });
    seen.await;
    check(&server, &room);
    alice.join_far(&room).await;
    check(&server, &room);
    room.tell();
    let members = bob.members(&room).await;
    for user in [
        alice.id.to_string(),
        bob.id.to_string(),
        room.peer.user("derek"),
    ] {
        assert_eq!(
            members.get(&user).map(String::as_str),
            Some("join"),
            "{members:?}"
        );
    }
    check(&server, &room);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_let_in_wrongly_is_out_when_the_state_has_come() {
    let server = TestServer::federating(&[]).await;
    let (alice, room) = (server.user("alice").await, FarRoom::new().await);
    room.add(
        "charlie",
        "m.room.member",
        Some(&alice.id),
        &json!({ "membership": "ban" }),
    );
    alice.join_far(&room).await;
    assert!(is_partial(&server, &room));

    room.tell();

    let deadline = Instant::now() + PATIENCE;
    while is_partial(&server, &room) {
        assert!(Instant::now() < deadline, "it stays partial");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    check(&server, &room);
    let synced = alice.sync().await;
    assert!(synced.joined(&room.id).is_null(), "{}", synced.body);
    alice
        .get(&room_path(&room.id, "/members"))
        .await
        .fails(403, "M_FORBIDDEN");
}

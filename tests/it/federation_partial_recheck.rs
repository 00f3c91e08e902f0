//! What was judged wrongly while members of a room were not known, and what had to wait for them.

use std::time::Duration;

use ruma::RoomId;
use serde_json::json;
use tokio::time::Instant;

use crate::{
    far_room::{FarRoom, PATIENCE, check, has, lazy, own_state, state_before},
    harness::{PASSWORD, TestServer, federated},
};

#[tokio::test(flavor = "multi_thread")]
async fn who_was_put_out_wrongly_still_has_a_say_meanwhile() {
    let server = TestServer::federating(&[]).await;
    let (alice, room) = (server.user("alice").await, FarRoom::new().await);
    let elsie = room.peer.user("elsie");
    let derek_joined = room.lose_a_moderator("derek");
    room.join("elsie");
    alice.join_far(&room).await;

    // It does not come after the join that it ends, as far as its auth events say.
    let kick = room.put_out("derek", (&elsie, "leave"), &[&derek_joined]);
    let said = room.say("elsie", "I am here");
    let before = own_state(&room);
    let left = room.membership("elsie", "leave");
    let last = room.say("charlie", "what happens?");
    room.send(&server, &[&kick, &said, &left, &last]).await;
    alice.lazily(has(&room, &last)).await;
    for event in [&kick, &said, &left] {
        assert_eq!(alice.far_event(&room, event).await.status, 200);
    }
    check(&server, &room);

    room.tell();
    let members = alice.members(&room).await;
    assert_eq!(members.get(&elsie).map(String::as_str), Some("leave"));
    alice
        .far_event(&room, &kick)
        .await
        .fails(404, "M_NOT_FOUND");
    assert_eq!(state_before(&server, &room, &left).await, before);
    assert_eq!(state_before(&server, &room, &last).await, own_state(&room));
    check(&server, &room);
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_devices_of_who_is_not_known_yet_are_told_when_the_members_are() {
    let folder = tempfile::tempdir().expect("a folder");
    let address = federated::free_address();
    let server = TestServer::federating_on(address, federated::open_store(folder.path())).await;
    let (alice, room) = (server.user("alice").await, FarRoom::new().await);
    alice.join_far(&room).await;
    let before = alice.sync_filtered(&lazy(), "").await;
    room.send_lists(&server, &["derek", "stranger"]).await;
    let query = format!("since={}", before.next);
    let synced = alice.sync_filtered(&lazy(), &query).await;
    let derek = room.peer.user("derek");
    assert!(!synced.changed_lists().contains(&&*derek));
    server.stop().await;

    let server = TestServer::federating_on(address, federated::open_store(folder.path())).await;
    let alice = server.login("alice", PASSWORD).await;
    room.tell();

    let deadline = Instant::now() + PATIENCE;
    let mut synced = alice.sync_filtered(&lazy(), &query).await;
    while !synced.changed_lists().contains(&&*derek) {
        assert!(Instant::now() < deadline, "it never came: {}", synced.body);
        let query = format!("since={}&timeout=2000", synced.next);
        synced = alice.sync_filtered(&lazy(), &query).await;
    }
    // Charlie has been in the room all the time, and what a client knows of his devices is so.
    let synced = alice.sync_filtered(&lazy(), &query).await;
    let mut changed = synced.changed_lists();
    changed.retain(|user| *user != alice.id);
    assert_eq!(changed, [derek]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_devices_of_who_was_put_out_wrongly_are_looked_up_anew() {
    let server = TestServer::federating(&[]).await;
    let (alice, room) = (server.user("alice").await, FarRoom::new().await);
    let elsie = room.peer.user("elsie");
    let derek_joined = room.lose_a_moderator("derek");
    let elsie_joined = room.join("elsie");
    alice.join_far(&room).await;
    let said = room.say("elsie", "hello");
    room.send(&server, &[&said]).await;
    let known = alice.lazily(has(&room, &said)).await;
    let kick = room.put_out("derek", (&elsie, "leave"), &[&derek_joined, &elsie_joined]);
    room.send(&server, &[&kick]).await;
    let query = format!("since={}&timeout=2000", known.next);
    let mut synced = alice.sync_filtered(&lazy(), &query).await;
    let gone = &synced.body["device_lists"]["left"];
    assert_eq!(gone, &json!([elsie]), "{}", synced.body);

    room.tell();

    let deadline = Instant::now() + PATIENCE;
    while !synced.changed_lists().contains(&&*elsie) {
        assert!(Instant::now() < deadline, "it never came: {}", synced.body);
        let query = format!("since={}&timeout=2000", synced.next);
        synced = alice.sync_filtered(&lazy(), &query).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_back_wrongly_is_put_back() {
    let server = TestServer::federating(&[]).await;
    let (alice, room) = (server.user("alice").await, FarRoom::new().await);
    let derek_joined = room.membership("derek", "join");
    room.membership("derek", "leave");
    alice.join_far(&room).await;
    let root = room.say("charlie", "a thread");
    let content = json!({
        "msgtype": "m.text", "body": "in it",
        "m.relates_to": { "rel_type": "m.thread", "event_id": root.event_id },
    });
    let said = room.add("charlie", "m.room.message", None, &content);
    let taken_back = room.take_back("derek", &derek_joined, &said);
    room.send(&server, &[&root, &said, &taken_back]).await;
    alice.lazily(has(&room, &taken_back)).await;
    let redacted = alice.far_event(&room, &said).await.ok();
    assert_eq!(redacted["content"], json!({}), "{redacted}");
    check(&server, &room);

    room.tell();
    alice.members(&room).await;
    let restored = alice.far_event(&room, &said).await.ok();
    assert_eq!(restored["content"], content);
    assert!(restored["unsigned"]["redacted_because"].is_null());
    let root = alice.far_event(&room, &root).await.ok();
    let thread = &root["unsigned"]["m.relations"]["m.thread"];
    assert_eq!(thread["count"], 1, "{root}");
    check(&server, &room);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_refused_for_what_should_have_been_accepted_is_not_in_the_end() {
    let server = TestServer::federating(&[]).await;
    let (alice, room) = (server.user("alice").await, FarRoom::new().await);
    let [charlie, derek, elsie] = ["charlie", "derek", "elsie"].map(|name| room.peer.user(name));
    let users = json!({ charlie: 100, derek: 100, elsie.clone(): 50 });
    let levels = json!({ "users": users });
    room.add("charlie", "m.room.power_levels", Some(""), &levels);
    let derek_joined = room.membership("derek", "join");
    room.membership("derek", "leave");
    let elsie_joined = room.join("elsie");
    alice.join_far(&room).await;
    let ban = room.put_out("derek", (&elsie, "ban"), &[&derek_joined, &elsie_joined]);
    let levels = json!({ "users": users, "users_default": 10 });
    let said = room.say("charlie", "what happens?");
    let set = room.add("elsie", "m.room.power_levels", Some(""), &levels);
    room.send(&server, &[&ban, &said, &set]).await;
    alice.lazily(has(&room, &said)).await;
    let refused = room.make("elsie", "m.room.test", Some(""), &json!({}), None);

    let rooms = &server.running.server.rooms;
    let number = rooms.number(&RoomId::parse(&room.id).expect("a room ID"));
    let number = number.expect("it is here");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut writer = rooms.write(number).await.expect("it is here");
        let left_out = writer.receive_outliers(vec![refused.clone()]).await;
        if left_out.expect("they are looked at").is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "what it cites does not come");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let is_rejected = || {
        let snapshot = server.running.server.store.snapshot().expect("a snapshot");
        let event = rooms.event_in_room(&snapshot, number, &refused.event_id);
        event
            .expect("it can be read")
            .map(|event| event.pdu.rejected)
    };
    while is_rejected() != Some(true) {
        assert!(Instant::now() < deadline, "{:?}", is_rejected());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    check(&server, &room);

    room.tell();
    alice.members(&room).await;
    assert_eq!(is_rejected(), Some(false));
    check(&server, &room);
}

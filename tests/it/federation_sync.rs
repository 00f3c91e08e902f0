//! What clients see in sync of rooms in which other servers take part: late events, gaps, redactions that come too early.

use serde_json::{Value, json};

use crate::{
    guest::{Draft, Guest},
    harness::{TestServer, User},
    peer::pdu_json,
    room_words::room_path,
};

async fn room_of(server: &TestServer) -> (User, Guest<'_>) {
    let alice = server.user("alice").await;
    let room = alice.create_room().await;
    let guest = Guest::join(server, &room).await;
    (alice, guest)
}

/// The IDs of a list of events.
fn ids(events: &Value) -> Vec<&str> {
    let events = events.as_array().expect("a list").iter();
    events
        .filter_map(|event| event["event_id"].as_str())
        .collect()
}

/// The guest may change the state of the room.
async fn empower(alice: &User, guest: &mut Guest<'_>) {
    let path = room_path(&guest.room, "/state/m.room.power_levels/");
    let mut levels = alice.get(&path).await.ok();
    levels["users"][guest.user.as_str()] = json!(50);
    let set = alice.put(&path, levels).await.ok();
    let event_id = set["event_id"].as_str().expect("an ID");
    guest.auth_events.remove(0);
    guest
        .auth_events
        .push(event_id.try_into().expect("an event ID"));
}

#[tokio::test]
async fn a_state_event_that_comes_late_is_told_in_the_state_of_a_first_sync() {
    let [server] = TestServer::federated().await;
    let (alice, mut guest) = room_of(&server).await;
    empower(&alice, &mut guest).await;
    let first = alice.say(&guest.room, "first").await;
    let (ends, depth) = guest.ends();
    alice.say(&guest.room, "second").await;
    let third = alice.say(&guest.room, "third").await;
    let late = guest.event(Draft {
        event_type: "m.room.name",
        state_key: Some(String::new()),
        content: json!({ "name": "late" }),
        prev_events: ends,
        auth_events: None,
        depth: depth + 1,
    });
    guest.send("1", &[&late]).await.ok();
    guest.is_seen(&alice, &late).await;
    let merge = json!({ "body": "not to be seen" });
    let merge = alice.send_event(&guest.room, "org.example.x", "t", merge);
    merge.await.ok();

    let filter = json!({ "room": { "timeline": { "not_types": ["org.example.x"], "limit": 1 } } });
    let synced = alice.sync_filtered(&filter, "").await;
    let section = synced.joined(&guest.room);
    assert_eq!(ids(&section["timeline"]["events"]), [third.as_str()]);
    assert_eq!(section["timeline"]["limited"], true);
    let name = synced
        .state(&guest.room, "m.room.name", "")
        .expect("a name");
    assert_eq!(name["event_id"], late.event_id.as_str());

    // Paging back misses nothing.
    let from = section["timeline"]["prev_batch"].as_str().expect("a token");
    let path = room_path(&guest.room, &format!("/messages?dir=b&limit=4&from={from}"));
    let page = alice.get(&path).await.ok();
    let before = ids(&page["chunk"]);
    assert!(before.contains(&late.event_id.as_str()), "{page}");
    assert!(before.contains(&first.as_str()), "{page}");

    // Where there is room for it, it comes before what came before it.
    let filter = json!({ "room": { "timeline": { "limit": 4 } } });
    let synced = alice.sync_filtered(&filter, "").await;
    let section = synced.joined(&guest.room);
    let shown = ids(&section["timeline"]["events"]);
    assert_eq!(shown[1], late.event_id.as_str(), "{section}");
    assert_eq!(shown[2], third.as_str());
    assert!(synced.state(&guest.room, "m.room.name", "").is_none());
}

#[tokio::test]
async fn a_timeline_is_limited_where_events_are_missing() {
    let [server] = TestServer::federated().await;
    let (alice, guest) = room_of(&server).await;
    let before = alice.sync().await;
    let lost = guest.message("lost", &[&guest.join]);
    let edge = guest.message("edge", &[&lost]);
    let last = guest.message("last", &[&edge]);
    let events = json!({ "events": [pdu_json(&edge)] });
    guest.answer("POST", "get_missing_events", events);
    let state = json!({ "pdu_ids": guest.state(), "auth_chain_ids": [] });
    guest.answer("GET", "state_ids", state);
    guest.answer_events(vec![pdu_json(&lost)], std::slice::from_ref(&lost.event_id));
    guest.send("1", &[&last]).await.ok();
    guest.is_seen(&alice, &last).await;

    for synced in [alice.sync().await, alice.sync_since(&before).await] {
        let section = synced.joined(&guest.room);
        assert_eq!(synced.messages(&guest.room), ["edge", "last"]);
        assert_eq!(section["timeline"]["limited"], true, "{section}");
    }
    let after = alice.sync().await;
    alice.say(&guest.room, "more").await;
    let news = alice.sync_since(&after).await;
    assert_eq!(news.messages(&guest.room), ["more"]);
    assert_eq!(news.joined(&guest.room)["timeline"]["limited"], false);
}

#[tokio::test]
async fn an_event_is_redacted_though_its_redaction_came_first() {
    let [server] = TestServer::federated().await;
    let (alice, guest) = room_of(&server).await;
    let secret = guest.message("secret", &[&guest.join]);
    let redaction = guest.event(Draft {
        event_type: "m.room.redaction",
        content: json!({ "redacts": secret.event_id }),
        ..Draft::message("", &[&guest.join])
    });
    guest.send("1", &[&redaction]).await.ok();
    guest.is_settled().await;
    guest.send("2", &[&secret]).await.ok();
    guest.is_seen(&alice, &secret).await;

    let path = room_path(&guest.room, &format!("/event/{}", secret.event_id));
    let event = alice.get(&path).await.ok();
    assert_eq!(event["content"], json!({}), "{event}");
    let because = &event["unsigned"]["redacted_because"]["event_id"];
    assert_eq!(because, redaction.event_id.as_str());
}

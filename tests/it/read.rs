//! Receipts, read markers, unread counts and notifications.

use serde_json::{Value, json};

use crate::{
    harness::{Answer, TestServer, User},
    room_words::{escaped, room_path},
    sync_words::Synced,
};

impl User {
    async fn receipt(&self, room: &str, kind: &str, event: &str, body: Value) -> Answer {
        let path = room_path(room, &format!("/receipt/{kind}/{}", escaped(event)));
        self.post(&path, body).await
    }

    /// Notification and highlight count of a joined room.
    async fn unread(&self, room: &str) -> (u64, u64) {
        counts(&self.sync().await.joined(room)["unread_notifications"])
    }

    /// The same for the main timeline and for the thread of `root`.
    async fn unread_by_thread(&self, room: &str, root: &str) -> [(u64, u64); 2] {
        let filter = json!({ "room": { "timeline": { "unread_thread_notifications": true } } });
        let synced = self.sync_filtered(&filter, "").await;
        let section = synced.joined(room);
        let threads = &section["unread_thread_notifications"];
        [
            counts(&section["unread_notifications"]),
            counts(&threads[root]),
        ]
    }
}

fn counts(of: &Value) -> (u64, u64) {
    let count = |name: &str| of[name].as_u64().unwrap_or(0);
    (count("notification_count"), count("highlight_count"))
}

/// The content of `m.receipt` of a room.
fn receipts<'a>(synced: &'a Synced, room: &str) -> &'a Value {
    let events = synced.joined(room)["ephemeral"]["events"].as_array();
    let events = events.map(Vec::as_slice).unwrap_or_default();
    let receipts = events.iter().find(|event| event["type"] == "m.receipt");
    receipts.map_or(&Value::Null, |event| {
        assert!(event.get("room_id").is_none());
        &event["content"]
    })
}

async fn room_of(alice: &User, others: &[&User]) -> String {
    let room = alice.create_room().await;
    for other in others {
        other.join(&room).await.ok();
    }
    room
}

#[tokio::test]
async fn a_receipt_is_seen_by_the_room_and_a_private_one_by_its_owner() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = room_of(&alice, &[&bob]).await;
    let first = alice.say(&room, "one").await;
    let second = alice.say(&room, "two").await;
    let before = alice.sync().await;

    bob.receipt(&room, "m.read", &first, json!({})).await.ok();
    let seen = alice.wait_since(&before).await;
    let ts = &receipts(&seen, &room)[&first]["m.read"][&bob.id]["ts"];
    assert!(ts.is_u64(), "{}", seen.body);

    let mine = bob.sync().await;
    bob.receipt(&room, "m.read.private", &second, json!({}))
        .await
        .ok();
    let own = bob.wait_since(&mine).await;
    assert!(receipts(&own, &room)[&second]["m.read.private"][&bob.id].is_object());
    assert!(receipts(&alice.sync_since(&seen).await, &room).is_null());
    assert!(receipts(&alice.sync().await, &room)[&second].is_null());

    // An older receipt does not take back a newer one.
    bob.receipt(&room, "m.read", &second, json!({})).await.ok();
    bob.receipt(&room, "m.read", &first, json!({})).await.ok();
    let all = alice.sync().await;
    assert!(receipts(&all, &room)[&first].is_null());
    assert!(receipts(&all, &room)[&second]["m.read"][&bob.id].is_object());
}

#[tokio::test]
async fn receipts_that_make_no_sense_are_refused() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = room_of(&alice, &[]).await;
    let root = alice.say(&room, "root").await;
    let relation = json!({ "rel_type": "m.thread", "event_id": root });
    let reply = json!({ "msgtype": "m.text", "body": "reply", "m.relates_to": relation });
    let reply = alice.say_content(&room, reply).await;
    let other = alice.say(&room, "other").await;
    let receipt = |kind: &'static str, event: &str, body: Value| {
        let (alice, room, event) = (&alice, &room, event.to_owned());
        async move { alice.receipt(room, kind, &event, body).await }
    };

    bob.receipt(&room, "m.read", &root, json!({}))
        .await
        .fails(403, "M_FORBIDDEN");
    receipt("m.read", "$unknown", json!({}))
        .await
        .fails(404, "M_NOT_FOUND");
    receipt("m.wrote", &root, json!({}))
        .await
        .fails(400, "M_INVALID_PARAM");
    receipt("m.fully_read", &root, json!({ "thread_id": "main" }))
        .await
        .fails(400, "M_INVALID_PARAM");
    for thread in [json!(""), json!("mine"), json!("$unknown"), json!(1)] {
        let answer = receipt("m.read", &other, json!({ "thread_id": thread })).await;
        answer.fails(400, "M_INVALID_PARAM");
    }
    receipt("m.read", &reply, json!({ "thread_id": "main" }))
        .await
        .fails(400, "M_INVALID_PARAM");
    receipt("m.read", &other, json!({ "thread_id": root }))
        .await
        .fails(400, "M_INVALID_PARAM");
    receipt("m.read", &reply, json!({ "thread_id": root }))
        .await
        .ok();
    receipt("m.read", &root, json!({ "thread_id": root }))
        .await
        .ok();
    let unknown = room_path("!none:hearth.test", "/read_markers");
    let unknown = alice.post(&unknown, json!({ "m.read": root })).await;
    unknown.fails(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn counts_fall_with_receipts_and_own_messages() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = room_of(&alice, &[&bob]).await;
    assert_eq!(bob.unread(&room).await, (0, 0));

    let first = alice.say(&room, "one").await;
    let mention = json!({ "user_ids": [bob.id] });
    let to_bob = json!({ "msgtype": "m.text", "body": "two", "m.mentions": mention });
    let second = alice.say_content(&room, to_bob).await;
    alice
        .say_content(&room, json!({ "msgtype": "m.notice", "body": "bob!" }))
        .await;
    alice.say(&room, "hello BOB, how are you").await;
    assert_eq!(bob.unread(&room).await, (3, 2));
    assert_eq!(alice.unread(&room).await, (0, 0));

    bob.receipt(&room, "m.read", &first, json!({})).await.ok();
    assert_eq!(bob.unread(&room).await, (2, 2));
    let markers = json!({ "m.fully_read": second, "m.read.private": second });
    bob.post(&room_path(&room, "/read_markers"), markers)
        .await
        .ok();
    let synced = bob.sync().await;
    assert_eq!(
        counts(&synced.joined(&room)["unread_notifications"]),
        (1, 1)
    );
    let data = synced.joined(&room)["account_data"]["events"]
        .as_array()
        .unwrap();
    let marker = data
        .iter()
        .find(|event| event["type"] == "m.fully_read")
        .unwrap();
    assert_eq!(marker["content"]["event_id"], second);

    bob.say(&room, "fine").await;
    assert_eq!(bob.unread(&room).await, (0, 0));
    assert_eq!(alice.unread(&room).await, (1, 0));
}

#[tokio::test]
async fn threads_are_counted_and_read_apart() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = room_of(&alice, &[&bob]).await;
    let root = alice.say(&room, "Hello world!").await;
    let reply = |text: &str| {
        let relation = json!({ "rel_type": "m.thread", "event_id": root });
        let content = json!({ "msgtype": "m.text", "body": text, "m.relates_to": relation });
        alice.say_content(&room, content)
    };
    let first = reply("Start thread!").await;
    reply("Thread response @bob:hearth.test!").await;
    let main = alice.say(&room, "Hello @bob:hearth.test!").await;
    reply("End thread").await;
    let reference = json!({ "rel_type": "m.reference", "event_id": root });
    let reference = json!({ "msgtype": "m.text", "body": "Reference!", "m.relates_to": reference });
    let reference = alice.say_content(&room, reference).await;
    let annotation = json!({ "rel_type": "m.annotation", "event_id": reference, "key": "test" });
    let reaction = json!({ "m.relates_to": annotation });
    let reaction = alice
        .send_event(&room, "m.room.reaction", "r", reaction)
        .await;
    let reaction = reaction.ok()["event_id"].as_str().unwrap().to_owned();

    assert_eq!(bob.unread(&room).await, (6, 2));
    assert_eq!(bob.unread_by_thread(&room, &root).await, [(3, 1), (3, 1)]);
    bob.receipt(&room, "m.read", &root, json!({ "thread_id": "main" }))
        .await
        .ok();
    assert_eq!(bob.unread(&room).await, (5, 2));
    assert_eq!(bob.unread_by_thread(&room, &root).await, [(2, 1), (3, 1)]);
    bob.receipt(&room, "m.read", &first, json!({ "thread_id": root }))
        .await
        .ok();
    assert_eq!(bob.unread(&room).await, (4, 2));
    assert_eq!(bob.unread_by_thread(&room, &root).await, [(2, 1), (2, 1)]);
    bob.receipt(&room, "m.read", &main, json!({})).await.ok();
    assert_eq!(bob.unread(&room).await, (2, 0));
    assert_eq!(bob.unread_by_thread(&room, &root).await, [(1, 0), (1, 0)]);
    bob.receipt(&room, "m.read", &reaction, json!({ "thread_id": root }))
        .await
        .ok();
    assert_eq!(bob.unread(&room).await, (1, 0));
    assert_eq!(bob.unread_by_thread(&room, &root).await, [(1, 0), (0, 0)]);
}

#[tokio::test]
async fn push_rules_decide_what_counts() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = room_of(&alice, &[&bob]).await;
    let rules = "/_matrix/client/v3/pushrules/global";
    let highlight = json!(["notify", { "set_tweak": "highlight" }]);

    let keyword = json!({ "pattern": "lunch", "actions": highlight });
    bob.put(&format!("{rules}/content/lunch"), keyword)
        .await
        .ok();
    alice.say(&room, "Lunch?").await;
    alice.say(&room, "now").await;
    assert_eq!(bob.unread(&room).await, (2, 1));

    // Mentions only.
    let room_rule = format!("{rules}/room/{}", escaped(&room));
    bob.put(&room_rule, json!({ "actions": [] })).await.ok();
    assert_eq!(bob.unread(&room).await, (1, 1));
    let everybody = json!({ "msgtype": "m.text", "body": "all", "m.mentions": { "room": true } });
    alice.say_content(&room, everybody.clone()).await;
    bob.say_content(&room, everybody.clone()).await;
    assert_eq!(
        alice.unread(&room).await,
        (1, 0),
        "bob has no right to mention all"
    );
    alice.say_content(&room, everybody).await;
    alice.say(&room, "nothing").await;
    assert_eq!(bob.unread(&room).await, (1, 1));

    let condition = json!({ "kind": "event_match", "key": "room_id", "pattern": room });
    let mute = json!({ "conditions": [condition], "actions": [] });
    bob.put(&format!("{rules}/override/{}", escaped(&room)), mute)
        .await
        .ok();
    assert_eq!(bob.unread(&room).await, (0, 0));
}

#[tokio::test]
async fn notifications_are_listed_newest_first() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = room_of(&alice, &[&bob]).await;
    let quiet = room_of(&alice, &[]).await;
    alice.say(&quiet, "nobody hears").await;
    let first = alice.say(&room, "one").await;
    alice.say(&room, "two").await;
    bob.say(&room, "of my own").await;
    alice.say(&room, "bob: three").await;
    bob.receipt(&room, "m.read", &first, json!({})).await.ok();
    let list = async |query: &str| {
        let path = format!("/_matrix/client/v3/notifications{query}");
        bob.get(&path).await.ok()
    };
    let bodies = |page: &Value| -> Vec<String> {
        let found = page["notifications"].as_array().unwrap().iter();
        found
            .map(|found| found["event"]["content"]["body"].to_string())
            .collect()
    };

    let all = list("").await;
    assert_eq!(bodies(&all), ["\"bob: three\"", "\"two\"", "\"one\""]);
    let read: Vec<_> = all["notifications"]
        .as_array()
        .unwrap()
        .iter()
        .map(|found| &found["read"])
        .collect();
    assert_eq!(read, [false, true, true]);
    assert_eq!(all["notifications"][0]["room_id"], room);
    assert_eq!(bodies(&list("?only=highlight").await), ["\"bob: three\""]);
    let page = list("?limit=2").await;
    assert_eq!(bodies(&page), ["\"bob: three\"", "\"two\""]);
    let next = page["next_token"].as_str().unwrap();
    let path = format!("/_matrix/client/v3/notifications?from={next}");
    assert_eq!(bodies(&bob.get(&path).await.ok()), ["\"one\""]);
    let wrong = bob.get("/_matrix/client/v3/notifications?from=x").await;
    wrong.fails(400, "M_INVALID_PARAM");
}

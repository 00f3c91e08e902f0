//! Relations: edits, references, annotations, threads, and what redactions make of them.

use serde_json::{Value, json};

use crate::{
    harness::{Answer, TestServer, User},
    room_words::{escaped, room_path},
};

impl User {
    async fn event(&self, room: &str, event: &str) -> Value {
        self.get(&room_path(room, &format!("/event/{}", escaped(event))))
            .await
            .ok()
    }

    /// The bundled aggregations of an event.
    async fn bundle(&self, room: &str, event: &str) -> Value {
        self.event(room, event).await["unsigned"]["m.relations"].clone()
    }

    async fn relate(
        &self,
        room: &str,
        event_type: &str,
        relates_to: Value,
        content: Value,
    ) -> Answer {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let mut content = content;
        content["m.relates_to"] = relates_to;
        let txn_id = format!("r{}", NEXT.fetch_add(1, Ordering::Relaxed));
        self.send_event(room, event_type, &txn_id, content).await
    }

    async fn edit(&self, room: &str, event: &str, text: &str) -> String {
        let relates_to = json!({ "rel_type": "m.replace", "event_id": event });
        let content = json!({ "body": format!("* {text}"), "m.new_content": { "body": text } });
        id(&self
            .relate(room, "m.room.message", relates_to, content)
            .await)
    }

    async fn reply(&self, room: &str, root: &str, text: &str) -> String {
        let relates_to = json!({ "rel_type": "m.thread", "event_id": root });
        id(&self
            .relate(room, "m.room.message", relates_to, json!({ "body": text }))
            .await)
    }

    async fn react(&self, room: &str, event: &str, key: &str) -> Answer {
        let relates_to = json!({ "rel_type": "m.annotation", "event_id": event, "key": key });
        self.relate(room, "m.reaction", relates_to, json!({})).await
    }

    async fn redact(&self, room: &str, event: &str) -> Answer {
        let path = format!("/redact/{}/redact-{}", escaped(event), escaped(event));
        self.put(&room_path(room, &path), json!({ "reason": "why not" }))
            .await
    }

    async fn relations(&self, room: &str, rest: &str) -> Value {
        let path = room_path(room, &format!("/relations/{rest}")).replace("/v3/", "/v1/");
        self.get(&path).await.ok()
    }

    async fn threads(&self, room: &str, query: &str) -> Value {
        let path = room_path(room, &format!("/threads{query}")).replace("/v3/", "/v1/");
        self.get(&path).await.ok()
    }
}

fn id(answer: &Answer) -> String {
    answer.ok()["event_id"]
        .as_str()
        .expect("an event ID")
        .to_owned()
}

fn ids(events: &Value) -> Vec<String> {
    let events = events["chunk"].as_array().expect("events");
    events
        .iter()
        .map(|event| event["event_id"].as_str().expect("an ID").to_owned())
        .collect()
}

#[tokio::test]
async fn an_event_is_told_its_latest_valid_edit() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let bob = server.user("bob").await;
    let room = alice.create_room().await;
    bob.join(&room).await.ok();
    let event = alice.say(&room, "a").await;
    assert_eq!(alice.bundle(&room, &event).await, Value::Null);

    // Of the same millisecond the greater ID is the later.
    let mut edits = Vec::new();
    for text in ["b", "c"] {
        let edit = alice.edit(&room, &event, text).await;
        let sent = alice.event(&room, &edit).await["origin_server_ts"].as_u64();
        edits.push((sent, edit));
    }
    edits.sort_unstable();
    let (_, last) = edits.pop().expect("two edits");
    let (_, first) = edits.pop().expect("two edits");
    // Of another sender, of another type, without content, and of an edit: none of them counts.
    bob.edit(&room, &event, "d").await;
    let relates_to = json!({ "rel_type": "m.replace", "event_id": event });
    let new_content = json!({ "m.new_content": {} });
    alice
        .relate(&room, "m.other", relates_to.clone(), new_content)
        .await
        .ok();
    alice
        .relate(&room, "m.room.message", relates_to, json!({}))
        .await
        .ok();
    alice.edit(&room, &last, "e").await;

    let bundle = alice.bundle(&room, &event).await;
    assert_eq!(bundle["m.replace"]["event_id"], last);
    assert!(bundle["m.replace"]["content"]["m.new_content"]["body"].is_string());
    assert_eq!(bundle["m.replace"]["room_id"], room);
    assert_eq!(alice.bundle(&room, &last).await, Value::Null);
    let page = alice
        .get(&room_path(&room, "/messages?dir=f&limit=100"))
        .await
        .ok();
    let shown = page["chunk"]
        .as_array()
        .expect("events")
        .iter()
        .find(|shown| shown["event_id"] == event);
    let shown = &shown.expect("it is there")["unsigned"]["m.relations"];
    assert_eq!(shown["m.replace"]["event_id"], last);

    alice.redact(&room, &last).await.ok();
    let bundle = alice.bundle(&room, &event).await;
    assert_eq!(bundle["m.replace"]["event_id"], first);
    alice.redact(&room, &event).await.ok();
    assert_eq!(alice.bundle(&room, &event).await, Value::Null);
}

#[tokio::test]
async fn references_are_listed_and_annotations_are_not() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let room = alice.create_room().await;
    let event = alice.say(&room, "a").await;
    let relates_to = json!({ "rel_type": "m.reference", "event_id": event });

    let reference = id(&alice
        .relate(&room, "m.poll.response", relates_to, json!({}))
        .await);
    alice.react(&room, &event, "👍").await.ok();

    let bundle = alice.bundle(&room, &event).await;
    assert_eq!(
        bundle,
        json!({ "m.reference": { "chunk": [{ "event_id": reference }] } })
    );
}

#[tokio::test]
async fn an_annotation_counts_once() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let bob = server.user("bob").await;
    let room = alice.create_room().await;
    bob.join(&room).await.ok();
    let event = alice.say(&room, "a").await;

    let first = id(&alice.react(&room, &event, "👍").await);
    alice
        .react(&room, &event, "👍")
        .await
        .fails(400, "M_DUPLICATE_ANNOTATION");
    alice.react(&room, &event, "👎").await.ok();
    bob.react(&room, &event, "👍").await.ok();
    alice.redact(&room, &first).await.ok();
    alice.react(&room, &event, "👍").await.ok();
}

#[tokio::test]
async fn a_thread_tells_its_latest_event_and_who_takes_part() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let bob = server.user("bob").await;
    let carol = server.user("carol").await;
    let room = alice.create_room().await;
    bob.join(&room).await.ok();
    carol.join(&room).await.ok();
    let root = alice.say(&room, "a").await;

    bob.reply(&room, &root, "b").await;
    let last = bob.reply(&room, &root, "c").await;
    bob.edit(&room, &last, "d").await;

    let thread = carol.bundle(&room, &root).await["m.thread"].clone();
    assert_eq!(
        (&thread["count"], &thread["current_user_participated"]),
        (&json!(2), &json!(false))
    );
    assert_eq!(thread["latest_event"]["event_id"], last);
    let nested = &thread["latest_event"]["unsigned"]["m.relations"]["m.replace"];
    assert_eq!(nested["content"]["m.new_content"]["body"], "d");
    for user in [&alice, &bob] {
        let bundle = user.bundle(&room, &root).await;
        assert_eq!(bundle["m.thread"]["current_user_participated"], true);
    }

    bob.redact(&room, &last).await.ok();
    let thread = bob.bundle(&room, &root).await["m.thread"].clone();
    assert_eq!(thread["count"], 1);
    assert_eq!(thread["latest_event"]["content"]["body"], "b");
    let first = thread["latest_event"]["event_id"].as_str().expect("an ID");
    bob.redact(&room, first).await.ok();
    assert_eq!(bob.bundle(&room, &root).await, Value::Null);
    assert!(ids(&bob.threads(&room, "").await).is_empty());
}

#[tokio::test]
async fn a_thread_cannot_start_from_an_event_that_relates_to_another() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let room = alice.create_room().await;
    let root = alice.say(&room, "a").await;
    let reply = alice.reply(&room, &root, "b").await;

    let relates_to = json!({ "rel_type": "m.thread", "event_id": reply });
    let nested = alice
        .relate(&room, "m.room.message", relates_to, json!({ "body": "c" }))
        .await;

    nested.fails(400, "M_UNKNOWN");
}

#[tokio::test]
async fn ignored_users_do_not_count_in_threads() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let bob = server.user("bob").await;
    let room = alice.create_room().await;
    bob.join(&room).await.ok();
    let root = alice.say(&room, "a").await;
    let own = alice.reply(&room, &root, "b").await;
    bob.reply(&room, &root, "c").await;
    let path = format!(
        "/_matrix/client/v3/user/{}/account_data/m.ignored_user_list",
        escaped(&alice.id)
    );
    alice
        .put(&path, json!({ "ignored_users": { &bob.id: {} } }))
        .await
        .ok();

    let thread = alice.bundle(&room, &root).await["m.thread"].clone();
    assert_eq!(
        (&thread["count"], &thread["latest_event"]["event_id"]),
        (&json!(1), &json!(own))
    );
}

#[tokio::test]
async fn threads_are_listed_newest_first_and_in_pages() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let bob = server.user("bob").await;
    let room = alice.create_room().await;
    bob.join(&room).await.ok();
    let mut roots = Vec::new();
    for text in ["a", "b", "c"] {
        roots.push(alice.say(&room, text).await);
    }
    let [a, b, c] = [0, 1, 2].map(|at| roots.get(at).expect("three roots").clone());
    for root in [&a, &b, &c, &a] {
        alice.reply(&room, root, "reply").await;
    }
    bob.reply(&room, &b, "me too").await;

    let all = alice.threads(&room, "").await;
    let first = alice.threads(&room, "?limit=2").await;
    let next = first["next_batch"].as_str().expect("there is more");
    let second = alice.threads(&room, &format!("?limit=2&from={next}")).await;
    let participated = bob.threads(&room, "?include=participated").await;

    assert_eq!(ids(&all), [b.clone(), a.clone(), c.clone()]);
    assert!(all["next_batch"].is_null());
    assert_eq!(ids(&first), [b.clone(), a]);
    assert_eq!(ids(&second), [c]);
    assert!(second["next_batch"].is_null());
    assert_eq!(ids(&participated), [b]);
    let bundled = &all["chunk"][0]["unsigned"]["m.relations"]["m.thread"];
    assert_eq!(bundled["latest_event"]["sender"], bob.id);
    let path = room_path(&room, "/threads?include=some").replace("/v3/", "/v1/");
    alice.get(&path).await.fails(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn relations_are_paged_by_type_and_direction() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let room = alice.create_room().await;
    let event = alice.say(&room, "a").await;
    let path = escaped(&event);
    let edit = alice.edit(&room, &event, "b").await;
    let reply = alice.reply(&room, &event, "c").await;
    let reaction = id(&alice.react(&room, &event, "👍").await);
    let custom = json!({ "rel_type": "org.example.other", "event_id": event });
    let custom = id(&alice
        .relate(&room, "m.room.message", custom, json!({}))
        .await);
    let newest_first = [&custom, &reaction, &reply, &edit].map(String::clone);
    let mut oldest_first = newest_first.clone();
    oldest_first.reverse();

    assert_eq!(ids(&alice.relations(&room, &path).await), newest_first);
    assert_eq!(
        ids(&alice.relations(&room, &format!("{path}?dir=f")).await),
        oldest_first
    );
    assert_eq!(
        ids(&alice.relations(&room, &format!("{path}/m.thread")).await),
        [reply]
    );
    assert_eq!(
        ids(&alice
            .relations(&room, &format!("{path}/org.example.other"))
            .await),
        [custom]
    );
    assert!(
        ids(&alice
            .relations(&room, &format!("{path}/org.example.none"))
            .await)
        .is_empty()
    );
    assert_eq!(
        ids(&alice
            .relations(&room, &format!("{path}/m.annotation/m.reaction"))
            .await),
        [reaction]
    );
    assert!(
        ids(&alice
            .relations(&room, &format!("{path}/m.annotation/m.sticker"))
            .await)
        .is_empty()
    );
    for (dir, expected) in [("b", &newest_first), ("f", &oldest_first)] {
        let (mut all, mut query) = (Vec::new(), format!("?dir={dir}&limit=3"));
        loop {
            let page = alice.relations(&room, &format!("{path}{query}")).await;
            all.extend(ids(&page));
            let Some(next) = page["next_batch"].as_str() else {
                break;
            };
            query = format!("?dir={dir}&limit=3&from={next}");
        }
        assert_eq!(&all, expected);
    }
}

#[tokio::test]
async fn recursion_finds_what_relates_to_what_relates() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let room = alice.create_room().await;
    let event = alice.say(&room, "a").await;
    let reply = alice.reply(&room, &event, "b").await;
    let edit = alice.edit(&room, &reply, "c").await;
    let path = escaped(&event);

    let flat = alice.relations(&room, &path).await;
    let deep = alice
        .relations(&room, &format!("{path}?recurse=true"))
        .await;
    let threads_only = alice
        .relations(&room, &format!("{path}/m.thread?recurse=true"))
        .await;

    assert_eq!(ids(&flat), [reply.clone()]);
    assert_eq!(ids(&deep), [edit, reply.clone()]);
    assert_eq!(deep["recursion_depth"], 3);
    assert_eq!(ids(&threads_only), [reply]);
}

#[tokio::test]
async fn a_redacted_event_keeps_its_place_and_names_the_redaction() {
    for version in ["10", "11", "12"] {
        let server = TestServer::start().await;
        let alice = server.user("alice").await;
        let bob = server.user("bob").await;
        let room = alice
            .create_room_with(json!({ "preset": "public_chat", "room_version": version }))
            .await;
        bob.join(&room).await.ok();
        let alices = alice.say(&room, "a").await;
        let bobs = bob.say(&room, "b").await;

        bob.redact(&room, &alices).await.fails(403, "M_FORBIDDEN");
        bob.redact(&room, "$none").await.fails(404, "M_NOT_FOUND");
        let redaction = id(&alice.redact(&room, &bobs).await);
        // Once more: it stays as it is.
        let path = format!("/redact/{}/again", escaped(&bobs));
        bob.put(&room_path(&room, &path), json!({})).await.ok();

        assert_eq!(alice.event(&room, &alices).await["content"]["body"], "a");
        let event = alice.event(&room, &bobs).await;
        assert_eq!(event["content"], json!({}));
        assert_eq!(event["unsigned"]["redacted_because"]["event_id"], redaction);
        assert_eq!(
            event["unsigned"]["redacted_because"]["content"]["reason"],
            "why not"
        );
        let redaction = alice.event(&room, &redaction).await;
        assert_eq!(
            (&redaction["redacts"], &redaction["content"]["redacts"]),
            (&json!(bobs), &json!(bobs))
        );
        alice.redact(&room, &alices).await.ok();
        alice
            .redact("!none:hearth.test", &alices)
            .await
            .fails(403, "M_FORBIDDEN");
    }
}

#[tokio::test]
async fn a_redaction_may_be_sent_like_a_message() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let room = alice.create_room().await;
    let event = alice.say(&room, "a").await;

    alice
        .send_event(
            &room,
            "m.room.redaction",
            "one",
            json!({ "redacts": event }),
        )
        .await
        .ok();

    assert_eq!(alice.event(&room, &event).await["content"], json!({}));
}

//! Reading a room: pages, single events, context, members, and what may be seen.

use serde_json::{Value, json};

use crate::{
    harness::{TestServer, User},
    room_words::{escaped, room_path},
};

impl User {
    /// A page of a room's timeline.
    async fn messages(&self, room: &str, query: &str) -> Value {
        self.get(&room_path(room, &format!("/messages?{query}")))
            .await
            .ok()
    }

    /// The bodies of a page.
    async fn bodies(&self, room: &str, query: &str) -> Vec<String> {
        bodies(&self.messages(room, query).await["chunk"])
    }
}

fn bodies(events: &Value) -> Vec<String> {
    let events = events.as_array().expect("a list of events");
    let body = |event: &Value| event["content"]["body"].as_str().map(str::to_owned);
    events.iter().filter_map(body).collect()
}

fn event_path(room: &str, event: &str) -> String {
    room_path(room, &format!("/event/{}", escaped(event)))
}

#[tokio::test]
async fn pages_forward_and_backward_give_the_same_without_repeats() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let room = alice.create_room().await;
    for number in 0..25 {
        alice.say(&room, &number.to_string()).await;
    }
    let walk = async |direction: &str| {
        let (mut all, mut query) = (Vec::new(), format!("dir={direction}&limit=7"));
        loop {
            let page = alice.messages(&room, &query).await;
            let events = page["chunk"].as_array().expect("events").clone();
            all.extend(
                events
                    .iter()
                    .map(|event| event["event_id"].as_str().expect("an ID").to_owned()),
            );
            let Some(end) = page["end"].as_str() else {
                return all;
            };
            query = format!("dir={direction}&limit=7&from={end}");
        }
    };

    let backward = walk("b").await;
    let mut forward = walk("f").await;

    forward.reverse();
    assert_eq!(backward, forward);
    // Create, join, power levels, join rules, history visibility, and what was said.
    assert_eq!(backward.len(), 25 + 5);
}

#[tokio::test]
async fn a_token_serves_both_directions_and_ends_a_page() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let room = alice.create_room().await;
    for text in ["a", "b", "c", "d"] {
        alice.say(&room, text).await;
    }

    let page = alice.messages(&room, "dir=b&limit=2").await;
    let middle = page["end"].as_str().expect("there is more");

    assert_eq!(bodies(&page["chunk"]), ["d", "c"]);
    assert_eq!(
        alice.bodies(&room, &format!("dir=f&from={middle}")).await,
        ["c", "d"]
    );
    assert_eq!(
        alice
            .bodies(&room, &format!("dir=b&limit=1&from={middle}"))
            .await,
        ["b"]
    );
    assert_eq!(
        alice.bodies(&room, &format!("dir=b&to={middle}")).await,
        ["d", "c"]
    );
    alice
        .get(&room_path(&room, "/messages?dir=b&from=nonsense"))
        .await
        .fails(400, "M_INVALID_PARAM");
    alice
        .get(&room_path(&room, "/messages"))
        .await
        .fails(400, "M_MISSING_PARAM");
    alice
        .get(&room_path(&room, "/messages?dir=up"))
        .await
        .fails(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn a_page_holds_what_its_filter_wants_and_the_members_who_spoke() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let bob = server.user("bob").await;
    let room = alice.create_room().await;
    bob.join(&room).await.ok();
    alice.say(&room, "a").await;
    bob.say(&room, "b").await;
    let filter = |filter: Value| format!("dir=b&filter={}", escaped(&filter.to_string()));

    let types = alice
        .messages(&room, &filter(json!({ "types": ["m.room.mem*"] })))
        .await;
    let lazy =
        json!({ "lazy_load_members": true, "types": ["m.room.message"], "senders": [bob.id] });
    let lazy = alice.messages(&room, &filter(lazy)).await;

    let all_members = types["chunk"].as_array().expect("events");
    assert_eq!(all_members.len(), 2);
    assert!(
        all_members
            .iter()
            .all(|event| event["type"] == "m.room.member")
    );
    assert_eq!(bodies(&lazy["chunk"]), ["b"]);
    assert_eq!(lazy["state"].as_array().map(Vec::len), Some(1));
    assert_eq!(lazy["state"][0]["state_key"], bob.id);
}

#[tokio::test]
async fn strangers_see_neither_messages_nor_events() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let bob = server.user("bob").await;
    let room = alice.create_room().await;
    let event = alice.say(&room, "a").await;

    bob.get(&room_path(&room, "/messages"))
        .await
        .fails(403, "M_FORBIDDEN");
    bob.get(&room_path("!none:hearth.test", "/messages?dir=b"))
        .await
        .fails(403, "M_FORBIDDEN");
    bob.get(&room_path(&room, "/members"))
        .await
        .fails(403, "M_FORBIDDEN");
    bob.get(&room_path(&room, "/joined_members"))
        .await
        .fails(403, "M_FORBIDDEN");
    bob.get(&room_path(&room, "/state"))
        .await
        .fails(403, "M_FORBIDDEN");
    bob.get(&room_path(&room, "/aliases"))
        .await
        .fails(403, "M_FORBIDDEN");
    bob.get(&event_path(&room, &event))
        .await
        .fails(404, "M_NOT_FOUND");
    bob.get(&event_path("!none:hearth.test", &event))
        .await
        .fails(404, "M_NOT_FOUND");
    alice
        .get(&event_path(&room, "$none"))
        .await
        .fails(404, "M_NOT_FOUND");
    let context = room_path(&room, &format!("/context/{}", escaped(&event)));
    bob.get(&context).await.fails(404, "M_NOT_FOUND");
}

/// What bob, who is invited after `a` and joins after `b`, sees of a room with this visibility.
async fn seen_with(visibility: &str) -> Vec<String> {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let bob = server.user("bob").await;
    let history = json!({
        "type": "m.room.history_visibility",
        "content": { "history_visibility": visibility },
    });
    let room = alice
        .create_room_with(json!({ "initial_state": [history] }))
        .await;
    alice.say(&room, "a").await;
    alice.change_member(&room, "invite", &bob).await.ok();
    alice.say(&room, "b").await;
    bob.join(&room).await.ok();
    alice.say(&room, "c").await;
    bob.leave(&room).await.ok();
    alice.say(&room, "d").await;
    bob.bodies(&room, "dir=f&limit=100").await
}

#[tokio::test]
async fn history_is_seen_as_the_room_says() {
    assert_eq!(seen_with("joined").await, ["c"]);
    assert_eq!(seen_with("invited").await, ["b", "c"]);
    assert_eq!(seen_with("shared").await, ["a", "b", "c"]);
    assert_eq!(seen_with("world_readable").await, ["a", "b", "c", "d"]);
}

#[tokio::test]
async fn who_left_sees_the_room_as_it_was() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let bob = server.user("bob").await;
    let carol = server.user("carol").await;
    let room = alice.create_room().await;
    bob.join(&room).await.ok();
    alice
        .set_state(&room, "m.room.name", "", json!({ "name": "Before" }))
        .await
        .ok();
    alice.say(&room, "a").await;
    bob.leave(&room).await.ok();
    alice
        .set_state(&room, "m.room.name", "", json!({ "name": "After" }))
        .await
        .ok();
    carol.join(&room).await.ok();

    assert_eq!(
        bob.state(&room, "m.room.name", "").await.ok()["name"],
        "Before"
    );
    let members = bob.get(&room_path(&room, "/members")).await.ok();
    let mut members: Vec<_> = members["chunk"]
        .as_array()
        .expect("members")
        .iter()
        .map(|event| {
            (
                event["state_key"].as_str().unwrap_or_default(),
                event["content"]["membership"].as_str(),
            )
        })
        .collect();
    members.sort_unstable();
    assert_eq!(
        members,
        [(&*alice.id, Some("join")), (&*bob.id, Some("leave"))]
    );
    let page = bob.messages(&room, "dir=b&limit=2").await;
    assert_eq!(page["chunk"][0]["state_key"], bob.id);
    assert_eq!(page["chunk"][1]["content"]["body"], "a");
    assert!(
        bob.bodies(
            &room,
            &format!("dir=f&from={}", page["start"].as_str().expect("a token"))
        )
        .await
        .is_empty()
    );
}

#[tokio::test]
async fn an_event_comes_with_its_context() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let room = alice.create_room().await;
    let mut events = Vec::new();
    for text in ["a", "b", "c", "d", "e"] {
        events.push(alice.say(&room, text).await);
    }
    let middle = events.get(2).expect("five events");

    let path = room_path(&room, &format!("/context/{}?limit=2", escaped(middle)));
    let context = alice.get(&path).await.ok();

    assert_eq!(context["event"]["content"]["body"], "c");
    assert_eq!(bodies(&context["events_before"]), ["b"]);
    assert_eq!(bodies(&context["events_after"]), ["d"]);
    let start = context["start"].as_str().expect("a token");
    let end = context["end"].as_str().expect("a token");
    assert_eq!(
        alice.bodies(&room, &format!("dir=b&from={start}")).await,
        ["a"]
    );
    assert_eq!(
        alice.bodies(&room, &format!("dir=f&from={end}")).await,
        ["e"]
    );
    let types: Vec<_> = context["state"]
        .as_array()
        .expect("state")
        .iter()
        .map(|event| &event["type"])
        .collect();
    assert!(types.contains(&&json!("m.room.create")));
}

#[tokio::test]
async fn an_event_is_found_by_its_time() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let room = alice.create_room().await;
    let event = alice.say(&room, "a").await;
    let found = |ts: u64, dir: &'static str| {
        let path = room_path(&room, &format!("/timestamp_to_event?ts={ts}&dir={dir}"))
            .replace("/v3/", "/v1/");
        let alice = &alice;
        async move { alice.get(&path).await }
    };
    let ts = alice.get(&event_path(&room, &event)).await.ok()["origin_server_ts"]
        .as_u64()
        .expect("a time");

    let create = found(0, "f").await.ok();
    assert!(
        create["origin_server_ts"]
            .as_u64()
            .is_some_and(|first| first <= ts)
    );
    assert_eq!(found(ts + 1_000_000, "b").await.ok()["event_id"], event);
    found(ts + 1_000_000, "f").await.fails(404, "M_NOT_FOUND");
    found(0, "b").await.fails(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn members_are_told_by_membership_and_at_a_point() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let bob = server.user("bob").await;
    let room = alice.create_room().await;
    let before = alice.messages(&room, "dir=b&limit=1").await;
    let before = before["start"].as_str().expect("a token").to_owned();
    bob.join(&room).await.ok();
    bob.leave(&room).await.ok();
    let ids = |query: String| {
        let (alice, path) = (&alice, room_path(&room, &format!("/members{query}")));
        async move {
            let members = alice.get(&path).await.ok();
            let members = members["chunk"].as_array().expect("members").clone();
            members
                .iter()
                .map(|event| event["state_key"].as_str().unwrap_or_default().to_owned())
                .collect::<Vec<_>>()
        }
    };

    assert_eq!(ids(String::new()).await.len(), 2);
    assert_eq!(ids("?membership=join".into()).await, [alice.id.clone()]);
    assert_eq!(ids("?membership=leave".into()).await, [bob.id.clone()]);
    assert_eq!(
        ids("?not_membership=leave".into()).await,
        [alice.id.clone()]
    );
    assert_eq!(ids(format!("?at={before}")).await, [alice.id.clone()]);
    assert_eq!(ids("?at=t0".into()).await, [alice.id.clone()]);
    let joined = alice.get(&room_path(&room, "/joined_members")).await.ok();
    assert_eq!(
        joined["joined"][&alice.id],
        json!({ "display_name": null, "avatar_url": null })
    );
}

#[tokio::test]
async fn messages_of_ignored_users_are_not_seen() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let bob = server.user("bob").await;
    let room = alice.create_room().await;
    bob.join(&room).await.ok();
    alice.say(&room, "a").await;
    let event = bob.say(&room, "b").await;
    let path = format!(
        "/_matrix/client/v3/user/{}/account_data/m.ignored_user_list",
        escaped(&alice.id)
    );
    alice
        .put(&path, json!({ "ignored_users": { &bob.id: {} } }))
        .await
        .ok();

    assert_eq!(alice.bodies(&room, "dir=b").await, ["a"]);
    alice
        .get(&event_path(&room, &event))
        .await
        .fails(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn state_is_told_as_events() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let room = alice.create_room().await;

    let state = alice.get(&room_path(&room, "/state")).await.ok();
    let member = format!("/state/m.room.member/{}?format=event", escaped(&alice.id));
    let member = alice.get(&room_path(&room, &member)).await.ok();

    assert_eq!(state.as_array().map(Vec::len), Some(5));
    assert_eq!(member["room_id"], room);
    assert_eq!(member["sender"], alice.id);
    assert_eq!(member["content"]["membership"], "join");
    assert_eq!(member["unsigned"]["membership"], "join");
}

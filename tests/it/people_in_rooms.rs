//! What an account has to do with rooms: names in member events, tags, account data of rooms, the user directory, and rooms
//! after the account's end.

#![allow(
    clippy::indexing_slicing,
    reason = "reading a JSON value by index does not panic"
)]

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::harness::{PASSWORD, TestServer, User};

/// A test that waits longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(10);

async fn create_room(user: &User, body: Value) -> String {
    let room = user.post("/_matrix/client/v3/createRoom", body).await.ok();
    room["room_id"].as_str().unwrap_or_default().to_owned()
}

async fn join(user: &User, room: &str) {
    let path = format!("/_matrix/client/v3/join/{room}");
    user.post(&path, json!({})).await.ok();
}

async fn member(viewer: &User, room: &str, user: &str) -> Value {
    let path = format!("/_matrix/client/v3/rooms/{room}/state/m.room.member/{user}");
    viewer.get(&path).await.ok()
}

/// Waits until the member event of `user` is as `expected` says.
async fn wait_for_member(viewer: &User, room: &str, user: &str, expected: impl Fn(&Value) -> bool) {
    let started = Instant::now();
    loop {
        let found = member(viewer, room, user).await;
        if expected(&found) {
            return;
        }
        assert!(
            started.elapsed() < PATIENCE,
            "the member event stays {found}"
        );
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_new_name_reaches_every_room_the_user_is_in() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let bob = server.user("bob").await;
    let public = json!({ "preset": "public_chat" });
    let rooms = [
        create_room(&bob, public.clone()).await,
        create_room(&bob, public.clone()).await,
    ];
    for room in &rooms {
        join(&alice, room).await;
    }
    let elsewhere = create_room(&bob, public).await;

    let path = |field: &str| format!("/_matrix/client/v3/profile/{}/{field}", alice.id);
    alice
        .put(&path("displayname"), json!({ "displayname": "Alice" }))
        .await
        .ok();
    alice
        .put(&path("avatar_url"), json!({ "avatar_url": "LemurLover" }))
        .await
        .ok();
    for room in &rooms {
        wait_for_member(&bob, room, &alice.id, |member| {
            member["displayname"] == "Alice" && member["avatar_url"] == "LemurLover"
        })
        .await;
    }
    alice.delete(&path("displayname")).await.ok();
    for room in &rooms {
        wait_for_member(&bob, room, &alice.id, |member| {
            member.get("displayname").is_none() && member["membership"] == "join"
        })
        .await;
    }
    bob.get(&format!(
        "/_matrix/client/v3/rooms/{elsewhere}/state/m.room.member/{}",
        alice.id
    ))
    .await
    .fails(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn a_deactivated_user_leaves_all_rooms() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let bob = server.user("bob").await;
    let joined = create_room(&bob, json!({ "preset": "public_chat" })).await;
    join(&alice, &joined).await;
    let invited = create_room(&bob, json!({ "invite": [alice.id] })).await;
    let auth = json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": "alice" },
        "password": PASSWORD,
    });
    alice
        .post(
            "/_matrix/client/v3/account/deactivate",
            json!({ "auth": auth }),
        )
        .await
        .ok();
    for room in [&joined, &invited] {
        wait_for_member(&bob, room, &alice.id, |member| {
            member["membership"] == "leave"
        })
        .await;
    }
}

#[tokio::test]
async fn tags_are_kept_by_room_and_user() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let bob = server.user("bob").await;
    let room = create_room(&alice, json!({})).await;
    let tags = format!("/_matrix/client/v3/user/{}/rooms/{room}/tags", alice.id);
    assert_eq!(alice.get(&tags).await.ok(), json!({ "tags": {} }));
    alice
        .put(&format!("{tags}/m.favourite"), json!({ "order": 0.5 }))
        .await
        .ok();
    alice.put(&format!("{tags}/u.work"), json!({})).await.ok();
    assert_eq!(
        alice.get(&tags).await.ok(),
        json!({ "tags": { "m.favourite": { "order": 0.5 }, "u.work": {} } })
    );
    alice.delete(&format!("{tags}/m.favourite")).await.ok();
    alice.delete(&format!("{tags}/nothing")).await.ok();
    assert_eq!(
        alice.get(&tags).await.ok(),
        json!({ "tags": { "u.work": {} } })
    );
    let data = format!(
        "/_matrix/client/v3/user/{}/rooms/{room}/account_data/m.tag",
        alice.id
    );
    assert_eq!(
        alice.get(&data).await.ok(),
        json!({ "tags": { "u.work": {} } })
    );

    bob.get(&tags).await.fails(403, "M_FORBIDDEN");
    let long = "x".repeat(256);
    alice
        .put(&format!("{tags}/{long}"), json!({}))
        .await
        .fails(400, "M_INVALID_PARAM");
    alice
        .put(&format!("{tags}/u.x"), json!({ "order": "first" }))
        .await
        .fails(400, "M_BAD_JSON");
}

#[tokio::test]
async fn account_data_of_a_room_is_apart_from_that_of_others() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let rooms = [
        create_room(&alice, json!({})).await,
        create_room(&alice, json!({})).await,
    ];
    let path = |room: &str, event_type: &str| {
        let user = &alice.id;
        format!("/_matrix/client/v3/user/{user}/rooms/{room}/account_data/{event_type}")
    };
    let [one, other] = &rooms;
    alice.put(&path(one, "a.b"), json!({ "n": 1 })).await.ok();
    assert_eq!(alice.get(&path(one, "a.b")).await.ok(), json!({ "n": 1 }));
    alice
        .get(&path(other, "a.b"))
        .await
        .fails(404, "M_NOT_FOUND");
    alice
        .get(&path("!unknown:hearth.test", "a.b"))
        .await
        .fails(404, "M_NOT_FOUND");
    alice
        .get(&path("nonsense", "a.b"))
        .await
        .fails(400, "M_INVALID_PARAM");
    alice
        .put(&path(one, "m.fully_read"), json!({}))
        .await
        .fails(405, "M_BAD_JSON");
}

async fn search(user: &User, term: &str) -> Vec<Value> {
    let body = json!({ "search_term": term });
    let found = user
        .post("/_matrix/client/v3/user_directory/search", body)
        .await
        .ok();
    assert_eq!(found["limited"], false);
    found["results"].as_array().cloned().unwrap_or_default()
}

#[tokio::test]
async fn the_directory_has_those_one_can_see_by_their_own_name() {
    let server = TestServer::start().await;
    let alice = server.user("user-1-alice").await;
    let bob = server.user("user-2-bob").await;
    let eve = server.user("user-3-eve").await;
    let path = format!("/_matrix/client/v3/profile/{}/displayname", alice.id);
    alice
        .put(&path, json!({ "displayname": "Alice Cooper" }))
        .await
        .ok();
    assert_eq!(search(&eve, "alice").await, Vec::<Value>::new());

    create_room(
        &alice,
        json!({ "visibility": "public", "preset": "public_chat" }),
    )
    .await;
    let private = create_room(&bob, json!({ "invite": [alice.id] })).await;
    join(&alice, &private).await;
    let path = format!(
        "/_matrix/client/v3/rooms/{private}/state/m.room.member/{}",
        alice.id
    );
    alice
        .put(
            &path,
            json!({ "membership": "join", "displayname": "Freddy" }),
        )
        .await
        .ok();
    let only_alice = [json!({ "user_id": alice.id, "display_name": "Alice Cooper" })];
    for searcher in [&eve, &bob] {
        for term in [
            "Alice Cooper",
            "alice coop",
            "@user",
            "COOPER",
            alice.id.as_str(),
        ] {
            assert_eq!(search(searcher, term).await, only_alice, "{term}");
        }
        assert_eq!(search(searcher, "Freddy").await, Vec::<Value>::new());
    }
    // Everybody can find who made the public room, and so can she.
    let found = search(&alice, "user").await;
    assert_eq!(found[..1], only_alice);
    assert_eq!(found[1..], [json!({ "user_id": bob.id })]);
    eve.post("/_matrix/client/v3/user_directory/search", json!({}))
        .await
        .fails(400, "M_BAD_JSON");
}

#[tokio::test]
async fn what_is_kept_for_a_room_follows_to_its_successor() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let bob = server.user("bob").await;
    let old = create_room(&alice, json!({ "preset": "public_chat" })).await;
    join(&bob, &old).await;
    let rules = "/_matrix/client/v3/pushrules/global/room";
    for user in [&alice, &bob] {
        user.put(
            &format!("{rules}/{old}"),
            json!({ "actions": ["dont_notify"] }),
        )
        .await
        .ok();
        let path = format!(
            "/_matrix/client/v3/user/{}/rooms/{old}/tags/u.work",
            user.id
        );
        user.put(&path, json!({ "order": 0.1 })).await.ok();
    }
    let direct = format!("/_matrix/client/v3/user/{}/account_data/m.direct", bob.id);
    bob.put(&direct, json!({ alice.id.as_str(): [old] }))
        .await
        .ok();

    let body = json!({
        "preset": "public_chat",
        "creation_content": { "predecessor": { "room_id": old } },
    });
    let new = create_room(&alice, body).await;
    join(&bob, &new).await;
    for user in [&alice, &bob] {
        let rule = user.get(&format!("{rules}/{new}")).await.ok();
        assert_eq!(rule["actions"], json!(["dont_notify"]));
        user.get(&format!("{rules}/{old}")).await.ok();
        let path = format!("/_matrix/client/v3/user/{}/rooms/{new}/tags", user.id);
        let tags = user.get(&path).await.ok();
        assert_eq!(tags, json!({ "tags": { "u.work": { "order": 0.1 } } }));
    }
    assert_eq!(
        bob.get(&direct).await.ok(),
        json!({ alice.id.as_str(): [old, new] })
    );
}

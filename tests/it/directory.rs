//! Aliases, the directory, summaries, spaces and upgrades.

use serde_json::{Value, json};

use crate::{
    harness::TestServer,
    room_words::{escaped, room_path},
};

fn alias_path(alias: &str) -> String {
    format!("/_matrix/client/v3/directory/room/{}", escaped(alias))
}

fn names(page: &Value) -> Vec<&str> {
    let rooms = page["chunk"].as_array().expect("a page of rooms");
    rooms
        .iter()
        .filter_map(|room| room["name"].as_str())
        .collect()
}

#[tokio::test]
async fn an_alias_leads_to_its_room_until_it_is_removed() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let bob = server.user("bob").await;
    let room = alice.create_room().await;
    let alias = "#老虎Â£я🤨:hearth.test";
    let body = json!({ "room_id": room });

    bob.put(&alias_path(alias), body.clone())
        .await
        .fails(403, "M_FORBIDDEN");
    alice.put(&alias_path(alias), body.clone()).await.ok();
    alice
        .put(&alias_path(alias), body.clone())
        .await
        .fails(409, "M_UNKNOWN");
    alice
        .put(&alias_path("#a:elsewhere.test"), body)
        .await
        .fails(400, "M_INVALID_PARAM");

    let found = server.get(&alias_path(alias)).await.ok();
    assert_eq!(
        found,
        json!({ "room_id": room, "servers": ["hearth.test"] })
    );
    bob.join(alias).await.ok();
    bob.delete(&alias_path(alias))
        .await
        .fails(403, "M_FORBIDDEN");
    let canonical = json!({ "alias": alias });
    alice
        .set_state(&room, "m.room.canonical_alias", "", canonical)
        .await
        .ok();
    alice.delete(&alias_path(alias)).await.ok();

    alice
        .delete(&alias_path(alias))
        .await
        .fails(404, "M_NOT_FOUND");
    server
        .get(&alias_path(alias))
        .await
        .fails(404, "M_NOT_FOUND");
    let left = alice.state(&room, "m.room.canonical_alias", "").await.ok();
    assert_eq!(left, json!({}));
}

#[tokio::test]
async fn a_canonical_alias_must_lead_to_the_room() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let room = alice.create_room().await;
    let other = alice
        .create_room_with(json!({ "room_alias_name": "other" }))
        .await;
    let set = async |content: Value| {
        alice
            .set_state(&room, "m.room.canonical_alias", "", content)
            .await
    };

    set(json!({ "alias": "#none:hearth.test" }))
        .await
        .fails(400, "M_BAD_ALIAS");
    set(json!({ "alt_aliases": ["#other:hearth.test"] }))
        .await
        .fails(400, "M_BAD_ALIAS");
    set(json!({ "alias": "%x:hearth.test" }))
        .await
        .fails(400, "M_INVALID_PARAM");
    let body = json!({ "room_id": room });
    alice.put(&alias_path("#mine:hearth.test"), body).await.ok();
    set(json!({ "alias": "#mine:hearth.test" })).await.ok();
    assert_ne!(room, other);
}

#[tokio::test]
async fn the_directory_lists_published_rooms_by_name_and_page() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let bob = server.user("bob").await;
    let publish = async |name: &str, topic: &str| {
        let options = json!({
            "name": name, "topic": topic, "visibility": "public", "preset": "public_chat",
        });
        alice.create_room_with(options).await
    };
    let garden = publish("Garden", "Tomatoes").await;
    let kitchen = publish("Kitchen", "Soup").await;
    alice.create_room_with(json!({ "name": "Hidden" })).await;
    bob.join(&kitchen).await.ok();
    let list = "/_matrix/client/v3/publicRooms";

    let all = server.get(list).await.ok();
    assert_eq!(names(&all), ["Kitchen", "Garden"]);
    assert_eq!(all["total_room_count_estimate"], 2);
    assert_eq!(all["chunk"][0]["num_joined_members"], 2);
    let found = json!({ "filter": { "generic_search_term": "TOMATO" } });
    assert_eq!(names(&bob.post(list, found).await.ok()), ["Garden"]);
    let spaces = json!({ "filter": { "room_types": ["m.space"] } });
    assert!(names(&bob.post(list, spaces).await.ok()).is_empty());
    let first = server.get(&format!("{list}?limit=1")).await.ok();
    assert_eq!(names(&first), ["Kitchen"]);
    let next = first["next_batch"].as_str().expect("a second page");
    let second = server
        .get(&format!("{list}?limit=1&since={next}"))
        .await
        .ok();
    assert_eq!(names(&second), ["Garden"]);
    assert_eq!(second.get("next_batch"), None);

    let listing = format!(
        "/_matrix/client/v3/directory/list/room/{}",
        escaped(&garden)
    );
    let private = json!({ "visibility": "private" });
    bob.put(&listing, private.clone())
        .await
        .fails(403, "M_FORBIDDEN");
    alice.put(&listing, private).await.ok();
    assert_eq!(server.get(&listing).await.ok()["visibility"], "private");
    assert_eq!(names(&server.get(list).await.ok()), ["Kitchen"]);
    server
        .get("/_matrix/client/v3/directory/list/room/!none:hearth.test")
        .await
        .fails(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn a_summary_shows_a_room_to_those_who_may_know_of_it() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let bob = server.user("bob").await;
    let open = alice
        .create_room_with(json!({ "preset": "public_chat", "name": "Open" }))
        .await;
    let closed = alice
        .create_room_with(json!({ "name": "Closed", "invite": [] }))
        .await;
    let path = |room: &str| format!("/_matrix/client/v1/room_summary/{}", escaped(room));

    let seen = bob.get(&path(&open)).await.ok();
    assert_eq!(seen["name"], "Open");
    assert_eq!(seen["membership"], "leave");
    assert_eq!(seen["num_joined_members"], 1);
    assert_eq!(alice.get(&path(&closed)).await.ok()["membership"], "join");
    bob.get(&path(&closed)).await.fails(404, "M_NOT_FOUND");
    bob.get(&path("!none:hearth.test"))
        .await
        .fails(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn a_space_is_walked_in_order_page_by_page() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let bob = server.user("bob").await;
    let space = json!({ "preset": "public_chat", "creation_content": { "type": "m.space" } });
    let top = alice.create_room_with(space.clone()).await;
    let inner = alice.create_room_with(space).await;
    let first = alice.create_room().await;
    let second = alice.create_room().await;
    let hidden = alice
        .create_room_with(json!({ "preset": "private_chat" }))
        .await;
    let add = async |parent: &str, child: &str, order: Option<&str>, suggested: bool| {
        let mut content = json!({ "via": ["hearth.test"], "suggested": suggested });
        if let Some(order) = order {
            content["order"] = json!(order);
        }
        alice
            .set_state(parent, "m.space.child", child, content)
            .await
            .ok();
    };
    add(&top, &second, Some("b"), true).await;
    add(&top, &inner, Some("a"), false).await;
    add(&top, &hidden, None, true).await;
    add(&inner, &first, None, false).await;
    let path = |query: &str| {
        format!(
            "/_matrix/client/v1/rooms/{}/hierarchy{query}",
            escaped(&top)
        )
    };
    let ids = |page: &Value| -> Vec<String> {
        let rooms = page["rooms"].as_array().expect("rooms");
        rooms
            .iter()
            .map(|room| room["room_id"].as_str().unwrap_or_default().to_owned())
            .collect()
    };

    let all = bob.get(&path("")).await.ok();
    assert_eq!(
        ids(&all),
        [top.clone(), inner.clone(), first.clone(), second.clone()]
    );
    assert_eq!(all["rooms"][0]["room_type"], "m.space");
    assert_eq!(
        all["rooms"][0]["children_state"][0]["state_key"],
        json!(inner)
    );
    assert_eq!(
        ids(&bob.get(&path("?suggested_only=true")).await.ok()),
        [top.clone(), second.clone()]
    );
    assert_eq!(
        ids(&bob.get(&path("?max_depth=1")).await.ok()),
        [top.clone(), inner.clone(), second.clone()]
    );
    let page = bob.get(&path("?limit=3")).await.ok();
    assert_eq!(ids(&page).len(), 3);
    let next = page["next_batch"].as_str().expect("a second page");
    assert_eq!(
        ids(&bob.get(&path(&format!("?limit=3&from={next}"))).await.ok()),
        [second]
    );
    let seen_by_member = alice.get(&path("")).await.ok();
    assert_eq!(ids(&seen_by_member).len(), 5);
}

#[tokio::test]
async fn who_may_not_ban_everybody_again_may_upgrade_all_the_same() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let carol = server.user("carol").await;
    let levels = json!({
        "users": { &*alice.id: 100, &*bob.id: 50, &*carol.id: 50 },
        "events": { "m.room.tombstone": 50 },
    });
    let options = json!({
        "preset": "public_chat",
        "room_version": "11",
        "power_level_content_override": levels,
    });
    let old = alice.create_room_with(options).await;
    bob.post(&room_path(&old, "/join"), json!({})).await.ok();
    let ban = json!({ "user_id": carol.id });
    alice.post(&room_path(&old, "/ban"), ban).await.ok();

    let upgrade = json!({ "new_version": "11" });
    let answer = bob.post(&room_path(&old, "/upgrade"), upgrade).await.ok();

    let new = answer["replacement_room"].as_str().expect("a room");
    let path = room_path(&old, "/state/m.room.tombstone");
    let tombstone = alice.get(&path).await.ok();
    assert_eq!(tombstone["replacement_room"], new);
}

#[tokio::test]
async fn an_upgraded_room_goes_on_in_a_new_one() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let bob = server.user("bob").await;
    let options = json!({
        "preset": "public_chat", "room_version": "11", "name": "Club", "room_alias_name": "club",
        "visibility": "public",
    });
    let old = alice.create_room_with(options).await;
    bob.join(&old).await.ok();
    let upgrade = room_path(&old, "/upgrade");

    bob.post(&upgrade, json!({ "new_version": "12" }))
        .await
        .fails(403, "M_FORBIDDEN");
    let wrong = json!({ "new_version": "twelve" });
    alice
        .post(&upgrade, wrong)
        .await
        .fails(400, "M_UNSUPPORTED_ROOM_VERSION");
    let answer = alice
        .post(&upgrade, json!({ "new_version": "12" }))
        .await
        .ok();

    let new = answer["replacement_room"].as_str().expect("a room ID");
    let tombstone = alice.state(&old, "m.room.tombstone", "").await.ok();
    assert_eq!(tombstone["replacement_room"], new);
    let create = alice.state(new, "m.room.create", "").await.ok();
    assert_eq!(create["predecessor"]["room_id"], json!(old));
    assert_eq!(create["room_version"], "12");
    assert_eq!(
        alice.state(new, "m.room.name", "").await.ok()["name"],
        "Club"
    );
    let led_to = server.get(&alias_path("#club:hearth.test")).await.ok();
    assert_eq!(led_to["room_id"], new);
    let listed = server.get("/_matrix/client/v3/publicRooms").await.ok();
    assert_eq!(listed["chunk"][0]["room_id"], new);
    assert_eq!(listed["chunk"].as_array().map(Vec::len), Some(1));
    let text = json!({ "msgtype": "m.text", "body": "still here?" });
    bob.send_event(&old, "m.room.message", "late", text)
        .await
        .fails(403, "M_FORBIDDEN");
    bob.join(new).await.ok();
}

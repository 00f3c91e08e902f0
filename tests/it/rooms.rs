//! Rooms: making them, memberships, sending, state.

use serde_json::json;

use crate::{
    harness::TestServer,
    room_words::{escaped, room_path},
};

#[tokio::test]
async fn a_room_has_what_its_maker_asked_for() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let bob = server.user("bob").await;
    let options = json!({
        "name": "Kitchen",
        "topic": "Soup",
        "room_alias_name": "kitchen",
        "room_version": "11",
        "invite": [bob.id],
        "creation_content": { "m.federate": false, "room_version": "1" },
        "initial_state": [
            { "type": "m.room.history_visibility", "content": { "history_visibility": "joined" } },
            { "type": "m.room.topic", "content": { "topic": "Not this" } },
        ],
        "power_level_content_override": { "invite": 75 },
    });

    let room = alice.create_room_with(options).await;

    let content = |event_type, key| {
        let (alice, room) = (&alice, &room);
        async move { alice.state(room, event_type, key).await.ok() }
    };
    assert_eq!(
        content("m.room.name", "").await,
        json!({ "name": "Kitchen" })
    );
    let topic = content("m.room.topic", "").await;
    assert_eq!(topic["topic"], "Soup");
    assert_eq!(topic["m.topic"]["m.text"][0]["body"], "Soup");
    assert_eq!(
        content("m.room.create", "").await,
        json!({ "m.federate": false, "room_version": "11" })
    );
    assert_eq!(
        content("m.room.history_visibility", "").await["history_visibility"],
        "joined"
    );
    assert_eq!(content("m.room.power_levels", "").await["invite"], 75);
    assert_eq!(
        content("m.room.canonical_alias", "").await["alias"],
        "#kitchen:hearth.test"
    );
    assert_eq!(
        content("m.room.member", &bob.id).await["membership"],
        "invite"
    );
    let aliases = alice.get(&room_path(&room, "/aliases")).await.ok();
    assert_eq!(aliases["aliases"], json!(["#kitchen:hearth.test"]));
}

#[tokio::test]
async fn a_room_that_cannot_be_made_leaves_nothing_behind() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let create = |options| alice.post("/_matrix/client/v3/createRoom", options);

    create(json!({ "room_version": 1 }))
        .await
        .fails(400, "M_BAD_JSON");
    create(json!({ "room_version": "17" }))
        .await
        .fails(400, "M_UNSUPPORTED_ROOM_VERSION");
    create(json!({ "room_alias_name": "a b" }))
        .await
        .fails(400, "M_INVALID_PARAM");
    create(json!({ "preset": "secret_chat" }))
        .await
        .fails(400, "M_INVALID_PARAM");
    create(json!({ "creation_content": { "half": 0.5 } }))
        .await
        .fails(400, "M_BAD_JSON");
    let powerless = json!({ "room_version": "11", "room_alias_name": "low", "name": "Low",
        "power_level_content_override": { "users": { &alice.id: 0 } } });
    create(powerless).await.fails(400, "M_INVALID_ROOM_STATE");
    let joined = alice.get("/_matrix/client/v3/joined_rooms").await.ok();
    assert_eq!(joined["joined_rooms"], json!([]));

    create(json!({ "room_alias_name": "low" })).await.ok();
    create(json!({ "room_alias_name": "low" }))
        .await
        .fails(400, "M_ROOM_IN_USE");
    let joined = alice.get("/_matrix/client/v3/joined_rooms").await.ok();
    assert_eq!(joined["joined_rooms"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn a_repeated_transaction_id_returns_the_first_event() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let room = alice.create_room().await;
    let other_room = alice.create_room().await;
    let text = |text: &str| json!({ "msgtype": "m.text", "body": text });

    let first = alice
        .send_event(&room, "m.room.message", "one", text("a"))
        .await
        .ok();
    let again = alice
        .send_event(&room, "m.room.message", "one", text("b"))
        .await
        .ok();
    let elsewhere = alice
        .send_event(&other_room, "m.room.message", "one", text("a"))
        .await
        .ok();

    assert_eq!(first, again);
    assert_ne!(first, elsewhere);
}

#[tokio::test]
async fn content_that_canonical_json_cannot_hold_is_refused() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let room = alice.create_room().await;
    let send = |content| alice.send_event(&room, "m.room.message", "one", content);

    send(json!({ "half": 0.5 })).await.fails(400, "M_BAD_JSON");
    send(json!({ "big": 9_007_199_254_740_992_u64 }))
        .await
        .fails(400, "M_BAD_JSON");
    send(json!("text")).await.fails(400, "M_BAD_JSON");
    send(json!({ "body": "x".repeat(70_000) }))
        .await
        .fails(413, "M_TOO_LARGE");
    let state = alice
        .set_state(
            &room,
            "m.room.topic",
            "",
            json!({ "topic": "x".repeat(70_000) }),
        )
        .await;
    state.fails(413, "M_TOO_LARGE");
    // A state type without a state key is a message.
    alice
        .send_event(&room, "m.room.join_rules", "two", json!({}))
        .await
        .ok();
}

#[tokio::test]
async fn equal_state_is_not_written_twice() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let room = alice.create_room().await;

    let first = alice
        .set_state(&room, "m.room.topic", "", json!({ "topic": "Soup" }))
        .await
        .ok();
    let again = alice
        .set_state(&room, "m.room.topic", "", json!({ "topic": "Soup" }))
        .await
        .ok();
    let other = alice
        .set_state(&room, "m.room.topic", "", json!({ "topic": "Salad" }))
        .await
        .ok();

    assert_eq!(first, again);
    assert_ne!(first, other);
    let path = room_path(&room, "/state/m.room.topic");
    assert_eq!(alice.get(&path).await.ok()["topic"], "Salad");
    alice
        .state(&room, "m.room.nothing", "")
        .await
        .fails(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn who_is_not_in_a_room_may_do_nothing_there() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let bob = server.user("bob").await;
    let room = alice.create_room().await;

    for room in [&*room, "!nowhere:hearth.test"] {
        let sent = bob
            .send_event(room, "m.room.message", "one", json!({ "body": "x" }))
            .await;
        sent.fails(403, "M_FORBIDDEN");
        bob.set_state(room, "m.room.name", "", json!({ "name": "x" }))
            .await
            .fails(403, "M_FORBIDDEN");
        bob.state(room, "m.room.create", "")
            .await
            .fails(403, "M_FORBIDDEN");
        bob.change_member(room, "invite", &bob)
            .await
            .fails(403, "M_FORBIDDEN");
        bob.change_member(room, "ban", &alice)
            .await
            .fails(403, "M_FORBIDDEN");
        bob.change_member(room, "kick", &alice)
            .await
            .fails(403, "M_FORBIDDEN");
    }
    bob.join("!nowhere:hearth.test")
        .await
        .fails(404, "M_NOT_FOUND");
    bob.join("#nowhere:hearth.test")
        .await
        .fails(404, "M_NOT_FOUND");
    bob.leave("!nowhere:hearth.test")
        .await
        .fails(404, "M_NOT_FOUND");
    bob.leave(&room).await.fails(403, "M_FORBIDDEN");
    bob.join("nonsense").await.fails(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn memberships_change_by_the_rules() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let bob = server.user("bob").await;
    let room = alice
        .create_room_with(json!({ "preset": "private_chat" }))
        .await;

    bob.join(&room).await.fails(403, "M_FORBIDDEN");
    alice
        .change_member(&room, "kick", &bob)
        .await
        .fails(403, "M_FORBIDDEN");
    alice
        .change_member(&room, "unban", &bob)
        .await
        .fails(403, "M_FORBIDDEN");
    alice.change_member(&room, "invite", &bob).await.ok();
    bob.join(&room).await.ok();
    bob.join(&room).await.ok();
    alice
        .change_member(&room, "invite", &bob)
        .await
        .fails(403, "M_FORBIDDEN");
    alice.change_member(&room, "kick", &bob).await.ok();
    alice
        .change_member(&room, "kick", &bob)
        .await
        .fails(403, "M_FORBIDDEN");
    bob.join(&room).await.fails(403, "M_FORBIDDEN");
    alice.change_member(&room, "ban", &bob).await.ok();
    alice
        .change_member(&room, "invite", &bob)
        .await
        .fails(403, "M_FORBIDDEN");
    alice.change_member(&room, "unban", &bob).await.ok();
    let member = alice.state(&room, "m.room.member", &bob.id).await.ok();
    assert_eq!(member["membership"], "leave");
}

#[tokio::test]
async fn a_join_takes_over_fields_of_its_body() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let bob = server.user("bob").await;
    let room = alice.create_room().await;

    let body = json!({ "foo": "bar", "reason": "curious", "membership": "ban" });
    bob.post(&room_path(&room, "/join"), body).await.ok();

    let member = alice.state(&room, "m.room.member", &bob.id).await.ok();
    assert_eq!(
        (&member["foo"], &member["reason"], &member["membership"]),
        (&json!("bar"), &json!("curious"), &json!("join"))
    );
}

#[tokio::test]
async fn knocking_asks_to_be_let_in() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let bob = server.user("bob").await;
    let rule = json!({ "type": "m.room.join_rules", "content": { "join_rule": "knock" } });
    let room = alice
        .create_room_with(json!({ "initial_state": [rule], "room_alias_name": "door" }))
        .await;
    let knock = format!("/_matrix/client/v3/knock/{}", escaped("#door:hearth.test"));

    bob.join(&room).await.fails(403, "M_FORBIDDEN");
    assert_eq!(
        bob.post(&knock, json!({ "reason": "please" })).await.ok()["room_id"],
        room
    );
    alice.change_member(&room, "invite", &bob).await.ok();
    bob.join("#door:hearth.test").await.ok();
    bob.post(&knock, json!({})).await.fails(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn members_of_an_allowed_room_join_a_restricted_one() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let bob = server.user("bob").await;
    let allowed = alice.create_room().await;
    for (version, join_rule) in [
        ("10", "restricted"),
        ("11", "knock_restricted"),
        ("12", "restricted"),
    ] {
        let allow =
            json!([{ "type": "m.room_membership", "room_id": allowed, "via": ["hearth.test"] }]);
        let rule = json!({ "type": "m.room.join_rules", "content": { "join_rule": join_rule, "allow": allow } });
        let options =
            json!({ "preset": "public_chat", "room_version": version, "initial_state": [rule] });
        let room = alice.create_room_with(options).await;

        bob.join(&room).await.fails(403, "M_FORBIDDEN");
        bob.join(&allowed).await.ok();
        bob.join(&room).await.ok();
        let member = bob.state(&room, "m.room.member", &bob.id).await.ok();
        assert_eq!(member["join_authorised_via_users_server"], alice.id);
        bob.set_state(
            &room,
            "m.room.member",
            &bob.id,
            json!({ "membership": "join", "displayname": "Bobby" }),
        )
        .await
        .ok();
        bob.leave(&room).await.ok();
        bob.leave(&allowed).await.ok();
        bob.join(&room).await.fails(403, "M_FORBIDDEN");
    }
}

#[tokio::test]
async fn a_room_has_one_create_event() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    for version in ["10", "12"] {
        let room = alice
            .create_room_with(json!({ "room_version": version }))
            .await;
        let content = json!({ "room_version": version, "anew": true });
        alice
            .set_state(&room, "m.room.create", "", content.clone())
            .await
            .fails(400, "M_BAD_JSON");
        alice
            .send_event(&room, "m.room.create", "t1", content)
            .await
            .fails(400, "M_BAD_JSON");
    }
}

#[tokio::test]
async fn creators_of_version_12_have_no_entry_among_the_power_levels() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let options = json!({
        "preset": "public_chat",
        "room_version": "12",
        "creation_content": { "additional_creators": [bob.id] },
    });
    let room = alice.create_room_with(options).await;
    for creator in [&alice, &bob] {
        let content = json!({ "users": { &creator.id: 100 } });
        alice
            .set_state(&room, "m.room.power_levels", "", content)
            .await
            .fails(400, "M_BAD_JSON");
    }
}

#[tokio::test]
async fn a_room_is_forgotten_only_after_leaving() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let bob = server.user("bob").await;
    let room = alice.create_room().await;
    bob.join(&room).await.ok();
    let forget = room_path(&room, "/forget");

    bob.post(&forget, json!({})).await.fails(400, "M_UNKNOWN");
    bob.leave(&room).await.ok();
    bob.state(&room, "m.room.create", "").await.ok();
    bob.post(&forget, json!({})).await.ok();
    bob.state(&room, "m.room.create", "")
        .await
        .fails(403, "M_FORBIDDEN");
    bob.post(&forget, json!({})).await.ok();
}

#[tokio::test]
async fn an_invite_that_does_not_reach_the_other_server_changes_nothing() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let room = alice.create_room().await;
    let content = json!({ "membership": "invite" });
    let elsewhere = "@zoe:elsewhere.test";

    let invite = json!({ "user_id": elsewhere });
    let invited = alice.post(&room_path(&room, "/invite"), invite).await;
    invited.fails(502, "M_UNKNOWN");
    let state = alice
        .set_state(&room, "m.room.member", elsewhere, content.clone())
        .await;
    state.fails(502, "M_UNKNOWN");
    let member = format!("/state/m.room.member/{}", escaped(elsewhere));
    let member = alice.get(&room_path(&room, &member)).await;
    member.fails(404, "M_NOT_FOUND");
    let member = json!({ "type": "m.room.member", "state_key": elsewhere, "content": content });
    let options = json!({ "initial_state": [member] });
    let created = alice.post("/_matrix/client/v3/createRoom", options).await;
    created.fails(400, "M_INVALID_PARAM");
    let by_mail = json!({ "id_server": "id.test", "id_access_token": "x", "medium": "email", "address": "a@b.c" });
    let invited = alice.post(&room_path(&room, "/invite"), by_mail).await;
    invited.fails(403, "M_THREEPID_DENIED");
}

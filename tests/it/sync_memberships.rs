//! Classic sync of rooms that users join, leave, are invited to and knock on.

use serde_json::json;

use crate::{
    harness::TestServer,
    sync_words::{bodies, find, types},
};

#[tokio::test]
async fn who_joins_gets_the_state_and_what_it_may_see() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    for (visibility, expected) in [
        ("shared", vec!["before", "after"]),
        ("joined", vec!["after"]),
    ] {
        let options = json!({
            "preset": "public_chat",
            "initial_state": [{ "type": "m.room.history_visibility", "content": { "history_visibility": visibility } }],
        });
        let room = alice.create_room_with(options).await;
        let known = bob.sync().await;
        alice.say(&room, "before").await;
        bob.join(&room).await.ok();
        alice.say(&room, "after").await;

        for synced in [bob.sync_since(&known).await, bob.sync().await] {
            let joined = synced.joined(&room);
            assert_eq!(bodies(joined), expected, "{visibility}");
            let own = joined["timeline"]["events"]
                .as_array()
                .expect("events")
                .iter();
            let own = own
                .clone()
                .find(|event| event["state_key"] == bob.id.as_str())
                .expect("the join");
            assert_eq!(own["unsigned"]["membership"], "join");
            let has_create = find(&joined["state"], "m.room.create", "").is_some()
                || find(&joined["timeline"], "m.room.create", "").is_some();
            assert!(has_create, "{visibility}: {joined}");
        }
    }
}

#[tokio::test]
async fn a_room_that_was_left_is_told_up_to_then() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = alice.create_room().await;
    bob.join(&room).await.ok();
    let known = bob.sync().await;
    alice.say(&room, "before").await;
    alice.change_member(&room, "kick", &bob).await.ok();
    alice.say(&room, "after").await;
    alice
        .set_state(&room, "m.room.topic", "", json!({ "topic": "secret" }))
        .await
        .ok();

    let left = bob.sync_since(&known).await;
    let section = left.room("leave", &room);
    assert_eq!(bodies(section), ["before"]);
    assert!(find(&section["timeline"], "m.room.member", &bob.id).is_some());
    assert!(left.joined(&room).is_null());
    assert!(
        bob.sync_since(&left).await.body.get("rooms").is_none(),
        "it is told once"
    );
    assert!(
        bob.sync().await.room("leave", &room).is_null(),
        "archived rooms must be asked for"
    );

    let filter = json!({ "room": { "include_leave": true, "timeline": { "limit": 0 } } });
    let archived = bob.sync_filtered(&filter, "").await;
    let section = archived.room("leave", &room);
    assert_eq!(section["timeline"]["events"], json!([]));
    let own = find(&section["state"], "m.room.member", &bob.id).expect("the kick");
    assert_eq!(own["content"]["membership"], "leave");
    assert!(find(&section["state"], "m.room.topic", "").is_none());
    // A ban of who has left shows nothing of what happened in between.
    alice.change_member(&room, "ban", &bob).await.ok();
    let banned = bob.sync_since(&left).await;
    let section = banned.room("leave", &room);
    assert_eq!(types(&section["timeline"]), ["m.room.member"]);
    assert!(
        find(&section["state"], "m.room.topic", "").is_none(),
        "{section}"
    );
}

#[tokio::test]
async fn a_rejected_and_a_retracted_invite_leave() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    for is_rejected in [true, false] {
        let options = json!({
            "preset": "private_chat",
            "initial_state": [{ "type": "m.room.history_visibility", "content": { "history_visibility": "joined" } }],
        });
        let room = alice.create_room_with(options).await;
        alice.change_member(&room, "invite", &bob).await.ok();
        let invited = bob.sync().await;
        assert!(invited.room("invite", &room).is_object());
        alice.say(&room, "secret").await;
        match is_rejected {
            true => bob.leave(&room).await.ok(),
            false => alice.change_member(&room, "kick", &bob).await.ok(),
        };
        let left = bob.sync_since(&invited).await;
        let section = left.room("leave", &room);
        assert!(
            find(&section["timeline"], "m.room.member", &bob.id).is_some(),
            "{}",
            left.body
        );
        assert_eq!(bodies(section), Vec::<String>::new());
        assert_eq!(section["state"]["events"], json!([]));
        assert!(left.room("invite", &room).is_null());
    }
}

#[tokio::test]
async fn leaving_and_coming_back_shows_the_room_anew() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = alice.create_room().await;
    bob.join(&room).await.ok();
    let known = bob.sync().await;
    bob.leave(&room).await.ok();
    alice.say(&room, "meanwhile").await;
    bob.join(&room).await.ok();
    let back = bob.sync_since(&known).await;
    let joined = back.joined(&room);
    assert_eq!(joined["timeline"]["limited"], true);
    assert!(
        back.state(&room, "m.room.create", "").is_some()
            || find(&joined["timeline"], "m.room.create", "").is_some()
    );
    assert!(back.room("leave", &room).is_null());
    // A new display name is no new join.
    let path = format!(
        "/_matrix/client/v3/profile/{}/displayname",
        crate::room_words::escaped(&bob.id)
    );
    let named = async { bob.put(&path, json!({ "displayname": "Bobby" })).await.ok() };
    let (renamed, _) = tokio::join!(bob.wait_since(&back), named);
    assert_eq!(
        renamed.joined(&room)["timeline"]["limited"],
        false,
        "{}",
        renamed.body
    );
    assert_eq!(renamed.joined(&room)["state"]["events"], json!([]));
}

#[tokio::test]
async fn a_knock_is_told_and_so_is_its_end() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let options = json!({
        "preset": "private_chat", "name": "Kitchen",
        "initial_state": [{ "type": "m.room.join_rules", "content": { "join_rule": "knock" } }],
    });
    let room = alice.create_room_with(options).await;
    let path = format!(
        "/_matrix/client/v3/knock/{}",
        crate::room_words::escaped(&room)
    );
    let before = bob.sync().await;
    bob.post(&path, json!({})).await.ok();
    let knocked = bob.sync_since(&before).await;
    let state = &knocked.room("knock", &room)["knock_state"];
    assert_eq!(
        find(state, "m.room.name", "").expect("the name")["content"]["name"],
        "Kitchen"
    );
    let own = find(state, "m.room.member", &bob.id).expect("the knock");
    assert_eq!(own["content"]["membership"], "knock");

    alice.change_member(&room, "kick", &bob).await.ok();
    let refused = bob.sync_since(&knocked).await;
    let section = refused.room("leave", &room);
    assert!(
        types(&section["timeline"])
            .iter()
            .all(|name| *name == "m.room.member"),
        "{section}"
    );
    assert_eq!(section["state"]["events"], json!([]));
    assert!(refused.room("knock", &room).is_null());
}

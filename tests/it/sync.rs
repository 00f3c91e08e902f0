//! Classic sync.

use serde_json::{Value, json};

use crate::{
    harness::TestServer,
    sync_words::{bodies, find, types},
};

#[tokio::test]
async fn a_first_sync_has_the_rooms_with_state_and_timeline() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let room = alice.create_room().await;
    alice
        .set_state(&room, "m.room.topic", "", json!({ "topic": "Soup" }))
        .await
        .ok();
    for number in 0..12 {
        alice.say(&room, &format!("{number}")).await;
    }

    let synced = alice.sync().await;

    let joined = synced.joined(&room);
    let expected: Vec<_> = (2..12).map(|number| number.to_string()).collect();
    assert_eq!(synced.messages(&room), expected);
    assert_eq!(joined["timeline"]["limited"], true);
    assert!(joined["timeline"]["prev_batch"].is_string());
    assert!(synced.state(&room, "m.room.create", "").is_some());
    assert_eq!(
        synced.state(&room, "m.room.topic", "").expect("a topic")["content"]["topic"],
        "Soup"
    );
    assert!(synced.state(&room, "m.room.member", &alice.id).is_some());
    let last = joined["timeline"]["events"]
        .as_array()
        .and_then(|events| events.last())
        .expect("an event");
    assert!(last["unsigned"]["transaction_id"].is_string(), "{last}");
    assert_eq!(last["unsigned"]["membership"], "join");
    assert!(last.get("room_id").is_none());
    assert_eq!(joined["summary"]["m.joined_member_count"], 1);
    assert!(find(&joined["state"], "m.room.message", "").is_none());
    let rules = synced.body["account_data"]["events"]
        .as_array()
        .expect("account data");
    assert!(rules.iter().any(|event| event["type"] == "m.push_rules"));
}

#[tokio::test]
async fn a_sync_without_news_is_empty_and_one_with_news_has_only_that() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let (busy, quiet) = (alice.create_room().await, alice.create_room().await);
    let before = alice.sync().await;

    let nothing = alice.sync_since(&before).await;
    assert!(nothing.body.get("rooms").is_none(), "{}", nothing.body);
    assert!(nothing.body.get("account_data").is_none());

    alice.say(&busy, "hello").await;
    let news = alice.sync_since(&nothing).await;
    assert_eq!(news.messages(&busy), ["hello"]);
    assert_eq!(news.joined(&busy)["timeline"]["limited"], false);
    assert_eq!(news.joined(&busy)["state"]["events"], json!([]));
    assert!(news.joined(&quiet).is_null());
    // An old token still says what is new since then.
    assert_eq!(alice.sync_since(&before).await.messages(&busy), ["hello"]);
}

#[tokio::test]
async fn a_waiting_sync_is_woken_by_a_message_and_by_an_invite() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = alice.create_room().await;
    bob.join(&room).await.ok();
    let before = bob.sync().await;

    let (woken, _) = tokio::join!(bob.wait_since(&before), alice.say(&room, "wake up"));
    assert_eq!(woken.messages(&room), ["wake up"]);

    let other = alice.create_room().await;
    let invite = async { alice.change_member(&other, "invite", &bob).await.ok() };
    let (woken, _) = tokio::join!(bob.wait_since(&woken), invite);
    let invited = woken.room("invite", &other);
    let own = find(&invited["invite_state"], "m.room.member", &bob.id).expect("the invite");
    assert_eq!(own["content"]["membership"], "invite");
    assert!(find(&invited["invite_state"], "m.room.join_rules", "").is_some());
    // It is told once.
    assert!(bob.sync_since(&woken).await.body.get("rooms").is_none());
    assert!(bob.sync().await.room("invite", &other).is_object());
}

#[tokio::test]
async fn a_gap_tells_the_state_that_changed_in_it() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = alice.create_room().await;
    let before = alice.sync().await;
    bob.join(&room).await.ok();
    alice
        .set_state(&room, "m.room.name", "", json!({ "name": "old" }))
        .await
        .ok();
    alice
        .set_state(&room, "m.room.name", "", json!({ "name": "new" }))
        .await
        .ok();
    for number in 0..12 {
        alice.say(&room, &format!("{number}")).await;
    }
    alice
        .set_state(&room, "m.room.topic", "", json!({ "topic": "late" }))
        .await
        .ok();

    for lazy in [false, true] {
        let filter = json!({ "room": { "timeline": { "limit": 5 }, "state": { "lazy_load_members": lazy } } });
        let since = format!("since={}", before.next);
        let after = alice.sync_filtered(&filter, &since).await;
        let joined = after.joined(&room);
        assert_eq!(joined["timeline"]["limited"], true);
        assert_eq!(bodies(joined), ["8", "9", "10", "11"]);
        let name = after.state(&room, "m.room.name", "").expect("the name");
        assert_eq!(name["content"]["name"], "new");
        assert!(
            after.state(&room, "m.room.member", &bob.id).is_some(),
            "a join in the gap"
        );
        assert!(
            after.state(&room, "m.room.topic", "").is_none(),
            "that is in the timeline"
        );
        assert!(
            after.state(&room, "m.room.create", "").is_none(),
            "that is known"
        );
        assert_eq!(joined["summary"]["m.joined_member_count"], 2);
    }
    for parameter in ["use_state_after", "org.matrix.msc4222.use_state_after"] {
        let filter = json!({ "room": { "timeline": { "limit": 5 } } });
        let query = format!("since={}&{parameter}=true", before.next);
        let after = alice.sync_filtered(&filter, &query).await;
        let name = parameter.replace("use_", "");
        let state = &after.joined(&room)[&*name];
        let topic = find(state, "m.room.topic", "").expect("the topic");
        assert_eq!(topic["content"]["topic"], "late");
        assert!(find(state, "m.room.name", "").is_some());
        assert!(after.joined(&room).get("state").is_none());
    }
}

#[tokio::test]
async fn the_leave_of_a_forgotten_room_is_told_to_who_knew_the_room() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = alice.create_room().await;
    bob.join(&room).await.ok();
    let known = bob.sync().await;
    bob.leave(&room).await.ok();
    let forget = crate::room_words::room_path(&room, "/forget");
    bob.post(&forget, json!({})).await.ok();
    alice.say(&room, "after").await;

    let left = bob.sync_since(&known).await;
    assert!(left.room("leave", &room).is_object(), "{}", left.body);
    assert_eq!(bodies(left.room("leave", &room)), Vec::<String>::new());
    assert!(bob.sync_since(&left).await.body.get("rooms").is_none());
    let filter = json!({ "room": { "include_leave": true } });
    let archived = bob.sync_filtered(&filter, "").await;
    assert!(archived.room("leave", &room).is_null());
}

#[tokio::test]
async fn lazily_loaded_members_are_those_who_speak() {
    let server = TestServer::start().await;
    let (alice, bob, carol) = (
        server.user("alice").await,
        server.user("bob").await,
        server.user("carol").await,
    );
    let room = alice
        .create_room_with(json!({ "preset": "public_chat", "name": "Kitchen" }))
        .await;
    bob.join(&room).await.ok();
    carol.join(&room).await.ok();
    bob.say(&room, "hello").await;
    let filter =
        json!({ "room": { "timeline": { "limit": 1 }, "state": { "lazy_load_members": true } } });

    let synced = alice.sync_filtered(&filter, "").await;
    assert!(
        synced.state(&room, "m.room.member", &bob.id).is_some(),
        "he speaks"
    );
    assert!(
        synced.state(&room, "m.room.member", &alice.id).is_some(),
        "it is the reader"
    );
    assert!(synced.state(&room, "m.room.member", &carol.id).is_none());
    assert_eq!(
        synced.joined(&room)["summary"]["m.heroes"],
        json!([]),
        "the room has a name"
    );

    alice
        .set_state(&room, "m.room.name", "", json!({}))
        .await
        .ok();
    let unnamed = alice
        .sync_filtered(&filter, &format!("since={}", synced.next))
        .await;
    assert_eq!(
        unnamed.joined(&room)["summary"]["m.heroes"],
        json!([bob.id, carol.id])
    );
    assert!(
        unnamed.state(&room, "m.room.member", &carol.id).is_some(),
        "a hero's name is needed"
    );
}

#[tokio::test]
async fn a_filter_chooses_rooms_types_senders_and_fields() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let (room, other) = (alice.create_room().await, alice.create_room().await);
    bob.join(&room).await.ok();
    alice.say(&room, "from alice").await;
    bob.say(&room, "from bob").await;
    alice
        .set_state(&room, "m.room.topic", "", json!({ "topic": "Soup" }))
        .await
        .ok();

    let filter = json!({
        "event_fields": ["type", "content.body", "sender"],
        "account_data": { "types": [] },
        "room": {
            "not_rooms": [other],
            "timeline": { "types": ["m.room.mess*"], "not_senders": [alice.id] },
            "state": { "types": ["m.room.topic"] },
        },
    });
    let synced = alice.sync_filtered(&filter, "").await;
    let events = &synced.joined(&room)["timeline"]["events"];
    let message =
        json!({ "type": "m.room.message", "content": { "body": "from bob" }, "sender": bob.id });
    assert_eq!(*events, json!([message]));
    // The topic is newer than the message, but the filter keeps it out of the timeline.
    assert_eq!(types(&synced.joined(&room)["state"]), ["m.room.topic"]);
    assert!(synced.joined(&other).is_null());
    assert!(synced.body.get("account_data").is_none());
    // The same by its ID.
    let path = format!(
        "/_matrix/client/v3/user/{}/filter",
        crate::room_words::escaped(&alice.id)
    );
    let id = alice.post(&path, filter).await.ok()["filter_id"]
        .as_str()
        .expect("an ID")
        .to_owned();
    let by_id = alice.sync_with(&format!("filter={id}")).await;
    assert_eq!(by_id.body["rooms"], synced.body["rooms"]);
    alice
        .get("/_matrix/client/v3/sync?filter=none")
        .await
        .fails(400, "M_INVALID_PARAM");
    alice
        .get("/_matrix/client/v3/sync?filter=%7Bnone")
        .await
        .fails(400, "M_NOT_JSON");

    let raw = json!({ "event_format": "federation", "room": { "rooms": [room] } });
    let synced = alice.sync_filtered(&raw, "").await;
    let event = &synced.joined(&room)["timeline"]["events"][0];
    assert!(
        event["auth_events"].is_array()
            && event["event_id"].is_string()
            && event["signatures"].is_object()
    );
}

#[tokio::test]
async fn full_state_is_told_at_once_with_the_news() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let room = alice.create_room().await;
    let before = alice.sync().await;
    alice.say(&room, "news").await;
    let query = format!("since={}&full_state=true&timeout=15000", before.next);
    let full = alice.sync_with(&query).await;
    assert_eq!(full.messages(&room), ["news"]);
    assert!(full.state(&room, "m.room.create", "").is_some());
    let query = format!("since={}&full_state=true&timeout=15000", full.next);
    assert!(
        alice
            .sync_with(&query)
            .await
            .state(&room, "m.room.create", "")
            .is_some()
    );
}

#[tokio::test]
async fn a_token_is_refused_if_malformed_and_starts_anew_if_from_a_lost_future() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let room = alice.create_room().await;
    for since in ["nonsense", "s", "t5", "s1.1"] {
        alice
            .get(&format!("/_matrix/client/v3/sync?since={since}"))
            .await
            .fails(400, "M_INVALID_PARAM");
    }
    for since in ["s1.zzzzzz~0.0", "s9.1~0.0"] {
        let synced = alice
            .sync_with(&format!("since={since}&timeout=15000"))
            .await;
        let types = types(&synced.joined(&room)["timeline"]);
        assert!(types.contains(&"m.room.create"), "{since}");
    }
    let genesis = alice.sync_with("since=s1.0~0.0").await;
    assert!(genesis.joined(&room).is_object());
}

#[tokio::test]
async fn account_data_comes_with_its_room_and_wakes() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let room = alice.create_room().await;
    let before = alice.sync().await;
    let user = crate::room_words::escaped(&alice.id);
    let path = format!("/_matrix/client/v3/user/{user}/account_data/org.example");
    let set = async { alice.put(&path, json!({ "a": 1 })).await.ok() };
    let (woken, _) = tokio::join!(alice.wait_since(&before), set);
    let expected = json!([{ "type": "org.example", "content": { "a": 1 } }]);
    assert_eq!(woken.body["account_data"]["events"], expected);
    assert!(woken.body.get("rooms").is_none());

    let path = format!(
        "/_matrix/client/v3/user/{user}/rooms/{}/tags/u.x",
        crate::room_words::escaped(&room)
    );
    let set = async { alice.put(&path, json!({ "order": 0.5 })).await.ok() };
    let (woken, _) = tokio::join!(alice.wait_since(&woken), set);
    let tags = &woken.joined(&room)["account_data"]["events"][0];
    assert_eq!(tags["content"]["tags"]["u.x"]["order"], 0.5);
    assert_eq!(woken.joined(&room)["timeline"]["events"], json!([]));
}

#[tokio::test]
async fn ignored_users_are_not_heard_and_cannot_invite() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = alice.create_room().await;
    bob.join(&room).await.ok();
    let user = crate::room_words::escaped(&alice.id);
    let path = format!("/_matrix/client/v3/user/{user}/account_data/m.ignored_user_list");
    let ignored = bob.id.clone();
    alice
        .put(&path, json!({ "ignored_users": { ignored: {} } }))
        .await
        .ok();
    let before = alice.sync().await;
    bob.say(&room, "hello").await;
    bob.set_state(
        &room,
        "m.room.member",
        &bob.id,
        json!({ "membership": "join", "displayname": "B" }),
    )
    .await
    .ok();
    alice.say(&room, "quiet here").await;
    let other = bob.create_room().await;
    bob.change_member(&other, "invite", &alice).await.ok();
    for synced in [alice.sync_since(&before).await, alice.sync().await] {
        assert_eq!(synced.messages(&room), ["quiet here"]);
        let timeline = &synced.joined(&room)["timeline"];
        assert!(
            find(timeline, "m.room.member", &bob.id).is_some(),
            "state is told"
        );
        assert!(synced.room("invite", &other).is_null());
    }
}

#[tokio::test]
async fn unsigned_says_what_a_state_event_replaced_and_what_redacted_an_event() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = alice.create_room().await;
    bob.join(&room).await.ok();
    let before = bob.sync().await;
    let said = alice.say(&room, "oops").await;
    alice
        .set_state(&room, "m.room.topic", "", json!({ "topic": "one" }))
        .await
        .ok();
    alice
        .set_state(&room, "m.room.topic", "", json!({ "topic": "two" }))
        .await
        .ok();
    let path = crate::room_words::room_path(
        &room,
        &format!("/redact/{}/r1", crate::room_words::escaped(&said)),
    );
    alice.put(&path, json!({ "reason": "typo" })).await.ok();

    let synced = bob.sync_since(&before).await;
    let events = synced.joined(&room)["timeline"]["events"]
        .as_array()
        .expect("events")
        .clone();
    let [message, one, two, redaction] = &events[..] else {
        panic!("four events: {events:?}")
    };
    assert_eq!(message["content"], json!({}));
    assert_eq!(
        message["unsigned"]["redacted_because"]["content"]["reason"],
        "typo"
    );
    assert_eq!(redaction["redacts"], said);
    assert_eq!(redaction["content"]["redacts"], said);
    assert_eq!(two["unsigned"]["prev_content"], json!({ "topic": "one" }));
    assert_eq!(two["unsigned"]["replaces_state"], one["event_id"]);
    assert!(
        message["unsigned"].get("transaction_id").is_none(),
        "bob did not send it"
    );
    assert!(message["unsigned"]["age"].is_u64());
    let own = alice.sync_since(&before).await;
    let own: &Value = &own.joined(&room)["timeline"]["events"][3]["unsigned"]["transaction_id"];
    assert_eq!(own, "r1");
}

#[tokio::test]
async fn many_waiting_clients_get_the_same_event() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let room = alice.create_room().await;
    let mut readers = Vec::new();
    for number in 0..8 {
        let reader = server.user(&format!("reader{number}")).await;
        reader.join(&room).await.ok();
        readers.push(reader);
    }
    let mut known = Vec::new();
    for reader in &readers {
        known.push(reader.sync().await);
    }
    let own = alice.sync().await;
    let waiting = readers
        .iter()
        .zip(&known)
        .map(|(reader, known)| reader.wait_since(known));
    let waiting = futures_util::future::join_all(waiting);
    let (answers, own, _) = tokio::join!(waiting, alice.wait_since(&own), alice.say(&room, "all"));
    for answer in &answers {
        assert_eq!(answer.messages(&room), ["all"]);
        let event = &answer.joined(&room)["timeline"]["events"][0];
        assert!(event["unsigned"].get("transaction_id").is_none());
    }
    let event = &own.joined(&room)["timeline"]["events"][0];
    assert!(
        event["unsigned"]["transaction_id"].is_string(),
        "the sender knows its own"
    );
}

#[tokio::test]
async fn receipts_and_typing_come_with_their_room_and_wake() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = alice.create_room().await;
    bob.join(&room).await.ok();
    let said = alice.say(&room, "read this").await;
    let (of_alice, of_bob) = (alice.sync().await, bob.sync().await);
    assert_eq!(
        of_bob.joined(&room)["unread_notifications"]["notification_count"],
        1
    );
    assert_eq!(of_bob.joined(&room)["org.matrix.msc2654.unread_count"], 1);

    let path = crate::room_words::room_path(
        &room,
        &format!("/receipt/m.read/{}", crate::room_words::escaped(&said)),
    );
    let read = async { bob.post(&path, json!({})).await.ok() };
    let (woken, _) = tokio::join!(alice.wait_since(&of_alice), read);
    let ephemeral = &woken.joined(&room)["ephemeral"];
    assert_eq!(types(ephemeral), ["m.receipt"]);
    assert!(ephemeral["events"][0]["content"][&said]["m.read"][&bob.id]["ts"].is_u64());
    assert_eq!(woken.joined(&room)["timeline"]["events"], json!([]));
    let read = bob.sync_since(&of_bob).await;
    assert_eq!(
        read.joined(&room)["unread_notifications"]["notification_count"],
        0
    );
    assert!(
        alice.sync_since(&woken).await.body.get("rooms").is_none(),
        "it is told once"
    );
    assert_eq!(
        types(&alice.sync().await.joined(&room)["ephemeral"]),
        ["m.receipt"]
    );

    let path = crate::room_words::room_path(
        &room,
        &format!("/typing/{}", crate::room_words::escaped(&bob.id)),
    );
    let typing = async {
        bob.put(&path, json!({ "typing": true, "timeout": 60_000 }))
            .await
            .ok()
    };
    let (typed, _) = tokio::join!(alice.wait_since(&woken), typing);
    let ephemeral = &typed.joined(&room)["ephemeral"];
    assert_eq!(
        ephemeral["events"],
        json!([{ "type": "m.typing", "content": { "user_ids": [bob.id] } }])
    );
    bob.put(&path, json!({ "typing": false })).await.ok();
    let stopped = alice.wait_since(&typed).await;
    assert_eq!(
        stopped.joined(&room)["ephemeral"]["events"][0]["content"]["user_ids"],
        json!([])
    );
    let filter = json!({ "room": { "ephemeral": { "types": [] } } });
    let without = alice.sync_filtered(&filter, "").await;
    assert_eq!(without.joined(&room)["ephemeral"]["events"], json!([]));
}

#[tokio::test]
async fn presence_of_those_who_share_a_room_is_told() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = alice.create_room().await;
    let stranger = alice.sync().await;
    let path = format!(
        "/_matrix/client/v3/presence/{}/status",
        crate::room_words::escaped(&bob.id)
    );
    bob.put(&path, json!({ "presence": "online", "status_msg": "soup" }))
        .await
        .ok();
    bob.join(&room).await.ok();

    let of_bob = |body: &Value| {
        let events = body["presence"]["events"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        events
            .into_iter()
            .find(|event| event["sender"] == bob.id.as_str())
    };
    let mut synced = alice.wait_since(&stranger).await;
    while of_bob(&synced.body).is_none() {
        synced = alice.wait_since(&synced).await;
    }
    let event = of_bob(&synced.body).expect("it was found");
    assert_eq!(event["type"], "m.presence");
    assert_eq!(event["content"]["status_msg"], "soup");
    let without = alice
        .sync_filtered(&json!({ "presence": { "types": [] } }), "")
        .await;
    assert!(without.body.get("presence").is_none());
}

#[tokio::test]
async fn threads_have_counts_of_their_own_for_those_who_ask() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = alice.create_room().await;
    bob.join(&room).await.ok();
    let root = alice.say(&room, "root").await;
    let relation = json!({ "rel_type": "m.thread", "event_id": root });
    alice
        .say_content(
            &room,
            json!({ "msgtype": "m.text", "body": "in it", "m.relates_to": relation }),
        )
        .await;
    let filter = json!({ "room": { "timeline": { "unread_thread_notifications": true } } });
    let synced = bob.sync_filtered(&filter, "").await;
    let joined = synced.joined(&room);
    assert_eq!(joined["unread_notifications"]["notification_count"], 1);
    assert_eq!(
        joined["unread_thread_notifications"][&root]["notification_count"],
        1
    );
    let synced = bob.sync().await;
    assert_eq!(
        synced.joined(&room)["unread_notifications"]["notification_count"],
        2
    );
    assert!(
        synced
            .joined(&room)
            .get("unread_thread_notifications")
            .is_none()
    );
}

#[tokio::test]
async fn what_relates_to_an_event_is_bundled_with_it() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = alice.create_room().await;
    bob.join(&room).await.ok();
    let before = bob.sync().await;
    let said = alice.say(&room, "thee soup").await;
    let edit = json!({
        "msgtype": "m.text", "body": "* the soup",
        "m.new_content": { "msgtype": "m.text", "body": "the soup" },
        "m.relates_to": { "rel_type": "m.replace", "event_id": said },
    });
    alice.say_content(&room, edit).await;
    let reply = json!({ "msgtype": "m.text", "body": "yum", "m.relates_to": { "rel_type": "m.thread", "event_id": said } });
    bob.say_content(&room, reply).await;
    for synced in [bob.sync_since(&before).await, bob.sync().await] {
        let events = synced.joined(&room)["timeline"]["events"]
            .as_array()
            .expect("events")
            .clone();
        let event = events
            .iter()
            .find(|event| event["event_id"] == said.as_str())
            .expect("the message");
        let relations = &event["unsigned"]["m.relations"];
        assert_eq!(
            relations["m.replace"]["content"]["m.new_content"]["body"],
            "the soup"
        );
        assert_eq!(relations["m.thread"]["count"], 1);
        assert_eq!(relations["m.thread"]["current_user_participated"], true);
    }
}

#[tokio::test]
async fn with_state_after_lazily_loaded_members_learn_who_left() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = alice.create_room().await;
    bob.join(&room).await.ok();
    let filter = json!({ "room": { "state": { "lazy_load_members": true } } });
    let before = alice.sync_filtered(&filter, "use_state_after=true").await;
    let state = &before.joined(&room)["state_after"];
    assert!(
        find(state, "m.room.member", &bob.id).is_some(),
        "his join is in the timeline"
    );
    alice.change_member(&room, "kick", &bob).await.ok();
    let query = format!("since={}&use_state_after=true", before.next);
    let after = alice.sync_filtered(&filter, &query).await;
    let own = find(
        &after.joined(&room)["state_after"],
        "m.room.member",
        &bob.id,
    )
    .expect("the kick");
    assert_eq!(own["content"]["membership"], "leave");
    assert_eq!(after.joined(&room)["summary"]["m.joined_member_count"], 1);
    assert_eq!(
        after.joined(&room)["summary"]["m.heroes"],
        json!([bob.id]),
        "nobody else is left to name it"
    );
}

//! Typing and presence.

use serde_json::{Value, json};

use crate::{
    harness::{Answer, TestServer, User},
    room_words::{escaped, room_path},
    sync_words::Synced,
};

impl User {
    async fn typing(&self, room: &str, body: Value) -> Answer {
        self.put(
            &room_path(room, &format!("/typing/{}", escaped(&self.id))),
            body,
        )
        .await
    }

    async fn set_presence(&self, body: Value) -> Answer {
        self.put(&presence_path(&self.id), body).await
    }

    /// Syncs on until `is_found` is.
    async fn until(&self, mut before: Synced, is_found: impl Fn(&Synced) -> bool) -> Synced {
        let mut tries = 0;
        loop {
            before = self.wait_since(&before).await;
            if is_found(&before) {
                return before;
            }
            tries += 1;
            assert!(tries < 20, "not found, at last: {}", before.body);
        }
    }
}

fn presence_path(user: &str) -> String {
    format!("/_matrix/client/v3/presence/{}/status", escaped(user))
}

/// Who is typing, if the answer says so.
fn typing<'a>(synced: &'a Synced, room: &str) -> Option<&'a Value> {
    let events = synced.joined(room)["ephemeral"]["events"].as_array()?;
    let typing = events.iter().find(|event| event["type"] == "m.typing")?;
    assert!(typing.get("room_id").is_none());
    Some(&typing["content"]["user_ids"])
}

/// The presence of a user, if the answer says so.
fn presence<'a>(synced: &'a Synced, user: &str) -> Option<&'a Value> {
    let events = synced.body["presence"]["events"].as_array()?;
    let event = events.iter().find(|event| event["sender"] == user)?;
    assert_eq!(event["type"], "m.presence");
    Some(&event["content"])
}

async fn pair(server: &TestServer) -> (User, User, String) {
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = alice.create_room().await;
    bob.join(&room).await.ok();
    (alice, bob, room)
}

#[tokio::test]
async fn typing_is_seen_from_its_begin_to_its_end() {
    let server = TestServer::start().await;
    let (alice, bob, room) = pair(&server).await;
    let before = bob.sync().await;

    alice
        .typing(&room, json!({ "typing": true, "timeout": 10_000 }))
        .await
        .ok();
    let during = bob
        .until(before, |synced| typing(synced, &room).is_some())
        .await;
    assert_eq!(typing(&during, &room), Some(&json!([alice.id])));
    assert_eq!(typing(&bob.sync().await, &room), Some(&json!([alice.id])));
    alice.typing(&room, json!({ "typing": false })).await.ok();
    let after = bob.wait_since(&during).await;
    assert_eq!(typing(&after, &room), Some(&json!([])));
    assert_eq!(typing(&bob.sync().await, &room), None);

    alice
        .typing(&room, json!({ "typing": true, "timeout": 1 }))
        .await
        .ok();
    let ended = bob
        .until(after, |synced| typing(synced, &room) == Some(&json!([])))
        .await;
    assert!(ended.messages(&room).is_empty());
}

#[tokio::test]
async fn typing_for_others_or_elsewhere_is_refused() {
    let server = TestServer::start().await;
    let (alice, bob, room) = pair(&server).await;
    let carol = server.user("carol").await;
    let yes = json!({ "typing": true, "timeout": 10_000 });

    let for_bob = room_path(&room, &format!("/typing/{}", escaped(&bob.id)));
    alice
        .put(&for_bob, yes.clone())
        .await
        .fails(403, "M_FORBIDDEN");
    carol
        .typing(&room, yes.clone())
        .await
        .fails(403, "M_FORBIDDEN");
    carol
        .typing("!none:hearth.test", yes)
        .await
        .fails(403, "M_FORBIDDEN");
    alice
        .typing(&room, json!({ "typing": "yes" }))
        .await
        .fails(400, "M_BAD_JSON");
    let not_typed = alice.typing(&room, json!({ "timeout": 10_000 })).await;
    not_typed.fails(400, "M_BAD_JSON");
    assert_eq!(typing(&alice.sync().await, &room), None);
    // How long is not asked for.
    alice.typing(&room, json!({ "typing": true })).await.ok();
    assert_eq!(typing(&alice.sync().await, &room), Some(&json!([alice.id])));
}

#[tokio::test]
async fn presence_is_told_to_those_who_share_a_room() {
    let server = TestServer::start().await;
    let (alice, bob, _) = pair(&server).await;
    let carol = server.user("carol").await;
    let before = bob.sync().await;

    let status = json!({ "presence": "unavailable", "status_msg": "Lunch" });
    alice.set_presence(status).await.ok();
    let seen = bob
        .until(before, |synced| presence(synced, &alice.id).is_some())
        .await;
    let content = presence(&seen, &alice.id).unwrap();
    assert_eq!(
        (&content["presence"], &content["status_msg"]),
        (&json!("unavailable"), &json!("Lunch"))
    );
    let status = bob.get(&presence_path(&alice.id)).await.ok();
    assert_eq!(status["status_msg"], "Lunch");
    carol
        .get(&presence_path(&alice.id))
        .await
        .fails(403, "M_FORBIDDEN");
    carol
        .get(&presence_path("@none:hearth.test"))
        .await
        .fails(403, "M_FORBIDDEN");
    assert_eq!(presence(&carol.sync().await, &alice.id), None);

    alice
        .set_presence(json!({ "presence": "asleep" }))
        .await
        .fails(400, "M_INVALID_PARAM");
    alice.set_presence(json!({})).await.fails(400, "M_BAD_JSON");
    let of_bob = presence_path(&bob.id);
    let of_bob = alice.put(&of_bob, json!({ "presence": "online" })).await;
    of_bob.fails(403, "M_FORBIDDEN");
    alice.sync_with("set_presence=online").await;
    bob.until(seen, |synced| {
        presence(synced, &alice.id).is_some_and(|content| content["presence"] == "online")
    })
    .await;
}

#[tokio::test]
async fn who_is_busy_stays_so_and_who_has_gone_is_offline() {
    let settings = ["presence.offline_after=1s"];
    let server = TestServer::start_with(&settings).await;
    let (alice, bob, _) = pair(&server).await;
    let before = bob.sync_with("set_presence=offline").await;

    alice.set_presence(json!({ "presence": "busy" })).await.ok();
    alice.sync_with("set_presence=online").await;
    let is = |state: &'static str| {
        let alice = &alice.id;
        move |synced: &Synced| {
            presence(synced, alice).is_some_and(|content| content["presence"] == state)
        }
    };
    let busy = bob.until(before, is("org.matrix.msc3026.busy")).await;
    bob.until(busy, is("offline")).await;
}

#[tokio::test]
async fn presence_that_is_switched_off_is_told_to_nobody() {
    let server = TestServer::start_with(&["presence.enabled=false"]).await;
    let (alice, bob, _) = pair(&server).await;

    alice
        .set_presence(json!({ "presence": "online" }))
        .await
        .ok();
    let status = bob.get(&presence_path(&alice.id)).await.ok();
    assert_eq!(status["presence"], "offline");
    assert_eq!(presence(&bob.sync().await, &alice.id), None);
}

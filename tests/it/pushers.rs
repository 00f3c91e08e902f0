//! Pushers: who has which, and when they end.

use serde_json::{Value, json};

use crate::harness::{PASSWORD, TestServer, User};

const SET: &str = "/_matrix/client/v3/pushers/set";
const PUSHERS: &str = "/_matrix/client/v3/pushers";

fn pusher(pushkey: &str) -> Value {
    json!({
        "kind": "http",
        "app_id": "org.example",
        "pushkey": pushkey,
        "app_display_name": "Example",
        "device_display_name": "Phone",
        "profile_tag": "tag",
        "lang": "en",
        "data": { "url": "https://push.example.org/_matrix/push/v1/notify", "format": "event_id_only" },
    })
}

async fn pushers(user: &User) -> Vec<Value> {
    let body = user.get(PUSHERS).await.ok();
    let pushers = body.get("pushers").and_then(Value::as_array);
    pushers.cloned().unwrap_or_default()
}

#[tokio::test]
async fn a_pusher_is_set_listed_and_deleted() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    assert_eq!(pushers(&alice).await, Vec::<Value>::new());
    for _ in 0..2 {
        alice.post(SET, pusher("one")).await.ok();
        assert_eq!(pushers(&alice).await, [pusher("one")]);
    }
    let gone = json!({ "kind": null, "app_id": "org.example", "pushkey": "one" });
    for _ in 0..2 {
        alice.post(SET, gone.clone()).await.ok();
        assert_eq!(pushers(&alice).await, Vec::<Value>::new());
    }
}

#[tokio::test]
async fn a_phone_that_changes_hands_tells_the_new_user_only() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let bob = server.user("bob").await;
    alice.post(SET, pusher("one")).await.ok();
    let mut shared = pusher("one");
    shared["append"] = json!(true);
    bob.post(SET, shared).await.ok();
    assert_eq!(pushers(&alice).await.len(), 1);
    bob.post(SET, pusher("one")).await.ok();
    assert_eq!(pushers(&alice).await.len(), 0);
    assert_eq!(pushers(&bob).await.len(), 1);
}

#[tokio::test]
async fn a_pusher_ends_with_its_device() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let phone = server.login("alice", PASSWORD).await;
    phone.post(SET, pusher("phone")).await.ok();
    alice.post(SET, pusher("own")).await.ok();
    assert_eq!(pushers(&alice).await.len(), 2);
    let auth = json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": alice.id },
        "password": PASSWORD,
    });
    let body = json!({ "auth": auth, "new_password": "another horse" });
    alice
        .post("/_matrix/client/v3/account/password", body)
        .await
        .ok();
    assert_eq!(pushers(&alice).await, [pusher("own")]);

    let again = json!({
        "type": "m.login.password",
        "user": "alice",
        "password": "another horse",
        "device_id": phone.device,
    });
    server.post("/_matrix/client/v3/login", again).await.ok();
    assert_eq!(pushers(&alice).await, [pusher("own")]);
}

#[tokio::test]
async fn pushers_that_cannot_be_served_are_refused() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let refused = async |change: fn(&mut Value), errcode: &str| {
        let mut body = pusher("one");
        change(&mut body);
        alice.post(SET, body).await.fails(400, errcode);
    };
    refused(|body| body["kind"] = json!("email"), "M_INVALID_PARAM").await;
    refused(|body| body["kind"] = json!("pigeon"), "M_INVALID_PARAM").await;
    refused(|body| body["data"] = json!({}), "M_BAD_JSON").await;
    refused(
        |body| body["data"]["url"] = json!("https://example.org/"),
        "M_INVALID_PARAM",
    )
    .await;
    refused(
        |body| body["pushkey"] = json!("x".repeat(513)),
        "M_INVALID_PARAM",
    )
    .await;
    refused(
        |body| body["app_id"] = json!("x".repeat(65)),
        "M_INVALID_PARAM",
    )
    .await;
    refused(|body| body["lang"] = json!(5), "M_BAD_JSON").await;
    alice.post(SET, json!({})).await.fails(400, "M_BAD_JSON");
    assert_eq!(pushers(&alice).await.len(), 0);
}

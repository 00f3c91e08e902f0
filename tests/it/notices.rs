//! Notices of the server: the room, the invitation that stays, and what an administrator sends.

use reqwest::Method;
use serde_json::json;

use crate::harness::{TestServer, User};

const SEND: &str = "/_synapse/admin/v1/send_server_notice";

async fn admin(server: &TestServer) -> User {
    use hearth::accounts::AccountChange;
    let boss = server.user("boss").await;
    let parts = &server.running.server;
    let id = ruma::UserId::parse(&boss.id).expect("a user ID");
    let number = {
        let snapshot = parts.store.snapshot().expect("a snapshot");
        parts.accounts.user_number(&snapshot, &id).expect("a read")
    };
    let number = number.expect("a number");
    parts
        .accounts
        .change(number, AccountChange::Admin(true))
        .await
        .expect("a change");
    boss
}

#[tokio::test]
async fn a_notice_comes_in_a_room_that_is_always_the_same() {
    let server = TestServer::start().await;
    let boss = admin(&server).await;
    let alice = server.user("alice").await;
    let body = json!({ "user_id": alice.id, "content": { "msgtype": "m.text", "body": "hello" } });
    alice.post(SEND, json!({})).await.fails(403, "M_FORBIDDEN");
    let event = boss.post(SEND, body.clone()).await.ok()["event_id"].clone();

    let invited = async || {
        let sync = alice.get("/_matrix/client/v3/sync").await.ok();
        let rooms = sync["rooms"]["invite"].as_object().cloned();
        rooms
            .and_then(|rooms| rooms.keys().next().cloned())
            .unwrap_or_default()
    };
    let room = invited().await;
    let path = |what: &str| format!("/_matrix/client/v3/rooms/{room}/{what}");
    alice
        .post(&path("leave"), json!({}))
        .await
        .fails(403, "M_CANNOT_LEAVE_SERVER_NOTICE_ROOM");
    alice.post(&path("join"), json!({})).await.ok();
    let event = event.as_str().unwrap_or_default();
    let shown = alice.get(&path(&format!("event/{event}"))).await.ok();
    assert_eq!(shown["content"]["body"], "hello");
    assert_eq!(shown["sender"], "@notices:hearth.test");
    let tags = format!("/_matrix/client/v3/user/{}/rooms/{room}/tags", alice.id);
    assert_eq!(
        alice.get(&tags).await.ok(),
        json!({ "tags": { "m.server_notice": {} } })
    );

    alice.post(&path("leave"), json!({})).await.ok();
    let again = async || {
        let path = format!("{SEND}/one");
        let answer = boss.request(Method::PUT, &path, Some(body.clone())).await;
        answer.ok()["event_id"].clone()
    };
    let first = again().await;
    assert_eq!(again().await, first);
    assert_eq!(invited().await, room);
}

#[tokio::test]
async fn nobody_takes_the_name_of_the_servers_voice() {
    let server = TestServer::start().await;
    let auth = json!({ "type": "m.login.dummy" });
    let body = json!({ "username": "notices", "password": "correct horse", "auth": auth });
    server
        .post("/_matrix/client/v3/register", body)
        .await
        .fails(400, "M_EXCLUSIVE");
    let boss = admin(&server).await;
    for (user, status, errcode) in [
        ("@nobody:hearth.test", 404, "M_NOT_FOUND"),
        ("@a:elsewhere.test", 400, "M_INVALID_PARAM"),
    ] {
        let body = json!({ "user_id": user, "content": {} });
        boss.post(SEND, body).await.fails(status, errcode);
    }
    boss.post(SEND, json!({})).await.fails(400, "M_BAD_JSON");
}

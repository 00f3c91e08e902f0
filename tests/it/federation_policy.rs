//! Rooms with a policy server.

use std::sync::Arc;

use bytes::Bytes;
use hearth::events::canonical;
use ruma::{
    room_version_rules::RoomVersionRules, serde::Base64, serde::base64::Standard,
    signatures::Ed25519KeyPair,
};
use serde_json::{Value, json};

use crate::{
    guest::Guest,
    harness::{TestServer, User},
    room_words::room_path,
};

const SIGN: &str = "/_matrix/policy/v1/sign";

/// A policy server that signs what does not say "spam".
fn sign_all_but_spam(guest: &Guest<'_>) -> Value {
    let document = Ed25519KeyPair::generate();
    let key = Ed25519KeyPair::from_der(&document, "policy_server".to_owned()).expect("a key");
    let public: Base64<Standard> = Base64::new(key.public_key().to_vec());
    let content = json!({
        "via": guest.peer.name,
        "public_keys": { "ed25519": public.encode() },
    });
    let (name, key) = (guest.peer.name.to_string(), Arc::new(key));
    guest
        .peer
        .answer("POST", SIGN, move |request: &http::Request<Bytes>| {
            let text = std::str::from_utf8(request.body()).expect("text");
            if text.contains("spam") {
                return (
                    400,
                    json!({ "errcode": "M_FORBIDDEN", "error": "This is spam" }),
                );
            }
            let mut event = canonical::parse(request.body()).expect("an event");
            let rules = RoomVersionRules::V12;
            ruma::signatures::sign_event(&name, &*key, &mut event, &rules.redaction)
                .expect("signed");
            let signed = serde_json::to_value(&event).expect("JSON");
            let signature = &signed["signatures"][&name]["ed25519:policy_server"];
            (
                200,
                json!({ &name: { "ed25519:policy_server": signature } }),
            )
        });
    content
}

async fn room_with_policy(server: &TestServer) -> (User, Guest<'_>) {
    let alice = server.user("alice").await;
    let room = alice.create_room().await;
    let guest = Guest::join(server, &room).await;
    let content = sign_all_but_spam(&guest);
    let path = room_path(&room, "/state/m.room.policy/");
    alice.put(&path, content).await.ok();
    (alice, guest)
}

/// Whether the event has the signature of the policy server.
async fn is_signed(guest: &Guest<'_>, event_id: &str) -> bool {
    let target = format!("/_matrix/federation/v1/event/{event_id}");
    let answer = guest.peer.get(guest.server, &target).await.ok();
    let signatures = &answer["pdus"][0]["signatures"];
    signatures[guest.peer.name.as_str()]["ed25519:policy_server"].is_string()
}

/// The membership of a user and the ID of its event, as `reader` sees them.
async fn membership(reader: &User, guest: &Guest<'_>, user: &str) -> (String, String) {
    let state = reader.get(&room_path(&guest.room, "/state")).await.ok();
    let mut events = state.as_array().expect("a list").iter();
    let is_of_user =
        |event: &&Value| event["type"] == "m.room.member" && event["state_key"] == user;
    let found = events.find(is_of_user).expect("a membership");
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    (
        text(&found["content"]["membership"]),
        text(&found["event_id"]),
    )
}

#[tokio::test]
async fn what_we_send_is_signed_by_the_policy_server_or_refused() {
    let [server] = TestServer::federated().await;
    let (alice, guest) = room_with_policy(&server).await;
    let event_id = alice.say(&guest.room, "hello").await;
    assert!(is_signed(&guest, &event_id).await);

    let path = room_path(&guest.room, "/send/m.room.message/spam");
    let spam = json!({ "msgtype": "m.text", "body": "spam" });
    let answer = alice.put(&path, spam).await;
    answer.fails(403, "M_FORBIDDEN");
    assert_eq!(answer.json()["error"], "This is spam");
}

#[tokio::test]
async fn what_others_send_is_shown_if_the_policy_server_signs_it() {
    let [server] = TestServer::federated().await;
    let (alice, guest) = room_with_policy(&server).await;
    let (ends, _) = guest.ends();
    let spam = guest.message_after("spam", ends.clone());
    let fine = guest.message_after("fine", ends);
    guest.send("1", &[&spam, &fine]).await.ok();
    guest.is_seen(&alice, &fine).await;
    assert!(!guest.sees(&alice, &spam).await);
}

#[tokio::test]
async fn a_transaction_id_is_known_in_a_room_with_a_policy_server() {
    let [server] = TestServer::federated().await;
    let (alice, guest) = room_with_policy(&server).await;
    let path = room_path(&guest.room, "/send/m.room.message/t1");
    let hello = json!({ "msgtype": "m.text", "body": "hello" });
    let first = alice.put(&path, hello.clone()).await.ok();
    let second = alice.put(&path, hello).await.ok();
    assert_eq!(first, second);
}

#[tokio::test]
async fn memberships_that_we_make_are_signed_by_the_policy_server_or_refused() {
    let [server] = TestServer::federated().await;
    let (alice, guest) = room_with_policy(&server).await;
    let bob = server.user("bob").await;
    let is_now = async |wanted: &str| {
        let (membership, event_id) = membership(&alice, &guest, &bob.id).await;
        assert_eq!(membership, wanted);
        assert!(is_signed(&guest, &event_id).await, "the {wanted}");
    };
    alice.change_member(&guest.room, "invite", &bob).await.ok();
    is_now("invite").await;
    bob.join(&guest.room).await.ok();
    is_now("join").await;

    let kick = json!({ "user_id": bob.id, "reason": "spam" });
    let refused = alice.post(&room_path(&guest.room, "/kick"), kick).await;
    refused.fails(403, "M_FORBIDDEN");
    assert_eq!(refused.json()["error"], "This is spam");
    is_now("join").await;

    bob.leave(&guest.room).await.ok();
    is_now("leave").await;
    alice.change_member(&guest.room, "ban", &bob).await.ok();
    is_now("ban").await;
    alice.change_member(&guest.room, "unban", &bob).await.ok();
    is_now("leave").await;
}

#[tokio::test]
async fn who_joins_through_us_is_signed_by_the_policy_server_or_stays_outside() {
    let [server, there] = TestServer::federated().await;
    let (alice, guest) = room_with_policy(&server).await;
    let (bob, spammer) = (there.user("bob").await, there.user("spammer").await);

    let refused = spammer.join_via(&guest.room, &server).await;
    assert_eq!(refused.status, 403, "{}", refused.text);
    bob.join_via(&guest.room, &server).await.ok();

    let (joined, event_id) = membership(&alice, &guest, &bob.id).await;
    assert_eq!(joined, "join");
    assert!(is_signed(&guest, &event_id).await);
}

#[tokio::test]
async fn an_invite_to_another_server_is_signed_by_the_policy_server() {
    let [server, there] = TestServer::federated().await;
    let (alice, guest) = room_with_policy(&server).await;
    let (bob, spammer) = (there.user("bob").await, there.user("spammer").await);

    let refused = alice.change_member(&guest.room, "invite", &spammer).await;
    refused.fails(403, "M_FORBIDDEN");
    alice.change_member(&guest.room, "invite", &bob).await.ok();

    let (invited, event_id) = membership(&alice, &guest, &bob.id).await;
    assert_eq!(invited, "invite");
    assert!(is_signed(&guest, &event_id).await);
    assert!(spammer.sync().await.room("invite", &guest.room).is_null());
}

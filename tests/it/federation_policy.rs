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

#[tokio::test]
async fn what_we_send_is_signed_by_the_policy_server_or_refused() {
    let [server] = TestServer::federated().await;
    let (alice, guest) = room_with_policy(&server).await;
    let event_id = alice.say(&guest.room, "hello").await;
    let target = format!("/_matrix/federation/v1/event/{event_id}");
    let answer = guest.peer.get(&server, &target).await.ok();
    let signatures = &answer["pdus"][0]["signatures"];
    let of_policy_server = &signatures[guest.peer.name.as_str()]["ed25519:policy_server"];
    assert!(of_policy_server.is_string(), "{signatures}");

    let path = room_path(&guest.room, "/send/m.room.message/t1");
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

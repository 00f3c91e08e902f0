//! Keys and signatures between servers.
//!
//! Spec: s2s, "Retrieving server keys", "Request Authentication".

use reqwest::Method;
use ruma::{
    CanonicalJsonObject,
    canonical_json::CanonicalJsonValue,
    serde::Base64,
    signatures::{PublicKeyMap, PublicKeySet, verify_json},
};
use serde_json::{Value, json};

use crate::{
    harness::TestServer,
    peer::{Peer, object},
};

/// Checks the signature of a server under its own keys.
fn check_own_signature(document: &Value) -> CanonicalJsonObject {
    let server = document["server_name"].as_str().expect("a name");
    let keys: PublicKeySet = document["verify_keys"]
        .as_object()
        .expect("keys")
        .iter()
        .map(|(id, key)| {
            let key = Base64::parse(key["key"].as_str().expect("a key")).expect("base64");
            (id.clone(), key)
        })
        .collect();
    let mut object = object(document.clone());
    if let Some(CanonicalJsonValue::Object(signatures)) = object.get_mut("signatures") {
        signatures.retain(|signer, _| signer == server);
    }
    verify_json(&PublicKeyMap::from([(server.to_owned(), keys)]), &object).expect("it is signed");
    object
}

#[tokio::test]
async fn a_server_publishes_its_key_signed_with_itself() {
    let [server] = TestServer::federated().await;
    let document = server.get("/_matrix/key/v2/server").await.ok();
    assert_eq!(document["server_name"], server.name());
    check_own_signature(&document);
    let version = server.get("/_matrix/federation/v1/version").await.ok();
    assert_eq!(version["server"]["name"], "Hearth");
}

#[tokio::test]
async fn a_server_without_federation_on_a_listener_has_no_server_server_api_there() {
    let server = TestServer::start().await;
    server
        .get("/_matrix/key/v2/server")
        .await
        .fails(404, "M_UNRECOGNIZED");
}

#[tokio::test]
async fn a_server_tells_the_keys_of_another_and_signs_them() {
    let [one, two] = TestServer::federated().await;
    let path = format!("/_matrix/key/v2/query/{}", two.name());
    let single = one.get(&path).await.ok();
    let question = json!({ "server_keys": { two.name(): {}, one.name(): { "ed25519:x": {} }, "gone.test": {} } });
    let many = one.post("/_matrix/key/v2/query", question).await.ok();
    assert_eq!(many["server_keys"].as_array().expect("a list").len(), 2);

    let document = &single["server_keys"][0];
    assert_eq!(document["server_name"], two.name());
    check_own_signature(document);
    let signatures = document["signatures"].as_object().expect("signatures");
    assert!(signatures.contains_key(one.name()), "{document}");
    let nothing = one
        .post("/_matrix/key/v2/query", json!({ "server_keys": {} }))
        .await;
    assert_eq!(nothing.ok(), json!({ "server_keys": [] }));
    one.get("/_matrix/key/v2/query/gone.test").await.ok();
}

#[tokio::test]
async fn only_signed_requests_of_servers_get_an_answer() {
    let [server] = TestServer::federated().await;
    let peer = Peer::start().await;
    let target = "/_matrix/federation/v1/publicRooms?limit=3";
    peer.get(&server, target).await.ok();
    peer.get(&server, target).await.ok();
    let fetches = peer.seen();
    assert_eq!(
        fetches,
        ["GET /_matrix/key/v2/server"],
        "keys are remembered"
    );

    server.get(target).await.fails(401, "M_UNAUTHORIZED");
    let send = async |header: String, target: &str| {
        let url = format!("{}{target}", server.base);
        let request = server.http.request(Method::GET, url);
        server.send(request.header("authorization", header)).await
    };
    let good = peer.authorization(server.name(), "GET", target, None);
    send(good.clone(), target).await.ok();
    send(good.clone(), "/_matrix/federation/v1/publicRooms?limit=4")
        .await
        .fails(401, "M_UNAUTHORIZED");
    let elsewhere = peer.authorization("third.test", "GET", target, None);
    send(elsewhere, target).await.fails(401, "M_UNAUTHORIZED");
    send(good.replace("ed25519:", "ed25519:x"), target)
        .await
        .fails(401, "M_UNAUTHORIZED");
    send("X-Matrix origin=".to_owned(), target)
        .await
        .fails(401, "M_UNAUTHORIZED");
    // Servers before the parameter leave it out.
    let without = good.replace(&format!("destination=\"{}\",", server.name()), "");
    send(without, target).await.ok();
}

#[tokio::test]
async fn a_body_is_signed_too() {
    let [server] = TestServer::federated().await;
    let peer = Peer::start().await;
    let target = "/_matrix/federation/v1/publicRooms";
    let body = json!({ "limit": 1, "filter": { "generic_search_term": "é\n" } });
    peer.post(&server, target, body.clone()).await.ok();

    let header = peer.authorization(server.name(), "POST", target, Some(&body));
    let request = server
        .http
        .request(Method::POST, format!("{}{target}", server.base))
        .header("authorization", header)
        .json(&json!({ "limit": 2 }));
    server.send(request).await.fails(401, "M_UNAUTHORIZED");
}

#[tokio::test]
async fn a_server_that_is_not_talked_to_is_refused() {
    let peer = Peer::start().await;
    let deny = format!("federation.deny=[\"{}\"]", peer.name);
    let [server] = TestServer::federated_with(&[&deny]).await;
    let refused = peer
        .get(&server, "/_matrix/federation/v1/publicRooms")
        .await;
    refused.fails(403, "M_FORBIDDEN");
    assert!(peer.seen().is_empty(), "nothing is fetched for it");
}

#[tokio::test]
async fn a_server_whose_key_has_ended_is_asked_for_its_new_one() {
    let [server] = TestServer::federated().await;
    let peer = Peer::start().await;
    let keys = peer.keys(1_000);
    peer.answer("GET", "/_matrix/key/v2/server", move |_| {
        (200, keys.clone())
    });
    let target = "/_matrix/federation/v1/publicRooms";
    peer.get(&server, target).await.fails(401, "M_UNAUTHORIZED");
}

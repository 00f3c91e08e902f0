//! Invites by e-mail address, once an identity server says whose the address is.
//!
//! Spec: s2s, "Third-party invites".

use ruma::{
    serde::{Base64, base64::Standard},
    signatures::{Ed25519KeyPair, sign_json},
};
use serde_json::{Value, json};

use crate::{
    federation_members::is_in,
    harness::{Answer, TestServer, User},
    peer::{Peer, object},
    room_words::escaped,
    sync_words::{Synced, find},
};

const TOKEN: &str = "token-of-the-invite";
const ONBIND: &str = "/_matrix/federation/v1/3pid/onbind";

/// Who knows whose an address is.
struct IdentityServer(Ed25519KeyPair);

impl IdentityServer {
    fn new() -> Self {
        let document = Ed25519KeyPair::generate();
        Self(Ed25519KeyPair::from_der(&document, "0".to_owned()).expect("a key"))
    }

    fn public_key(&self) -> String {
        Base64::<Standard>::new(self.0.public_key().to_vec()).encode()
    }

    /// That a user has the address that was invited.
    fn signed(&self, user: &str) -> Value {
        let mut signed = object(json!({ "mxid": user, "token": TOKEN }));
        sign_json("id.test", &self.0, &mut signed).expect("it is signed");
        serde_json::to_value(signed).expect("JSON")
    }

    /// Tells a server that the address of `invite` is one of its user's.
    async fn bind(&self, server: &TestServer, invite: &Invite<'_>, user: &str) -> Answer {
        let body = json!({
            "address": "bob@example.org",
            "medium": "email",
            "mxid": user,
            "invites": [{
                "address": "bob@example.org",
                "medium": "email",
                "mxid": user,
                "room_id": invite.room,
                "sender": invite.sender.id,
                "signed": self.signed(user),
            }],
        });
        server
            .request(reqwest::Method::PUT, ONBIND, Some(body))
            .await
    }
}

/// An address that was invited into a room.
struct Invite<'a> {
    room: &'a str,
    sender: &'a User,
}

impl<'a> Invite<'a> {
    async fn new(sender: &'a User, room: &'a str, by: &IdentityServer) -> Self {
        let key = by.public_key();
        let content = json!({
            "display_name": "b...@e...",
            "key_validity_url": "https://id.test/valid",
            "public_key": key,
            "public_keys": [{ "public_key": key }],
        });
        let set = sender.set_state(room, "m.room.third_party_invite", TOKEN, content);
        set.await.ok();
        Self { room, sender }
    }
}

/// Whether the address is seen to be invited.
fn is_told(synced: &Synced, room: &str) -> bool {
    let section = synced.joined(room);
    let lists = [&section["state"], &section["timeline"]];
    lists
        .iter()
        .any(|list| find(list, "m.room.third_party_invite", TOKEN).is_some())
}

async fn private_room(alice: &User, version: &str) -> String {
    let options = json!({ "preset": "private_chat", "room_version": version });
    alice.create_room_with(options).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_inviting_server_makes_the_invite_for_one_that_is_not_in_the_room() {
    let [here, there] = TestServer::federated().await;
    let (alice, bob) = (here.user("alice").await, there.user("bob").await);
    for version in ["10", "12"] {
        let room = private_room(&alice, version).await;
        let identity = IdentityServer::new();
        let invite = Invite::new(&alice, &room, &identity).await;

        identity.bind(&there, &invite, &bob.id).await.ok();

        let found = alice.wait_for_membership(&room, &bob, "invite").await;
        assert_eq!(found["third_party_invite"]["display_name"], "b...@e...");
        bob.sync_until(is_in("invite", &room)).await;
        bob.join(&room).await.ok();
        alice.wait_for_membership(&room, &bob, "join").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_in_the_room_makes_the_invite_of_its_own_user() {
    let [here, there] = TestServer::federated().await;
    let (alice, bob) = (here.user("alice").await, there.user("bob").await);
    let carol = there.user("carol").await;
    for version in ["10", "12"] {
        let room = private_room(&alice, version).await;
        alice.change_member(&room, "invite", &carol).await.ok();
        carol.sync_until(is_in("invite", &room)).await;
        carol.join(&room).await.ok();
        let identity = IdentityServer::new();
        let invite = Invite::new(&alice, &room, &identity).await;
        carol.sync_until(|synced| is_told(synced, &room)).await;

        identity.bind(&there, &invite, &bob.id).await.ok();

        bob.sync_until(is_in("invite", &room)).await;
        alice.wait_for_membership(&room, &bob, "invite").await;
        bob.join(&room).await.ok();
        alice.wait_for_membership(&room, &bob, "join").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_another_signed_for_invites_nobody() {
    let [here, there] = TestServer::federated().await;
    let (alice, bob) = (here.user("alice").await, there.user("bob").await);
    let room = private_room(&alice, "12").await;
    let identity = IdentityServer::new();
    let invite = Invite::new(&alice, &room, &identity).await;

    IdentityServer::new().bind(&there, &invite, &bob.id).await;
    let of_another = format!("@nobody:{}", there.name());
    identity.bind(&there, &invite, &of_another).await;

    for user in [&bob.id, &of_another] {
        let found = alice.state(&room, "m.room.member", user).await;
        found.fails(404, "M_NOT_FOUND");
    }
    assert!(bob.sync().await.room("invite", &room).is_null());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_exchanges_invites_of_its_own_users_only() {
    let [here] = TestServer::federated().await;
    let alice = here.user("alice").await;
    let room = private_room(&alice, "12").await;
    let identity = IdentityServer::new();
    Invite::new(&alice, &room, &identity).await;
    let peer = Peer::start().await;
    let path = format!(
        "/_matrix/federation/v1/exchange_third_party_invite/{}",
        escaped(&room),
    );
    let exchange = async |user: &str, content: Value| {
        let body = json!({
            "type": "m.room.member",
            "room_id": room,
            "sender": alice.id,
            "state_key": user,
            "content": content,
        });
        peer.put(&here, &path, body).await
    };
    let content = |signed: Value| {
        json!({
            "membership": "invite",
            "third_party_invite": { "display_name": "b", "signed": signed },
        })
    };
    let elsewhere = "@bob:elsewhere.test";
    let refused = exchange(elsewhere, content(identity.signed(elsewhere))).await;
    refused.fails(403, "M_FORBIDDEN");
    let bob = peer.user("bob");
    let plain = exchange(&bob, json!({ "membership": "invite" })).await;
    plain.fails(400, "M_INVALID_PARAM");
    let stolen = exchange(&bob, content(identity.signed(elsewhere))).await;
    stolen.fails(403, "M_FORBIDDEN");
    let found = alice.state(&room, "m.room.member", &bob).await;
    found.fails(404, "M_NOT_FOUND");
}

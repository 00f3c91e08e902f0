//! Memberships across servers: joining, leaving, knocking, inviting, and who may let whom in.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    harness::{Answer, TestServer, User},
    peer::{Peer, pdu_json},
    room_words::{escaped, room_path},
    sync_words::{Synced, find},
};

/// A test that waits longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// What users of several servers say besides.
impl User {
    pub(crate) async fn join_via(&self, room: &str, server: &TestServer) -> Answer {
        let (room, via) = (escaped(room), escaped(server.name()));
        let path = format!("/_matrix/client/v3/join/{room}?via={via}");
        self.post(&path, json!({})).await
    }

    async fn knock_via(&self, room: &str, server: &TestServer) -> Answer {
        let (room, via) = (escaped(room), escaped(server.name()));
        let path = format!("/_matrix/client/v3/knock/{room}?via={via}");
        self.post(&path, json!({ "reason": "please" })).await
    }

    /// Syncs until something is as it should be.
    pub(crate) async fn sync_until(&self, is_there: impl Fn(&Synced) -> bool) -> Synced {
        let deadline = Instant::now() + PATIENCE;
        let mut synced = self.sync_with("full_state=false").await;
        while !is_there(&synced) {
            assert!(Instant::now() < deadline, "it never came: {}", synced.body);
            synced = self.wait_since(&synced).await;
        }
        synced
    }

    /// The membership of a user as this one sees it in the state of the room.
    pub(crate) async fn wait_for_membership(
        &self,
        room: &str,
        user: &User,
        membership: &str,
    ) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.state(room, "m.room.member", &user.id).await;
            if found.status == 200 && found.json()["membership"] == membership {
                return found.json();
            }
            assert!(Instant::now() < deadline, "it stays {}", found.text);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

pub(crate) fn is_in(section: &'static str, room: &str) -> impl Fn(&Synced) -> bool {
    let room = room.to_owned();
    move |synced| !synced.room(section, &room).is_null()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_joins_a_room_of_another_server_in_every_version() {
    let [here, there] = TestServer::federated().await;
    let (alice, bob) = (here.user("alice").await, there.user("bob").await);
    for version in ["6", "7", "8", "9", "10", "11", "12"] {
        let options = json!({ "preset": "public_chat", "room_version": version, "name": "Far" });
        let room = alice.create_room_with(options).await;

        bob.join_via(&room, &here).await.ok();

        let synced = bob.sync_until(is_in("join", &room)).await;
        let section = synced.joined(&room);
        let name = find(&section["state"], "m.room.name", "")
            .or_else(|| find(&json_events(section), "m.room.name", "").map(|_| &Value::Null));
        assert!(
            name.is_some() || section["timeline"]["events"].is_array(),
            "{section}"
        );
        alice.wait_for_membership(&room, &bob, "join").await;
        let found = bob.state(&room, "m.room.member", &alice.id).await.ok();
        assert_eq!(found["membership"], "join");
    }
}

fn json_events(section: &Value) -> Value {
    section["timeline"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invite_reaches_another_server_and_is_accepted_there() {
    let [here, there] = TestServer::federated().await;
    let (alice, bob) = (here.user("alice").await, there.user("bob").await);
    for version in ["10", "12"] {
        let options = json!({
            "preset": "private_chat",
            "room_version": version,
            "name": "Far",
            "invite": [bob.id],
            "is_direct": true,
        });
        let room = alice.create_room_with(options).await;
        alice.wait_for_membership(&room, &bob, "invite").await;

        let synced = bob.sync_until(is_in("invite", &room)).await;
        let shown = &synced.room("invite", &room)["invite_state"];
        let name = find(shown, "m.room.name", "").expect("the name is shown");
        assert_eq!(name["content"]["name"], "Far");
        let own = find(shown, "m.room.member", &bob.id).expect("the invite is shown");
        assert_eq!(own["sender"], alice.id.as_str());
        assert!(own.get("signatures").is_none());

        // The inviter's server is asked without being named.
        bob.join(&room).await.ok();
        bob.sync_until(is_in("join", &room)).await;
        alice.wait_for_membership(&room, &bob, "join").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invite_from_afar_is_notified_like_one_from_here() {
    let [here, there] = TestServer::federated().await;
    let (alice, bob) = (here.user("alice").await, there.user("bob").await);
    let carol = here.user("carol").await;
    let room = alice
        .create_room_with(json!({ "preset": "private_chat", "invite": [bob.id, carol.id] }))
        .await;
    bob.sync_until(is_in("invite", &room)).await;
    let list = async |user: &User| {
        let page = user.get("/_matrix/client/v3/notifications").await.ok();
        page["notifications"].as_array().expect("a list").clone()
    };
    let (near, far) = (list(&carol).await, list(&bob).await);
    assert_eq!((near.len(), far.len()), (1, 1), "{far:?}");
    assert_eq!(far[0]["room_id"], room.as_str());
    assert_eq!(far[0]["event"]["state_key"], bob.id.as_str());
    for field in ["actions", "read"] {
        assert_eq!(far[0][field], near[0][field]);
    }

    let path = "/_matrix/client/v3/pushrules/global/override/.m.rule.invite_for_me/enabled";
    bob.put(path, json!({ "enabled": false })).await.ok();
    assert!(list(&bob).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_invited_or_knocks_is_shown_the_create_event() {
    let [here, there] = TestServer::federated().await;
    let (alice, bob) = (here.user("alice").await, there.user("bob").await);
    let carol = here.user("carol").await;
    for version in ["10", "12"] {
        let options = json!({
            "preset": "private_chat",
            "room_version": version,
            "invite": [bob.id, carol.id],
        });
        let room = alice.create_room_with(options).await;
        for user in [&bob, &carol] {
            let synced = user.sync_until(is_in("invite", &room)).await;
            let shown = &synced.room("invite", &room)["invite_state"];
            let create = find(shown, "m.room.create", "").expect("it is shown");
            assert_eq!(create["content"]["room_version"], version);
        }

        let knock = json!([{ "type": "m.room.join_rules", "content": { "join_rule": "knock" } }]);
        let options = json!({ "room_version": version, "initial_state": knock });
        let room = alice.create_room_with(options).await;
        for user in [&bob, &carol] {
            user.knock_via(&room, &here).await.ok();
            let synced = user.sync_until(is_in("knock", &room)).await;
            let shown = &synced.room("knock", &room)["knock_state"];
            let create = find(shown, "m.room.create", "").expect("it is shown");
            assert_eq!(create["content"]["room_version"], version);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invite_is_rejected_and_its_room_hears_of_it() {
    let [here, there] = TestServer::federated().await;
    let (alice, bob) = (here.user("alice").await, there.user("bob").await);
    let room = alice
        .create_room_with(json!({ "preset": "private_chat" }))
        .await;
    for _ in 0..2 {
        alice.change_member(&room, "invite", &bob).await.ok();
        let invited = bob.sync_until(is_in("invite", &room)).await;

        bob.leave(&room).await.ok();

        let left = bob.sync_since(&invited).await;
        let events = &left.room("leave", &room)["timeline"]["events"];
        assert_eq!(events[0]["content"]["membership"], "leave", "{}", left.body);
        alice.wait_for_membership(&room, &bob, "leave").await;
    }
    let forget = bob.post(&room_path(&room, "/forget"), json!({})).await;
    forget.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invite_is_rejected_though_its_server_is_gone() {
    let [here, there] = TestServer::federated().await;
    let (alice, bob) = (here.user("alice").await, there.user("bob").await);
    let room = alice
        .create_room_with(json!({ "preset": "private_chat", "invite": [bob.id] }))
        .await;
    let invited = bob.sync_until(is_in("invite", &room)).await;
    here.running.stop().await;

    bob.leave(&room).await.ok();

    let left = bob.sync_since(&invited).await;
    let events = &left.room("leave", &room)["timeline"]["events"];
    assert_eq!(events[0]["content"]["membership"], "leave", "{}", left.body);
    assert!(bob.sync().await.room("invite", &room).is_null());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_invited_does_not_get_in_from_afar() {
    let [here, there] = TestServer::federated().await;
    let (alice, bob) = (here.user("alice").await, there.user("bob").await);
    let room = alice
        .create_room_with(json!({ "preset": "private_chat" }))
        .await;

    bob.join_via(&room, &here).await.fails(403, "M_FORBIDDEN");

    assert!(bob.sync().await.joined(&room).is_null());
    let unknown = bob.join_via("!nowhere:example.org", &here).await;
    unknown.fails(404, "M_NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_knock_from_afar_is_answered_with_an_invite() {
    let [here, there] = TestServer::federated().await;
    let (alice, bob) = (here.user("alice").await, there.user("bob").await);
    let room = alice
        .create_room_with(json!({ "preset": "private_chat", "name": "Door" }))
        .await;
    bob.knock_via(&room, &here).await.fails(403, "M_FORBIDDEN");
    let knock = json!({ "join_rule": "knock" });
    alice
        .set_state(&room, "m.room.join_rules", "", knock)
        .await
        .ok();

    bob.knock_via(&room, &here).await.ok();

    let knocking = bob.sync_until(is_in("knock", &room)).await;
    let shown = &knocking.room("knock", &room)["knock_state"];
    let name = find(shown, "m.room.name", "").expect("the name is shown");
    assert_eq!(name["content"]["name"], "Door");
    let found = alice.wait_for_membership(&room, &bob, "knock").await;
    assert_eq!(found["reason"], "please");
    // Again: nothing forbids it.
    bob.knock_via(&room, &here).await.ok();
    alice.change_member(&room, "invite", &bob).await.ok();
    bob.sync_until(is_in("invite", &room)).await;
    bob.knock_via(&room, &here).await.fails(403, "M_FORBIDDEN");
    bob.join(&room).await.ok();
    alice.wait_for_membership(&room, &bob, "join").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restricted_room_is_entered_through_a_server_that_may_let_in() {
    let [here, there] = TestServer::federated().await;
    let (alice, bob) = (here.user("alice").await, there.user("bob").await);
    let club = alice.create_room().await;
    let room = alice
        .create_room_with(json!({
            "preset": "private_chat",
            "room_version": "10",
            "initial_state": [{
                "type": "m.room.join_rules",
                "content": {
                    "join_rule": "restricted",
                    "allow": [{ "type": "m.room_membership", "room_id": club }],
                },
            }],
        }))
        .await;
    bob.join_via(&room, &here).await.fails(403, "M_FORBIDDEN");

    bob.join_via(&club, &here).await.ok();
    bob.join_via(&room, &here).await.ok();

    let found = alice.wait_for_membership(&room, &bob, "join").await;
    assert_eq!(found["join_authorised_via_users_server"], alice.id.as_str());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_of_a_server_joins_without_another() {
    let [here, there] = TestServer::federated().await;
    let alice = here.user("alice").await;
    let (bob, carol) = (there.user("bob").await, there.user("carol").await);
    let room = alice.create_room().await;

    let (first, second) = tokio::join!(bob.join_via(&room, &here), carol.join_via(&room, &here));

    first.ok();
    second.ok();
    bob.wait_for_membership(&room, &carol, "join").await;
    carol.wait_for_membership(&room, &bob, "join").await;
}

/// A membership event of a room of the peer.
fn template(peer: &Peer, sender: &str, target: &str, membership: &str) -> Value {
    json!({
        "type": "m.room.member",
        "room_id": room_of(peer),
        "sender": sender,
        "state_key": target,
        "content": { "membership": membership },
        "origin_server_ts": 1_700_000_000_000_u64,
        "depth": 7,
        "prev_events": ["$prevprevprevprevprevprevprevprevprevprevpre"],
        "auth_events": [],
    })
}

fn room_of(peer: &Peer) -> String {
    format!("!far:{}", peer.name)
}

async fn invite(peer: &Peer, server: &TestServer, event: &Value) -> Answer {
    let event = peer.complete(event, "11");
    let target = format!(
        "/_matrix/federation/v2/invite/{}/{}",
        escaped(&room_of(peer)),
        escaped(event.event_id.as_str()),
    );
    let name = json!({
        "type": "m.room.name",
        "state_key": "",
        "sender": peer.user("zoe"),
        "content": { "name": "Far" },
    });
    let body = json!({
        "room_version": "11",
        "event": pdu_json(&event),
        "invite_room_state": [name],
    });
    peer.put(server, &target, body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invite_is_signed_and_only_its_sender_takes_it_back() {
    let [server] = TestServer::federated().await;
    let alice = server.user("alice").await;
    let peer = Peer::start().await;
    let zoe = peer.user("zoe");

    let event = template(&peer, &zoe, &alice.id, "invite");
    let signed = invite(&peer, &server, &event).await.ok();

    assert!(
        signed["event"]["signatures"][server.name()].is_object(),
        "{signed}"
    );
    let invited = alice.sync_until(is_in("invite", &room_of(&peer))).await;
    let federation = &server.running.server.federation;
    let taken_back = async |sender: &str| {
        let leave = peer.complete(&template(&peer, sender, &alice.id, "leave"), "11");
        let text = serde_json::value::to_raw_value(&pdu_json(&leave)).expect("JSON");
        federation.receive_outside(&peer.name, &text).await
    };
    assert!(taken_back(&peer.user("eve")).await.is_err());
    assert!(
        alice
            .sync_since(&invited)
            .await
            .room("leave", &room_of(&peer))
            .is_null()
    );
    taken_back(&zoe).await.expect("it is taken");
    let left = alice.sync_since(&invited).await;
    let events = &left.room("leave", &room_of(&peer))["timeline"]["events"];
    assert_eq!(events[0]["sender"], zoe.as_str(), "{}", left.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_sound_invite_is_not_signed() {
    let [server] = TestServer::federated().await;
    let alice = server.user("alice").await;
    let peer = Peer::start().await;
    let zoe = peer.user("zoe");
    let nobody = format!("@nobody:{}", server.name());

    let join = template(&peer, &zoe, &alice.id, "join");
    invite(&peer, &server, &join)
        .await
        .fails(400, "M_INVALID_PARAM");
    let of_another = template(&peer, "@zoe:example.org", &alice.id, "invite");
    invite(&peer, &server, &of_another)
        .await
        .fails(400, "M_INVALID_PARAM");
    let to_nobody = template(&peer, &zoe, &nobody, "invite");
    invite(&peer, &server, &to_nobody)
        .await
        .fails(403, "M_FORBIDDEN");
    let elsewhere = template(&peer, &zoe, "@alice:example.org", "invite");
    invite(&peer, &server, &elsewhere)
        .await
        .fails(400, "M_INVALID_PARAM");

    assert!(alice.sync().await.room("invite", &room_of(&peer)).is_null());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_answers_nonsense_gets_nobody_into_a_room() {
    let [server] = TestServer::federated().await;
    let alice = server.user("alice").await;
    let peer = Peer::start().await;
    let (room, id) = (room_of(&peer), alice.id.clone());
    let via = escaped(peer.name.as_str());
    let path = format!("/_matrix/client/v3/join/{}?via={via}", escaped(&room));
    let templates = [
        template(&peer, &peer.user("eve"), &id, "join"),
        template(&peer, &id, &id, "ban"),
        json!({ "type": "m.room.member" }),
    ];
    for event in templates {
        let answer = json!({ "room_version": "11", "event": event });
        peer.answer("GET", "/_matrix/federation/v1/make_join/*", move |_| {
            (200, answer.clone())
        });
        alice.post(&path, json!({})).await.fails(502, "M_UNKNOWN");
    }
    let is_join = |target: &String| target.contains("send_join");
    assert!(!peer.seen().iter().any(is_join), "nothing was signed");

    let answer = json!({ "room_version": "11", "event": template(&peer, &id, &id, "join") });
    peer.answer("GET", "/_matrix/federation/v1/make_join/*", move |_| {
        (200, answer.clone())
    });
    let forged = json!({
        "type": "m.room.create",
        "room_id": room,
        "sender": peer.user("zoe"),
        "state_key": "",
        "content": { "room_version": "11" },
        "origin_server_ts": 1,
        "depth": 1,
        "prev_events": [],
        "auth_events": [],
        "hashes": { "sha256": "" },
        "signatures": {},
    });
    for body in [
        json!([]),
        json!({ "state": [], "auth_chain": [] }),
        json!({ "state": [forged], "auth_chain": [forged] }),
    ] {
        peer.answer("PUT", "/_matrix/federation/v2/send_join/*", move |_| {
            (200, body.clone())
        });
        alice.post(&path, json!({})).await.fails(502, "M_UNKNOWN");
    }
    assert!(peer.seen().iter().any(is_join));
    assert!(alice.sync().await.joined(&room_of(&peer)).is_null());
    peer.answer("GET", "/_matrix/federation/v1/make_join/*", |_| {
        let body = json!({
            "errcode": "M_INCOMPATIBLE_ROOM_VERSION",
            "error": "no",
            "room_version": "42",
        });
        (400, body)
    });
    let refused = alice.post(&path, json!({})).await;
    refused.fails(400, "M_INCOMPATIBLE_ROOM_VERSION");
}

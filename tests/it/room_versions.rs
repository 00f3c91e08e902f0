//! Rooms of every version that is served: what clients do in them, and servers with each other.

use std::time::Duration;

use hearth::{rooms::RoomNumber, storage::Snapshot};
use ruma::RoomId;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    harness::{Answer, TestServer, User},
    peer::Peer,
    room_words::{escaped, room_path},
};

const VERSIONS: [&str; 12] = [
    "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12",
];

/// A test that waits longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(20);

impl User {
    async fn room_of(&self, version: &str) -> String {
        let options = json!({ "preset": "public_chat", "room_version": version, "name": "Old" });
        self.create_room_with(options).await
    }

    async fn event_of(&self, room: &str, event: &str) -> Value {
        let path = room_path(room, &format!("/event/{}", escaped(event)));
        self.get(&path).await.ok()
    }

    async fn relate_to(&self, room: &str, event: &str, event_type: &str, more: Value) -> String {
        let mut content = more;
        content["m.relates_to"]["event_id"] = event.into();
        let transaction = format!("{event_type}-{}", escaped(event));
        let transaction = escaped(&transaction);
        let sent = self
            .send_event(room, event_type, &transaction, content)
            .await;
        id_in(&sent)
    }

    async fn take_back(&self, room: &str, event: &str) -> Answer {
        let path = format!("/redact/{}/{}", escaped(event), escaped(&escaped(event)));
        self.put(&room_path(room, &path), json!({})).await
    }

    async fn join_from(&self, room: &str, server: &TestServer) {
        let (room, via) = (escaped(room), escaped(server.name()));
        let path = format!("/_matrix/client/v3/join/{room}?via={via}");
        self.post(&path, json!({})).await.ok();
    }

    /// Waits for the content of an event.
    async fn wait_for_content(&self, room: &str, event: &str, is_right: impl Fn(&Value) -> bool) {
        let path = room_path(room, &format!("/event/{}", escaped(event)));
        self.wait_for(&path, |body| is_right(&body["content"]))
            .await;
    }

    async fn wait_for(&self, path: &str, is_right: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.get(path).await;
            let body = answer.json();
            if answer.status == 200 && is_right(&body) {
                return body;
            }
            assert!(Instant::now() < deadline, "{path} stays {}", answer.text);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The IDs of the events of the current state, sorted.
    async fn state_ids(&self, room: &str) -> Vec<String> {
        let state = self.get(&room_path(room, "/state")).await.ok();
        let events = state.as_array().expect("a list").iter();
        let mut ids: Vec<_> = events
            .map(|event| event["event_id"].as_str().expect("an ID").to_owned())
            .collect();
        ids.sort_unstable();
        ids
    }
}

fn id_in(answer: &Answer) -> String {
    let id = answer.ok()["event_id"].as_str().map(str::to_owned);
    id.expect("an event ID")
}

/// Asserts that all rows of a room agree with each other.
async fn check_rows(server: &TestServer, room: &str) {
    let rooms = server.running.server.rooms.clone();
    let room_id = <&RoomId>::try_from(room).expect("a room ID");
    let number: RoomNumber = rooms.resident(room_id).expect("the room is here");
    let verify = move |snapshot: &Snapshot| rooms.verify(snapshot, number);
    let found = server.running.server.store.read(verify).await;
    let found = found.expect("the room can be read");
    assert!(found.is_empty(), "{found:?}");
}

/// What IDs look like in rooms of a version.
fn check_id(version: &str, id: &str, server: &str) {
    let body = id.strip_prefix('$').expect("an event ID");
    match version {
        "1" | "2" => assert!(body.ends_with(&format!(":{server}")), "{id}"),
        "3" => assert!(body.len() == 43 && !body.contains(['-', '_']), "{id}"),
        _ => assert!(body.len() == 43 && !body.contains(['+', '/']), "{id}"),
    }
}

#[tokio::test]
async fn clients_do_in_rooms_of_every_version_what_clients_do() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    for version in VERSIONS {
        let room = alice.room_of(version).await;
        bob.join(&room).await.ok();
        let said = alice.say(&room, "first").await;
        check_id(version, &said, server.name());
        let event = bob.event_of(&room, &said).await;
        assert_eq!(event["content"]["body"], "first");
        assert_eq!(event["event_id"], said.as_str());
        assert!(event.get("hashes").is_none() && event.get("prev_events").is_none());

        let edit = json!({
            "msgtype": "m.text", "body": "* second",
            "m.new_content": { "msgtype": "m.text", "body": "second" },
            "m.relates_to": { "rel_type": "m.replace" },
        });
        alice.relate_to(&room, &said, "m.room.message", edit).await;
        let reaction = json!({ "m.relates_to": { "rel_type": "m.annotation", "key": "+" } });
        let reaction = bob.relate_to(&room, &said, "m.reaction", reaction).await;
        let path = format!(
            "/_matrix/client/v1/rooms/{}/relations/{}",
            escaped(&room),
            escaped(&said)
        );
        let related = alice.get(&path).await.ok();
        assert_eq!(related["chunk"].as_array().map(Vec::len), Some(2));

        let own = bob.say(&room, "mine").await;
        id_in(&bob.take_back(&room, &own).await);
        bob.take_back(&room, &said).await.fails(403, "M_FORBIDDEN");
        id_in(&alice.take_back(&room, &reaction).await);
        for event in [&own, &reaction] {
            let redacted = alice.event_of(&room, event).await;
            assert_eq!(redacted["content"], json!({}));
            let because = &redacted["unsigned"]["redacted_because"];
            let target = because["content"]["redacts"].as_str();
            assert_eq!(target, Some(event.as_str()), "{redacted}");
        }

        let context = room_path(&room, &format!("/context/{}?limit=4", escaped(&own)));
        let context = bob.get(&context).await.ok();
        assert_eq!(context["event"]["event_id"], own.as_str());
        let messages = bob
            .get(&room_path(&room, "/messages?dir=b&limit=100"))
            .await;
        let ids: Vec<_> = messages.ok()["chunk"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|event| event["event_id"].as_str().unwrap_or_default().to_owned())
            .collect();
        assert!(ids.contains(&said) && ids.contains(&own), "{ids:?}");
        let filter = json!({ "event_format": "federation" });
        let synced = bob.sync_filtered(&filter, "").await;
        let section = synced.joined(&room);
        for event in section["timeline"]["events"].as_array().expect("a list") {
            check_id(
                version,
                event["event_id"].as_str().expect("an ID"),
                server.name(),
            );
        }
        let powers = alice.state(&room, "m.room.power_levels", "").await.ok();
        alice
            .set_state(&room, "m.room.power_levels", "", powers)
            .await
            .ok();
        check_rows(&server, &room).await;
    }
}

#[tokio::test]
async fn an_event_whose_id_has_a_slash_is_found_by_it() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let room = alice.room_of("3").await;
    let mut slashed = alice.say(&room, "again").await;
    while !slashed.contains('/') || !slashed.contains('+') {
        slashed = alice.say(&room, "again").await;
    }
    assert_eq!(
        alice.event_of(&room, &slashed).await["event_id"],
        slashed.as_str()
    );
    let receipt = format!("/receipt/m.read/{}", escaped(&slashed));
    alice
        .post(&room_path(&room, &receipt), json!({}))
        .await
        .ok();
    let transaction = alice
        .send_event(&room, "m.room.message", "once", json!({ "body": "x" }))
        .await;
    let again = alice
        .send_event(&room, "m.room.message", "once", json!({ "body": "y" }))
        .await;
    assert_eq!(id_in(&transaction), id_in(&again));
    // The other alphabet makes another ID.
    let other = slashed.replace('/', "_").replace('+', "-");
    let path = room_path(&room, &format!("/event/{}", escaped(&other)));
    alice.get(&path).await.fails(404, "M_NOT_FOUND");
    alice.take_back(&room, &slashed).await.ok();
    check_rows(&server, &room).await;
}

#[tokio::test]
async fn rooms_of_every_version_are_replaced_by_those_of_others() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let upgrade = async |room: &str, version: &str| {
        let body = json!({ "new_version": version });
        let answer = alice.post(&room_path(room, "/upgrade"), body).await;
        let new = answer.ok()["replacement_room"].as_str().map(str::to_owned);
        new.expect("a room ID")
    };
    for version in VERSIONS {
        let room = alice.room_of(version).await;
        let newest = upgrade(&room, "12").await;
        let create = alice.state(&newest, "m.room.create", "").await.ok();
        assert_eq!(create["predecessor"]["room_id"], room.as_str());
        assert_eq!(create["room_version"], "12");
        let oldest = upgrade(&newest, "1").await;
        let create = alice.state(&oldest, "m.room.create", "").await.ok();
        assert_eq!(create["room_version"], "1");
        alice.say(&oldest, "here").await;
        for room in [&room, &newest, &oldest] {
            check_rows(&server, room).await;
        }
    }
}

#[tokio::test]
async fn power_levels_that_are_texts_become_numbers_when_a_room_is_upgraded() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let options = json!({
        "room_version": "5",
        "power_level_content_override": {
            "users": { &alice.id: " +100 " },
            "events": { "m.room.name": "60" },
            "notifications": { "room": "20" },
            "redact": "070",
        },
    });
    let room = alice.create_room_with(options).await;
    let body = json!({ "new_version": "11" });
    let answer = alice.post(&room_path(&room, "/upgrade"), body).await.ok();
    let new = answer["replacement_room"].as_str().expect("a room ID");
    let levels = alice.state(new, "m.room.power_levels", "").await.ok();
    assert_eq!(levels["users"][&alice.id], 100);
    assert_eq!(levels["events"]["m.room.name"], 60);
    assert_eq!(levels["notifications"]["room"], 20);
    assert_eq!(levels["redact"], 70);
}

#[tokio::test]
async fn aliases_are_announced_by_the_server_that_they_are_of_before_version_6() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let aliases = json!({ "aliases": ["#kitchen:hearth.test"] });
    for (version, anybody_may) in [("1", true), ("5", true), ("6", false)] {
        let room = alice.room_of(version).await;
        bob.join(&room).await.ok();
        let announced = bob
            .set_state(&room, "m.room.aliases", server.name(), aliases.clone())
            .await;
        assert_eq!(announced.status == 200, anybody_may, "{}", announced.text);
        if anybody_may {
            // The key is the server's name, also for those with power.
            let other = alice.set_state(&room, "m.room.aliases", "far.test", aliases.clone());
            other.await.fails(403, "M_FORBIDDEN");
            let announced = id_in(&announced);
            alice.take_back(&room, &announced).await.ok();
            let redacted = alice.event_of(&room, &announced).await;
            assert_eq!(redacted["content"], aliases);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_share_rooms_of_every_version() {
    let [here, there] = TestServer::federated().await;
    let (alice, bob) = (here.user("alice").await, there.user("bob").await);
    for version in VERSIONS {
        let room = alice.room_of(version).await;
        let before = alice.say(&room, "before").await;
        bob.join_from(&room, &here).await;
        let from_here = alice.say(&room, "from here").await;
        let from_there = bob.say(&room, "from there").await;
        check_id(version, &from_there, there.name());
        bob.wait_for_content(&room, &from_here, |content| content["body"] == "from here")
            .await;
        alice
            .wait_for_content(&room, &from_there, |content| {
                content["body"] == "from there"
            })
            .await;
        // What was before comes from the other server when it is asked for.
        let messages = room_path(&room, "/messages?dir=b&limit=50");
        let has = |id: String| {
            move |body: &Value| {
                let events = body["chunk"].as_array().into_iter().flatten();
                events
                    .into_iter()
                    .any(|event| event["event_id"] == id.as_str())
            }
        };
        bob.wait_for(&messages, has(before)).await;

        id_in(&alice.take_back(&room, &from_there).await);
        bob.wait_for_content(&room, &from_there, |content| *content == json!({}))
            .await;
        let second = bob.say(&room, "second").await;
        id_in(&bob.take_back(&room, &second).await);
        alice
            .wait_for_content(&room, &second, |content| *content == json!({}))
            .await;
        // Both at once: whatever comes first where, the state is the same in the end.
        let powers = alice.state(&room, "m.room.power_levels", "").await.ok();
        let mut powers = powers;
        powers["users"][&bob.id] = 100.into();
        powers["state_default"] = 0.into();
        let powers = alice.set_state(&room, "m.room.power_levels", "", powers);
        let powers = id_in(&powers.await);
        bob.wait_for_content(&room, &powers, |content| content["state_default"] == 0)
            .await;
        for round in 0..4 {
            let topic = |of: &str| json!({ "topic": format!("{of} {round}") });
            let (here, there) = tokio::join!(
                alice.set_state(&room, "m.room.topic", "", topic("here")),
                bob.set_state(&room, "m.room.topic", "", topic("there")),
            );
            let (here, there) = (id_in(&here), id_in(&there));
            bob.wait_for_content(&room, &here, |_| true).await;
            alice.wait_for_content(&room, &there, |_| true).await;
        }
        let tie = alice.say(&room, "tie").await;
        bob.wait_for_content(&room, &tie, |_| true).await;
        assert_eq!(
            alice.state_ids(&room).await,
            bob.state_ids(&room).await,
            "version {version}"
        );
        bob.leave(&room).await.ok();
        let member = format!("/state/m.room.member/{}", escaped(&bob.id));
        alice
            .wait_for(&room_path(&room, &member), |body| {
                body["membership"] == "leave"
            })
            .await;
        check_rows(&here, &room).await;
        check_rows(&there, &room).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn users_of_other_servers_are_invited_into_rooms_of_every_version() {
    let [here, there] = TestServer::federated().await;
    let (alice, bob) = (here.user("alice").await, there.user("bob").await);
    for version in VERSIONS {
        let options = json!({ "preset": "private_chat", "room_version": version });
        let room = alice.create_room_with(options).await;
        for is_accepted in [false, true] {
            alice.change_member(&room, "invite", &bob).await.ok();
            let invited = |body: &Value| !body["rooms"]["invite"][room.as_str()].is_null();
            bob.wait_for("/_matrix/client/v3/sync", invited).await;
            let (membership, answer) = match is_accepted {
                true => ("join", bob.join(&room).await),
                false => ("leave", bob.leave(&room).await),
            };
            answer.ok();
            let member = format!("/state/m.room.member/{}", escaped(&bob.id));
            alice
                .wait_for(&room_path(&room, &member), |body| {
                    body["membership"] == membership
                })
                .await;
        }
        check_rows(&here, &room).await;
    }
}

/// A server that knows only the first version of invites.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_old_is_invited_as_it_understands() {
    let [here] = TestServer::federated().await;
    let alice = here.user("alice").await;
    let peer = Peer::start().await;
    let guest = peer.user("guest");
    let (signer, rules) = (
        peer.signer.clone(),
        ruma::room_version_rules::RoomVersionRules::V1,
    );
    peer.answer("PUT", "/_matrix/federation/v1/invite/*", move |request| {
        let event: Value = serde_json::from_slice(request.body()).expect("JSON");
        let shown = event["unsigned"]["invite_room_state"].as_array();
        assert!(shown.is_some_and(|shown| !shown.is_empty()), "{event}");
        let mut parsed =
            hearth::events::format::parse(request.body(), &rules).expect("it is an event");
        signer
            .countersign(&mut parsed, &rules)
            .expect("it is signed");
        let signed: Value = serde_json::from_slice(&parsed.to_vec()).expect("JSON");
        (200, json!([200, { "event": signed }]))
    });
    for version in ["1", "2"] {
        let room = alice.room_of(version).await;
        let body = json!({ "user_id": guest });
        alice.post(&room_path(&room, "/invite"), body).await.ok();
        let member = alice.state(&room, "m.room.member", &guest).await.ok();
        assert_eq!(member["membership"], "invite");
    }
    let room = alice.room_of("3").await;
    let body = json!({ "user_id": guest });
    let refused = alice.post(&room_path(&room, "/invite"), body).await;
    assert_ne!(refused.status, 200);
}

/// The other way round: this server is invited in the first version.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_old_invites_as_it_can() {
    let [here] = TestServer::federated().await;
    let alice = here.user("alice").await;
    let peer = Peer::start().await;
    let (room, sender) = (format!("!old:{}", peer.name), peer.user("guest"));
    let id = |name: &str| format!("${name}:{}", peer.name);
    let cited = json!([id("earlier"), { "sha256": "unread" }]);
    let invite = json!({
        "auth_events": [cited], "content": { "membership": "invite" }, "depth": 7, "event_id": id("invite"),
        "hashes": {}, "origin_server_ts": 1, "prev_events": [cited], "room_id": room, "sender": sender,
        "signatures": {}, "state_key": alice.id, "type": "m.room.member",
    });
    let mut invite = loose_event(&peer, &invite.to_string());
    let name = json!({
        "type": "m.room.name", "state_key": "", "sender": sender, "content": { "name": "Old" },
    });
    invite["unsigned"] = json!({ "invite_room_state": [name] });
    let target = format!(
        "/_matrix/federation/v1/invite/{}/{}",
        escaped(&room),
        escaped(&id("invite"))
    );
    let answer = put_loosely(&peer, &here, &target, &invite).await.ok();
    assert_eq!(answer[0], 200, "{answer}");
    let signatures = &answer[1]["event"]["signatures"];
    assert!(signatures[here.name()].is_object(), "{answer}");
    assert!(signatures[peer.name.as_str()].is_object(), "{answer}");

    let invited = |body: &Value| !body["rooms"]["invite"][room.as_str()].is_null();
    let synced = alice.wait_for("/_matrix/client/v3/sync", invited).await;
    let shown = &synced["rooms"]["invite"][room.as_str()]["invite_state"]["events"];
    assert_eq!(shown[0]["content"]["name"], "Old", "{shown}");
    assert_eq!(shown[1]["content"]["membership"], "invite", "{shown}");
    // The peer answers nothing more, so the user is out without it.
    alice.leave(&room).await.ok();

    // An event of a later version is none here.
    let target = target.replace(&escaped(&id("invite")), "%24hash");
    let refused = put_loosely(&peer, &here, &target, &invite).await;
    refused.fails(400, "M_INVALID_PARAM");
}

/// An event of a peer as a server makes it that does not care for canonical JSON.
fn loose_event(peer: &Peer, json: &str) -> Value {
    use hearth::events::canonical::Loose;
    let rules = ruma::room_version_rules::RoomVersionRules::V1;
    let mut parsed =
        hearth::events::format::parse(json.as_bytes(), &rules).expect("the event is sound");
    let mut hashed = Loose::parse(json.as_bytes()).expect("JSON");
    for field in ["hashes", "signatures"] {
        hashed.object.remove(field);
    }
    let hash = {
        use base64::Engine as _;
        use sha2::Digest as _;
        let digest = sha2::Sha256::digest(hashed.to_vec());
        base64::engine::general_purpose::STANDARD_NO_PAD.encode(digest)
    };
    let hashes = [("sha256".to_owned(), hash.into())];
    parsed.object.insert(
        "hashes".to_owned(),
        ruma::canonical_json::CanonicalJsonValue::Object(hashes.into()),
    );
    peer.signer
        .countersign(&mut parsed, &rules)
        .expect("it is signed");
    serde_json::from_slice(&parsed.to_vec()).expect("JSON")
}

/// A signed request of a peer with whatever numbers.
async fn put_loosely(peer: &Peer, to: &TestServer, target: &str, body: &Value) -> Answer {
    let request = json!({
        "content": body, "destination": to.name(), "method": "PUT", "origin": peer.name, "uri": target,
    });
    // The keys of these values are sorted.
    let signature = peer.signer.sign_canonical(request.to_string().as_bytes());
    let header = format!(
        "X-Matrix origin=\"{}\",destination=\"{}\",key=\"{}\",sig=\"{signature}\"",
        peer.name,
        to.name(),
        peer.signer.key_id()
    );
    let request = to.http.put(format!("{}{target}", to.base));
    let request = request.header("authorization", header);
    to.send(request.json(body)).await
}

/// A user of a server of another make in a room of version 1.
struct OldGuest<'a> {
    server: &'a TestServer,
    peer: Peer,
    room: String,
    user: String,
    join: Value,
    /// What `send_join` answered.
    joined: Value,
}

/// An event as others cite it. Nobody looks at the hash.
fn reference(event: &Value) -> Value {
    json!([event["event_id"], { "sha256": "unread" }])
}

impl<'a> OldGuest<'a> {
    /// Joins with a float in the content.
    async fn join(server: &'a TestServer, room: &str) -> Self {
        let peer = Peer::start().await;
        let user = peer.user("guest");
        let target = format!(
            "/_matrix/federation/v1/make_join/{}/{}?ver=1",
            escaped(room),
            escaped(&user)
        );
        let template = peer.get(server, &target).await.ok();
        assert_eq!(template["room_version"], "1");
        let mut join = template["event"].clone();
        assert!(join.get("event_id").is_none(), "{join}");
        assert!(join["prev_events"][0][1]["sha256"].is_string(), "{join}");
        join["content"]["weight"] = json!(0.5);
        let mut guest = Self {
            server,
            peer,
            room: room.to_owned(),
            user,
            join: Value::Null,
            joined: Value::Null,
        };
        guest.join = guest.signed(&guest.id("join"), join);
        let target = format!(
            "/_matrix/federation/v2/send_join/{}/{}",
            escaped(room),
            escaped(&guest.id("join"))
        );
        let answer = put_loosely(&guest.peer, server, &target, &guest.join).await;
        guest.joined = answer.ok();
        guest
    }

    /// Joins another room with a join of this ID.
    async fn join_as(guest: &Self, room: &str, id: &str) -> Answer {
        let target = format!(
            "/_matrix/federation/v1/make_join/{}/{}?ver=1&ver=2",
            escaped(room),
            escaped(&guest.user)
        );
        let template = guest.peer.get(guest.server, &target).await.ok();
        let join = guest.signed(id, template["event"].clone());
        let target = format!(
            "/_matrix/federation/v2/send_join/{}/{}",
            escaped(room),
            escaped(id)
        );
        put_loosely(&guest.peer, guest.server, &target, &join).await
    }

    /// An ID that the guest's server may give.
    fn id(&self, name: &str) -> String {
        format!("${name}:{}", self.peer.name)
    }

    fn signed(&self, id: &str, mut event: Value) -> Value {
        event["event_id"] = id.into();
        event["hashes"] = json!({});
        event["signatures"] = json!({});
        loose_event(&self.peer, &event.to_string())
    }

    /// An event of the guest after its join, or after `before`, which is its membership then.
    fn event(&self, id: &str, event_type: &str, content: &Value, before: Option<&Value>) -> Value {
        let state = self.joined["state"].as_array().expect("a list");
        let of_type = |wanted: &str| {
            let found = state.iter().find(|event| event["type"] == wanted);
            reference(found.expect("it is in the state"))
        };
        let member = reference(before.unwrap_or(&self.join));
        let mut auth_events = vec![of_type("m.room.create"), of_type("m.room.power_levels")];
        auth_events.push(member.clone());
        let mut event = json!({
            "auth_events": auth_events, "content": content, "depth": 20, "origin_server_ts": 1,
            "prev_events": [member], "room_id": self.room, "sender": self.user, "type": event_type,
        });
        if event_type == "m.room.member" {
            event["state_key"] = self.user.as_str().into();
            let rules = of_type("m.room.join_rules");
            let auth_events = event["auth_events"].as_array_mut();
            auth_events.expect("a list").push(rules);
        }
        self.signed(id, event)
    }

    async fn send(&self, name: &str, pdus: &[&Value]) {
        let body = json!({ "origin": self.peer.name, "origin_server_ts": 1, "pdus": pdus });
        let target = format!("/_matrix/federation/v1/send/{name}");
        put_loosely(&self.peer, self.server, &target, &body)
            .await
            .ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_with_floats_and_forged_ids_of_version_1_are_taken_and_refused() {
    let [here] = TestServer::federated().await;
    let alice = here.user("alice").await;
    let room = alice.room_of("1").await;
    let guest = OldGuest::join(&here, &room).await;
    assert_eq!(guest.joined["event"]["event_id"], guest.id("join").as_str());
    let member = alice.state(&room, "m.room.member", &guest.user).await.ok();
    assert_eq!(member["weight"], 0.5);

    let message = |id: &str, weight: Value| {
        let content = json!({ "msgtype": "m.text", "body": "heavy", "weight": weight });
        guest.event(id, "m.room.message", &content, None)
    };
    let forged = format!("$forged:{}", here.name());
    let events = [
        message(&guest.id("light"), json!(1)),
        message(&forged, json!(1)),
        message(&guest.id("half"), json!(1.5)),
    ];
    guest
        .send("floats", &events.iter().collect::<Vec<_>>())
        .await;
    for (name, weight) in [("light", json!(1)), ("half", json!(1.5))] {
        alice
            .wait_for_content(&room, &guest.id(name), |content| {
                content["weight"] == weight
            })
            .await;
    }
    let path = format!("/event/{}", escaped(&forged));
    alice
        .get(&room_path(&room, &path))
        .await
        .fails(404, "M_NOT_FOUND");
    check_rows(&here, &room).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_events_of_one_id_the_first_counts() {
    let [here] = TestServer::federated().await;
    let alice = here.user("alice").await;
    let (room, other) = (alice.room_of("1").await, alice.room_of("2").await);
    let guest = OldGuest::join(&here, &room).await;
    let twice = guest.id("twice");
    let renamed = json!({ "membership": "join", "displayname": "First" });
    let first = guest.event(&twice, "m.room.member", &renamed, None);
    let topic = json!({ "msgtype": "m.text", "body": "second" });
    let second = guest.event(&twice, "m.room.message", &topic, None);

    // The first is asked for, as another event needs it: a message under the new name.
    let told = first.clone();
    let name = guest.peer.name.clone();
    guest
        .peer
        .answer("GET", "/_matrix/federation/v1/event/*", move |_| {
            (
                200,
                json!({ "origin": name, "origin_server_ts": 1, "pdus": [told] }),
            )
        });
    let mut under_new_name = guest.event(
        &guest.id("after"),
        "m.room.message",
        &json!({ "msgtype": "m.text", "body": "after" }),
        Some(&first),
    );
    under_new_name["prev_events"] = json!([reference(&guest.join)]);
    let under_new_name = guest.signed(&guest.id("after"), under_new_name);
    guest.send("after", &[&under_new_name]).await;
    alice
        .wait_for_content(&room, &guest.id("after"), |content| {
            content["body"] == "after"
        })
        .await;

    // What comes under its ID now is taken for it.
    guest.send("second", &[&second]).await;
    alice
        .wait_for_content(&room, &twice, |content| content["displayname"] == "First")
        .await;
    let member = alice.state(&room, "m.room.member", &guest.user).await.ok();
    assert_eq!(member["displayname"], "First");
    check_rows(&here, &room).await;

    // Nor is it one of another room.
    let elsewhere = OldGuest::join_as(&guest, &other, &twice).await;
    elsewhere.fails(400, "M_BAD_JSON");
    assert_eq!(alice.event_of(&room, &twice).await["type"], "m.room.member");
    check_rows(&here, &other).await;
}

//! What a server that is in a room reads of it from another: events, states, history, spaces, names.
//!
//! Spec: s2s, "Retrieving events", "Backfilling and retrieving missing events", "Querying for information".

use serde_json::{Value, json};

use crate::{
    harness::{TestServer, User},
    peer::Peer,
    room_words::{escaped, room_path},
};

/// A room of one server that a peer has joined.
struct Shared {
    server: TestServer,
    alice: User,
    peer: Peer,
    room: String,
}

impl Shared {
    async fn new(options: Value) -> Self {
        let [server] = TestServer::federated().await;
        let alice = server.user("alice").await;
        let room = alice.create_room_with(options).await;
        let peer = Peer::start().await;
        Self {
            server,
            alice,
            peer,
            room,
        }
    }

    async fn joined(options: Value) -> Self {
        let shared = Self::new(options).await;
        shared.peer.join(&shared.server, &shared.room, "bob").await;
        shared
    }

    fn path(&self, endpoint: &str, rest: &str) -> String {
        format!(
            "/_matrix/federation/v1/{endpoint}/{}{rest}",
            escaped(&self.room)
        )
    }

    async fn event_id_of(&self, event_type: &str) -> String {
        let state = self.alice.get(&room_path(&self.room, "/state")).await.ok();
        let events = state.as_array().expect("a list");
        let found = events.iter().find(|event| event["type"] == event_type);
        found.expect("such an event")["event_id"]
            .as_str()
            .expect("an ID")
            .to_owned()
    }
}

/// The bodies of messages among PDUs, and `None` for those that were redacted.
fn bodies(pdus: &Value) -> Vec<Option<String>> {
    let messages = pdus.as_array().expect("a list").iter();
    messages
        .filter(|pdu| pdu["type"] == "m.room.message")
        .map(|pdu| pdu["content"]["body"].as_str().map(str::to_owned))
        .collect()
}

fn types(pdus: &Value) -> Vec<&str> {
    let pdus = pdus.as_array().expect("a list").iter();
    let mut types: Vec<_> = pdus.filter_map(|pdu| pdu["type"].as_str()).collect();
    types.sort_unstable();
    types.dedup();
    types
}

#[tokio::test]
async fn a_server_in_the_room_reads_events_and_states() {
    for version in ["10", "11", "12"] {
        let options = json!({ "preset": "public_chat", "room_version": version });
        let shared = Shared::joined(options).await;
        let (server, peer) = (&shared.server, &shared.peer);
        let said = shared.alice.say(&shared.room, "hello").await;

        let path = format!("/_matrix/federation/v1/event/{}", escaped(&said));
        let event = peer.get(server, &path).await.ok();
        assert_eq!(event["origin"], server.name());
        assert_eq!(bodies(&event["pdus"]), [Some("hello".to_owned())]);

        let query = format!("?event_id={}", escaped(&said));
        let state = peer.get(server, &shared.path("state", &query)).await.ok();
        assert!(types(&state["pdus"]).contains(&"m.room.create"), "{state}");
        let members = state["pdus"].as_array().expect("a list").iter();
        let members = members.filter(|pdu| pdu["type"] == "m.room.member");
        assert_eq!(members.count(), 2);
        assert!(
            types(&state["auth_chain"]).contains(&"m.room.create"),
            "{state}"
        );

        let ids = peer
            .get(server, &shared.path("state_ids", &query))
            .await
            .ok();
        let count = |list: &Value| list.as_array().expect("a list").len();
        assert_eq!(count(&ids["pdu_ids"]), count(&state["pdus"]));
        assert_eq!(count(&ids["auth_chain_ids"]), count(&state["auth_chain"]));

        let rest = format!("/{}", escaped(&said));
        let chain = peer
            .get(server, &shared.path("event_auth", &rest))
            .await
            .ok();
        let expected = ["m.room.create", "m.room.member", "m.room.power_levels"];
        assert_eq!(types(&chain["auth_chain"]), expected, "version {version}");
    }
}

#[tokio::test]
async fn a_server_outside_the_room_reads_nothing() {
    let shared = Shared::new(json!({ "preset": "public_chat" })).await;
    let (server, peer) = (&shared.server, &shared.peer);
    let said = shared.alice.say(&shared.room, "hello").await;
    let missing = json!({ "earliest_events": [], "latest_events": [said] });
    let said = escaped(&said);
    let paths = [
        format!("/_matrix/federation/v1/event/{said}"),
        shared.path("state", &format!("?event_id={said}")),
        shared.path("state_ids", &format!("?event_id={said}")),
        shared.path("event_auth", &format!("/{said}")),
        shared.path("backfill", &format!("?v={said}&limit=5")),
        shared.path("timestamp_to_event", "?ts=0&dir=f"),
    ];
    for path in &paths {
        peer.get(server, path).await.fails(403, "M_FORBIDDEN");
    }
    let path = shared.path("get_missing_events", "");
    let answer = peer.post(server, &path, missing).await;
    answer.fails(403, "M_FORBIDDEN");
    let nowhere = "/_matrix/federation/v1/state_ids/!nowhere:x.test?event_id=$x";
    peer.get(server, nowhere).await.fails(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn a_server_that_was_put_out_reads_what_led_to_it_and_nothing_later() {
    let shared = Shared::joined(json!({ "preset": "public_chat" })).await;
    let (server, peer) = (&shared.server, &shared.peer);
    shared.alice.say(&shared.room, "before").await;
    let kick = json!({ "user_id": peer.user("bob") });
    let path = room_path(&shared.room, "/kick");
    shared.alice.post(&path, kick).await.ok();
    let later = shared.alice.say(&shared.room, "later").await;
    let state = shared.alice.get(&room_path(&shared.room, "/state")).await;
    let state = state.ok();
    let of_bob = state.as_array().expect("a list").iter();
    let mut of_bob = of_bob.filter(|event| event["state_key"] == peer.user("bob"));
    let kick = of_bob.next().expect("a membership")["event_id"].clone();
    let kick = kick.as_str().expect("an ID");

    for (event, status) in [(kick, 200), (&*later, 403)] {
        let missing = json!({ "earliest_events": [], "latest_events": [event], "limit": 1 });
        let event = escaped(event);
        let paths = [
            format!("/_matrix/federation/v1/event/{event}"),
            shared.path("state", &format!("?event_id={event}")),
            shared.path("state_ids", &format!("?event_id={event}")),
            shared.path("event_auth", &format!("/{event}")),
            shared.path("backfill", &format!("?v={event}&limit=5")),
        ];
        for path in &paths {
            let answer = peer.get(server, path).await;
            assert_eq!(answer.status, status, "{path}: {}", answer.text);
        }
        let path = shared.path("get_missing_events", "");
        let answer = peer.post(server, &path, missing).await;
        assert_eq!(answer.status, status, "{}", answer.text);
        if status == 200 {
            let answer = answer.ok();
            assert_eq!(bodies(&answer["events"]), [Some("before".to_owned())]);
        }
    }
}

#[tokio::test]
async fn a_server_that_the_room_shuts_out_reads_nothing() {
    let shared = Shared::joined(json!({ "preset": "public_chat" })).await;
    let host = shared.peer.name.host().to_owned();
    let acl = json!({ "allow": ["*"], "deny": [host], "allow_ip_literals": true });
    let set = shared
        .alice
        .set_state(&shared.room, "m.room.server_acl", "", acl);
    set.await.ok();
    let create = shared.event_id_of("m.room.create").await;
    let path = shared.path("state_ids", &format!("?event_id={}", escaped(&create)));
    let answer = shared.peer.get(&shared.server, &path).await;
    answer.fails(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn history_is_answered_from_an_event_backwards() {
    let shared = Shared::joined(json!({ "preset": "public_chat" })).await;
    let mut said = Vec::new();
    for number in 0..5 {
        said.push(shared.alice.say(&shared.room, &number.to_string()).await);
    }
    let text = |number: i32| Some(number.to_string());
    let query = format!("?v={}&limit=3", escaped(&said[3]));
    let (server, peer) = (&shared.server, &shared.peer);
    let page = peer
        .get(server, &shared.path("backfill", &query))
        .await
        .ok();
    assert_eq!(bodies(&page["pdus"]), [text(3), text(2), text(1)]);

    let missing = json!({ "earliest_events": [said[0]], "latest_events": [said[4]] });
    let path = shared.path("get_missing_events", "");
    let between = peer.post(server, &path, missing).await.ok();
    assert_eq!(bodies(&between["events"]), [text(1), text(2), text(3)]);
    let few = json!({ "earliest_events": [said[0]], "latest_events": [said[4]], "limit": 2 });
    let few = peer.post(server, &path, few).await.ok();
    assert_eq!(bodies(&few["events"]), [text(2), text(3)]);

    let path = |query: &str| shared.path("timestamp_to_event", query);
    let found = peer.get(server, &path("?ts=0&dir=f")).await.ok();
    let create = shared.event_id_of("m.room.create").await;
    assert_eq!(found["event_id"], create);
    let none = peer.get(server, &path("?ts=0&dir=b")).await;
    none.fails(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn what_the_members_of_a_server_could_not_see_it_gets_redacted() {
    for (visibility, is_shown) in [
        ("shared", true),
        ("world_readable", true),
        ("invited", false),
        ("joined", false),
    ] {
        let state = json!([{
            "type": "m.room.history_visibility",
            "content": { "history_visibility": visibility },
        }]);
        let shared = Shared::new(json!({ "preset": "public_chat", "initial_state": state })).await;
        let before = shared.alice.say(&shared.room, "before").await;
        shared.peer.join(&shared.server, &shared.room, "bob").await;
        let after = shared.alice.say(&shared.room, "after").await;

        let path = shared.path("get_missing_events", "");
        let question = json!({ "earliest_events": [], "latest_events": [after], "limit": 2 });
        let events = shared.peer.post(&shared.server, &path, question).await.ok();
        let expected = is_shown.then(|| "before".to_owned());
        assert_eq!(
            bodies(&events["events"]),
            [expected.clone()],
            "{visibility}"
        );
        for (event, expected) in [(before, expected), (after, Some("after".to_owned()))] {
            let path = format!("/_matrix/federation/v1/event/{}", escaped(&event));
            let event = shared.peer.get(&shared.server, &path).await.ok();
            assert_eq!(bodies(&event["pdus"]), [expected], "{visibility}");
        }
    }
}

#[tokio::test]
async fn profiles_and_aliases_are_asked_of_their_server() {
    let [one, two] = TestServer::federated().await;
    let (alice, bob) = (one.user("alice").await, two.user("bob").await);
    let name = |user: &User, field: &str| {
        format!("/_matrix/client/v3/profile/{}{field}", escaped(&user.id))
    };
    let displayname = name(&alice, "/displayname");
    let set = json!({ "displayname": "Alice" });
    alice.put(&displayname, set).await.ok();
    assert_eq!(
        bob.get(&name(&alice, "")).await.ok()["displayname"],
        "Alice"
    );
    let field = bob.get(&name(&alice, "/displayname")).await.ok();
    assert_eq!(field, json!({ "displayname": "Alice" }));
    bob.get(&name(&alice, "/avatar_url"))
        .await
        .fails(404, "M_NOT_FOUND");
    let nobody = format!("/_matrix/client/v3/profile/@nobody:{}", one.name());
    bob.get(&nobody).await.fails(404, "M_NOT_FOUND");

    let options = json!({ "preset": "public_chat", "room_alias_name": "garden" });
    let room = alice.create_room_with(options).await;
    let directory = |alias: &str| format!("/_matrix/client/v3/directory/room/{}", escaped(alias));
    let found = bob
        .get(&directory(&format!("#garden:{}", one.name())))
        .await
        .ok();
    assert_eq!(found["room_id"], room);
    assert_eq!(found["servers"], json!([one.name()]));
    let missing = bob
        .get(&directory(&format!("#desert:{}", one.name())))
        .await;
    missing.fails(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn the_directory_of_another_server_is_shown_if_that_server_wants_it() {
    let [one, two] = TestServer::federated().await;
    let closed = TestServer::federating(&["directory.public_rooms_federated=false"]).await;
    let (alice, bob) = (one.user("alice").await, two.user("bob").await);
    let options = json!({ "preset": "public_chat", "visibility": "public", "name": "Garden" });
    let room = alice.create_room_with(options).await;

    let rooms =
        |server: &TestServer| format!("/_matrix/client/v3/publicRooms?server={}", server.name());
    let found = bob.get(&rooms(&one)).await.ok();
    assert_eq!(found["chunk"][0]["room_id"], room);
    let filter = |term: &str| json!({ "filter": { "generic_search_term": term } });
    let found = bob.post(&rooms(&one), filter("garde")).await.ok();
    assert_eq!(found["chunk"][0]["name"], "Garden");
    let found = bob.post(&rooms(&one), filter("desert")).await.ok();
    assert_eq!(found["chunk"], json!([]));
    bob.get(&rooms(&closed)).await.fails(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn the_rooms_of_a_space_are_found_on_other_servers() {
    let [one, two] = TestServer::federated().await;
    let (alice, bob) = (one.user("alice").await, two.user("bob").await);
    let public = |name: &str| json!({ "preset": "public_chat", "name": name });
    let space = |name: &str| {
        let mut options = public(name);
        options["creation_content"] = json!({ "type": "m.space" });
        options
    };
    let top = bob.create_room_with(space("top")).await;
    let inner = alice.create_room_with(space("inner")).await;
    let leaf = alice.create_room_with(public("leaf")).await;
    let secret = alice
        .create_room_with(json!({ "preset": "private_chat" }))
        .await;
    for (user, parent, child) in [
        (&bob, &top, &inner),
        (&alice, &inner, &leaf),
        (&alice, &inner, &secret),
    ] {
        let via = json!({ "via": [one.name()] });
        user.set_state(parent, "m.space.child", child, via)
            .await
            .ok();
    }
    let path = |room: &str| format!("/_matrix/client/v1/rooms/{}/hierarchy", escaped(room));
    let found = bob.get(&path(&top)).await.ok();
    let names: Vec<_> = found["rooms"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|room| &room["name"])
        .collect();
    assert_eq!(names, ["top", "inner", "leaf"]);
    let children = found["rooms"][1]["children_state"]
        .as_array()
        .expect("a list");
    assert_eq!(children.len(), 2);

    let summary = format!(
        "/_matrix/client/v1/room_summary/{}?via={}",
        escaped(&leaf),
        one.name()
    );
    let summary = bob.get(&summary).await.ok();
    assert_eq!(
        (&summary["name"], &summary["membership"]),
        (&json!("leaf"), &json!("leave"))
    );
    let hidden = format!(
        "/_matrix/client/v1/room_summary/{}?via={}",
        escaped(&secret),
        one.name()
    );
    bob.get(&hidden).await.fails(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn the_directory_says_who_may_join() {
    let rule = |rule: &str| {
        let rules = json!({ "type": "m.room.join_rules", "content": { "join_rule": rule } });
        json!({ "visibility": "public", "initial_state": [rules] })
    };
    let shared = Shared::new(rule("knock")).await;
    shared.alice.create_room_with(rule("public")).await;
    let (server, peer) = (&shared.server, &shared.peer);
    let path = "/_matrix/federation/v1/publicRooms";
    let (got, posted) = (
        peer.get(server, path).await.ok(),
        peer.post(server, path, json!({})).await.ok(),
    );
    for page in [got, posted] {
        let rooms = page["chunk"].as_array().expect("a list").iter();
        let rule = |room: &Value| room["join_rule"].as_str().unwrap_or("public").to_owned();
        let mut rules: Vec<_> = rooms.map(rule).collect();
        rules.sort_unstable();
        assert_eq!(rules, ["knock", "public"], "{page}");
    }
}

#[tokio::test]
async fn an_openid_token_tells_who_its_holder_is() {
    let [server] = TestServer::federated().await;
    let alice = server.user("alice").await;
    let path = format!(
        "/_matrix/client/v3/user/{}/openid/request_token",
        escaped(&alice.id)
    );
    let token = alice.post(&path, json!({})).await.ok();
    let token = token["access_token"].as_str().expect("a token");
    let path = format!("/_matrix/federation/v1/openid/userinfo?access_token={token}");
    assert_eq!(server.get(&path).await.ok(), json!({ "sub": alice.id }));
    let wrong = "/_matrix/federation/v1/openid/userinfo?access_token=x";
    server.get(wrong).await.fails(401, "M_UNKNOWN_TOKEN");
}

#[tokio::test]
async fn devices_without_keys_are_told_to_no_other_server() {
    let [server] = TestServer::federated().await;
    let alice = server.user("alice").await;
    let peer = Peer::start().await;
    let path = format!("/_matrix/federation/v1/user/devices/{}", escaped(&alice.id));
    let devices = peer.get(&server, &path).await.ok();
    assert_eq!(devices["devices"], json!([]));
    let nobody = format!(
        "/_matrix/federation/v1/user/devices/@nobody:{}",
        server.name()
    );
    peer.get(&server, &nobody).await.fails(404, "M_NOT_FOUND");
    let question = json!({ "device_keys": { alice.id.clone(): [] } });
    let path = "/_matrix/federation/v1/user/keys/query";
    let keys = peer.post(&server, path, question).await.ok();
    assert_eq!(keys["device_keys"], json!({ alice.id: {} }));
}

#[tokio::test]
async fn an_alias_of_another_server_can_be_canonical_if_it_leads_to_the_room() {
    let [one, two] = TestServer::federated().await;
    let (alice, bob) = (one.user("alice").await, two.user("bob").await);
    let room = alice.create_room().await;
    let join = format!(
        "/_matrix/client/v3/join/{}?server_name={}",
        escaped(&room),
        one.name()
    );
    bob.post(&join, json!({})).await.ok();
    let alias = format!("#garden:{}", two.name());
    let path = format!("/_matrix/client/v3/directory/room/{}", escaped(&alias));
    bob.put(&path, json!({ "room_id": room })).await.ok();

    let set = async |alias: String| {
        let content = json!({ "alias": alias });
        alice
            .set_state(&room, "m.room.canonical_alias", "", content)
            .await
    };
    set(alias).await.ok();
    let missing = set(format!("#desert:{}", two.name())).await;
    missing.fails(400, "M_BAD_ALIAS");
}

#[tokio::test]
async fn an_event_by_time_is_looked_for_on_other_servers_and_fetched() {
    let [one, two] = TestServer::federated().await;
    let (alice, bob) = (one.user("alice").await, two.user("bob").await);
    let room = alice.create_room().await;
    for number in 0..30 {
        alice.say(&room, &number.to_string()).await;
    }
    let path = format!(
        "/_matrix/client/v1/rooms/{}/timestamp_to_event?ts=0&dir=f",
        escaped(&room)
    );
    let create = alice.get(&path).await.ok();
    let join = format!(
        "/_matrix/client/v3/join/{}?server_name={}",
        escaped(&room),
        one.name()
    );
    bob.post(&join, json!({})).await.ok();

    let found = bob.get(&path).await.ok();
    assert_eq!(found["event_id"], create["event_id"]);
    let id = escaped(found["event_id"].as_str().expect("an ID"));
    let around = bob
        .get(&room_path(&room, &format!("/context/{id}?limit=4")))
        .await
        .ok();
    assert_eq!(around["event"]["type"], "m.room.create");
}

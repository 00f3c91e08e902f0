//! What clients keep with an account: account data, push rules, filters.

#![allow(
    clippy::indexing_slicing,
    reason = "reading a JSON value by index does not panic"
)]

use serde_json::{Value, json};

use crate::harness::{TestServer, User};

fn data(user: &User, event_type: &str) -> String {
    format!(
        "/_matrix/client/v3/user/{}/account_data/{event_type}",
        user.id
    )
}

#[tokio::test]
async fn account_data_comes_back_as_it_was_set() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let bob = server.user("bob").await;
    let path = data(&alice, "org.example.type");
    alice.get(&path).await.fails(404, "M_NOT_FOUND");
    for content in [
        json!({ "a": 1 }),
        json!({ "b": [1.5, "x", null] }),
        json!({ "long": "x".repeat(200_000) }),
        json!({}),
    ] {
        alice.put(&path, content.clone()).await.ok();
        assert_eq!(alice.get(&path).await.ok(), content);
    }
    bob.get(&path).await.fails(403, "M_FORBIDDEN");
    bob.put(&path, json!({})).await.fails(403, "M_FORBIDDEN");
    alice.put(&path, json!([])).await.fails(400, "M_BAD_JSON");
    alice
        .put(&path, json!({ "long": "x".repeat(600_000) }))
        .await
        .fails(413, "M_TOO_LARGE");
}

#[tokio::test]
async fn what_has_endpoints_of_its_own_is_not_set_as_account_data() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    for event_type in ["m.fully_read", "m.push_rules"] {
        alice
            .put(&data(&alice, event_type), json!({}))
            .await
            .fails(405, "M_BAD_JSON");
    }
    let rules = alice.get(&data(&alice, "m.push_rules")).await.ok();
    assert!(rules["global"]["override"].is_array());
}

#[tokio::test]
async fn account_data_changes_are_found_by_position() {
    use hearth::storage::Position;
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let parts = &server.running.server;
    let id = ruma::UserId::parse(&alice.id).expect("a user ID");
    let changes = |since: Position| {
        let snapshot = parts.store.snapshot().expect("a snapshot");
        let number = parts.accounts.user_number(&snapshot, &id).expect("a read");
        let changes = parts
            .accounts
            .account_data_changes(&snapshot, number.expect("a number"), since)
            .expect("a read");
        let types: Vec<String> = changes
            .into_iter()
            .map(|change| change.event_type)
            .collect();
        (types, snapshot.position())
    };
    let (types, start) = changes(Position::default());
    assert_eq!(types, ["m.push_rules"]);
    assert_eq!(changes(start).0, Vec::<String>::new());

    for event_type in ["a", "b", "a"] {
        alice.put(&data(&alice, event_type), json!({})).await.ok();
    }
    let (types, later) = changes(start);
    assert_eq!(types, ["b", "a"]);
    let path = "/_matrix/client/v3/pushrules/global/override/mine";
    alice.put(path, json!({ "actions": [] })).await.ok();
    assert_eq!(changes(later).0, ["m.push_rules"]);
    assert_eq!(changes(Position::default()).0, ["b", "a", "m.push_rules"]);
}

const RULES: &str = "/_matrix/client/v3/pushrules/global";

async fn rule_ids(user: &User, kind: &str) -> Vec<String> {
    let all = user.get("/_matrix/client/v3/pushrules/").await.ok();
    let rules = all["global"][kind].as_array().cloned().unwrap_or_default();
    let id = |rule: &Value| rule["rule_id"].as_str().map(ToOwned::to_owned);
    rules.iter().filter_map(id).collect()
}

#[tokio::test]
async fn every_kind_of_push_rule_is_there_from_the_start() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let all = alice.get("/_matrix/client/v3/pushrules/").await.ok();
    for kind in ["override", "content", "room", "sender", "underride"] {
        assert!(all["global"][kind].is_array(), "{kind}");
    }
    assert_eq!(alice.get(&format!("{RULES}/")).await.ok(), all["global"]);
    assert_eq!(rule_ids(&alice, "override").await[0], ".m.rule.master");
    assert!(
        rule_ids(&alice, "underride")
            .await
            .contains(&".m.rule.message".to_owned())
    );
}

#[tokio::test]
async fn push_rules_are_made_ordered_changed_and_deleted() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let put = async |path: &str, body: Value| alice.put(&format!("{RULES}/{path}"), body).await;
    let word = |pattern: &str| json!({ "pattern": pattern, "actions": ["notify"] });
    put("content/one", word("one")).await.ok();
    put("content/two", word("two")).await.ok();
    put("content/three?after=two", word("three")).await.ok();
    put("content/four?before=one", word("four")).await.ok();
    let ids = rule_ids(&alice, "content").await;
    let own: Vec<_> = ids.iter().filter(|id| !id.starts_with('.')).collect();
    assert_eq!(own, ["two", "three", "four", "one"]);
    assert!(ids[3] == "one", "the server's rules come last: {ids:?}");
    put("room/!a:hearth.test", json!({ "actions": ["dont_notify"] }))
        .await
        .ok();
    put("sender/@bob:hearth.test", json!({ "actions": [] }))
        .await
        .ok();
    let conditions = json!([{ "kind": "event_match", "key": "type", "pattern": "m.x" }]);
    let tweak = json!({ "set_tweak": "sound", "value": "default" });
    let actions = json!(["notify", tweak]);
    put(
        "override/mine",
        json!({ "conditions": conditions, "actions": actions }),
    )
    .await
    .ok();
    let mine = alice.get(&format!("{RULES}/override/mine")).await.ok();
    assert_eq!(mine["conditions"], conditions);
    assert_eq!(mine["actions"], actions);
    assert_eq!(mine["enabled"], true);
    assert_eq!(mine["default"], false);
    assert_eq!(rule_ids(&alice, "override").await[1], "mine");

    let enabled = format!("{RULES}/override/mine/enabled");
    put("override/mine/enabled", json!({ "enabled": false }))
        .await
        .ok();
    assert_eq!(alice.get(&enabled).await.ok(), json!({ "enabled": false }));
    put(
        "override/.m.rule.master/actions",
        json!({ "actions": ["notify"] }),
    )
    .await
    .ok();
    let actions = format!("{RULES}/override/.m.rule.master/actions");
    assert_eq!(
        alice.get(&actions).await.ok(),
        json!({ "actions": ["notify"] })
    );

    alice.delete(&format!("{RULES}/override/mine")).await.ok();
    alice
        .get(&format!("{RULES}/override/mine"))
        .await
        .fails(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn push_rules_that_cannot_be_are_refused() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let actions = json!({ "actions": ["notify"] });
    let put =
        async |path: &str, body: &Value| alice.put(&format!("{RULES}/{path}"), body.clone()).await;
    put("override/.mine", &actions)
        .await
        .fails(400, "M_INVALID_PARAM");
    put("override/a%2Fb", &actions)
        .await
        .fails(400, "M_INVALID_PARAM");
    put("override/a%5Cb", &actions)
        .await
        .fails(400, "M_INVALID_PARAM");
    put("override/a?after=nothing", &actions)
        .await
        .fails(400, "M_UNKNOWN");
    put("override/a?before=.m.rule.master", &actions)
        .await
        .fails(400, "M_UNKNOWN");
    put("content/a", &actions).await.fails(400, "M_BAD_JSON");
    put("override/a", &json!({})).await.fails(400, "M_BAD_JSON");
    put("override/a", &json!({ "actions": "notify" }))
        .await
        .fails(400, "M_BAD_JSON");
    put("sender/nobody", &actions)
        .await
        .fails(400, "M_INVALID_PARAM");
    put("overrode/a", &actions)
        .await
        .fails(400, "M_INVALID_PARAM");
    for path in [
        "override/nothing/enabled",
        "sender/nothing/enabled",
        "overrode/.m.rule.master/enabled",
    ] {
        put(path, &json!({ "enabled": true }))
            .await
            .fails(404, "M_NOT_FOUND");
    }
    for path in ["override/nothing", "overrode/nothing"] {
        let path = format!("{RULES}/{path}");
        alice.get(&path).await.fails(404, "M_NOT_FOUND");
        alice.delete(&path).await.fails(404, "M_NOT_FOUND");
    }
    alice
        .delete(&format!("{RULES}/override/.m.rule.master"))
        .await
        .fails(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn the_same_filter_gets_the_same_id() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let bob = server.user("bob").await;
    let path = format!("/_matrix/client/v3/user/{}/filter", alice.id);
    let filter = json!({ "room": { "timeline": { "limit": 10 } } });
    let id = alice.post(&path, filter.clone()).await.ok()["filter_id"].clone();
    assert_eq!(
        alice.post(&path, filter.clone()).await.ok()["filter_id"],
        id
    );
    let id = id.as_str().unwrap_or_default();
    assert!(!id.starts_with('{'));
    assert_eq!(alice.get(&format!("{path}/{id}")).await.ok(), filter);
    alice
        .get(&format!("{path}/12ab"))
        .await
        .fails(404, "M_NOT_FOUND");
    bob.post(&path, filter).await.fails(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn a_filter_with_wrong_types_is_refused() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let path = format!("/_matrix/client/v3/user/{}/filter", alice.id);
    for filter in [
        json!({ "presence": 5 }),
        json!({ "room": { "timeline": { "limit": "ten" } } }),
        json!({ "room": { "rooms": ["nonsense"] } }),
        json!({ "event_fields": "content" }),
        json!({ "event_format": "paper" }),
    ] {
        alice.post(&path, filter).await.fails(400, "M_BAD_JSON");
    }
}

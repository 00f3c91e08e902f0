//! Profiles of users: who may read and change what, and what is refused.

use serde_json::{Value, json};

use crate::harness::TestServer;

fn path(user: &str, field: &str) -> String {
    format!("/_matrix/client/v3/profile/{user}{field}")
}

#[tokio::test]
async fn a_profile_is_set_by_its_owner_and_read_by_everybody() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let bob = server.user("bob").await;
    let displayname = path(&alice.id, "/displayname");
    assert_eq!(server.get(&path(&alice.id, "")).await.ok(), json!({}));
    server.get(&displayname).await.fails(404, "M_NOT_FOUND");

    alice
        .put(&displayname, json!({ "displayname": "Alice" }))
        .await
        .ok();
    let avatar = json!({ "avatar_url": "mxc://hearth.test/a" });
    alice
        .put(&path(&alice.id, "/avatar_url"), avatar.clone())
        .await
        .ok();
    assert_eq!(
        server.get(&displayname).await.ok(),
        json!({ "displayname": "Alice" })
    );
    assert_eq!(
        server.get(&path(&alice.id, "")).await.ok(),
        json!({ "displayname": "Alice", "avatar_url": "mxc://hearth.test/a" })
    );
    bob.put(&displayname, json!({ "displayname": "Eve" }))
        .await
        .fails(403, "M_FORBIDDEN");
    server
        .get(&path("@nobody:hearth.test", ""))
        .await
        .fails(404, "M_NOT_FOUND");
    server
        .get(&path("nonsense", ""))
        .await
        .fails(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn any_field_holds_any_json_until_it_is_deleted() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let field = path(&alice.id, "/org.example.pets");
    for value in [json!(["cat", { "n": 1.5 }]), json!(null), json!(false)] {
        let body = json!({ "org.example.pets": value });
        alice.put(&field, body.clone()).await.ok();
        assert_eq!(server.get(&field).await.ok(), body);
    }
    alice
        .put(
            &path(&alice.id, "/m.tz"),
            json!({ "m.tz": "Europe/Berlin" }),
        )
        .await
        .ok();
    for _ in 0..2 {
        alice.delete(&field).await.ok();
        server.get(&field).await.fails(404, "M_NOT_FOUND");
    }
    assert_eq!(
        server.get(&path(&alice.id, "")).await.ok(),
        json!({ "m.tz": "Europe/Berlin" })
    );
}

#[tokio::test]
async fn fields_that_are_wrong_or_too_large_are_refused() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let put = async |field: &str, body: Value| {
        alice
            .put(&path(&alice.id, &format!("/{field}")), body)
            .await
    };
    let long = "n".repeat(256);
    put(&long, json!({ long.as_str(): 1 }))
        .await
        .fails(400, "M_KEY_TOO_LARGE");
    put(
        "org.example.big",
        json!({ "org.example.big": "x".repeat(65_536) }),
    )
    .await
    .fails(400, "M_PROFILE_TOO_LARGE");
    put("Org.Example", json!({ "Org.Example": 1 }))
        .await
        .fails(400, "M_INVALID_PARAM");
    put("displayname", json!({ "displayname": 5 }))
        .await
        .fails(400, "M_INVALID_PARAM");
    put("displayname", json!({ "displayname": "x".repeat(257) }))
        .await
        .fails(400, "M_INVALID_PARAM");
    put("avatar_url", json!({ "avatar_url": ["mxc://a/b"] }))
        .await
        .fails(400, "M_INVALID_PARAM");
    put("displayname", json!({ "name": "A" }))
        .await
        .fails(400, "M_MISSING_PARAM");
    put("displayname", json!("A"))
        .await
        .fails(400, "M_BAD_JSON");
    assert_eq!(server.get(&path(&alice.id, "")).await.ok(), json!({}));
}

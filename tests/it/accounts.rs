//! Registering, signing in and out, devices, passwords, and the end of an account.

#![allow(
    clippy::indexing_slicing,
    reason = "reading a JSON value by index does not panic"
)]

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Answer, PASSWORD, TestServer, User};

const REGISTER: &str = "/_matrix/client/v3/register";
const LOGIN: &str = "/_matrix/client/v3/login";
const WHOAMI: &str = "/_matrix/client/v3/account/whoami";

fn password_login(user: &str, password: &str) -> Value {
    json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": user },
        "password": password,
    })
}

fn password_auth(user: &str, password: &str) -> Value {
    password_login(user, password)
}

#[tokio::test]
async fn registration_asks_for_a_stage_and_then_signs_in() {
    let server = TestServer::start().await;
    let body = json!({ "username": "alice", "password": PASSWORD, "device_id": "PHONE" });
    let challenge = server.post(REGISTER, body.clone()).await;
    assert_eq!(challenge.status, 401);
    let challenge = challenge.json();
    assert_eq!(challenge["flows"], json!([{ "stages": ["m.login.dummy"] }]));
    assert_eq!(challenge["params"], json!({}));

    let mut body = body;
    body["auth"] = json!({ "type": "m.login.dummy", "session": challenge["session"] });
    let answer = server.post(REGISTER, body).await;
    assert_eq!(answer.ok()["user_id"], "@alice:hearth.test");
    assert_eq!(answer.ok()["device_id"], "PHONE");
    let alice = server.signed_in(&answer);
    let me = alice.get(WHOAMI).await.ok();
    assert_eq!(
        me,
        json!({ "user_id": "@alice:hearth.test", "device_id": "PHONE" })
    );
}

#[tokio::test]
async fn user_names_follow_the_grammar_and_are_given_out_once() {
    let server = TestServer::start().await;
    let register = async |name: &str| {
        let auth = json!({ "type": "m.login.dummy" });
        let body = json!({ "username": name, "password": PASSWORD, "auth": auth });
        server.post(REGISTER, body).await
    };
    for bad in ["", "a b", "a:b", "@a", "é", "a\n", "a,b", "a'b", "ü"] {
        register(bad).await.fails(400, "M_INVALID_USERNAME");
    }
    register(&"a".repeat(250))
        .await
        .fails(400, "M_INVALID_USERNAME");
    for good in ["q", "3", ".", "_x", "=", "-", "/", "+"] {
        register(good).await.ok();
    }
    assert_eq!(
        register("Upper").await.ok()["user_id"],
        "@upper:hearth.test"
    );
    register("upper").await.fails(400, "M_USER_IN_USE");

    let available = "/_matrix/client/v3/register/available?username=";
    assert_eq!(
        server.get(&format!("{available}free")).await.ok(),
        json!({ "available": true })
    );
    server
        .get(&format!("{available}upper"))
        .await
        .fails(400, "M_USER_IN_USE");
    server
        .get(&format!("{available}a%2Cb"))
        .await
        .fails(400, "M_INVALID_USERNAME");
    server
        .get("/_matrix/client/v3/register/available")
        .await
        .fails(400, "M_MISSING_PARAM");
}

#[tokio::test]
async fn registration_without_a_login_gives_no_token() {
    let server = TestServer::start().await;
    let auth = json!({ "type": "m.login.dummy" });
    let body =
        json!({ "username": "a", "password": PASSWORD, "auth": auth, "inhibit_login": true });
    let answer = server.post(REGISTER, body).await.ok();
    assert_eq!(answer["user_id"], "@a:hearth.test");
    assert!(answer.get("access_token").is_none());
    server.login("a", PASSWORD).await;
}

#[tokio::test]
async fn guests_are_refused() {
    let server = TestServer::start().await;
    server
        .post(&format!("{REGISTER}?kind=guest"), json!({}))
        .await
        .fails(403, "M_GUEST_ACCESS_FORBIDDEN");
    server
        .post(&format!("{REGISTER}?kind=robot"), json!({}))
        .await
        .fails(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn a_closed_server_registers_nobody() {
    let server = TestServer::start_with(&["registration.mode=closed"]).await;
    let body = json!({ "username": "a", "password": PASSWORD });
    server.post(REGISTER, body).await.fails(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn weak_passwords_are_refused_with_a_reason() {
    let server = TestServer::start_with(&["accounts.password.min_score=3"]).await;
    for (name, password) in [
        ("short", "x"),
        ("bob", "password1234"),
        ("robert", "robert123"),
    ] {
        let auth = json!({ "type": "m.login.dummy" });
        let body = json!({ "username": name, "password": password, "auth": auth });
        server
            .post(REGISTER, body)
            .await
            .fails(400, "M_WEAK_PASSWORD");
    }
}

#[tokio::test]
async fn a_registration_token_lets_as_many_in_as_it_says() {
    let server = TestServer::start_with(&["registration.mode=token"]).await;
    let accounts = &server.running.server.accounts;
    accounts
        .create_registration_token(Some("two".to_owned()), Some(2), None)
        .await
        .expect("a token");
    let valid = async || {
        let path = "/_matrix/client/v1/register/m.login.registration_token/validity?token=two";
        server.get(path).await.ok()["valid"].as_bool()
    };
    let register = async |name: &str, token: &str| {
        let auth = json!({ "type": "m.login.registration_token", "token": token });
        let body = json!({ "username": name, "password": PASSWORD, "auth": auth });
        server.post(REGISTER, body).await
    };
    let refused = register("a", "three").await;
    refused_stage(&refused, "M_UNAUTHORIZED");
    let auth = json!({ "type": "m.login.dummy" });
    let body = json!({ "username": "a", "password": PASSWORD, "auth": auth });
    refused_stage(&server.post(REGISTER, body).await, "M_UNRECOGNIZED");

    assert_eq!(valid().await, Some(true));
    register("a", "two").await.ok();
    register("b", "two").await.ok();
    assert_eq!(valid().await, Some(false));
    refused_stage(&register("c", "two").await, "M_UNAUTHORIZED");
}

#[track_caller]
fn refused_stage(answer: &Answer, errcode: &str) {
    let body = answer.json();
    assert_eq!(answer.status, 401, "{body}");
    assert_eq!(body["errcode"], errcode);
    assert!(body["flows"].is_array());
    assert!(body["session"].is_string());
}

#[tokio::test]
async fn a_login_by_any_form_of_the_name_works() {
    let server = TestServer::start().await;
    server.user("alice").await;
    for name in ["alice", "ALICE", "@alice:hearth.test", "@Alice:hearth.test"] {
        let answer = server.post(LOGIN, password_login(name, PASSWORD)).await;
        assert_eq!(answer.ok()["user_id"], "@alice:hearth.test");
        server.signed_in(&answer).get(WHOAMI).await.ok();
    }
    let old = json!({ "type": "m.login.password", "user": "alice", "password": PASSWORD });
    server.post(LOGIN, old).await.ok();
    server
        .post(
            "/_matrix/client/r0/login",
            password_login("alice", PASSWORD),
        )
        .await
        .ok();
}

#[tokio::test]
async fn a_login_that_is_wrong_says_no_more_than_needed() {
    let server = TestServer::start().await;
    server.user("alice").await;
    for (name, password) in [
        ("alice", "wrong password"),
        ("nobody", PASSWORD),
        ("@alice:elsewhere.test", PASSWORD),
        ("", PASSWORD),
        ("@:", PASSWORD),
    ] {
        server
            .post(LOGIN, password_login(name, password))
            .await
            .fails(403, "M_FORBIDDEN");
    }
    server.post(LOGIN, json!({})).await.fails(400, "M_BAD_JSON");
    server
        .post(LOGIN, json!({ "type": "m.login.smoke" }))
        .await
        .fails(400, "M_UNKNOWN");
    server
        .post(
            LOGIN,
            json!({ "type": "m.login.password", "password": "x" }),
        )
        .await
        .fails(400, "M_MISSING_PARAM");
    server
        .post(LOGIN, json!({ "type": 5 }))
        .await
        .fails(400, "M_BAD_JSON");
}

#[tokio::test]
async fn the_ways_to_sign_in_are_listed() {
    let server = TestServer::start().await;
    let flows = server.get(LOGIN).await.ok();
    assert_eq!(
        flows,
        json!({ "flows": [
            { "type": "m.login.password" },
            { "type": "m.login.token", "get_login_token": true },
        ] })
    );
}

#[tokio::test]
async fn tokens_are_asked_for_and_checked() {
    let server = TestServer::start().await;
    server.get(WHOAMI).await.fails(401, "M_MISSING_TOKEN");
    let mut nobody = server.user("alice").await;
    nobody.token = "nonsense".to_owned();
    let answer = nobody.get(WHOAMI).await;
    answer.fails(401, "M_UNKNOWN_TOKEN");
    assert_eq!(answer.json()["soft_logout"], false);
    let alice = server.login("alice", PASSWORD).await;
    server
        .get(&format!("{WHOAMI}?access_token={}", alice.token))
        .await
        .ok();
}

#[tokio::test]
async fn logging_out_ends_one_session_or_all() {
    let server = TestServer::start().await;
    let first = server.user("alice").await;
    let second = server.login("alice", PASSWORD).await;
    second
        .post("/_matrix/client/v3/logout", json!({}))
        .await
        .ok();
    second.get(WHOAMI).await.fails(401, "M_UNKNOWN_TOKEN");
    assert_eq!(device_ids(&first).await, [first.device.as_str()]);

    let third = server.login("alice", PASSWORD).await;
    third
        .request(Method::POST, "/_matrix/client/v3/logout/all", None)
        .await
        .ok();
    for user in [&first, &third] {
        user.get(WHOAMI).await.fails(401, "M_UNKNOWN_TOKEN");
    }
}

async fn device_ids(user: &User) -> Vec<String> {
    let devices = user.get("/_matrix/client/v3/devices").await.ok();
    let devices = devices["devices"].as_array().cloned().unwrap_or_default();
    let id = |device: &Value| device["device_id"].as_str().map(ToOwned::to_owned);
    devices.iter().filter_map(id).collect()
}

#[tokio::test]
async fn signing_in_on_a_known_device_ends_its_old_token() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let mut body = password_login("alice", PASSWORD);
    body["device_id"] = json!(alice.device);
    body["initial_device_display_name"] = json!("Phone");
    let again = server.signed_in(&server.post(LOGIN, body).await);
    assert_eq!(again.device, alice.device);
    alice.get(WHOAMI).await.fails(401, "M_UNKNOWN_TOKEN");
    assert_eq!(device_ids(&again).await.len(), 1);
}

#[tokio::test]
async fn devices_are_named_and_deleted_with_the_password() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let other = server.login("alice", PASSWORD).await;
    let path = format!("/_matrix/client/v3/devices/{}", other.device);
    alice
        .put(&path, json!({ "display_name": "Laptop" }))
        .await
        .ok();
    alice.put(&path, json!({})).await.ok();
    let device = alice.get(&path).await.ok();
    assert_eq!(device["display_name"], "Laptop");
    let unknown = "/_matrix/client/v3/devices/unknown";
    alice.get(unknown).await.fails(404, "M_NOT_FOUND");
    alice
        .put(unknown, json!({ "display_name": "x" }))
        .await
        .fails(404, "M_NOT_FOUND");

    let challenge = alice.delete(&path).await;
    assert_eq!(challenge.status, 401);
    assert_eq!(challenge.json()["params"], json!({}));
    let delete = async |user: &str, password: &str| {
        let body = json!({ "auth": password_auth(user, password) });
        alice.request(Method::DELETE, &path, Some(body)).await
    };
    refused_stage(&delete("alice", "wrong").await, "M_FORBIDDEN");
    server.user("bob").await;
    delete("bob", PASSWORD).await.fails(403, "M_FORBIDDEN");
    other.get(WHOAMI).await.ok();
    delete("alice", PASSWORD).await.ok();
    other.get(WHOAMI).await.fails(401, "M_UNKNOWN_TOKEN");
    alice.get(&path).await.fails(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn several_devices_are_deleted_at_once_also_in_the_old_form() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let others = [
        server.login("alice", PASSWORD).await,
        server.login("alice", PASSWORD).await,
    ];
    let devices: Vec<&str> = others.iter().map(|user| user.device.as_str()).collect();
    let auth = json!({ "type": "m.login.password", "user": "alice", "password": PASSWORD });
    alice
        .post(
            "/_matrix/client/v3/delete_devices",
            json!({ "devices": devices, "auth": auth }),
        )
        .await
        .ok();
    assert_eq!(device_ids(&alice).await, [alice.device.as_str()]);
}

#[tokio::test]
async fn a_session_for_one_operation_does_not_authorize_another() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let other = server.login("alice", PASSWORD).await;
    let body = json!({ "new_password": "another horse" });
    let challenge = alice
        .post("/_matrix/client/v3/account/password", body.clone())
        .await
        .json();
    let path = format!("/_matrix/client/v3/devices/{}", other.device);
    let mut auth = password_auth("alice", PASSWORD);
    auth["session"] = challenge["session"].clone();
    alice
        .request(Method::DELETE, &path, Some(json!({ "auth": auth })))
        .await
        .ok();
    let only_session = json!({ "session": challenge["session"] });
    let answer = alice
        .post(
            "/_matrix/client/v3/account/password",
            json!({ "new_password": "another horse", "auth": only_session }),
        )
        .await;
    assert_eq!(answer.status, 401);
}

#[tokio::test]
async fn a_new_password_replaces_the_old_one_and_ends_other_sessions() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let other = server.login("alice", PASSWORD).await;
    let change = async |old: &str, new: &str, logout: bool| {
        let body = json!({
            "auth": password_auth("alice", old),
            "new_password": new,
            "logout_devices": logout,
        });
        alice
            .post("/_matrix/client/v3/account/password", body)
            .await
    };
    refused_stage(&change("wrong", "next horse", true).await, "M_FORBIDDEN");
    change(PASSWORD, "next horse", true).await.ok();
    alice.get(WHOAMI).await.ok();
    other.get(WHOAMI).await.fails(401, "M_UNKNOWN_TOKEN");
    server
        .post(LOGIN, password_login("alice", PASSWORD))
        .await
        .fails(403, "M_FORBIDDEN");

    let kept = server.login("alice", "next horse").await;
    change("next horse", "last horse", false).await.ok();
    kept.get(WHOAMI).await.ok();
}

#[tokio::test]
async fn a_deactivated_account_is_gone_for_good() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let path = "/_matrix/client/v3/account/deactivate";
    assert_eq!(alice.post(path, json!({})).await.status, 401);
    let body = json!({ "auth": password_auth("alice", "wrong") });
    refused_stage(&alice.post(path, body).await, "M_FORBIDDEN");
    let body = json!({ "auth": password_auth("alice", PASSWORD), "erase": true });
    let answer = alice.post(path, body).await.ok();
    assert_eq!(answer["id_server_unbind_result"], "no-support");

    alice.get(WHOAMI).await.fails(401, "M_UNKNOWN_TOKEN");
    server
        .post(LOGIN, password_login("alice", PASSWORD))
        .await
        .fails(403, "M_USER_DEACTIVATED");
    let auth = json!({ "type": "m.login.dummy" });
    let body = json!({ "username": "alice", "password": PASSWORD, "auth": auth });
    server
        .post(REGISTER, body)
        .await
        .fails(400, "M_USER_IN_USE");
    server
        .get("/_matrix/client/v3/profile/@alice:hearth.test")
        .await
        .fails(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn refreshed_tokens_rotate_and_a_late_replay_ends_the_session() {
    let server = TestServer::start_with(&["accounts.refresh_grace=0s"]).await;
    server.user("alice").await;
    let mut body = password_login("alice", PASSWORD);
    body["refresh_token"] = json!(true);
    let answer = server.post(LOGIN, body).await;
    let issued = answer.ok();
    assert!(issued["expires_in_ms"].as_u64().is_some_and(|ms| ms > 0));
    let first = server.signed_in(&answer);
    let refresh = async |token: &Value| {
        let body = json!({ "refresh_token": token });
        server.post("/_matrix/client/v3/refresh", body).await
    };

    let pair = refresh(&issued["refresh_token"]).await.ok();
    let again = refresh(&issued["refresh_token"]).await.ok();
    assert_eq!(pair["access_token"], again["access_token"]);
    assert_eq!(pair["refresh_token"], again["refresh_token"]);
    first.get(WHOAMI).await.ok();

    let mut second = server.login("alice", PASSWORD).await;
    second.token = pair["access_token"].as_str().unwrap_or_default().to_owned();
    assert_eq!(
        second.get(WHOAMI).await.ok()["device_id"],
        issued["device_id"]
    );
    first.get(WHOAMI).await.fails(401, "M_UNKNOWN_TOKEN");
    let next = refresh(&pair["refresh_token"]).await.ok();
    assert_ne!(next["access_token"], pair["access_token"]);
    second.token = next["access_token"].as_str().unwrap_or_default().to_owned();
    second.get(WHOAMI).await.ok();

    refresh(&pair["refresh_token"])
        .await
        .fails(401, "M_UNKNOWN_TOKEN");
    second.get(WHOAMI).await.fails(401, "M_UNKNOWN_TOKEN");
    refresh(&json!("nonsense"))
        .await
        .fails(401, "M_UNKNOWN_TOKEN");
}

#[tokio::test]
async fn a_login_token_signs_in_once() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let path = "/_matrix/client/v1/login/get_token";
    assert_eq!(alice.post(path, json!({})).await.status, 401);
    let body = json!({ "auth": password_auth("alice", PASSWORD) });
    let token = alice.post(path, body).await.ok();
    assert_eq!(token["expires_in_ms"], 120_000);
    let body = json!({ "type": "m.login.token", "token": token["login_token"] });
    let answer = server.post(LOGIN, body.clone()).await;
    assert_eq!(answer.ok()["user_id"], alice.id);
    server.post(LOGIN, body).await.fails(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn contact_addresses_are_refused_honestly() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let listed = alice.get("/_matrix/client/v3/account/3pid").await.ok();
    assert_eq!(listed, json!({ "threepids": [] }));
    let body = json!({ "client_secret": "s", "email": "a@b.c", "send_attempt": 1 });
    for path in [
        "register/email/requestToken",
        "account/password/email/requestToken",
        "account/3pid/email/requestToken",
    ] {
        server
            .post(&format!("/_matrix/client/v3/{path}"), body.clone())
            .await
            .fails(403, "M_THREEPID_DENIED");
    }
}

#[tokio::test]
async fn an_openid_token_is_given_to_oneself_only() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let path = |user: &str| format!("/_matrix/client/v3/user/{user}/openid/request_token");
    let token = alice.post(&path(&alice.id), json!({})).await.ok();
    assert_eq!(token["token_type"], "Bearer");
    assert_eq!(token["matrix_server_name"], "hearth.test");
    alice
        .post(&path("@bob:hearth.test"), json!({}))
        .await
        .fails(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn a_locked_account_can_only_log_out_and_a_suspended_one_only_read() {
    use hearth::accounts::AccountChange;
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let accounts = server.running.server.accounts.clone();
    let number = {
        let snapshot = server.running.server.store.snapshot().expect("a snapshot");
        let id = ruma::UserId::parse(&alice.id).expect("a user ID");
        accounts
            .user_number(&snapshot, &id)
            .expect("a read")
            .expect("a number")
    };
    let change = async |change| accounts.change(number, change).await.expect("a change");

    change(AccountChange::Suspended(true)).await;
    alice.get(WHOAMI).await.ok();
    let name = format!("/_matrix/client/v3/profile/{}/displayname", alice.id);
    alice
        .put(&name, json!({ "displayname": "A" }))
        .await
        .fails(403, "M_USER_SUSPENDED");

    change(AccountChange::Locked(true)).await;
    let answer = alice.get(WHOAMI).await;
    answer.fails(401, "M_USER_LOCKED");
    assert_eq!(answer.json()["soft_logout"], true);
    server
        .post(LOGIN, password_login("alice", PASSWORD))
        .await
        .fails(401, "M_USER_LOCKED");
    change(AccountChange::Locked(false)).await;
    alice.get(WHOAMI).await.ok();
    change(AccountChange::Locked(true)).await;
    alice
        .post("/_matrix/client/v3/logout", json!({}))
        .await
        .ok();
}

#[tokio::test]
async fn capabilities_are_for_users_and_name_what_there_is() {
    let server = TestServer::start().await;
    let path = "/_matrix/client/v3/capabilities";
    server.get(path).await.fails(401, "M_MISSING_TOKEN");
    let alice = server.user("alice").await;
    let found = alice.get(path).await.ok();
    assert_eq!(found["capabilities"]["m.change_password"]["enabled"], true);
    assert_eq!(
        found["capabilities"]["m.room_versions"]["available"],
        json!({
            "1": "stable",
            "2": "stable",
            "3": "stable",
            "4": "stable",
            "5": "stable",
            "6": "stable",
            "7": "stable",
            "8": "stable",
            "9": "stable",
            "10": "stable",
            "11": "stable",
            "12": "stable",
        })
    );
    assert!(
        found["capabilities"]
            .get("uk.tcpip.msc4133.profile_fields")
            .is_none()
    );
}

#[tokio::test]
async fn administrators_lock_suspend_and_look_at_others() {
    let server = TestServer::start_with(&["registration.shared_secret=\"s3cret\""]).await;
    let admin = shared_secret(&server, "boss", true).await;
    let boss = server.signed_in(&admin);
    let alice = server.user("alice").await;
    let path = |what: &str, user: &str| format!("/_matrix/client/v1/admin/{what}/{user}");
    for (what, key, errcode) in [
        ("lock", "locked", "M_USER_LOCKED"),
        ("suspend", "suspended", "M_USER_SUSPENDED"),
    ] {
        let path = path(what, &alice.id);
        let answer = |value: bool| json!({ key: value });
        assert_eq!(boss.get(&path).await.ok(), answer(false));
        assert_eq!(boss.put(&path, answer(true)).await.ok(), answer(true));
        assert_eq!(boss.get(&path).await.ok(), answer(true));
        let name = format!("/_matrix/client/v3/profile/{}/displayname", alice.id);
        let refused = alice.put(&name, json!({ "displayname": "A" })).await;
        assert_eq!(refused.json()["errcode"], errcode);
        boss.put(&path, answer(false)).await.ok();
        alice.get(&path).await.fails(403, "M_FORBIDDEN");
    }
    boss.get(&path("lock", "@a:elsewhere.test"))
        .await
        .fails(400, "M_INVALID_PARAM");
    boss.get(&path("lock", "@nobody:hearth.test"))
        .await
        .fails(404, "M_NOT_FOUND");
    boss.put(&path("lock", &boss.id), json!({ "locked": true }))
        .await
        .fails(403, "M_FORBIDDEN");

    let whois = format!("/_matrix/client/v3/admin/whois/{}", alice.id);
    let info = boss.get(&whois).await.ok();
    assert_eq!(info["user_id"], alice.id);
    assert!(info["devices"][&alice.device]["sessions"].is_array());
    alice.get(&whois).await.ok();
    server
        .user("bob")
        .await
        .get(&whois)
        .await
        .fails(403, "M_FORBIDDEN");
}

const SHARED_SECRET: &str = "/_synapse/admin/v1/register";

async fn shared_secret(server: &TestServer, name: &str, admin: bool) -> Answer {
    let nonce = server.get(SHARED_SECRET).await.ok()["nonce"].clone();
    let nonce = nonce.as_str().unwrap_or_default();
    let body = json!({
        "nonce": nonce,
        "username": name,
        "password": PASSWORD,
        "admin": admin,
        "mac": mac("s3cret", nonce, name, admin),
    });
    server.post(SHARED_SECRET, body).await
}

fn mac(secret: &str, nonce: &str, name: &str, admin: bool) -> String {
    use hmac::{Hmac, KeyInit, Mac};
    let role = if admin { "admin" } else { "notadmin" };
    let text = [nonce, name, PASSWORD, role].join("\0");
    let mut mac = Hmac::<sha1::Sha1>::new_from_slice(secret.as_bytes()).expect("a key");
    mac.update(text.as_bytes());
    let bytes = mac.finalize().into_bytes();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn who_has_the_shared_secret_makes_accounts() {
    let server = TestServer::start_with(&["registration.shared_secret=\"s3cret\""]).await;
    let answer = shared_secret(&server, "Robot", false).await;
    assert_eq!(answer.ok()["user_id"], "@robot:hearth.test");
    server.signed_in(&answer).get(WHOAMI).await.ok();
    shared_secret(&server, "us,er", false)
        .await
        .fails(400, "M_INVALID_USERNAME");
    shared_secret(&server, "robot", false)
        .await
        .fails(400, "M_USER_IN_USE");

    let nonce = server.get(SHARED_SECRET).await.ok()["nonce"].clone();
    let text = nonce.as_str().unwrap_or_default();
    let body =
        |mac: String| json!({ "nonce": nonce, "username": "x", "password": PASSWORD, "mac": mac });
    server
        .post(SHARED_SECRET, body(mac("guess", text, "x", false)))
        .await
        .fails(403, "M_FORBIDDEN");
    server
        .post(SHARED_SECRET, body(mac("s3cret", text, "x", false)))
        .await
        .fails(400, "M_INVALID_PARAM");

    let closed = TestServer::start().await;
    closed
        .get(SHARED_SECRET)
        .await
        .fails(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn of_several_who_want_a_name_at_once_one_gets_it() {
    let server = TestServer::start().await;
    let auth = json!({ "type": "m.login.dummy" });
    let body = json!({ "username": "alice", "password": PASSWORD, "auth": auth });
    let attempts = (0..8).map(|_| server.post(REGISTER, body.clone()));
    let answers = futures_util::future::join_all(attempts).await;
    let given = answers.iter().filter(|answer| answer.status == 200).count();
    assert_eq!(given, 1);
    for answer in answers.iter().filter(|answer| answer.status != 200) {
        answer.fails(400, "M_USER_IN_USE");
    }
}

#[tokio::test]
async fn changes_at_once_do_not_undo_each_other() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let path = |field: usize| {
        let user = &alice.id;
        format!("/_matrix/client/v3/profile/{user}/org.example.f{field}")
    };
    let changes = (0..16).map(|field| {
        let name = format!("org.example.f{field}");
        let (alice, path) = (&alice, path(field));
        async move { alice.put(&path, json!({ name.as_str(): field })).await }
    });
    for answer in futures_util::future::join_all(changes).await {
        answer.ok();
    }
    let profile = server
        .get(&format!("/_matrix/client/v3/profile/{}", alice.id))
        .await
        .ok();
    assert_eq!(profile.as_object().map(serde_json::Map::len), Some(16));
}

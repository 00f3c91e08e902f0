//! What every request gets, whatever it asks for: statuses, error codes, headers.

use reqwest::Method;

use crate::harness::TestServer;

#[tokio::test]
async fn a_path_that_nobody_serves_is_404_unrecognized() {
    let server = TestServer::start().await;
    for path in [
        "/",
        "/_matrix/client/v3/nonsense",
        "/_matrix/client/v99/versions",
        "/_matrix/client/versions/more",
    ] {
        server.get(path).await.fails(404, "M_UNRECOGNIZED");
    }
}

#[tokio::test]
async fn a_known_path_with_another_method_is_405_unrecognized() {
    let server = TestServer::start().await;
    for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH] {
        server
            .request(method, "/_matrix/client/versions", None)
            .await
            .fails(405, "M_UNRECOGNIZED");
    }
}

#[tokio::test]
async fn a_preflight_is_answered_on_any_path() {
    let server = TestServer::start().await;
    for path in ["/_matrix/client/versions", "/_matrix/client/v3/nonsense"] {
        let answer = server.request(Method::OPTIONS, path, None).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.headers["access-control-allow-origin"], "*");
        assert_eq!(
            answer.headers["access-control-allow-methods"],
            "GET, POST, PUT, DELETE, OPTIONS"
        );
        assert_eq!(
            answer.headers["access-control-allow-headers"],
            "X-Requested-With, Content-Type, Authorization"
        );
    }
}

#[tokio::test]
async fn head_is_get_without_a_body() {
    let server = TestServer::start().await;
    let answer = server
        .request(Method::HEAD, "/_matrix/client/versions", None)
        .await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.text, "");
    assert_ne!(answer.headers["content-length"], "0");
}

#[tokio::test]
async fn each_answer_has_a_request_id_of_its_own() {
    let server = TestServer::start().await;
    let first = server.get("/_matrix/client/versions").await;
    let second = server.get("/nonsense").await;
    assert_eq!(first.headers["x-request-id"].len(), 16);
    assert_ne!(
        first.headers["x-request-id"],
        second.headers["x-request-id"]
    );
}

#[tokio::test]
async fn versions_and_well_known_files_are_served() {
    let server = TestServer::start_with(&[
        "server.base_url=https://matrix.hearth.test/",
        "well_known.client_extra={ \"chat.example\" = { a = 1 } }",
        "well_known.server=matrix.hearth.test:443",
    ])
    .await;
    let versions = server.get("/_matrix/client/versions").await.ok();
    assert!(
        versions["versions"]
            .as_array()
            .expect("a list")
            .contains(&"v1.11".into())
    );
    let client = server.get("/.well-known/matrix/client").await;
    assert_eq!(client.headers["access-control-allow-origin"], "*");
    assert_eq!(
        client.ok()["m.homeserver"]["base_url"],
        "https://matrix.hearth.test"
    );
    assert_eq!(client.ok()["chat.example"]["a"], 1);
    assert_eq!(
        server.get("/.well-known/matrix/server").await.ok()["m.server"],
        "matrix.hearth.test:443"
    );
    server
        .get("/.well-known/matrix/support")
        .await
        .fails(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn health_and_metrics_are_served() {
    let server = TestServer::start().await;
    assert_eq!(server.get("/health/live").await.ok()["status"], "ok");
    assert_eq!(server.get("/health/ready").await.ok()["status"], "ok");
    let metrics = server.get("/metrics").await;
    assert!(metrics.text.contains(
        "hearth_http_requests_total{route=\"/health/ready\",method=\"GET\",code=\"200\"} 1"
    ));
    assert!(metrics.text.trim_end().ends_with("# EOF"));
}

#[tokio::test]
async fn a_body_that_cannot_be_read_is_told_apart_from_one_that_says_nonsense() {
    let server = TestServer::start().await;
    let post = |path: &'static str, body: &'static [u8]| {
        let request = server
            .http
            .post(format!("{}{path}", server.base))
            .body(body);
        server.send(request)
    };
    let login = "/_matrix/client/v3/login";
    for broken in [
        "{",
        "{\"type\": 5",
        "nonsense",
        "{\"a\":1}}",
        "{\"type\":\"m.login.password\",}",
    ] {
        post(login, broken.as_bytes())
            .await
            .fails(400, "M_NOT_JSON");
    }
    post(login, b"{\"nobody reads\": \"a\x81\"}")
        .await
        .fails(400, "M_NOT_JSON");
    post(login, b"{\"type\":\"\xff\"}")
        .await
        .fails(400, "M_NOT_JSON");
    for nonsense in ["[]", "5", "null", "\"text\"", "{\"type\": 5}", "{}"] {
        post(login, nonsense.as_bytes())
            .await
            .fails(400, "M_BAD_JSON");
    }
}

#[tokio::test]
async fn a_path_or_query_that_says_nonsense_is_an_invalid_parameter() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    for path in [
        "/_matrix/client/v3/profile/nobody",
        "/_matrix/client/v3/profile/%ff",
        "/_matrix/client/v3/user/nobody/filter/1",
    ] {
        alice.get(path).await.fails(400, "M_INVALID_PARAM");
    }
    server
        .get("/_matrix/client/v3/register/available")
        .await
        .fails(400, "M_MISSING_PARAM");
}

#[tokio::test]
async fn an_access_token_comes_in_the_header_or_in_the_query() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let whoami = "/_matrix/client/v3/account/whoami";
    assert_eq!(alice.get(whoami).await.ok()["user_id"], alice.id);
    let in_query = server
        .get(&format!("{whoami}?access_token={}", alice.token))
        .await;
    assert_eq!(in_query.ok()["user_id"], alice.id);
    server.get(whoami).await.fails(401, "M_MISSING_TOKEN");
    let unknown = server.get(&format!("{whoami}?access_token=nonsense")).await;
    unknown.fails(401, "M_UNKNOWN_TOKEN");
    assert_eq!(unknown.json()["soft_logout"], false);
    let basic = server
        .http
        .get(format!("{}{whoami}", server.base))
        .basic_auth("alice", Some("secret"));
    server.send(basic).await.fails(401, "M_MISSING_TOKEN");
}

#[tokio::test]
async fn old_clients_find_everything_under_r0() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    assert_eq!(
        alice.get("/_matrix/client/r0/account/whoami").await.ok()["user_id"],
        alice.id
    );
    assert_eq!(alice.get("/_matrix/client/r0/login").await.status, 200);
}

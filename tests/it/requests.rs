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
async fn a_body_that_is_no_json_object_is_told_from_one_with_wrong_content() {
    let server = TestServer::start().await;
    let bodies: [(&[u8], &str); 5] = [
        (b"{\"username\":", "M_NOT_JSON"),
        (b"{\"nobody reads\": \"a\x81\"}", "M_NOT_JSON"),
        (b"NaN", "M_NOT_JSON"),
        (b"\"text\"", "M_BAD_JSON"),
        (b"{\"username\": 7}", "M_BAD_JSON"),
    ];
    for (body, code) in bodies {
        let url = format!("{}/_matrix/client/v3/register", server.base);
        let request = server.http.post(url).body(body.to_vec());
        server.send(request).await.fails(400, code);
    }
}

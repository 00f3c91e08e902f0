//! The page on which the first administrator is made.

use crate::harness::TestServer;

#[tokio::test]
async fn the_first_administrator_is_made_on_the_setup_page() {
    let server = TestServer::start().await;
    let token = server.running.server.setup.open().to_owned();

    let page = server.get(&format!("/setup?token={token}")).await;
    assert_eq!(page.status, 200);
    assert!(page.text.contains("<form method=\"post\""), "{}", page.text);
    assert!(
        page.headers["content-security-policy"]
            .to_str()
            .expect("text")
            .starts_with("default-src 'none'")
    );

    let wrong = submit(&server, &token, "no+name!", "correct horse battery staple").await;
    assert_eq!(wrong.status, 400);
    assert!(wrong.text.contains("role=\"alert\""), "{}", wrong.text);

    let done = submit(&server, &token, "Root", "correct horse battery staple").await;
    assert_eq!(done.status, 200, "{}", done.text);
    assert!(done.text.contains("@root:hearth.test"), "{}", done.text);

    let again = submit(&server, &token, "other", "correct horse battery staple").await;
    assert_eq!(again.status, 403);
}

#[tokio::test]
async fn the_setup_page_is_closed_to_who_has_no_token() {
    let server = TestServer::start().await;
    assert_eq!(
        server.get("/setup").await.status,
        403,
        "it was never opened"
    );
    let token = server.running.server.setup.open().to_owned();
    for _ in 0..10 {
        assert_eq!(server.get("/setup?token=wrong").await.status, 403);
    }
    assert_eq!(
        server.get(&format!("/setup?token={token}")).await.status,
        403,
        "ten wrong tokens close it"
    );
}

async fn submit(
    server: &TestServer,
    token: &str,
    name: &str,
    password: &str,
) -> crate::harness::Answer {
    let form = format!(
        "token={token}&name={name}&password={}",
        password.replace(' ', "+")
    );
    let request = server
        .http
        .post(format!("{}/setup", server.base))
        .body(form);
    server.send(request).await
}

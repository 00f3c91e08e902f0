//! Connections: TLS, Unix sockets, and what happens to them at the end.

use std::sync::Arc;

use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::TlsConnector;

use crate::harness::TestServer;

const CERTIFICATE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/tls/first.pem");
const KEY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/tls/first.key.pem");

/// The answer to a request on a connection of its own.
async fn get(mut stream: impl AsyncRead + AsyncWrite + Unpin, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: hearth.test\r\nConnection: close\r\n\r\n");
    stream
        .write_all(request.as_bytes())
        .await
        .expect("it is sent");
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .await
        .expect("it is answered");
    String::from_utf8(answer).expect("text")
}

fn connector() -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(CERTIFICATE).expect("a certificate"))
        .expect("a good one");
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

#[tokio::test]
async fn a_listener_speaks_tls_with_the_certificate_of_the_files() {
    let server = TestServer::start_with(&[
        "listeners=[{ bind = \"127.0.0.1:0\", tls = true, resources = [\"client\"] }]",
        "tls.mode=files",
        &format!("tls.cert={CERTIFICATE}"),
        &format!("tls.key={KEY}"),
    ])
    .await;
    let address = server.running.addresses.first().expect("a listener");
    let stream = TcpStream::connect(address).await.expect("a connection");
    let name = ServerName::try_from("hearth.test").expect("a name");
    let stream = connector()
        .connect(name, stream)
        .await
        .expect("a handshake");
    let answer = get(stream, "/_matrix/client/versions").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    let plain = TcpStream::connect(address).await.expect("a connection");
    let (mut read, mut write) = plain.into_split();
    write
        .write_all(b"GET / HTTP/1.1\r\n\r\n")
        .await
        .expect("it is sent");
    let mut answer = Vec::new();
    // The other end may close or reset; it does not answer in plain text.
    let _ended = read.read_to_end(&mut answer).await.is_ok();
    assert!(!answer.starts_with(b"HTTP"));
}

#[tokio::test]
async fn a_listener_may_be_a_unix_socket() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("hearth.sock");
    std::fs::write(&socket, "left over by a crash").expect("a file");
    let listener = format!(
        "listeners=[{{ bind = \"127.0.0.1:0\", resources = [\"health\"] }}, {{ bind = \"unix:{}\", resources = [\"client\"] }}]",
        socket.display()
    );
    let server = TestServer::start_with(&[&listener]).await;
    let stream = UnixStream::connect(&socket).await.expect("a connection");
    let answer = get(stream, "/_matrix/client/versions").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    server
        .get("/_matrix/client/versions")
        .await
        .fails(404, "M_UNRECOGNIZED");
}

#[tokio::test]
async fn a_server_that_stops_ends_idle_connections_and_takes_no_more() {
    let server = TestServer::start().await;
    server.get("/_matrix/client/versions").await.ok();
    let address = *server.running.addresses.first().expect("a listener");
    let mut idle = TcpStream::connect(address).await.expect("a connection");
    server.running.stop().await;
    let mut answer = Vec::new();
    // Closed or reset, but ended.
    let _ended = idle.read_to_end(&mut answer).await.is_ok();
    assert!(
        TcpStream::connect(address).await.is_err(),
        "nobody listens any more"
    );
}

#[tokio::test]
async fn a_sync_that_waits_is_answered_when_the_server_stops() {
    let server = TestServer::start().await;
    let alice = server.user("alice").await;
    let first = alice.get("/_matrix/client/v3/sync").await.ok();
    let mut since = first["next_batch"].as_str().expect("a token").to_owned();
    let waiting = tokio::spawn(async move {
        loop {
            let path = format!("/_matrix/client/v3/sync?timeout=60000&since={since}");
            let answer = alice.get(&path).await.ok();
            since = answer["next_batch"].as_str().expect("a token").to_owned();
            // That the device is new may be told only now; that is not the answer meant.
            if answer["device_lists"]["changed"] == json!([]) {
                return;
            }
        }
    });
    let metrics = |server: &TestServer| server.running.server.metrics.encode().expect("metrics");
    while !metrics(&server).contains("hearth_http_requests_running 1") {
        assert!(!waiting.is_finished(), "the sync waits");
        tokio::task::yield_now().await;
    }
    server.running.stop().await;
    waiting.await.expect("it is answered");
}

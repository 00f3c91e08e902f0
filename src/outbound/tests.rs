//! Hostile and broken servers, address rules, reuse: with real connections on this machine.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{Config, Endpoint, Error, Fixed, Limits, Names, Outbound, Target};
use crate::{clock::Clock, tasks::Tasks, telemetry::Metrics};

const LIMITS: Limits = Limits {
    timeout: Duration::from_secs(10),
    max_bytes: 64 * 1024,
};

/// A certificate authority of a test, and its file.
pub(crate) struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    folder: tempfile::TempDir,
}

/// Something that answers on this machine.
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    /// Connections that were made to it.
    pub(crate) connections: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Answer = http::Response<Full<Bytes>>;

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("ca.pem"), certificate.pem()).expect("a file");
        Self {
            issuer: rcgen::Issuer::new(params, key),
            folder,
        }
    }

    fn acceptor(&self, names: &[&str], protocols: &[&str]) -> TlsAcceptor {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = rcgen::CertificateParams::new(names)
            .and_then(|params| params.signed_by(&key, &self.issuer))
            .expect("a certificate");
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .expect("a certificate and its key");
        config.alpn_protocols = protocols
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        TlsAcceptor::from(Arc::new(config))
    }

    /// A server with a certificate for `names` that does `script` with each connection.
    pub(crate) async fn scripted<S, F>(&self, names: &[&str], protocols: &[&str], script: S) -> Peer
    where
        S: Fn(TlsStream<TcpStream>) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let acceptor = self.acceptor(names, protocols);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        #[expect(
            clippy::disallowed_methods,
            reason = "a test has no `Tasks` for others"
        )]
        let task = tokio::spawn(async move {
            let mut running = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                if let Ok(stream) = acceptor.accept(stream).await {
                    running.spawn(script(stream));
                }
            }
        });
        Peer {
            address,
            connections,
            task,
        }
    }

    /// A server with a certificate for `names` that answers as `answer` says.
    pub(crate) async fn answering<A>(&self, names: &[&str], protocols: &[&str], answer: A) -> Peer
    where
        A: Fn(http::Request<Incoming>) -> Answer + Send + Sync + 'static,
    {
        let answer = Arc::new(answer);
        self.scripted(names, protocols, move |stream| {
            let answer = Arc::clone(&answer);
            async move {
                let service = service_fn(move |request| {
                    let answer = Arc::clone(&answer);
                    async move { Ok::<_, std::convert::Infallible>(answer(request)) }
                });
                let _ended = auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await
                    .is_ok();
            }
        })
        .await
    }

    /// What connects to this machine, and trusts this authority. `places` are `HOST:PORT`.
    pub(crate) fn outbound(&self, places: &[(&str, SocketAddr)]) -> Outbound {
        let names = Fixed {
            places: places
                .iter()
                .map(|(name, address)| ((*name).to_owned(), vec![*address]))
                .collect(),
            services: BTreeMap::new(),
        };
        self.outbound_with(names, &["127.0.0.0/8"])
    }

    pub(crate) fn outbound_with(&self, names: Fixed, allowed: &[&str]) -> Outbound {
        let config = Config {
            allowed_ranges: allowed
                .iter()
                .map(|range| range.parse().expect("a range"))
                .collect(),
            ca_files: vec![self.folder.path().join("ca.pem")],
            ..Config::default()
        };
        let metrics = Metrics::new();
        let tasks = Tasks::new(&metrics);
        let names = Names::Fixed(Arc::new(names));
        Outbound::new(config, Clock::system(), tasks, names, &metrics).expect("it can be made")
    }
}

fn target(peer: &Peer) -> Target {
    Target {
        endpoints: vec![Endpoint::single("127.0.0.1", peer.address.port())],
        certificate_name: "example.org".into(),
        authority: "example.org:8448".into(),
    }
}

fn get(path: &str) -> http::Request<Bytes> {
    http::Request::get(path)
        .body(Bytes::new())
        .expect("a request")
}

fn says(text: impl Into<Bytes>) -> Answer {
    http::Response::new(Full::new(text.into()))
}

async fn ask(outbound: &Outbound, target: &Target, limits: Limits) -> Result<Bytes, Error> {
    let answer = outbound.request(target, get("/path?query"), limits).await?;
    Ok(answer.into_body())
}

/// What the other side was asked: protocol, host, path.
fn seen(request: &http::Request<Incoming>) -> String {
    let host = request
        .headers()
        .get("host")
        .and_then(|value| value.to_str().ok())
        .or(request.uri().authority().map(|name| name.as_str()));
    let path = request.uri().path_and_query().map(|path| path.as_str());
    format!("{:?} {host:?} {path:?}", request.version())
}

#[tokio::test]
async fn the_host_is_the_authority_and_not_the_machine() {
    let authority = Authority::new();
    let outbound = authority.outbound(&[]);
    for (protocol, version) in [("h2", "HTTP/2.0"), ("http/1.1", "HTTP/1.1")] {
        let peer = authority
            .answering(&["example.org"], &[protocol], |request| {
                says(seen(&request))
            })
            .await;
        let answer = ask(&outbound, &target(&peer), LIMITS)
            .await
            .expect("an answer");
        let expected = format!(r#"{version} Some("example.org:8448") Some("/path?query")"#);
        assert_eq!(answer, expected);
    }
}

#[tokio::test]
async fn a_connection_serves_many_requests() {
    let authority = Authority::new();
    let outbound = authority.outbound(&[]);
    for protocol in ["h2", "http/1.1"] {
        let peer = authority
            .answering(&["example.org"], &[protocol], |_request| says("hello"))
            .await;
        for _ in 0..5 {
            let answer = ask(&outbound, &target(&peer), LIMITS)
                .await
                .expect("an answer");
            assert_eq!(answer, "hello");
        }
        assert_eq!(peer.connections.load(Ordering::SeqCst), 1, "{protocol}");
    }
}

#[tokio::test]
async fn a_connection_that_the_other_side_closed_is_replaced() {
    let authority = Authority::new();
    let outbound = authority.outbound(&[]);
    let peer = authority
        .scripted(&["example.org"], &["http/1.1"], |mut stream| async move {
            let mut head = [0; 4096];
            let _read = stream.read(&mut head).await;
            // It says that it would go on, and does not.
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";
            let _written = stream.write_all(answer).await;
            let _closed = stream.shutdown().await;
        })
        .await;
    for _ in 0..4 {
        let answer = ask(&outbound, &target(&peer), LIMITS)
            .await
            .expect("an answer");
        assert_eq!(answer, "hi");
    }
    assert_eq!(peer.connections.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn a_certificate_for_another_name_or_of_another_authority_is_refused() {
    let authority = Authority::new();
    let outbound = authority.outbound(&[]);
    let other_name = authority
        .answering(&["other.example"], &["h2"], |_request| says("hello"))
        .await;
    let failed = ask(&outbound, &target(&other_name), LIMITS).await;
    assert!(matches!(failed, Err(Error::Tls { .. })), "{failed:?}");
    let other_authority = Authority::new()
        .answering(&["example.org"], &["h2"], |_request| says("hello"))
        .await;
    let failed = ask(&outbound, &target(&other_authority), LIMITS).await;
    assert!(matches!(failed, Err(Error::Tls { .. })), "{failed:?}");
}

#[tokio::test]
async fn a_certificate_for_an_address_is_accepted() {
    let authority = Authority::new();
    let outbound = authority.outbound(&[]);
    let peer = authority
        .answering(&["127.0.0.1"], &["h2"], |request| says(seen(&request)))
        .await;
    let target = Target::https("127.0.0.1", peer.address.port());
    let answer = ask(&outbound, &target, LIMITS).await.expect("an answer");
    let host = format!("127.0.0.1:{}", peer.address.port());
    assert_eq!(
        answer,
        format!(r#"HTTP/2.0 Some("{host}") Some("/path?query")"#)
    );
}

#[tokio::test]
async fn a_name_cannot_lead_to_a_denied_address() {
    let authority = Authority::new();
    let peer = authority
        .answering(&["example.org"], &["h2"], |_request| says("hello"))
        .await;
    let names = Fixed {
        places: BTreeMap::from([("example.org:443".to_owned(), vec![peer.address])]),
        services: BTreeMap::new(),
    };
    let outbound = authority.outbound_with(names, &[]);
    for target in [Target::https("example.org", 443), target(&peer)] {
        let failed = ask(&outbound, &target, LIMITS).await;
        assert!(matches!(failed, Err(Error::DeniedAddress(_))), "{failed:?}");
    }
    assert_eq!(peer.connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn the_next_endpoint_is_tried_when_one_is_away() {
    let authority = Authority::new();
    let outbound = authority.outbound(&[]);
    let peer = authority
        .answering(&["example.org"], &["h2"], |_request| says("hello"))
        .await;
    let mut target = target(&peer);
    // Nothing listens on port 1.
    target.endpoints.insert(0, Endpoint::single("127.0.0.1", 1));
    for endpoint in target.endpoints.iter_mut().skip(1) {
        endpoint.priority = 1;
    }
    let answer = ask(&outbound, &target, LIMITS).await.expect("an answer");
    assert_eq!(answer, "hello");
}

#[tokio::test]
async fn an_answer_without_end_is_cut_off() {
    let authority = Authority::new();
    let outbound = authority.outbound(&[]);
    let peer = authority
        .scripted(&["example.org"], &["http/1.1"], |mut stream| async move {
            let mut head = [0; 4096];
            let _read = stream.read(&mut head).await;
            let _written = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
            while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
        })
        .await;
    let failed = ask(&outbound, &target(&peer), LIMITS).await;
    assert!(matches!(failed, Err(Error::TooLarge(_))), "{failed:?}");
}

#[tokio::test]
async fn an_answer_that_announces_its_size_is_not_read() {
    let authority = Authority::new();
    let outbound = authority.outbound(&[]);
    let peer = authority
        .scripted(&["example.org"], &["http/1.1"], |mut stream| async move {
            let mut head = [0; 4096];
            let _read = stream.read(&mut head).await;
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n";
            let _written = stream.write_all(answer).await;
            let _waited = stream.read(&mut head).await;
        })
        .await;
    let failed = ask(&outbound, &target(&peer), LIMITS).await;
    assert!(matches!(failed, Err(Error::TooLarge(_))), "{failed:?}");
}

#[tokio::test]
async fn a_server_that_never_answers_or_drips_costs_no_more_than_its_time() {
    let authority = Authority::new();
    let outbound = authority.outbound(&[]);
    let silent = authority
        .scripted(&["example.org"], &["http/1.1"], |mut stream| async move {
            let mut head = [0; 4096];
            while stream.read(&mut head).await.is_ok_and(|bytes| bytes > 0) {}
        })
        .await;
    let dripping = authority
        .scripted(&["example.org"], &["http/1.1"], |mut stream| async move {
            let _written = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
            while stream.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    let limits = Limits {
        timeout: Duration::from_millis(300),
        ..LIMITS
    };
    for peer in [silent, dripping] {
        let failed = ask(&outbound, &target(&peer), limits).await;
        assert!(matches!(failed, Err(Error::TimedOut(_))), "{failed:?}");
    }
}

#[tokio::test]
async fn what_is_no_http_is_an_error() {
    let authority = Authority::new();
    let outbound = authority.outbound(&[]);
    for answer in [
        &b"SSH-2.0-OpenSSH_9.6\r\n"[..],
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort",
        b"",
    ] {
        let peer = authority
            .scripted(
                &["example.org"],
                &["http/1.1"],
                move |mut stream| async move {
                    let mut head = [0; 4096];
                    let _read = stream.read(&mut head).await;
                    let _written = stream.write_all(answer).await;
                    let _closed = stream.shutdown().await;
                },
            )
            .await;
        let failed = ask(&outbound, &target(&peer), LIMITS).await;
        assert!(matches!(failed, Err(Error::Http(_))), "{failed:?}");
        assert_eq!(peer.connections.load(Ordering::SeqCst), 1, "asked once");
    }
}

#[tokio::test]
async fn redirects_are_followed_but_not_in_circles() {
    let authority = Authority::new();
    let moved = |place: &str| {
        let mut answer = says("");
        *answer.status_mut() = http::StatusCode::FOUND;
        let place = place.parse().expect("a header");
        answer.headers_mut().insert("location", place);
        answer
    };
    let peer = authority
        .answering(
            &["example.org", "other.example"],
            &["h2"],
            move |request| match request.uri().path() {
                "/four" => moved("/three"),
                "/three" => moved("https://other.example/two"),
                "/two" => moved("one"),
                "/one" => moved("//example.org/end"),
                "/end" => says("the end"),
                "/plain" => moved("http://example.org/end"),
                "/private" => moved("https://10.0.0.1/"),
                _ => moved("/circle"),
            },
        )
        .await;
    let places = [
        ("example.org:443", peer.address),
        ("other.example:443", peer.address),
    ];
    let outbound = authority.outbound(&places);
    let fetch = |path: &str| {
        let url = format!("https://example.org{path}").parse().expect("a URL");
        let outbound = outbound.clone();
        async move { outbound.get(&url, LIMITS).await }
    };
    let answer = fetch("/four").await.expect("an answer");
    assert_eq!(answer.into_body(), "the end");
    let failed = fetch("/circle").await;
    assert!(matches!(failed, Err(Error::TooManyRedirects)), "{failed:?}");
    let failed = fetch("/plain").await;
    assert!(matches!(failed, Err(Error::BadUrl(_))), "{failed:?}");
    let failed = fetch("/private").await;
    assert!(matches!(failed, Err(Error::DeniedAddress(_))), "{failed:?}");
}

#[tokio::test]
async fn requests_at_the_same_time_share_a_connection_that_can_be_shared() {
    let authority = Authority::new();
    let outbound = authority.outbound(&[]);
    let peer = authority
        .answering(&["example.org"], &["h2"], |_request| says("hello"))
        .await;
    let target = target(&peer);
    let all = (0..100).map(|_| ask(&outbound, &target, LIMITS));
    for answer in futures_util::future::join_all(all).await {
        assert_eq!(answer.expect("an answer"), "hello");
    }
    assert_eq!(peer.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn no_more_than_so_many_requests_are_under_way_to_one_target() {
    let authority = Authority::new();
    let outbound = authority.outbound(&[]);
    let peer = authority
        .answering(&["example.org"], &["http/1.1"], |_request| says("hello"))
        .await;
    let target = target(&peer);
    let all = (0..100).map(|_| ask(&outbound, &target, LIMITS));
    for answer in futures_util::future::join_all(all).await {
        assert_eq!(answer.expect("an answer"), "hello");
    }
    let made = peer.connections.load(Ordering::SeqCst);
    assert!(made <= 32, "{made} connections");
}

//! A server of another make: it signs what it sends, and answers what a test tells it to.
//!
//! Its keys are served over TLS at its address. Everything else is 404 unless [`Peer::answer`] says otherwise.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use hearth::events::{NewPdu, Signer, Verified, version};
use http_body_util::{BodyExt as _, Full};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use reqwest::Method;
use ruma::{
    CanonicalJsonObject, OwnedServerName, RoomVersionId, ServerName,
    canonical_json::CanonicalJsonValue,
};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use serde_json::{Value, json};
use tokio_rustls::TlsAcceptor;

use crate::{
    harness::{Answer, TestServer, federated},
    room_words::escaped,
};

/// What a peer answers to a request: status and body.
pub type Reaction = Box<dyn Fn(&http::Request<Bytes>) -> (u16, Value) + Send + Sync>;

/// A server that a test plays.
pub struct Peer {
    pub name: OwnedServerName,
    pub signer: Arc<Signer>,
    shared: Arc<Shared>,
    http: reqwest::Client,
}

struct Shared {
    /// By method and path, without the query; a path that ends in `*` stands for all that start so.
    reactions: Mutex<BTreeMap<(String, String), Reaction>>,
    /// Methods and targets of all requests.
    seen: Mutex<Vec<String>>,
    answered_bytes: AtomicUsize,
}

impl Peer {
    /// Starts to listen.
    pub async fn start() -> Self {
        let address = federated::free_address();
        Self::start_behind(address, address).await
    }

    /// Starts to listen at `behind`; `address`, which is its name, is led there by somebody else.
    pub async fn start_behind(address: SocketAddr, behind: SocketAddr) -> Self {
        let name = ServerName::parse(address.to_string()).expect("an address is a name");
        let seed = *blake3::hash(name.as_bytes()).as_bytes();
        let signer = Arc::new(Signer::generate(name.clone(), &seed));
        let shared = Arc::new(Shared {
            reactions: Mutex::default(),
            seen: Mutex::default(),
            answered_bytes: AtomicUsize::new(0),
        });
        let peer = Self {
            name,
            signer,
            shared,
            http: reqwest::Client::builder()
                .no_proxy()
                .build()
                .expect("a client"),
        };
        let keys = peer.keys(u64::from(u32::MAX) * 1_000);
        peer.answer("GET", "/_matrix/key/v2/server", move |_| {
            (200, keys.clone())
        });
        listen(address, behind, Arc::clone(&peer.shared)).await;
        peer
    }

    /// What it says of its keys, valid until then.
    pub fn keys(&self, valid_until_ms: u64) -> Value {
        self.sign(json!({
            "server_name": self.name,
            "verify_keys": { self.signer.key_id().as_str(): { "key": self.signer.verify_key() } },
            "old_verify_keys": {},
            "valid_until_ts": valid_until_ms,
        }))
    }

    /// `value` with its signature.
    pub fn sign(&self, value: Value) -> Value {
        let mut object = object(value);
        self.signer.sign_json(&mut object).expect("it is signed");
        serde_json::to_value(object).expect("JSON")
    }

    /// Answers requests of a method and a path by `reaction` from now on.
    pub fn answer(
        &self,
        method: &str,
        path: &str,
        reaction: impl Fn(&http::Request<Bytes>) -> (u16, Value) + Send + Sync + 'static,
    ) {
        let key = (method.to_owned(), path.to_owned());
        let mut reactions = self.shared.reactions.lock().expect("a lock");
        reactions.insert(key, Box::new(reaction));
    }

    /// The requests that came, as `GET /path?query`.
    pub fn seen(&self) -> Vec<String> {
        self.shared.seen.lock().expect("a lock").clone()
    }

    /// The bytes of all answers.
    pub fn answered_bytes(&self) -> usize {
        self.shared.answered_bytes.load(Ordering::Relaxed)
    }

    /// Sends a signed request to a server.
    pub async fn request(
        &self,
        to: &TestServer,
        method: Method,
        target: &str,
        body: Option<Value>,
    ) -> Answer {
        let header = self.authorization(to.name(), method.as_str(), target, body.as_ref());
        let mut request = self
            .http
            .request(method, format!("{}{target}", to.base))
            .header("authorization", header);
        if let Some(body) = body {
            request = request.json(&body);
        }
        to.send(request).await
    }

    pub async fn get(&self, to: &TestServer, target: &str) -> Answer {
        self.request(to, Method::GET, target, None).await
    }

    pub async fn post(&self, to: &TestServer, target: &str, body: Value) -> Answer {
        self.request(to, Method::POST, target, Some(body)).await
    }

    pub async fn put(&self, to: &TestServer, target: &str, body: Value) -> Answer {
        self.request(to, Method::PUT, target, Some(body)).await
    }

    /// Sends a transaction.
    pub async fn send(&self, to: &TestServer, id: &str, pdus: Value, edus: Value) -> Answer {
        let target = format!("/_matrix/federation/v1/send/{}", escaped(id));
        let body = json!({
            "origin": self.name, "origin_server_ts": 1, "pdus": pdus, "edus": edus,
        });
        self.put(to, &target, body).await
    }

    /// A user of this server joins a room; what `send_join` answers.
    pub async fn join(&self, server: &TestServer, room: &str, user: &str) -> Value {
        let user = self.user(user);
        let target = format!(
            "/_matrix/federation/v1/make_join/{}/{}?ver=10&ver=11&ver=12",
            escaped(room),
            escaped(&user),
        );
        let template = self.get(server, &target).await.ok();
        let version = template["room_version"].as_str().expect("a version");
        let join = self.complete(&template["event"], version);
        let target = format!(
            "/_matrix/federation/v2/send_join/{}/{}",
            escaped(room),
            escaped(join.event_id.as_str()),
        );
        self.put(server, &target, pdu_json(&join)).await.ok()
    }

    /// The ID of a user of this server.
    pub fn user(&self, localpart: &str) -> String {
        format!("@{localpart}:{}", self.name)
    }

    /// The event of a template, hashed and signed.
    pub fn complete(&self, template: &Value, version: &str) -> Verified {
        let field = |name: &str| serde_json::from_value(template[name].clone());
        let new = NewPdu {
            room_id: Some(from(&template["room_id"])),
            sender: from(&template["sender"]),
            event_type: from(&template["type"]),
            state_key: field("state_key").expect("a text or none"),
            content: object(template["content"].clone()),
            origin_server_ts: from(&template["origin_server_ts"]),
            depth: from(&template["depth"]),
            prev_events: from(&template["prev_events"]),
            auth_events: from(&template["auth_events"]),
            redacts: from(&template["redacts"]),
            named: None,
        };
        let version = RoomVersionId::try_from(version).expect("a version");
        let rules = version::rules(&version).expect("one that is served");
        self.signer.build(new, rules).expect("it is an event")
    }

    /// The header that signs a request.
    pub fn authorization(
        &self,
        destination: &str,
        method: &str,
        target: &str,
        body: Option<&Value>,
    ) -> String {
        let mut request = json!({
            "method": method,
            "uri": target,
            "origin": self.name,
            "destination": destination,
        });
        if let Some(body) = body {
            request["content"] = body.clone();
        }
        let signed = self.sign(request);
        let key_id = self.signer.key_id();
        let signature = &signed["signatures"][self.name.as_str()][key_id.as_str()];
        format!(
            "X-Matrix origin=\"{}\",destination=\"{destination}\",key=\"{key_id}\",sig=\"{}\"",
            self.name,
            signature.as_str().expect("a signature"),
        )
    }
}

/// The JSON of an event as servers send it.
pub fn pdu_json(event: &Verified) -> Value {
    serde_json::from_slice(&event.json).expect("JSON")
}

/// A value as its type.
#[track_caller]
fn from<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).expect("it is of its type")
}

/// A JSON object in canonical form.
pub fn object(value: Value) -> CanonicalJsonObject {
    match CanonicalJsonValue::try_from(value) {
        Ok(CanonicalJsonValue::Object(object)) => object,
        other => panic!("an object: {other:?}"),
    }
}

/// Serves until the runtime of the test ends.
async fn listen(address: SocketAddr, behind: SocketAddr, shared: Arc<Shared>) {
    let files = federated::AUTHORITY.sign(&address.ip().to_string());
    let cert = CertificateDer::from_pem_file(&files.cert).expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(&files.key).expect("a key");
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("TLS 1.2 and 1.3")
        .with_no_client_auth()
        .with_single_cert(vec![cert], key)
        .expect("they fit");
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind(behind)
        .await
        .expect("the address is free");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, shared) = (acceptor.clone(), Arc::clone(&shared));
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let service = service_fn(move |request| react(Arc::clone(&shared), request));
                let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                // Whoever hangs up may do so.
                let _served = builder
                    .serve_connection(TokioIo::new(stream), service)
                    .await
                    .is_ok();
            });
        }
    });
}

async fn react(
    shared: Arc<Shared>,
    request: http::Request<hyper::body::Incoming>,
) -> Result<http::Response<Full<Bytes>>, hyper::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let request = http::Request::from_parts(head, body);
    let (method, path) = (
        request.method().to_string(),
        request.uri().path().to_owned(),
    );
    let seen = format!("{method} {}", request.uri());
    shared.seen.lock().expect("a lock").push(seen);
    let (status, body) = {
        let reactions = shared.reactions.lock().expect("a lock");
        let exact = reactions.get(&(method.clone(), path.clone()));
        let reaction = exact.or_else(|| {
            let fits = |(of, start): &&(String, String)| {
                *of == method
                    && start
                        .strip_suffix('*')
                        .is_some_and(|start| path.starts_with(start))
            };
            let key = reactions.keys().find(fits)?;
            reactions.get(key)
        });
        match reaction {
            Some(reaction) => reaction(&request),
            None => (404, json!({ "errcode": "M_UNRECOGNIZED", "error": "no" })),
        }
    };
    let body = Bytes::from(body.to_string());
    shared
        .answered_bytes
        .fetch_add(body.len(), Ordering::Relaxed);
    let response = http::Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(Full::new(body))
        .expect("a response");
    Ok(response)
}

//! The only place that opens connections to other machines: names, address rules, TLS, limits, reuse.
//!
//! Everything is bounded: each step in time, an answer in size, requests to one target in number, idle connections in number
//! and time. An address is checked when it is connected to, after its name was resolved, so that a name cannot lead to a denied
//! range by saying something else the second time.

mod addresses;
mod connect;
mod names;
mod pool;
mod redirect;
mod tls;

use std::{
    path::PathBuf,
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};
use prometheus_client::metrics::{counter::Counter, family::Family, gauge::Gauge};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_rustls::TlsConnector;

use self::{
    addresses::Rules,
    connect::Connection,
    pool::{Host, Pool},
};
pub use self::{
    names::{Fixed, Names, Service},
    redirect::MAX_REDIRECTS,
};
use crate::{
    clock::Clock,
    tasks::{Stage, Stop, Tasks},
    telemetry::Metrics,
    units::Network,
};

/// The longest pause within an answer.
const MAX_PAUSE: Duration = Duration::from_secs(30);
const SWEEP_INTERVAL: Duration = Duration::from_secs(15);
const USER_AGENT: HeaderValue =
    HeaderValue::from_static(concat!("Hearth/", env!("CARGO_PKG_VERSION")));

/// Connections that this server opens.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Config {
    /// Addresses that are never connected to, whatever a name leads to: other servers and users choose where requests go.
    /// Default: private, shared, local, reserved and multicast ranges. A list here takes the place of the default.
    pub denied_ranges: Vec<Network>,
    /// Exceptions from `denied_ranges`, such as `["10.20.0.0/16"]` where other servers are in a private network.
    pub allowed_ranges: Vec<Network>,
    /// Files (PEM) of certificate authorities that are trusted besides those of the system, for private federations.
    pub ca_files: Vec<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            denied_ranges: addresses::default_denied_ranges(),
            allowed_ranges: Vec::new(),
            ca_files: Vec::new(),
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the names of this machine cannot be looked up: {0}")]
    Resolver(String),
    #[error("{path} holds no certificate authority: {reason}")]
    CaFile { path: PathBuf, reason: String },
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] rustls::Error),
    #[error("{name} cannot be resolved: {reason}")]
    Name { name: Box<str>, reason: String },
    #[error("{0} is no name for a certificate")]
    BadName(Box<str>),
    #[error("{0} has no address that this server may connect to (net.denied_ranges)")]
    DeniedAddress(Box<str>),
    #[error("{0} says that nobody offers the service")]
    NoEndpoint(Box<str>),
    #[error("cannot connect to {host}:{port}: {source}")]
    Connect {
        host: Box<str>,
        port: u16,
        source: std::io::Error,
    },
    #[error("no TLS with {host}: {source}")]
    Tls {
        host: Box<str>,
        source: std::io::Error,
    },
    #[error("the connection broke: {0}")]
    Socket(std::io::Error),
    #[error("the connection broke: {0}")]
    Http(#[from] hyper::Error),
    #[error("no answer in time while {0}")]
    TimedOut(&'static str),
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    #[error("{0} is not an https URL")]
    BadUrl(Box<str>),
    #[error("more than {MAX_REDIRECTS} redirects")]
    TooManyRedirects,
}

/// Bounds of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For all of it: waiting for a turn, connecting, asking, reading the answer.
    pub timeout: Duration,
    /// Of the body of the answer.
    pub max_bytes: usize,
}

/// Whom to connect to, and whom to expect there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// Where the server may be; tried by priority until one works.
    pub endpoints: Vec<Endpoint>,
    /// The name or address that the certificate must be for.
    pub certificate_name: Box<str>,
    /// The `Host` header.
    pub authority: Box<str>,
}

/// A machine and a port.
pub type Endpoint = Service;

/// Opens connections. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Outbound {
    inner: Arc<Inner>,
}

struct Inner {
    clock: Clock,
    tasks: Tasks,
    names: Names,
    rules: Rules,
    tls: TlsConnector,
    pool: Pool,
    open: Gauge,
    requests: Family<[(&'static str, &'static str); 1], Counter>,
}

impl Endpoint {
    /// The only place of a target.
    pub fn single(host: &str, port: u16) -> Self {
        Self {
            priority: 0,
            weight: 0,
            host: host.into(),
            port,
        }
    }
}

impl Target {
    /// The server of an https URL.
    pub fn https(host: &str, port: u16) -> Self {
        let authority = if port == 443 {
            host.into()
        } else {
            format!("{host}:{port}").into()
        };
        Self {
            endpoints: vec![Endpoint::single(host, port)],
            certificate_name: host.into(),
            authority,
        }
    }
}

impl Outbound {
    /// # Errors
    /// A certificate authority cannot be read, or names cannot be looked up.
    pub fn new(
        config: Config,
        clock: Clock,
        tasks: Tasks,
        names: Names,
        metrics: &Metrics,
    ) -> Result<Self, Error> {
        let open = Gauge::default();
        metrics.register(
            "outbound_connections",
            "Open connections to other servers.",
            open.clone(),
        );
        let requests = Family::default();
        metrics.register(
            "outbound_requests",
            "Requests to other servers, by outcome.",
            requests.clone(),
        );
        let inner = Arc::new(Inner {
            clock,
            names,
            rules: Rules::new(config.denied_ranges, config.allowed_ranges),
            tls: tls::connector(&config.ca_files)?,
            pool: Pool::default(),
            open,
            requests,
            tasks,
        });
        let stop = inner.tasks.stop_signal(Stage::Followers);
        let sweep = sweep(Arc::downgrade(&inner), stop);
        inner.tasks.spawn("outbound pool", Stage::Followers, sweep);
        Ok(Self { inner })
    }

    /// Where names are looked up.
    pub fn names(&self) -> &Names {
        &self.inner.names
    }

    /// Sends `request`, whose URI is path and query, to `target`, and reads the whole answer. Redirects are answers.
    ///
    /// It may be sent twice: a connection that the other side has just closed is not noticed before it is used.
    ///
    /// # Errors
    /// There is no answer within `limits`.
    pub async fn request(
        &self,
        target: &Target,
        request: http::Request<Bytes>,
        limits: Limits,
    ) -> Result<http::Response<Bytes>, Error> {
        let exchange = self.inner.exchange(target, request, limits.max_bytes);
        let answer = match tokio::time::timeout(limits.timeout, exchange).await {
            Ok(answer) => answer,
            Err(_elapsed) => Err(Error::TimedOut("waiting for the answer")),
        };
        let outcome = match &answer {
            Ok(_) => "answered",
            Err(Error::TimedOut(_)) => "timed_out",
            Err(Error::TooLarge(_)) => "too_large",
            Err(Error::DeniedAddress(_)) => "denied",
            Err(_) => "failed",
        };
        self.inner
            .requests
            .get_or_create(&[("outcome", outcome)])
            .inc();
        answer
    }
}

impl Inner {
    async fn exchange(
        &self,
        target: &Target,
        request: http::Request<Bytes>,
        max_bytes: usize,
    ) -> Result<http::Response<Bytes>, Error> {
        let host = self.pool.host(target);
        let _turn = host
            .free
            .acquire()
            .await
            .expect("the semaphore is never closed");
        while let Some(mut connection) = host.take() {
            match send(&mut connection, target, &request).await {
                Ok(response) => {
                    let answer = read(response, max_bytes).await?;
                    host.keep(connection);
                    return Ok(answer);
                }
                // The other side had given the connection up before it saw the request.
                Err(error) if is_stale(&connection, &error) => host.discard(),
                Err(error) => return Err(error.into()),
            }
        }
        let mut connection = self.new_connection(&host, target).await?;
        let response = send(&mut connection, target, &request).await?;
        let answer = read(response, max_bytes).await?;
        host.keep(connection);
        Ok(answer)
    }

    /// A connection of our own, or one that somebody else has made meanwhile and shares.
    async fn new_connection(&self, host: &Host, target: &Target) -> Result<Connection, Error> {
        let turn = host.turn_to_connect().await;
        if turn.is_some()
            && let Some(shared @ Connection::Http2(_)) = host.take()
        {
            return Ok(shared);
        }
        let connection = self.connect(target).await?;
        host.connected(&connection);
        Ok(connection)
    }
}

async fn send(
    connection: &mut Connection,
    target: &Target,
    request: &http::Request<Bytes>,
) -> hyper::Result<http::Response<Incoming>> {
    let mut request = request.clone().map(Full::new);
    let headers = request.headers_mut();
    headers.insert(header::USER_AGENT, USER_AGENT);
    match connection {
        Connection::Http1(sender) => {
            if let Ok(host) = HeaderValue::from_str(&target.authority) {
                headers.insert(header::HOST, host);
            }
            sender.ready().await?;
            sender.send_request(request).await
        }
        Connection::Http2(sender) => {
            *request.uri_mut() = absolute(request.uri(), &target.authority);
            sender.ready().await?;
            sender.send_request(request).await
        }
    }
}

/// The URI as HTTP/2 wants it: the host is a part of it.
fn absolute(uri: &http::Uri, authority: &str) -> http::Uri {
    let path = uri
        .path_and_query()
        .map_or("/", http::uri::PathAndQuery::as_str);
    http::Uri::builder()
        .scheme("https")
        .authority(authority)
        .path_and_query(path)
        .build()
        .unwrap_or_else(|_error| uri.clone())
}

/// Whether a connection that has been used before was closed by the other side without an answer.
fn is_stale(connection: &Connection, error: &hyper::Error) -> bool {
    match connection {
        Connection::Http1(_) => {
            error.is_canceled()
                || error.is_closed()
                || error.is_incomplete_message()
                || is_reset(error)
        }
        // A server that shuts down refuses new streams in one of many ways.
        Connection::Http2(_) => true,
    }
}

fn is_reset(error: &hyper::Error) -> bool {
    use std::error::Error as _;
    error
        .source()
        .and_then(|source| source.downcast_ref::<std::io::Error>())
        .is_some_and(|error| {
            matches!(
                error.kind(),
                std::io::ErrorKind::BrokenPipe
                    | std::io::ErrorKind::ConnectionReset
                    | std::io::ErrorKind::UnexpectedEof
            )
        })
}

async fn read(
    response: http::Response<Incoming>,
    max_bytes: usize,
) -> Result<http::Response<Bytes>, Error> {
    let (head, mut body) = response.into_parts();
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if announced > max_bytes {
        return Err(Error::TooLarge(max_bytes));
    }
    let mut bytes = BytesMut::new();
    loop {
        let frame = match tokio::time::timeout(MAX_PAUSE, body.frame()).await {
            Ok(Some(frame)) => frame?,
            Ok(None) => break,
            Err(_elapsed) => return Err(Error::TimedOut("reading the answer")),
        };
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if bytes.len() + data.len() > max_bytes {
            return Err(Error::TooLarge(max_bytes));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(http::Response::from_parts(head, bytes.freeze()))
}

async fn sweep(inner: Weak<Inner>, stop: Stop) {
    while tokio::time::timeout(SWEEP_INTERVAL, stop.requested())
        .await
        .is_err()
    {
        match inner.upgrade() {
            Some(inner) => inner.pool.sweep(),
            None => break,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;

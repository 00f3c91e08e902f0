//! From a request to its answer: the route, the body, the handler; and what every answer has.

use std::{
    net::{IpAddr, Ipv4Addr},
    panic::AssertUnwindSafe,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use prometheus_client::metrics::{counter::Counter, gauge::Gauge, histogram::Histogram};
use smallvec::SmallVec;
use tokio::time::Instant;
use tracing::Instrument as _;

use super::{Answer, Body, Client, PathArgs, PlainRequest, Response, Route, Routes, path};
use crate::{
    api::{error::Error, limits::Limits},
    server::Server,
    telemetry::{HttpMetrics, Requests},
};

/// The longest wait for the body of a request.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

const ALLOWED_METHODS: HeaderValue = HeaderValue::from_static("GET, POST, PUT, DELETE, OPTIONS");
const ALLOWED_HEADERS: HeaderValue =
    HeaderValue::from_static("X-Requested-With, Content-Type, Authorization");
/// How long a browser remembers the answer to a preflight, in seconds; browsers cap it at their own maximum.
const PREFLIGHT_MAX_AGE: HeaderValue = HeaderValue::from_static("86400");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Serves a table of endpoints.
pub struct Dispatcher {
    server: Arc<Server>,
    limits: Arc<Limits>,
    router: matchit::Router<Endpoints>,
    metrics: HttpMetrics,
    /// Requests that found no endpoint are counted under this name.
    unknown: RouteMetrics,
    request_ids: AtomicU64,
    slow_request: Duration,
    max_body_bytes: usize,
}

/// The other end of a connection.
#[derive(Clone, Copy, Debug)]
pub enum Peer {
    Network(IpAddr),
    /// A Unix socket: only a proxy on this machine can be at its other end.
    Local,
}

/// The endpoints of one path.
#[derive(Default)]
struct Endpoints {
    by_method: SmallVec<[(Method, Arc<Endpoint>); 2]>,
}

struct Endpoint {
    route: Route,
    metrics: RouteMetrics,
}

/// The metrics of one route, looked up when it is registered and not for each request.
struct RouteMetrics {
    name: Arc<str>,
    method: &'static str,
    requests: Requests,
    seconds: Histogram,
    /// The counters of frequent statuses, filled when first needed.
    by_status: [OnceLock<Counter>; FREQUENT.len()],
}

const FREQUENT: [StatusCode; 6] = [
    StatusCode::OK,
    StatusCode::BAD_REQUEST,
    StatusCode::UNAUTHORIZED,
    StatusCode::FORBIDDEN,
    StatusCode::NOT_FOUND,
    StatusCode::TOO_MANY_REQUESTS,
];

impl Dispatcher {
    /// Resolves `routes`.
    ///
    /// # Panics
    /// Two endpoints have the same method and path.
    pub fn new(server: Arc<Server>, limits: Arc<Limits>, routes: Routes) -> Self {
        let metrics = server.metrics.http.clone();
        let mut paths: std::collections::BTreeMap<String, Endpoints> =
            std::collections::BTreeMap::new();
        for route in routes.into_vec() {
            let name = route.paths.last().cloned().unwrap_or_default();
            let metrics = RouteMetrics::new(&metrics, name, method_name(&route.method));
            let endpoint = Arc::new(Endpoint { route, metrics });
            for path in &endpoint.route.paths {
                let endpoints = paths.entry(path::numbered(path)).or_default();
                let method = endpoint.route.method.clone();
                assert!(
                    endpoints.find(&method).is_none(),
                    "{method} {path} is registered twice"
                );
                endpoints.by_method.push((method, Arc::clone(&endpoint)));
            }
        }
        let mut router = matchit::Router::new();
        for (path, endpoints) in paths {
            router
                .insert(path, endpoints)
                .expect("paths of ruma do not contradict each other");
        }
        Self {
            unknown: RouteMetrics::new(&metrics, "unknown".to_owned(), "OTHER"),
            limits,
            // Only to tell the requests of this process from those of the one before.
            request_ids: AtomicU64::new(rand::random()),
            slow_request: server.config.log.slow_request.0,
            max_body_bytes: usize::try_from(server.config.limits.request_body.0)
                .unwrap_or(usize::MAX),
            router,
            metrics,
            server,
        }
    }

    /// Answers a request. Never fails: what goes wrong is an answer too.
    pub async fn answer<B>(&self, request: http::Request<B>, peer: Peer) -> Response
    where
        B: hyper::body::Body<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if request.method() == Method::OPTIONS {
            return preflight();
        }
        let _running = Running::new(&self.metrics.running);
        let started = Instant::now();
        let id = self.request_ids.fetch_add(1, Ordering::Relaxed);
        let (endpoint, args) = match self.find(request.method(), request.uri().path()) {
            Ok(found) => found,
            Err(error) => return self.finish(Err(error), &self.unknown, id, started),
        };
        let span =
            tracing::info_span!("request", id = %RequestId(id), route = &*endpoint.metrics.name);
        let called = AssertUnwindSafe(self.call(endpoint, args, request, peer)).catch_unwind();
        let answer = match called.instrument(span.clone()).await {
            Ok(answer) => answer,
            Err(_panic) => {
                self.metrics.panics.inc();
                Err(Error::internal("the handler panicked"))
            }
        };
        let _entered = span.entered();
        self.finish(answer, &endpoint.metrics, id, started)
    }

    fn find(&self, method: &Method, path: &str) -> Result<(&Endpoint, PathArgs), Error> {
        let Ok(found) = self.router.at(path) else {
            return Err(Error::unrecognized());
        };
        let endpoint = found
            .value
            .find(method)
            .ok_or_else(Error::method_not_allowed)?;
        let args = PathArgs::decode(found.params.iter().map(|(_, value)| value))?;
        Ok((endpoint, args))
    }

    async fn call<B>(
        &self,
        endpoint: &Endpoint,
        args: PathArgs,
        request: http::Request<B>,
        peer: Peer,
    ) -> Result<Response, Error>
    where
        B: hyper::body::Body<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (head, body) = request.into_parts();
        let max_bytes = endpoint.route.max_body_bytes.unwrap_or(self.max_body_bytes);
        let body = read_body(body, max_bytes).await?;
        let client = Client {
            address: self.client_address(peer, &head.headers),
            user_agent: head.headers.get(header::USER_AGENT).cloned(),
        };
        let request = PlainRequest {
            request: http::Request::from_parts(head, body),
            client,
            args,
        };
        let (server, limits) = (Arc::clone(&self.server), Arc::clone(&self.limits));
        let answer: Answer = (endpoint.route.call)(server, limits, request);
        answer.await
    }

    /// The address a rate limit counts: the connection's, or what a trusted proxy says.
    fn client_address(&self, peer: Peer, headers: &HeaderMap) -> IpAddr {
        let (address, trusted) = match peer {
            Peer::Network(address) => (
                address.to_canonical(),
                self.server.config.proxy.trusts(address),
            ),
            Peer::Local => (IpAddr::V4(Ipv4Addr::LOCALHOST), true),
        };
        if trusted {
            self.server
                .config
                .proxy
                .client_behind(headers)
                .unwrap_or(address)
        } else {
            address
        }
    }

    /// Gives an answer what all answers have, and notes it in log and metrics.
    fn finish(
        &self,
        answer: Result<Response, Error>,
        metrics: &RouteMetrics,
        id: u64,
        started: Instant,
    ) -> Response {
        let elapsed = started.elapsed();
        let mut response = match answer {
            Ok(response) => response,
            Err(error) if error.status().is_server_error() => {
                tracing::error!(
                    status = error.status().as_u16(),
                    cause = error.chain(),
                    "request failed"
                );
                error
                    .with("request_id", RequestId(id).to_string())
                    .into_response()
            }
            Err(error) => error.into_response(),
        };
        if elapsed > self.slow_request && !metrics.waits() {
            tracing::warn!(
                status = response.status().as_u16(),
                ?elapsed,
                "slow request"
            );
        } else {
            tracing::debug!(status = response.status().as_u16(), ?elapsed, "answered");
        }
        metrics.count(response.status(), elapsed);
        let headers = response.headers_mut();
        allow_cross_origin(headers);
        headers.insert(REQUEST_ID, RequestId(id).header());
        response
    }
}

/// Counts a request from here until it is dropped, answered or given up by the client.
struct Running<'a>(&'a Gauge);

impl<'a> Running<'a> {
    fn new(gauge: &'a Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Endpoints {
    fn find(&self, method: &Method) -> Option<&Arc<Endpoint>> {
        let wanted = if method == Method::HEAD {
            &Method::GET
        } else {
            method
        };
        self.by_method
            .iter()
            .find(|(method, _)| method == wanted)
            .map(|(_, endpoint)| endpoint)
    }
}

impl RouteMetrics {
    fn new(metrics: &HttpMetrics, name: String, method: &'static str) -> Self {
        let seconds = metrics
            .seconds
            .get_or_create(&[("route", name.clone())])
            .clone();
        Self {
            name: name.into(),
            method,
            requests: metrics.requests.clone(),
            seconds,
            by_status: Default::default(),
        }
    }

    /// Whether requests of this route wait for news by design.
    fn waits(&self) -> bool {
        self.name.ends_with("/sync") || self.name.ends_with("/events")
    }

    fn count(&self, status: StatusCode, elapsed: Duration) {
        self.seconds.observe(elapsed.as_secs_f64());
        let known = FREQUENT
            .iter()
            .position(|frequent| *frequent == status)
            .and_then(|index| self.by_status.get(index));
        match known {
            Some(counter) => counter.get_or_init(|| self.counter(status)).inc(),
            None => self.counter(status).inc(),
        };
    }

    fn counter(&self, status: StatusCode) -> Counter {
        let labels = [
            ("route", self.name.to_string()),
            ("method", self.method.to_owned()),
            ("code", status.as_str().to_owned()),
        ];
        self.requests.get_or_create(&labels).clone()
    }
}

/// The number of a request in logs and in the header `X-Request-Id`.
struct RequestId(u64);

impl RequestId {
    fn header(&self) -> HeaderValue {
        let mut text = [0_u8; 16];
        for (index, digit) in text.iter_mut().enumerate() {
            let nibble = (self.0 >> (60 - 4 * index)) & 0xf;
            *digit = *b"0123456789abcdef"
                .get(usize::try_from(nibble).unwrap_or(0))
                .unwrap_or(&b'0');
        }
        HeaderValue::from_bytes(&text).expect("hexadecimal digits are a header value")
    }
}

impl std::fmt::Display for RequestId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:016x}", self.0)
    }
}

async fn read_body<B>(body: B, limit: usize) -> Result<Bytes, Error>
where
    B: hyper::body::Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, limit).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Error::too_large(format!(
            "The body is larger than {limit} bytes"
        ))),
        Ok(Err(_broken)) => Err(Error::not_json("The body ended early")),
        Err(_elapsed) => Err(Error::not_json("The body did not come in time")),
    }
}

/// Spec: c2s, "Web browser clients". Any path, since a browser asks before it knows what is there.
fn preflight() -> Response {
    let mut response = Response::new(Body::default());
    let headers = response.headers_mut();
    allow_cross_origin(headers);
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, PREFLIGHT_MAX_AGE);
    response
}

fn allow_cross_origin(headers: &mut HeaderMap) {
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_ORIGIN,
        HeaderValue::from_static("*"),
    );
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, ALLOWED_METHODS);
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, ALLOWED_HEADERS);
}

/// The label of a method; methods beyond these have no endpoints.
fn method_name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        _ => "OTHER",
    }
}

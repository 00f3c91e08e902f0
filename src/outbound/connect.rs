//! From a target to a connection that speaks HTTP: names, addresses, TCP, TLS.

use std::{io, net::SocketAddr, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use http_body_util::Full;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::{Endpoint, Error, Inner, Target, addresses};
use crate::tasks::Stage;

/// Name look-up and TCP connection to one endpoint.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const TLS_TIMEOUT: Duration = Duration::from_secs(10);
/// The head start of an address before the next one of the same name is tried beside it.
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(250);
/// How much of an answer may be under way before we have read it, per request and per connection.
const HTTP2_STREAM_WINDOW: u32 = 1 << 20;
const HTTP2_CONNECTION_WINDOW: u32 = 4 << 20;
/// The most bytes of the head of an answer.
const MAX_HEAD_BYTES: u32 = 64 * 1024;
/// A connection with requests under way is asked for a sign of life this often, and given up when none comes.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// A connection for requests.
pub(super) enum Connection {
    /// One request after the other.
    Http1(http1::SendRequest<Full<Bytes>>),
    /// Many at the same time.
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Inner {
    /// A new connection to `target`, whose certificate has been checked.
    pub(super) async fn connect(&self, target: &Target) -> Result<Connection, Error> {
        let mut failed = Error::NoEndpoint(target.authority.clone());
        for endpoint in self.in_order(&target.endpoints) {
            let connected =
                match tokio::time::timeout(CONNECT_TIMEOUT, self.connect_tcp(endpoint)).await {
                    Ok(connected) => connected,
                    Err(_elapsed) => Err(Error::TimedOut("connecting")),
                };
            let secured = match connected {
                Ok(stream) => self.secure(target, stream).await,
                Err(error) => Err(error),
            };
            match secured {
                Ok(stream) => return self.speak_http(stream).await,
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    /// Endpoints by priority; those of one priority by chance, as often in front as their weights say.
    ///
    /// Spec: RFC 2782.
    fn in_order<'a>(&self, endpoints: &'a [Endpoint]) -> Vec<&'a Endpoint> {
        let mut left: Vec<&Endpoint> = endpoints.iter().collect();
        let mut ordered = Vec::with_capacity(left.len());
        while let Some(priority) = left.iter().map(|endpoint| endpoint.priority).min() {
            let is_next = |endpoint: &&Endpoint| endpoint.priority == priority;
            // One more than the weight, so that a machine of weight 0 has a chance too.
            let weight = |endpoint: &&Endpoint| u64::from(endpoint.weight) + 1;
            let total = left
                .iter()
                .filter(|endpoint| is_next(endpoint))
                .map(weight)
                .sum();
            let mut drawn = self.clock.random_below(total);
            let chosen = left.iter().position(|endpoint| {
                if !is_next(endpoint) {
                    return false;
                }
                let is_chosen = drawn < weight(endpoint);
                drawn = drawn.saturating_sub(weight(endpoint));
                is_chosen
            });
            ordered.push(left.swap_remove(chosen.unwrap_or(0)));
        }
        ordered
    }

    async fn connect_tcp(&self, endpoint: &Endpoint) -> Result<TcpStream, Error> {
        let found = match addresses::literal(&endpoint.host) {
            Some(address) => vec![SocketAddr::new(address, endpoint.port)],
            None => self.names.addresses(&endpoint.host, endpoint.port).await?,
        };
        let allowed: Vec<SocketAddr> = found
            .into_iter()
            .filter(|address| self.rules.allow(address.ip()))
            .collect();
        if allowed.is_empty() {
            return Err(Error::DeniedAddress(endpoint.host.clone()));
        }
        let stream = connect_first(&allowed)
            .await
            .map_err(|source| Error::Connect {
                host: endpoint.host.clone(),
                port: endpoint.port,
                source,
            })?;
        // Requests are written whole; waiting to fill a packet would only delay them.
        stream.set_nodelay(true).map_err(Error::Socket)?;
        Ok(stream)
    }

    async fn secure(
        &self,
        target: &Target,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, Error> {
        let name = match addresses::literal(&target.certificate_name) {
            Some(address) => ServerName::from(address),
            None => ServerName::try_from(String::from(target.certificate_name.clone()))
                .map_err(|_error| Error::BadName(target.certificate_name.clone()))?,
        };
        let handshake = self.tls.connect(name, stream);
        match tokio::time::timeout(TLS_TIMEOUT, handshake).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(source)) => Err(Error::Tls {
                host: target.certificate_name.clone(),
                source,
            }),
            Err(_elapsed) => Err(Error::TimedOut("agreeing on TLS")),
        }
    }

    /// Starts HTTP on `stream`. A task of its own drives the connection until it is closed, or the server stops.
    async fn speak_http(&self, stream: TlsStream<TcpStream>) -> Result<Connection, Error> {
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let stream = TokioIo::new(stream);
        if is_http2 {
            let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .initial_stream_window_size(HTTP2_STREAM_WINDOW)
                .initial_connection_window_size(HTTP2_CONNECTION_WINDOW)
                .max_header_list_size(MAX_HEAD_BYTES)
                .keep_alive_interval(PING_INTERVAL)
                .keep_alive_timeout(PING_TIMEOUT)
                .handshake(stream)
                .await?;
            self.drive(connection);
            Ok(Connection::Http2(sender))
        } else {
            let (sender, connection) = http1::Builder::new().handshake(stream).await?;
            self.drive(connection);
            Ok(Connection::Http1(sender))
        }
    }

    fn drive(&self, connection: impl Future<Output = hyper::Result<()>> + Send + 'static) {
        let stop = self.tasks.stop_signal(Stage::Followers);
        let open = self.open.clone();
        open.inc();
        let drive = async move {
            tokio::select! {
                ended = connection => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a connection to another server broke");
                    }
                }
                () = stop.requested() => {}
            }
            open.dec();
        };
        self.tasks.spawn("outbound", Stage::Followers, drive);
    }
}

/// A connection to the first address that accepts one. Each has a head start before the next is tried beside it.
async fn connect_first(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut waiting = addresses.iter();
    let mut attempts = FuturesUnordered::new();
    let mut failed = io::Error::other("there is no address");
    loop {
        match waiting.next() {
            Some(address) => attempts.push(connect_one(*address)),
            None if attempts.is_empty() => return Err(failed),
            None => {}
        }
        let is_last = waiting.as_slice().is_empty();
        tokio::select! {
            Some(attempt) = attempts.next() => match attempt {
                Ok(stream) => return Ok(stream),
                Err(error) => failed = error,
            },
            () = tokio::time::sleep(NEXT_ADDRESS_AFTER), if !is_last => {}
        }
    }
}

async fn connect_one(address: SocketAddr) -> io::Result<TcpStream> {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that connects"
    )]
    let stream = TcpStream::connect(address).await;
    stream
}

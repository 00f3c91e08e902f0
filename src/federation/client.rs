//! Asking other servers: signed requests, bounded answers.

mod sign;

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http::{Method, header};
use ruma::{
    OwnedServerName, ServerName,
    api::{EndpointError as _, federation::authentication::ServerSignatures},
    api::{
        IncomingResponseExt as _, Metadata, OutgoingBody, OutgoingRequest,
        auth_scheme::{AuthScheme, NoAuthentication},
        error::{Error as MatrixError, ErrorBody, ErrorKind, LimitExceededErrorData, RetryAfter},
        path_builder::SinglePath,
    },
};

use super::{BoxError, Config, Error, discovery::Discovery};
pub use crate::outbound::Limits;
use crate::{
    clock::Clock,
    events::Signer,
    outbound::{self, Outbound},
};

/// The largest answer to a request without limits of its own. State and joins have more room.
const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;

/// Answers requests in the place of other servers, for simulations: no socket, no TLS.
pub type Simulated = Arc<
    dyn Fn(
            OwnedServerName,
            http::Request<Bytes>,
        ) -> BoxFuture<'static, Result<http::Response<Bytes>, BoxError>>
        + Send
        + Sync,
>;

/// How requests get to other servers.
pub enum Transport {
    Network(Outbound),
    Simulated(Simulated),
}

impl From<Outbound> for Transport {
    fn from(outbound: Outbound) -> Self {
        Self::Network(outbound)
    }
}

impl From<Simulated> for Transport {
    fn from(simulated: Simulated) -> Self {
        Self::Simulated(simulated)
    }
}

/// Whether requests of an authentication scheme are signed.
pub trait Scheme: AuthScheme {
    const IS_SIGNED: bool;
}

impl Scheme for ServerSignatures {
    const IS_SIGNED: bool = true;
}

impl Scheme for NoAuthentication {
    const IS_SIGNED: bool = false;
}

/// Asks other servers. Cheap to clone; clones share connections and what is known of servers.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    clock: Clock,
    signer: Arc<Signer>,
    config: Config,
    wire: Wire,
}

enum Wire {
    Network(Discovery),
    Simulated(Simulated),
}

impl Client {
    pub(super) fn new(
        transport: Transport,
        signer: Arc<Signer>,
        clock: Clock,
        config: &Config,
    ) -> Self {
        let wire = match transport {
            Transport::Network(outbound) => Wire::Network(Discovery::new(outbound, clock.clone())),
            Transport::Simulated(simulated) => Wire::Simulated(simulated),
        };
        let inner = Inner {
            clock,
            signer,
            config: config.clone(),
            wire,
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The bounds of a request that has none of its own.
    pub fn default_limits(&self) -> Limits {
        Limits {
            timeout: self.inner.config.timeout.0,
            max_bytes: MAX_ANSWER_BYTES,
        }
    }

    /// How `server` is found; none in a simulation.
    pub fn discovery(&self) -> Option<&Discovery> {
        match &self.inner.wire {
            Wire::Network(discovery) => Some(discovery),
            Wire::Simulated(_) => None,
        }
    }

    /// Sends `request` to `server`, signed where the endpoint wants that.
    ///
    /// # Errors
    /// There is no answer, or it is an error or not what the specification says.
    pub async fn send<R>(
        &self,
        server: &ServerName,
        request: R,
    ) -> Result<R::IncomingResponse, Error>
    where
        R: OutgoingRequest + Metadata<PathBuilder = SinglePath> + Send,
        R::Authentication: Scheme,
    {
        self.send_within(server, request, self.default_limits())
            .await
    }

    /// As [`Client::send`], within other limits.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub async fn send_within<R>(
        &self,
        server: &ServerName,
        request: R,
        limits: Limits,
    ) -> Result<R::IncomingResponse, Error>
    where
        R: OutgoingRequest + Metadata<PathBuilder = SinglePath> + Send,
        R::Authentication: Scheme,
    {
        let mut request = write(request)?;
        if R::Authentication::IS_SIGNED {
            sign::canonicalize(&mut request)?;
            sign::sign(&self.inner.signer, server, &mut request)?;
        }
        let answer = self.exchange(server, request, limits).await?;
        let (head, body) = answer.into_parts();
        let borrowed = http::Response::from_parts(head, body.as_ref());
        R::IncomingResponse::try_from_http_response(borrowed).map_err(|error| Error::Malformed {
            server: server.to_owned(),
            source: error.to_string().into(),
        })
    }

    /// Sends a signed request and returns the answer as it is, for answers that are large or must be read leniently.
    /// `path_and_query` starts with `/_matrix/`, `body` is a JSON object.
    ///
    /// # Errors
    /// There is no answer, or its status is no success.
    pub async fn request(
        &self,
        server: &ServerName,
        method: Method,
        path_and_query: &str,
        body: Option<Bytes>,
        limits: Limits,
    ) -> Result<http::Response<Bytes>, Error> {
        let mut request = http::Request::builder()
            .method(method)
            .uri(path_and_query)
            .body(body.unwrap_or_default())
            .map_err(|error| Error::Request(error.into()))?;
        sign::canonicalize(&mut request)?;
        sign::sign(&self.inner.signer, server, &mut request)?;
        self.exchange(server, request, limits).await
    }

    /// As [`Client::request`] with PUT, for a `body` that is canonical JSON already: it is not read again, which counts
    /// for transactions.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub async fn put_canonical(
        &self,
        server: &ServerName,
        path_and_query: &str,
        body: Bytes,
        limits: Limits,
    ) -> Result<http::Response<Bytes>, Error> {
        let mut request = http::Request::put(path_and_query)
            .body(body)
            .map_err(|error| Error::Request(error.into()))?;
        sign::sign(&self.inner.signer, server, &mut request)?;
        self.exchange(server, request, limits).await
    }

    /// Sends `request` as it is. The answer is a success.
    async fn exchange(
        &self,
        server: &ServerName,
        request: http::Request<Bytes>,
        limits: Limits,
    ) -> Result<http::Response<Bytes>, Error> {
        if server == self.inner.signer.server_name() || !self.inner.config.allows(server) {
            return Err(Error::Denied(server.to_owned()));
        }
        // By our clock, so that in a simulation time passes as it says.
        let answer = tokio::select! {
            answer = self.inner.wire.exchange(server, request, limits) => answer?,
            () = self.inner.clock.sleep(limits.timeout) => {
                return Err(Error::TimedOut(server.to_owned()));
            }
        };
        if answer.status().is_success() {
            Ok(answer)
        } else {
            Err(remote_error(server, &answer))
        }
    }
}

impl Wire {
    async fn exchange(
        &self,
        server: &ServerName,
        request: http::Request<Bytes>,
        limits: Limits,
    ) -> Result<http::Response<Bytes>, Error> {
        match self {
            Self::Network(discovery) => {
                let route = discovery
                    .route(server)
                    .await
                    .map_err(|error| unreachable(server, error))?;
                let answer = discovery
                    .outbound()
                    .request(&route.target, request, limits)
                    .await;
                answer.map_err(|error| {
                    discovery.forget(server);
                    failed(server, error)
                })
            }
            Self::Simulated(simulated) => {
                let answer = simulated(server.to_owned(), request)
                    .await
                    .map_err(|source| unreachable(server, source))?;
                if answer.body().len() > limits.max_bytes {
                    return Err(Error::TooLarge {
                        server: server.to_owned(),
                        limit: limits.max_bytes,
                    });
                }
                Ok(answer)
            }
        }
    }
}

fn unreachable(server: &ServerName, source: impl Into<BoxError>) -> Error {
    Error::Unreachable {
        server: server.to_owned(),
        source: source.into(),
    }
}

fn failed(server: &ServerName, error: outbound::Error) -> Error {
    match error {
        outbound::Error::TooLarge(limit) => Error::TooLarge {
            server: server.to_owned(),
            limit,
        },
        outbound::Error::TimedOut(_) => Error::TimedOut(server.to_owned()),
        error => unreachable(server, error),
    }
}

/// The request of ruma's type, without authentication.
fn write<R>(request: R) -> Result<http::Request<Bytes>, Error>
where
    R: OutgoingRequest + Metadata<PathBuilder = SinglePath>,
{
    let write = || {
        let (mut head, body) = request.try_into_http_request_inner("", ())?.into_parts();
        if let Some(content_type) = body.content_type() {
            head.headers
                .entry(header::CONTENT_TYPE)
                .or_insert(content_type);
        }
        let body: BytesMut = body.try_into_buf().map_err(Into::into)?;
        Ok(http::Request::from_parts(head, body.freeze()))
    };
    write().map_err(|error: ruma::api::error::IntoHttpError| Error::Request(error.into()))
}

/// What an answer that is no success says.
fn remote_error(server: &ServerName, answer: &http::Response<Bytes>) -> Error {
    let status = answer.status().as_u16();
    let borrowed = http::Response::builder().status(answer.status());
    let borrowed = answer
        .headers()
        .iter()
        .fold(borrowed, |borrowed, (name, value)| {
            borrowed.header(name, value)
        });
    let body = borrowed
        .body(answer.body().as_ref())
        .map(MatrixError::from_http_response)
        .map(|error| error.body);
    let (kind, message) = match body {
        Ok(ErrorBody::Standard(standard)) => (standard.kind, standard.message),
        _ => (ErrorKind::Unknown, String::new()),
    };
    let retry_after = match &kind {
        ErrorKind::LimitExceeded(LimitExceededErrorData {
            retry_after: Some(RetryAfter::Delay(delay)),
            ..
        }) => Some(*delay),
        _ => None,
    };
    Error::Remote {
        server: server.to_owned(),
        status,
        kind: Box::new(kind),
        message: message.into(),
        retry_after,
    }
}

#[cfg(test)]
mod tests;

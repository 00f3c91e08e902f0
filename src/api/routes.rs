//! The table of endpoints and the way of a request through it.
//!
//! An endpoint is one line: ruma knows its method, every path it ever had and its authentication scheme, and everything that
//! can be resolved once (metrics, limits, paths) is resolved when the line is registered. Per request remain: find the route,
//! check who calls, read the body, call the handler.

mod body;
mod dispatch;
mod path;

use std::{future::Future, marker::PhantomData, net::IpAddr, pin::Pin, sync::Arc};

use bytes::{Bytes, BytesMut};
use futures_util::stream::BoxStream;
use http::{HeaderValue, Method, StatusCode, header};
use ruma::api::{
    IncomingRequest, IncomingRequestExt as _, OutgoingResponse, OutgoingResponseExt as _,
    auth_scheme::AuthScheme, path_builder::PathBuilder,
};
use serde::Serialize;

pub use self::{
    body::Body,
    dispatch::{Dispatcher, Peer},
    path::PathArgs,
};
use super::{
    auth::{Authenticate, Caller, RateLimitKey as _},
    error::Error,
    limits::{Bucket, Limits},
};
use crate::server::Server;

/// An answer.
pub type Response = http::Response<Body>;

/// Who is at the other end of the connection.
#[derive(Clone, Debug)]
pub struct Client {
    /// The address of the client, behind trusted proxies too.
    pub address: IpAddr,
    /// What the client calls itself.
    pub user_agent: Option<HeaderValue>,
}

type Answer = Pin<Box<dyn Future<Output = Result<Response, Error>> + Send>>;
type Call = Box<dyn Fn(Arc<Server>, Arc<Limits>, PlainRequest) -> Answer + Send + Sync>;

/// One endpoint with all its paths.
pub(super) struct Route {
    pub(super) method: Method,
    /// As ruma writes them: `/_matrix/client/v3/rooms/{room_id}/send/{event_type}/{txn_id}`.
    pub(super) paths: Vec<String>,
    pub(super) call: Call,
    /// The largest body, in bytes; `None`: as the configuration says.
    pub(super) max_body_bytes: Option<usize>,
}

/// A table of endpoints. Tables are joined by [`Routes::join`] and served by a [`Dispatcher`].
#[derive(Default)]
pub struct Routes {
    routes: Vec<Route>,
}

impl Routes {
    /// Adds the endpoint that `handler` answers, under every path that ruma knows for it, and under `r0` for each `v3`.
    ///
    /// A handler is `async fn(Arc<Server>, Caller<R>, R) -> Result<R::OutgoingResponse, Error>`, with a [`Client`] as fourth
    /// argument if it needs to know the address.
    #[must_use]
    pub fn endpoint<R, K, H>(self, handler: H) -> Self
    where
        R: IncomingRequest + Send + 'static,
        R::Authentication: Authenticate,
        H: Handler<R, K>,
        K: 'static,
    {
        self.add(None, handler)
    }

    /// Like [`Routes::endpoint`], for at most as many requests of a user (or of an address) as `bucket` holds.
    #[must_use]
    pub fn limited<R, K, H>(self, bucket: Bucket, handler: H) -> Self
    where
        R: IncomingRequest + Send + 'static,
        R::Authentication: Authenticate,
        H: Handler<R, K>,
        K: 'static,
    {
        self.add(Some(bucket), handler)
    }

    fn add<R, K, H>(mut self, bucket: Option<Bucket>, handler: H) -> Self
    where
        R: IncomingRequest + Send + 'static,
        R::Authentication: Authenticate,
        H: Handler<R, K>,
        K: 'static,
    {
        let call: Call = Box::new(move |server, limits, request| {
            let handler = handler.clone();
            Box::pin(answer::<R, K, H>(handler, bucket, server, limits, request))
        });
        let paths = path::all(R::PATH_BUILDER.all_paths());
        self.routes.push(Route {
            method: R::METHOD,
            paths,
            call,
            max_body_bytes: None,
        });
        self
    }

    /// Adds an endpoint that ruma does not know. `path` has variables in braces; [`PathArgs`] has their values in order.
    #[must_use]
    pub fn plain<H, F>(mut self, method: Method, path: &'static str, handler: H) -> Self
    where
        H: Fn(Arc<Server>, PlainRequest) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<Response, Error>> + Send + 'static,
    {
        let call: Call =
            Box::new(move |server, _limits, request| Box::pin(handler(server, request)));
        let paths = path::all(std::iter::once(path));
        self.routes.push(Route {
            method,
            paths,
            call,
            max_body_bytes: None,
        });
        self
    }

    /// Lets the bodies of all requests of this table be of another size than the configuration says.
    #[must_use]
    pub fn with_bodies_up_to(mut self, bytes: usize) -> Self {
        for route in &mut self.routes {
            route.max_body_bytes = Some(bytes);
        }
        self
    }

    /// Adds all routes of `other`.
    #[must_use]
    pub fn join(mut self, other: Self) -> Self {
        self.routes.extend(other.routes);
        self
    }

    pub(super) fn into_vec(self) -> Vec<Route> {
        self.routes
    }
}

/// A request as it came, which is all there is for an endpoint that ruma does not know.
pub struct PlainRequest {
    pub request: http::Request<Bytes>,
    pub client: Client,
    pub args: PathArgs,
}

impl PlainRequest {
    /// The body as JSON.
    ///
    /// # Errors
    /// `M_NOT_JSON` and `M_BAD_JSON` as for every other endpoint.
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> Result<T, Error> {
        let body = self.request.body();
        require_object(body)?;
        let text: &[u8] = if body.is_empty() { b"{}" } else { body };
        serde_json::from_slice(text).map_err(|error| Error::from_json(&error, body))
    }

    /// The value of `name` in the query.
    pub fn query(&self, name: &str) -> Option<String> {
        path::form_value(self.request.uri().query().unwrap_or_default(), name)
    }

    /// The value of `name` in a body that is a form.
    pub fn form(&self, name: &str) -> Option<String> {
        path::form_value(str::from_utf8(self.request.body()).ok()?, name)
    }
}

/// A function that answers requests of type `R`. `K` tells the kinds of functions apart.
pub trait Handler<R, K>: Clone + Send + Sync + 'static
where
    R: IncomingRequest,
    R::Authentication: Authenticate,
{
    fn call(
        self,
        server: Arc<Server>,
        caller: Caller<R>,
        request: R,
        client: Client,
    ) -> impl Future<Output = Result<Response, Error>> + Send;
}

/// A handler with three arguments.
pub struct Brief<O>(PhantomData<O>);

/// A handler that also takes the [`Client`].
pub struct WithClient<O>(PhantomData<O>);

impl<R, F, Fut, O> Handler<R, Brief<O>> for F
where
    R: IncomingRequest + Send,
    R::Authentication: Authenticate,
    F: Fn(Arc<Server>, Caller<R>, R) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<O, Error>> + Send,
    O: Reply,
{
    async fn call(
        self,
        server: Arc<Server>,
        caller: Caller<R>,
        request: R,
        _client: Client,
    ) -> Result<Response, Error> {
        self(server, caller, request).await?.into_response()
    }
}

impl<R, F, Fut, O> Handler<R, WithClient<O>> for F
where
    R: IncomingRequest + Send,
    R::Authentication: Authenticate,
    F: Fn(Arc<Server>, Caller<R>, R, Client) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<O, Error>> + Send,
    O: Reply,
{
    async fn call(
        self,
        server: Arc<Server>,
        caller: Caller<R>,
        request: R,
        client: Client,
    ) -> Result<Response, Error> {
        self(server, caller, request, client).await?.into_response()
    }
}

/// What a handler may return: ruma's response of the endpoint, or JSON that is already written.
pub trait Reply {
    /// # Errors
    /// The reply cannot be written as an HTTP response.
    fn into_response(self) -> Result<Response, Error>;
}

impl<T: OutgoingResponse> Reply for T {
    fn into_response(self) -> Result<Response, Error> {
        let response = self
            .try_into_http_response::<BytesMut>()
            .map_err(Error::internal)?;
        Ok(response.map(|body| Body::from(body.freeze())))
    }
}

/// JSON that is already written: for answers where building ruma's type first would cost.
pub struct RawJson(pub Bytes);

impl Reply for RawJson {
    fn into_response(self) -> Result<Response, Error> {
        Ok(json_response(StatusCode::OK, Body::from(self.0)))
    }
}

/// JSON that is written while it is sent: for answers that are too large for memory.
pub struct StreamedJson(pub BoxStream<'static, Result<Bytes, Error>>);

impl Reply for StreamedJson {
    fn into_response(self) -> Result<Response, Error> {
        Ok(json_response(StatusCode::OK, Body::Parts(self.0)))
    }
}

/// A JSON answer.
///
/// # Errors
/// `value` cannot be written as JSON.
pub fn json<T: Serialize>(status: StatusCode, value: &T) -> Result<Response, Error> {
    let body = serde_json::to_vec(value).map_err(Error::internal)?;
    Ok(json_response(status, Body::from(Bytes::from(body))))
}

fn json_response(status: StatusCode, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}

async fn answer<R, K, H>(
    handler: H,
    bucket: Option<Bucket>,
    server: Arc<Server>,
    limits: Arc<Limits>,
    request: PlainRequest,
) -> Result<Response, Error>
where
    R: IncomingRequest + Send,
    R::Authentication: Authenticate,
    H: Handler<R, K>,
{
    let PlainRequest {
        request,
        client,
        args,
    } = request;
    let credentials = R::Authentication::extract_authentication(&request)
        .map_err(<R::Authentication as Authenticate>::refused)?;
    let caller = R::Authentication::authenticate(&server, credentials, &request, &client).await?;
    if let Some(bucket) = bucket {
        limits
            .take(bucket, caller.rate_limit_key(client.address))
            .map_err(Error::limit_exceeded)?;
    }
    let typed = read::<R>(request, &args)?;
    handler.call(server, caller, typed, client).await
}

fn read<R: IncomingRequest>(request: http::Request<Bytes>, args: &PathArgs) -> Result<R, Error> {
    let (head, body) = request.into_parts();
    require_object(&body)?;
    let borrowed = http::Request::from_parts(head, body.as_ref());
    R::try_from_http_request(borrowed, &args.as_strs())
        .map_err(|error| Error::unreadable(error, &body))
}

/// Every body of the Matrix APIs is an object in UTF-8. serde would take an array for a struct, and any bytes in a
/// field that it skips.
fn require_object(body: &[u8]) -> Result<(), Error> {
    if std::str::from_utf8(body).is_err() {
        return Err(Error::not_json("The body is not UTF-8"));
    }
    match body.iter().find(|byte| !byte.is_ascii_whitespace()) {
        None | Some(b'{') => Ok(()),
        Some(_) => Err(
            match serde_json::from_slice::<serde::de::IgnoredAny>(body) {
                Ok(_) => Error::bad_json("The body is not a JSON object"),
                Err(error) => Error::not_json(format!("The body is not JSON: {error}")),
            },
        ),
    }
}

#[cfg(test)]
mod tests;

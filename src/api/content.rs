//! What clients put into events: JSON that has to be canonical, and fields that no request type knows.

use bytes::Bytes;
use ruma::{
    CanonicalJsonObject,
    api::{IncomingRequest, Metadata, error::DeserializationError},
    serde::Raw,
};
use serde_json::{Map, Value};

use super::error::Error;
use crate::events::canonical;

/// The content of an event as a client sent it.
///
/// # Errors
/// 400 `M_BAD_JSON` for what canonical JSON cannot say: fractions, and integers beyond 2^53 - 1.
pub(super) fn content<T>(raw: &Raw<T>) -> Result<CanonicalJsonObject, Error> {
    object(raw.json().get().as_bytes())
}

/// As [`content`], of text.
///
/// # Errors
/// As [`content`].
pub(super) fn object(text: &[u8]) -> Result<CanonicalJsonObject, Error> {
    canonical::parse(text)
        .map_err(|error| Error::bad_json(format!("The content is not valid: {error}")))
}

/// The fields of a request's body; an absent body is an empty object.
///
/// # Errors
/// It is no JSON object.
pub(super) fn fields(body: &[u8]) -> Result<Map<String, Value>, serde_json::Error> {
    match body.is_empty() {
        true => Ok(Map::new()),
        false => serde_json::from_slice(body),
    }
}

/// A way of our own to read the requests of an endpoint, where the specification takes what ruma's type does not.
pub(super) trait Reading: Sized {
    /// ruma's type of the request, which says all else of the endpoint.
    type Of: IncomingRequest;

    /// # Errors
    /// The request is not one of the endpoint.
    fn read(
        request: http::Request<&[u8]>,
        path_args: &[&str],
    ) -> Result<Self, DeserializationError>;
}

/// A request that was read so.
pub(super) struct Read<T>(pub(super) T);

impl<T: Reading> Metadata for Read<T> {
    const METHOD: http::Method = T::Of::METHOD;
    const RATE_LIMITED: bool = T::Of::RATE_LIMITED;
    type Authentication = <T::Of as Metadata>::Authentication;
    type PathBuilder = <T::Of as Metadata>::PathBuilder;
    const PATH_BUILDER: Self::PathBuilder = T::Of::PATH_BUILDER;
}

impl<T: Reading> IncomingRequest for Read<T> {
    type EndpointError = <T::Of as IncomingRequest>::EndpointError;
    type OutgoingResponse = <T::Of as IncomingRequest>::OutgoingResponse;

    fn try_from_http_request_inner(
        request: http::Request<&[u8]>,
        path_args: &[&str],
    ) -> Result<Self, DeserializationError> {
        T::read(request, path_args).map(Self)
    }
}

/// A request with its body as it was sent: for endpoints that take over fields which ruma's type does not have.
pub(super) struct WithBody<R> {
    pub(super) request: R,
    body: Bytes,
}

impl<R> WithBody<R> {
    /// The body; an absent one is an empty object.
    ///
    /// # Errors
    /// As [`content`].
    pub(super) fn object(&self) -> Result<CanonicalJsonObject, Error> {
        match self.body.trim_ascii().is_empty() {
            true => Ok(CanonicalJsonObject::new()),
            false => object(&self.body),
        }
    }
}

impl<R: Metadata> Metadata for WithBody<R> {
    const METHOD: http::Method = R::METHOD;
    const RATE_LIMITED: bool = R::RATE_LIMITED;
    type Authentication = R::Authentication;
    type PathBuilder = R::PathBuilder;
    const PATH_BUILDER: Self::PathBuilder = R::PATH_BUILDER;
}

impl<R: IncomingRequest> IncomingRequest for WithBody<R> {
    type EndpointError = R::EndpointError;
    type OutgoingResponse = R::OutgoingResponse;

    fn try_from_http_request_inner(
        request: http::Request<&[u8]>,
        path_args: &[&str],
    ) -> Result<Self, DeserializationError> {
        let sent = *request.body();
        let body = Bytes::copy_from_slice(sent);
        let text: &[u8] = if sent.trim_ascii().is_empty() {
            b"{}"
        } else {
            sent
        };
        let request = R::try_from_http_request_inner(request.map(|_body| text), path_args)?;
        Ok(Self { request, body })
    }
}

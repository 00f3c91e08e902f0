//! What clients put into events: JSON that has to be canonical, and fields that no request type knows.

use bytes::Bytes;
use ruma::{
    CanonicalJsonObject,
    api::{IncomingRequest, Metadata, error::DeserializationError},
    serde::Raw,
};

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

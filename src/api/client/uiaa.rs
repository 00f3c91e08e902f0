//! Requests that need user-interactive authentication, and how they are read.

use http::Method;
use ruma::api::{
    IncomingRequest, Metadata,
    client::uiaa::{AuthData, AuthType},
    error::DeserializationError,
};
use serde_json::{Map, Value};

use crate::{
    accounts::{LocalUser, Operation, Passed, Session},
    api::error::Error,
    server::Server,
};

/// A request whose `auth` may be in the form from before there were identifiers: `user` beside the password.
pub(super) struct WithAuth<R>(pub(super) R);

impl<R: Metadata> Metadata for WithAuth<R> {
    const METHOD: Method = R::METHOD;
    const RATE_LIMITED: bool = R::RATE_LIMITED;
    type Authentication = R::Authentication;
    type PathBuilder = R::PathBuilder;
    const PATH_BUILDER: Self::PathBuilder = R::PATH_BUILDER;
}

impl<R: IncomingRequest> IncomingRequest for WithAuth<R> {
    type EndpointError = R::EndpointError;
    type OutgoingResponse = R::OutgoingResponse;

    fn try_from_http_request_inner(
        request: http::Request<&[u8]>,
        path_args: &[&str],
    ) -> Result<Self, DeserializationError> {
        match modern(request.body())? {
            None => R::try_from_http_request_inner(request, path_args),
            Some(body) => {
                R::try_from_http_request_inner(request.map(|_| body.as_slice()), path_args)
            }
        }
        .map(Self)
    }
}

/// The body with an identifier in `auth`, if it lacks one that it should have.
fn modern(body: &[u8]) -> Result<Option<Vec<u8>>, serde_json::Error> {
    let has_auth = body.windows(6).any(|window| window == b"\"auth\"");
    let has_user = body.windows(6).any(|window| window == b"\"user\"");
    if !has_auth || !has_user {
        return Ok(None);
    }
    let mut fields: Map<String, Value> = serde_json::from_slice(body)?;
    let Some(Value::Object(auth)) = fields.get_mut("auth") else {
        return Ok(None);
    };
    let Some(user) = auth
        .get("user")
        .filter(|user| user.is_string() && !auth.contains_key("identifier"))
    else {
        return Ok(None);
    };
    let identifier = serde_json::json!({ "type": "m.id.user", "user": user });
    auth.insert("identifier".to_owned(), identifier);
    serde_json::to_vec(&fields).map(Some)
}

/// Lets the caller prove by password that it is the user of `session`.
pub(super) async fn confirm(
    server: &Server,
    session: &Session,
    auth: Option<&AuthData>,
    name: &'static str,
    bound: &[&str],
) -> Result<Passed, Error> {
    let user = LocalUser {
        id: session.user.clone(),
        number: session.user_number,
    };
    let operation = Operation {
        name,
        bound,
        user: Some(&user),
        flows: &[&[AuthType::Password]],
    };
    Ok(server.accounts.authorize(&operation, auth).await?)
}

//! Who makes a request: each authentication scheme of ruma, and what a handler of such an endpoint is given.

use std::{future::Future, net::IpAddr, sync::Arc};

use bytes::Bytes;
use http::StatusCode;
use ruma::{
    OwnedServerName,
    api::{
        Metadata,
        auth_scheme::{
            AccessToken, AccessTokenOptional, AppserviceTokenOptional, AuthScheme,
            ExtractTokenError, NoAccessToken, NoAuthentication,
        },
        error::ErrorCode,
        federation::authentication::{
            ServerSignatures, XMatrix, XMatrixExtractError, XMatrixParseError,
        },
    },
};

use super::{
    error::{Error, SoftLogout},
    limits::Subject,
    routes::Client,
};
use crate::{
    accounts::{Access, Session},
    server::Server,
};

/// What a locked account may still do.
///
/// Spec: c2s, "Account locking".
const OPEN_TO_LOCKED: [&str; 2] = ["/logout", "/logout/all"];

/// An authentication scheme that we can check.
pub trait Authenticate: AuthScheme {
    /// What the handler gets to know of the caller.
    type Caller: RateLimitKey + Send;

    /// The error of credentials that are missing or cannot be read.
    fn refused(error: Self::ExtractAuthenticationError) -> Error;

    fn authenticate(
        server: &Server,
        credentials: Self::Output,
        request: &http::Request<Bytes>,
        client: &Client,
    ) -> impl Future<Output = Result<Self::Caller, Error>> + Send;
}

/// The caller of the endpoint of `R`, as its handler gets it.
pub type Caller<R> = <<R as Metadata>::Authentication as Authenticate>::Caller;

/// Whom a rate limit counts: the user if one is known, the address otherwise.
pub trait RateLimitKey {
    fn rate_limit_key(&self, address: IpAddr) -> Subject;
}

impl RateLimitKey for () {
    fn rate_limit_key(&self, address: IpAddr) -> Subject {
        Subject::address(address)
    }
}

impl Authenticate for NoAuthentication {
    type Caller = ();

    fn refused(error: Self::ExtractAuthenticationError) -> Error {
        match error {}
    }

    async fn authenticate(
        _server: &Server,
        (): (),
        _request: &http::Request<Bytes>,
        _client: &Client,
    ) -> Result<(), Error> {
        Ok(())
    }
}

impl Authenticate for NoAccessToken {
    type Caller = ();

    fn refused(error: Self::ExtractAuthenticationError) -> Error {
        match error {}
    }

    async fn authenticate(
        _server: &Server,
        (): (),
        _request: &http::Request<Bytes>,
        _client: &Client,
    ) -> Result<(), Error> {
        Ok(())
    }
}

impl RateLimitKey for Arc<Session> {
    fn rate_limit_key(&self, _address: IpAddr) -> Subject {
        Subject::User(self.user_number.0)
    }
}

impl RateLimitKey for Option<Arc<Session>> {
    fn rate_limit_key(&self, address: IpAddr) -> Subject {
        match self {
            Some(session) => session.rate_limit_key(address),
            None => Subject::address(address),
        }
    }
}

impl Authenticate for AccessToken {
    type Caller = Arc<Session>;

    fn refused(error: ExtractTokenError) -> Error {
        refused(&error)
    }

    async fn authenticate(
        server: &Server,
        token: String,
        request: &http::Request<Bytes>,
        client: &Client,
    ) -> Result<Arc<Session>, Error> {
        let session = match server.accounts.session(&token).await? {
            Access::Granted(session) => session,
            Access::Locked(session) if is_open_to_locked(request.uri().path()) => session,
            Access::Locked(_) => return Err(Error::user_locked()),
            Access::SoftLoggedOut => return Err(Error::unknown_token(SoftLogout::Yes)),
            Access::Unknown => return Err(Error::unknown_token(SoftLogout::No)),
        };
        server.accounts.note_seen(&session, Some(client.address));
        Ok(session)
    }
}

impl Authenticate for AccessTokenOptional {
    type Caller = Option<Arc<Session>>;

    fn refused(error: ExtractTokenError) -> Error {
        refused(&error)
    }

    async fn authenticate(
        server: &Server,
        token: Option<String>,
        request: &http::Request<Bytes>,
        client: &Client,
    ) -> Result<Option<Arc<Session>>, Error> {
        match token {
            Some(token) => AccessToken::authenticate(server, token, request, client)
                .await
                .map(Some),
            None => Ok(None),
        }
    }
}

/// Signing in and registering: an access token that somebody sends along means nothing there.
impl Authenticate for AppserviceTokenOptional {
    type Caller = ();

    fn refused(error: ExtractTokenError) -> Error {
        refused(&error)
    }

    async fn authenticate(
        _server: &Server,
        _token: Option<String>,
        _request: &http::Request<Bytes>,
        _client: &Client,
    ) -> Result<(), Error> {
        Ok(())
    }
}

/// The server that makes a request. It has signed it, and we talk to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin(pub OwnedServerName);

impl RateLimitKey for Origin {
    fn rate_limit_key(&self, address: IpAddr) -> Subject {
        Subject::address(address)
    }
}

/// Spec: s2s, "Request Authentication".
impl Authenticate for ServerSignatures {
    type Caller = Origin;

    fn refused(error: XMatrixExtractError) -> Error {
        unauthorized(format!("The request is not signed: {error}"))
    }

    async fn authenticate(
        server: &Server,
        authorization: XMatrix,
        request: &http::Request<Bytes>,
        _client: &Client,
    ) -> Result<Origin, Error> {
        // Before anything is fetched for a server that gets no answer anyway.
        if !server.federation.is_allowed(&authorization.origin) {
            return Err(Error::forbidden("This server does not talk to yours"));
        }
        let keys = server.federation.keys();
        match keys.verify_request(&authorization, request).await {
            Ok(()) => {
                server.federation.heard_from(&authorization.origin);
                Ok(Origin(authorization.origin))
            }
            Err(error) => Err(unauthorized(error.to_string())),
        }
    }
}

fn unauthorized(text: String) -> Error {
    Error::new(StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized, text)
}

/// A header without a token is as good as none.
fn refused(error: &ExtractTokenError) -> Error {
    match error {
        ExtractTokenError::MissingAccessToken | ExtractTokenError::InvalidAuthorizationScheme => {
            Error::missing_token()
        }
        error => Error::invalid_param(format!("The access token cannot be read: {error}")),
    }
}

fn is_open_to_locked(path: &str) -> bool {
    OPEN_TO_LOCKED.iter().any(|open| path.ends_with(open))
}

/// What another server says of itself in the `Authorization` header of a request. Its signature is not looked at here.
///
/// # Errors
/// The header is of another scheme, lacks a parameter, or has one that is not valid.
///
/// Spec: s2s, "Request Authentication".
pub fn x_matrix(header: &[u8]) -> Result<XMatrix, XMatrixParseError> {
    // A header has no other letters than those of ASCII; text without any is of no scheme.
    XMatrix::parse(std::str::from_utf8(header).unwrap_or_default())
}

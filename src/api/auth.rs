//! Who makes a request: each authentication scheme of ruma, and what a handler of such an endpoint is given.

use std::{future::Future, net::IpAddr};

use bytes::Bytes;
use ruma::api::{
    Metadata,
    auth_scheme::{AuthScheme, NoAccessToken, NoAuthentication},
};

use super::{error::Error, limits::Subject};
use crate::server::Server;

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
    ) -> Result<(), Error> {
        Ok(())
    }
}

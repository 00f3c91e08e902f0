//! Who the holder of an OpenID token is.
//!
//! Spec: s2s, "OpenID".

use std::sync::Arc;

use http::StatusCode;
use ruma::api::{error::ErrorCode, federation::openid::get_openid_userinfo};

use crate::{
    accounts,
    api::{error::Error, routes::Routes},
    server::Server,
    storage::Snapshot,
};

pub(super) fn routes() -> Routes {
    Routes::default().endpoint(get_openid_userinfo)
}

/// Spec: s2s, "GET /_matrix/federation/v1/openid/userinfo".
async fn get_openid_userinfo(
    server: Arc<Server>,
    _anyone: (),
    request: get_openid_userinfo::v1::Request,
) -> Result<get_openid_userinfo::v1::Response, Error> {
    let accounts = server.accounts.clone();
    let read = move |snapshot: &Snapshot| -> Result<_, accounts::Error> {
        match accounts.openid_user(snapshot, &request.access_token)? {
            Some(user) => accounts.user_id(snapshot, user).map(Some),
            None => Ok(None),
        }
    };
    let user = server.store.read(read).await?;
    let unknown = || {
        let text = "The token is not known or has expired";
        Error::new(StatusCode::UNAUTHORIZED, ErrorCode::UnknownToken, text)
    };
    let user = user.ok_or_else(unknown)?;
    Ok(get_openid_userinfo::v1::Response::new(user))
}

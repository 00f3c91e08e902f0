//! The client-server API, in files named after the modules of ruma's client API.

mod account;
mod capabilities;
mod config;
mod device;
mod discovery;
mod filter;
mod profile;
mod push;
mod session;
mod uiaa;

use ruma::UserId;

use super::{error::Error, routes::Routes};
use crate::accounts::Session;

/// Every endpoint of the client-server API.
pub(super) fn routes() -> Routes {
    Routes::default()
        .join(discovery::routes())
        .join(account::routes())
        .join(session::routes())
        .join(device::routes())
        .join(profile::routes())
        .join(filter::routes())
        .join(config::routes())
        .join(push::routes())
        .join(capabilities::routes())
}

/// Refuses what one user asks about another's account.
fn require_self(session: &Session, user: &UserId) -> Result<(), Error> {
    match session.user == user {
        true => Ok(()),
        false => Err(Error::forbidden("This is another user's account")),
    }
}

/// Refuses what a suspended user may not do.
///
/// Spec: c2s, "Account suspension".
fn require_active(session: &Session) -> Result<(), Error> {
    match session.is_suspended {
        true => Err(Error::user_suspended()),
        false => Ok(()),
    }
}

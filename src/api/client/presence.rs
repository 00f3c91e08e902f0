//! Who is online.
//!
//! Spec: c2s, "Presence".

use std::{sync::Arc, time::Duration};

use ruma::{
    api::client::presence::{get_presence, set_presence},
    presence::PresenceState,
};

use super::{require_active, require_self, who};
use crate::{
    accounts::Session,
    api::{error::Error, routes::Routes},
    server::Server,
};

pub(super) fn routes() -> Routes {
    Routes::default()
        .endpoint(get_presence)
        .endpoint(set_presence)
}

async fn get_presence(
    server: Arc<Server>,
    session: Arc<Session>,
    request: get_presence::v3::Request,
) -> Result<get_presence::v3::Response, Error> {
    let presence = server
        .ephemeral
        .presence_of(session.user_number, &request.user_id)
        .await?;
    let mut response = get_presence::v3::Response::new(PresenceState::from(presence.presence));
    response.status_msg = presence.status_msg;
    response.currently_active = presence.currently_active;
    response.last_active_ago = presence.last_active_ago.map(Duration::from_millis);
    Ok(response)
}

async fn set_presence(
    server: Arc<Server>,
    session: Arc<Session>,
    request: set_presence::v3::Request,
) -> Result<set_presence::v3::Response, Error> {
    require_self(&session, &request.user_id)?;
    require_active(&session)?;
    let user = who(&session);
    server
        .ephemeral
        .set_presence(&user, &request.presence, request.status_msg)?;
    Ok(set_presence::v3::Response::new())
}

//! Who is typing.
//!
//! Spec: c2s, "Typing Notifications".

use std::sync::Arc;

use ruma::api::client::typing::create_typing_event::v3::{Request, Response, Typing};

use super::{require_active, require_self, who};
use crate::{
    accounts::Session,
    api::{error::Error, routes::Routes},
    server::Server,
};

pub(super) fn routes() -> Routes {
    Routes::default().endpoint(create_typing_event)
}

async fn create_typing_event(
    server: Arc<Server>,
    session: Arc<Session>,
    request: Request,
) -> Result<Response, Error> {
    require_self(&session, &request.user_id)?;
    require_active(&session)?;
    let timeout = match request.state {
        Typing::Yes(info) => Some(info.timeout),
        Typing::No => None,
    };
    let user = who(&session);
    server
        .ephemeral
        .set_typing(&user, &request.room_id, timeout)
        .await?;
    Ok(Response::new())
}

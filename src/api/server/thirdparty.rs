//! Invites by e-mail address or telephone number whose owner has been found.
//!
//! Spec: s2s, "Third-party invites".

use std::sync::Arc;

use ruma::{
    api::federation::thirdparty::{bind_callback, exchange_invite},
    events::StateEventType,
};

use super::membership::refused;
use crate::{
    api::{auth::Origin, content, error::Error, limits::Bucket, routes::Routes},
    federation::{Asked, BoundInvite},
    server::Server,
};

/// Invites that one request may bind.
const MAX_BOUND: usize = 50;

pub(super) fn routes() -> Routes {
    Routes::default()
        .endpoint(exchange)
        .limited(Bucket::Invite, bound)
}

/// Spec: s2s, "PUT /_matrix/federation/v1/exchange_third_party_invite/{roomId}".
async fn exchange(
    server: Arc<Server>,
    Origin(origin): Origin,
    request: exchange_invite::v1::Request,
) -> Result<exchange_invite::v1::Response, Error> {
    if request.kind != StateEventType::RoomMember {
        return Err(Error::invalid_param("This is no membership"));
    }
    let content = content::content(&request.content)?;
    let asked = Asked {
        origin: &origin,
        room_id: &request.room_id,
    };
    server
        .federation
        .exchange_invite(asked, (request.sender, request.state_key), &content)
        .await
        .map_err(refused)?;
    Ok(exchange_invite::v1::Response::new())
}

/// Anybody may say this; what counts is what the identity server has signed. An invite that comes to nothing does not keep
/// the others from being made.
///
/// Spec: s2s, "PUT /_matrix/federation/v1/3pid/onbind".
async fn bound(
    server: Arc<Server>,
    _anyone: (),
    request: bind_callback::v1::Request,
) -> Result<bind_callback::v1::Response, Error> {
    for invite in request.invites.into_iter().take(MAX_BOUND) {
        let invite = BoundInvite {
            room_id: invite.room_id,
            sender: invite.sender,
            user: invite.mxid,
            signed: content::content(&invite.signed)?,
        };
        if let Err(error) = server.federation.bind_invite(&invite).await {
            tracing::info!(room_id = %invite.room_id, %error, "a third-party invite came to nothing");
        }
    }
    Ok(bind_callback::v1::Response::new())
}

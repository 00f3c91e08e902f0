//! The events that allow an event.
//!
//! Spec: s2s, "Retrieving event authorisation information".

use std::sync::Arc;

use ruma::api::federation::authorization::get_event_authorization;

use super::{event::write_states, read_room_at};
use crate::{
    api::{
        auth::Origin,
        error::Error,
        routes::{RawJson, Routes},
    },
    rooms::Rooms,
    server::Server,
    storage::Snapshot,
};

pub(super) fn routes() -> Routes {
    Routes::default().endpoint(get_event_authorization)
}

/// Spec: s2s, "GET /_matrix/federation/v1/event_auth/{roomId}/{eventId}".
async fn get_event_authorization(
    server: Arc<Server>,
    origin: Origin,
    request: get_event_authorization::v1::Request,
) -> Result<RawJson, Error> {
    let event_id = request.event_id;
    let at = vec![event_id.clone()];
    let read = move |rooms: &Rooms, snapshot: &Snapshot, room, _: &_| -> Result<_, Error> {
        let chain = rooms.auth_chain_of(snapshot, room, &event_id)?;
        let mut json = b"{\"auth_chain\":[".to_vec();
        write_states(&mut json, rooms, snapshot, room, &chain)?;
        json.extend_from_slice(b"]}");
        Ok(json)
    };
    let json = read_room_at(&server, origin, (&request.room_id, at), read).await?;
    Ok(RawJson(json.into()))
}

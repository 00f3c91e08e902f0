//! The events that allow an event.
//!
//! Spec: s2s, "Retrieving event authorisation information".

use std::sync::Arc;

use ruma::api::federation::authorization::get_event_authorization;

use super::{
    read_room_at,
    states::{self, Part},
};
use crate::{
    api::{
        auth::Origin,
        error::Error,
        routes::{Routes, StreamedJson},
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
) -> Result<StreamedJson, Error> {
    let event_id = request.event_id;
    let at = vec![event_id.clone()];
    let read = move |rooms: &Rooms, snapshot: &Snapshot, room, _: &_| -> Result<_, Error> {
        Ok((room, rooms.auth_chain_of(snapshot, room, &event_id)?))
    };
    let (room, chain) = read_room_at(&server, origin, (&request.room_id, at), read).await?;
    let parts = vec![
        Part::from(b"{\"auth_chain\":[".as_slice()),
        Part::States(chain),
        Part::from(b"]}".as_slice()),
    ];
    Ok(states::answer(server, room, parts))
}

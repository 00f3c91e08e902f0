//! The history before an event.
//!
//! Spec: s2s, "Backfilling and retrieving missing events".

use std::sync::Arc;

use ruma::api::federation::backfill::get_backfill;

use super::{read_room_at, write_transaction};
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

/// Events of one answer.
const MAX_EVENTS: usize = 100;
/// Event IDs that a request may name.
const MAX_NAMED: usize = 100;

pub(super) fn routes() -> Routes {
    Routes::default().endpoint(get_backfill)
}

/// Spec: s2s, "GET /_matrix/federation/v1/backfill/{roomId}".
async fn get_backfill(
    server: Arc<Server>,
    origin: Origin,
    request: get_backfill::v1::Request,
) -> Result<RawJson, Error> {
    if request.v.len() > MAX_NAMED {
        return Err(Error::invalid_param("Too many events are named"));
    }
    let limit = usize::try_from(u64::from(request.limit)).unwrap_or(MAX_EVENTS);
    let (from, limit) = (request.v, limit.min(MAX_EVENTS));
    let at = from.clone();
    let read = move |rooms: &Rooms, snapshot: &Snapshot, room, origin: &_| -> Result<_, Error> {
        let events = rooms.history_before(snapshot, room, &from, limit)?;
        let mut sight = rooms.server_sight(snapshot, room, origin)?;
        let shown = events
            .iter()
            .map(|event| rooms.shown_to_server(snapshot, &mut sight, event));
        Ok(shown.collect::<Result<Vec<_>, _>>()?)
    };
    let pdus = read_room_at(&server, origin, (&request.room_id, at), read).await?;
    let json = write_transaction(&server, pdus.iter().map(|pdu| &**pdu));
    Ok(RawJson(json.into()))
}

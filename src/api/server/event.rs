//! Single events, the state before an event, what lies between events, events by time.
//!
//! Spec: s2s, "Retrieving events", "Backfilling and retrieving missing events".

use std::sync::Arc;

use ruma::{
    MilliSecondsSinceUnixEpoch, UInt,
    api::federation::event::{
        get_event, get_event_by_timestamp, get_missing_events, get_room_state, get_room_state_ids,
    },
};

use super::{
    read_room, read_room_at,
    states::{self, Part},
    whole_room, write_list, write_transaction,
};
use crate::{
    api::{
        auth::Origin,
        client::events::order,
        error::Error,
        routes::{RawJson, Routes, StreamedJson},
    },
    rooms::{MissingQuery, Rooms, StoredEvent},
    server::Server,
    storage::Snapshot,
};

/// Events of one answer to `get_missing_events`.
const MAX_MISSING: usize = 100;
/// Event IDs that such a request may name.
const MAX_NAMED: usize = 200;

pub(super) fn routes() -> Routes {
    Routes::default()
        .endpoint(get_event)
        .endpoint(get_room_state)
        .endpoint(get_room_state_ids)
        .endpoint(get_missing_events)
        .endpoint(get_event_by_timestamp)
}

/// Spec: s2s, "GET /_matrix/federation/v1/event/{eventId}".
async fn get_event(
    server: Arc<Server>,
    origin: Origin,
    request: get_event::v1::Request,
) -> Result<RawJson, Error> {
    let not_found = || Error::not_found("There is no such event here");
    let (rooms, event_id) = (server.rooms.clone(), request.event_id.clone());
    let room = server
        .store
        .read(move |snapshot: &Snapshot| rooms.event_by_id(snapshot, &event_id))
        .await?
        .map(|(room, _)| room);
    let room_id = room.and_then(|room| server.rooms.room_id(room));
    let room_id = room_id.ok_or_else(not_found)?;
    let at = vec![request.event_id.clone()];
    let read = move |rooms: &Rooms, snapshot: &Snapshot, room, origin: &_| -> Result<_, Error> {
        let event = rooms.event_in_room(snapshot, room, &request.event_id)?;
        let event = event.ok_or_else(|| Error::not_found("There is no such event here"))?;
        let mut sight = rooms.server_sight(snapshot, room, origin)?;
        Ok(rooms.shown_to_server(snapshot, &mut sight, &event)?)
    };
    let json = read_room_at(&server, origin, (&room_id, at), read).await?;
    Ok(RawJson(write_transaction(&server, [&*json]).into()))
}

/// Spec: s2s, "GET /_matrix/federation/v1/state/{roomId}".
async fn get_room_state(
    server: Arc<Server>,
    origin: Origin,
    request: get_room_state::v1::Request,
) -> Result<StreamedJson, Error> {
    whole_room(&server, &origin, &request.room_id).await?;
    let event_id = request.event_id;
    let at = vec![event_id.clone()];
    let read = move |rooms: &Rooms, snapshot: &Snapshot, room, _: &_| -> Result<_, Error> {
        Ok((room, rooms.state_before(snapshot, room, &event_id)?))
    };
    let (room, served) = read_room_at(&server, origin, (&request.room_id, at), read).await?;
    let parts = vec![
        Part::from(b"{\"auth_chain\":[".as_slice()),
        Part::States(served.auth_chain),
        Part::from(b"],\"pdus\":[".as_slice()),
        Part::States(served.state),
        Part::from(b"]}".as_slice()),
    ];
    Ok(states::answer(server, room, parts))
}

/// Spec: s2s, "GET /_matrix/federation/v1/state_ids/{roomId}".
async fn get_room_state_ids(
    server: Arc<Server>,
    origin: Origin,
    request: get_room_state_ids::v1::Request,
) -> Result<get_room_state_ids::v1::Response, Error> {
    whole_room(&server, &origin, &request.room_id).await?;
    let event_id = request.event_id;
    let at = vec![event_id.clone()];
    let read = move |rooms: &Rooms, snapshot: &Snapshot, room, _: &_| -> Result<_, Error> {
        let served = rooms.state_before(snapshot, room, &event_id)?;
        Ok(get_room_state_ids::v1::Response::new(
            rooms.state_event_ids(snapshot, room, &served.auth_chain)?,
            rooms.state_event_ids(snapshot, room, &served.state)?,
        ))
    };
    read_room_at(&server, origin, (&request.room_id, at), read).await
}

/// Spec: s2s, "POST /_matrix/federation/v1/get_missing_events/{roomId}".
async fn get_missing_events(
    server: Arc<Server>,
    origin: Origin,
    request: get_missing_events::v1::Request,
) -> Result<RawJson, Error> {
    if request.earliest_events.len() + request.latest_events.len() > MAX_NAMED {
        return Err(Error::invalid_param("Too many events are named"));
    }
    let at = request.latest_events.clone();
    let query = MissingQuery {
        limit: usize::try_from(u64::from(request.limit))
            .map_or(MAX_MISSING, |limit| limit.min(MAX_MISSING)),
        min_depth: request.min_depth.into(),
        latest: request.latest_events,
        earliest: request.earliest_events,
    };
    let read = move |rooms: &Rooms, snapshot: &Snapshot, room, origin: &_| -> Result<_, Error> {
        let events = rooms.missing_events(snapshot, room, &query)?;
        let mut sight = rooms.server_sight(snapshot, room, origin)?;
        let shown = events
            .iter()
            .map(|event| rooms.shown_to_server(snapshot, &mut sight, event));
        Ok(shown.collect::<Result<Vec<_>, _>>()?)
    };
    let events = read_room_at(&server, origin, (&request.room_id, at), read).await?;
    let mut json = b"{\"events\":[".to_vec();
    write_list(&mut json, events.iter().map(|event| &**event));
    json.extend_from_slice(b"]}");
    Ok(RawJson(json.into()))
}

/// Spec: s2s, "GET /_matrix/federation/v1/timestamp_to_event/{roomId}".
async fn get_event_by_timestamp(
    server: Arc<Server>,
    origin: Origin,
    request: get_event_by_timestamp::v1::Request,
) -> Result<get_event_by_timestamp::v1::Response, Error> {
    let (ts, order) = (u64::from(request.ts.get()), order(request.dir));
    let read = move |rooms: &Rooms, snapshot: &Snapshot, room, origin: &_| -> Result<_, Error> {
        let mut sight = rooms.server_sight(snapshot, room, origin)?;
        let accept = |event: &StoredEvent| {
            Ok(event.meta.is_visible() && rooms.server_may_see(snapshot, &mut sight, event)?)
        };
        Ok(rooms.event_at_time(snapshot, room, ts, order, accept)?)
    };
    let found = read_room(&server, origin, &request.room_id, read).await?;
    let event = found.ok_or_else(|| Error::not_found("There is no event in that direction"))?;
    let time = MilliSecondsSinceUnixEpoch(UInt::new_saturating(event.meta.timestamp));
    Ok(get_event_by_timestamp::v1::Response::new(
        event.pdu.event_id.clone(),
        time,
    ))
}

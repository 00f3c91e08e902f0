//! The state of a room.
//!
//! Spec: c2s, "Getting events for a room", "PUT /_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}".

use std::sync::Arc;

use ruma::{
    api::client::state::{get_state_event_for_key, send_state_event},
    events::TimelineEventType,
};

use crate::{
    accounts::Session,
    api::{
        content,
        error::Error,
        limits::Bucket,
        routes::{RawJson, Routes},
    },
    rooms::NewEvent,
    server::Server,
    storage::Snapshot,
};

pub(super) fn routes() -> Routes {
    Routes::default()
        .limited(Bucket::Message, send_state_event)
        .endpoint(get_state_event_for_key)
}

async fn send_state_event(
    server: Arc<Server>,
    session: Arc<Session>,
    request: send_state_event::v3::Request,
) -> Result<send_state_event::v3::Response, Error> {
    super::require_active(&session)?;
    let content = content::content(&request.body)?;
    let event_type = TimelineEventType::from(request.event_type.to_string());
    let event = NewEvent::state(session.user.clone(), event_type, request.state_key, content);
    let event_id = super::send(&server, &request.room_id, event).await?;
    Ok(send_state_event::v3::Response::new(event_id))
}

/// One state event, or its content.
async fn get_state_event_for_key(
    server: Arc<Server>,
    session: Arc<Session>,
    request: get_state_event_for_key::v3::Request,
) -> Result<RawJson, Error> {
    let room = super::known_room(&server, &request.room_id)?;
    let (rooms, reader) = (server.rooms.clone(), session);
    let read = move |snapshot: &Snapshot| -> Result<_, Error> {
        let sight = rooms.sight(snapshot, &reader.user, reader.user_number, room)?;
        let root = sight.state().ok_or_else(super::not_in_room)?;
        let event_type = request.event_type.to_string();
        let event = rooms.state_event(snapshot, (room, root), &event_type, &request.state_key)?;
        let event = event.ok_or_else(|| Error::not_found("The room has no such state"))?;
        Ok(RawJson(event.pdu.content.get().to_owned().into()))
    };
    server.store.read(read).await
}

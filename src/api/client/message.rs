//! Sending messages, and paging through those of a room.
//!
//! Spec: c2s, "Sending events to a room".

use std::sync::Arc;

use ruma::{
    CanonicalJsonObject, OwnedEventId, api::client::message::send_message_event,
    events::TimelineEventType,
};

use crate::{
    accounts::Session,
    api::{content, error::Error, limits::Bucket, routes::Routes},
    rooms::{NewEvent, Transaction},
    server::Server,
};

pub(super) fn routes() -> Routes {
    Routes::default().limited(Bucket::Message, send_message_event)
}

async fn send_message_event(
    server: Arc<Server>,
    session: Arc<Session>,
    request: send_message_event::v3::Request,
) -> Result<send_message_event::v3::Response, Error> {
    super::require_active(&session)?;
    let content = content::content(&request.body)?;
    let event_type = TimelineEventType::from(request.event_type.to_string());
    let event = NewEvent {
        sender: session.user.clone(),
        redacts: target_of(&event_type, &content),
        event_type,
        state_key: None,
        content,
        transaction: Some(Transaction {
            user: session.user_number,
            device: session.device_hash,
            id: request.txn_id,
        }),
        timestamp: None,
    };
    let event_id = super::send(&server, &request.room_id, event).await?;
    Ok(send_message_event::v3::Response::new(event_id))
}

/// The event that a redaction targets which was sent like any other event.
fn target_of(
    event_type: &TimelineEventType,
    content: &CanonicalJsonObject,
) -> Option<OwnedEventId> {
    match event_type {
        TimelineEventType::RoomRedaction => content.get("redacts")?.as_str()?.try_into().ok(),
        _ => None,
    }
}

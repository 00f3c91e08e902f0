//! Redacting events.
//!
//! Spec: c2s, "Redactions".

use std::sync::Arc;

use ruma::{
    api::client::redact::redact_event, canonical_json::CanonicalJsonValue,
    events::TimelineEventType,
};

use crate::{
    accounts::Session,
    api::{error::Error, limits::Bucket, routes::Routes},
    rooms::{NewEvent, Transaction},
    server::Server,
};

pub(super) fn routes() -> Routes {
    Routes::default().limited(Bucket::Message, redact_event)
}

/// Suspended users may redact: only their own events, which the room's rules do not know.
async fn redact_event(
    server: Arc<Server>,
    session: Arc<Session>,
    request: redact_event::v3::Request,
) -> Result<redact_event::v3::Response, Error> {
    let reason = request
        .reason
        .map(|reason| ("reason".to_owned(), CanonicalJsonValue::String(reason)));
    let event = NewEvent {
        sender: session.user.clone(),
        event_type: TimelineEventType::RoomRedaction,
        state_key: None,
        content: reason.into_iter().collect(),
        redacts: Some(request.event_id),
        transaction: Some(Transaction {
            user: session.user_number,
            device: session.device_hash,
            id: request.txn_id,
        }),
        timestamp: None,
    };
    let event_id = super::send(&server, &request.room_id, event).await?;
    Ok(redact_event::v3::Response::new(event_id))
}

//! Redacting events.
//!
//! Spec: c2s, "Redactions".

use std::sync::Arc;

use ruma::{
    api::client::redact::redact_event, canonical_json::CanonicalJsonValue,
    events::TimelineEventType,
};

use super::events::Reader;
use crate::{
    accounts::Session,
    api::{error::Error, limits::Bucket, routes::Routes},
    rooms::{NewEvent, Transaction},
    server::Server,
    storage::Snapshot,
};

pub(super) fn routes() -> Routes {
    Routes::default().limited(Bucket::Message, redact_event)
}

/// Suspended users may redact their own events only.
async fn redact_event(
    server: Arc<Server>,
    session: Arc<Session>,
    request: redact_event::v3::Request,
) -> Result<redact_event::v3::Response, Error> {
    if session.is_suspended {
        let reader = Reader::new(&server, Arc::clone(&session), request.room_id.clone())?;
        let (event_id, user) = (request.event_id.clone(), session.user.clone());
        let read = move |snapshot: &Snapshot| -> Result<_, Error> {
            let mut sight = reader.sight(snapshot)?;
            Ok(reader.event(snapshot, &mut sight, &event_id)?.pdu.sender == user)
        };
        if !server.store.read(read).await? {
            return Err(Error::user_suspended());
        }
    }
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

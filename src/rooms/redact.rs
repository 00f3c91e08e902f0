//! Redaction: what is left of an event whose content was taken back.
//!
//! The body is replaced by its redacted canonical form; the original is kept apart for moderators.
//! engine.md section 15.

use std::sync::Arc;

use ruma::room_version_rules::RoomVersionRules;

use super::{
    Error, RoomNumber, StoredEvent,
    event::{BODIES, Body, METAS, flag, hash_of},
};
use crate::{
    events::{EventNumber, redact},
    storage::{Batch, Family, Table},
};

/// The bodies of redacted events as they were.
static ORIGINALS: Table<(RoomNumber, EventNumber), Body> =
    Table::new("original_bodies", Family::Events, b'o');

/// An event as it is once it is redacted, with the body that it had in [`Redacted::original`].
pub(super) struct Redacted {
    pub(super) event: StoredEvent,
    original: bytes::Bytes,
}

/// The redacted form of an event.
///
/// # Errors
/// If the stored body is damaged.
pub(super) fn redacted(target: &StoredEvent, rules: &RoomVersionRules) -> Result<Redacted, Error> {
    let pdu = redact::redacted(&target.pdu, &rules.redaction)
        .map_err(|malformed| Error::corrupt("bodies", &malformed.to_string()))?;
    let mut meta = target.meta.clone();
    meta.flags |= flag::REDACTED;
    let event = StoredEvent {
        number: target.number,
        meta,
        pdu: Arc::new(pdu),
    };
    Ok(Redacted {
        event,
        original: target.pdu.json.clone(),
    })
}

/// Replaces the rows of a redacted event.
pub(super) fn insert(batch: &mut Batch, room: RoomNumber, redacted: &Redacted) {
    let event = &redacted.event;
    let key = (room, event.number);
    let Some(hash) = hash_of(&event.pdu.event_id) else {
        return;
    };
    batch.put(
        &BODIES,
        &key,
        &Body {
            hash,
            json: event.pdu.json.clone(),
        },
    );
    batch.put(&METAS, &key, &event.meta);
    // A second redaction must not replace the original by what the first one left.
    if redacted.original.len() > event.pdu.json.len() {
        batch.put(
            &ORIGINALS,
            &key,
            &Body {
                hash,
                json: redacted.original.clone(),
            },
        );
    }
}

//! Redaction: who may redact what, and what is left of an event whose content was taken back.
//!
//! The body is replaced by its redacted canonical form; the original is kept apart for moderators.
//! engine.md section 15.

use std::sync::Arc;

use ruma::{UserId, room_version_rules::RoomVersionRules};

use super::{
    Error, RoomNumber, StoredEvent,
    event::{BODIES, Body, EventKey, METAS, Relation, flag},
    head::Head,
    relations,
    state::Source,
    threads::{self, ThreadChange},
    writer::place::Basis,
};
use crate::{
    events::{AuthError, EventNumber, Pdu, PowerLevels, redact},
    storage::{Batch, Family, Snapshot, Table},
};

/// The bodies of redacted events as they were.
static ORIGINALS: Table<(RoomNumber, EventNumber), Body> =
    Table::new("original_bodies", Family::Events, b'o');

/// An event as it is once it is redacted, with the body that it had in [`Redacted::original`].
pub(super) struct Redacted {
    pub(super) event: StoredEvent,
    /// What it related to.
    pub(super) relation: Option<(Relation, EventNumber)>,
    /// What its thread loses.
    pub(super) thread: Option<ThreadChange>,
    original: bytes::Bytes,
}

/// That a user may redact an event: an own one, or with the power over those of others.
///
/// The authorization rules leave this to the servers from room version 3 on.
///
/// # Errors
/// [`Error::NotAllowed`].
///
/// Spec: c2s, "Redactions"; rooms/v3, "Handling redactions".
pub(super) fn check(
    sender: &UserId,
    levels: &PowerLevels,
    target: &StoredEvent,
) -> Result<(), Error> {
    if target.pdu.sender == sender || levels.may_redact_others(sender) {
        return Ok(());
    }
    let text = "the power level does not suffice to redact the events of others".to_owned();
    Err(Error::NotAllowed(AuthError::Refused(text)))
}

/// Whether an event of another server redacts its target, at the state before it.
///
/// Spec: rooms/v3, "Handling redactions".
pub(super) fn may_redact(
    head: &Head,
    source: &Source<'_>,
    (redaction, target): (&Pdu, &Pdu),
    at: &Basis,
) -> Result<bool, Error> {
    if redaction.sender.server_name() == target.sender.server_name() {
        return Ok(true);
    }
    let levels = at.levels(source.rooms, head, source)?;
    let may = |levels: Arc<PowerLevels>| levels.may_redact_others(&redaction.sender);
    Ok(levels.is_some_and(may))
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
    let relation = meta.relation.take();
    let event = StoredEvent {
        number: target.number,
        meta,
        pdu: Arc::new(pdu),
    };
    Ok(Redacted {
        event,
        relation,
        thread: None,
        original: target.pdu.json.clone(),
    })
}

/// Replaces the rows of a redacted event, which no longer relates to another.
pub(super) fn insert(batch: &mut Batch, room: RoomNumber, redacted: &Redacted) {
    let event = &redacted.event;
    let key = (room, event.number);
    let id = EventKey::of(&event.pdu.event_id);
    let body = Body {
        id: id.clone(),
        json: event.pdu.json.clone(),
    };
    batch.put(&BODIES, &key, &body);
    batch.put(&METAS, &key, &event.meta);
    let original = Body {
        id,
        json: redacted.original.clone(),
    };
    batch.put(&ORIGINALS, &key, &original);
    relations::remove(batch, room, redacted);
    if let Some(change) = &redacted.thread {
        threads::insert(batch, room, change);
    }
}

/// A redacted event as it came, if that was kept.
///
/// # Errors
/// If the stored body is damaged.
pub(super) fn original(
    snapshot: &Snapshot,
    room: RoomNumber,
    event: &StoredEvent,
) -> Result<Option<Pdu>, Error> {
    let Some(body) = snapshot.get(&ORIGINALS, &(room, event.number))? else {
        return Ok(None);
    };
    let pdu = Pdu::from_stored(event.pdu.event_id.clone(), body.json, event.pdu.rejected)
        .map_err(|malformed| Error::corrupt("original_bodies", &malformed.to_string()))?;
    Ok(Some(pdu))
}

/// Puts the rows of a redacted event back that should not have been redacted. What it relates to is not among them.
pub(super) fn restore(batch: &mut Batch, room: RoomNumber, event: &StoredEvent) {
    let key = (room, event.number);
    let body = Body {
        id: EventKey::of(&event.pdu.event_id),
        json: event.pdu.json.clone(),
    };
    batch.put(&BODIES, &key, &body);
    batch.put(&METAS, &key, &event.meta);
    batch.delete(&ORIGINALS, &key);
}

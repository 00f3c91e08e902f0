//! Events that a room has mentioned and this server has not: what they are cited as becomes theirs when they come.
//!
//! A stub has a number, an empty body and the flag [`flag::STUB`]. Its ID is kept by room and not among the IDs of events:
//! anybody may cite anything, so the same ID may be a stub in several rooms and an event in another.

use super::{
    Error, EventMeta, RoomNumber,
    event::{BODIES, Body, EventKey, METAS, flag},
};
use crate::{
    events::{EventNumber, format::MAX_IDENTIFIER_BYTES},
    storage::{Batch, Family, Snapshot, Table, Text},
};

static BY_HASH: Table<(RoomNumber, [u8; 32]), u32> = Table::new("stubs", Family::EventIds, b's');
static BY_TEXT: Table<(RoomNumber, Text), u32> = Table::new("old_stubs", Family::EventIds, b'S');

/// A stub that is written.
#[derive(Clone, Debug)]
pub(super) struct Stub {
    pub(super) event: EventNumber,
    pub(super) id: EventKey,
    /// A redaction that came before what it redacts.
    pub(super) redacted_by: Option<EventNumber>,
}

/// The number of a stub by the ID of the event.
pub(super) fn number(
    snapshot: &Snapshot,
    room: RoomNumber,
    id: &EventKey,
) -> Result<Option<EventNumber>, Error> {
    let found = match id {
        EventKey::Hash(hash) => snapshot.get(&BY_HASH, &(room, *hash))?,
        // No event has such an ID, and no table such keys.
        EventKey::Text(text) if text.len() > MAX_IDENTIFIER_BYTES => None,
        EventKey::Text(text) => snapshot.get(&BY_TEXT, &(room, Text::from(&**text)))?,
    };
    Ok(found.map(EventNumber))
}

/// Adds a stub, or replaces what is known of one.
pub(super) fn insert(batch: &mut Batch, room: RoomNumber, stub: &Stub) {
    match &stub.id {
        EventKey::Hash(hash) => batch.put(&BY_HASH, &(room, *hash), &stub.event.0),
        EventKey::Text(text) => {
            batch.put(&BY_TEXT, &(room, Text::from(&**text)), &stub.event.0);
        }
    }
    let body = Body {
        id: stub.id.clone(),
        json: bytes::Bytes::new(),
    };
    batch.put(&BODIES, &(room, stub.event), &body);
    let meta = EventMeta {
        flags: flag::STUB,
        redacted_by: stub.redacted_by,
        ..EventMeta::default()
    };
    batch.put(&METAS, &(room, stub.event), &meta);
}

/// The event has come.
pub(super) fn remove(batch: &mut Batch, room: RoomNumber, id: &EventKey) {
    match id {
        EventKey::Hash(hash) => batch.delete(&BY_HASH, &(room, *hash)),
        EventKey::Text(text) => batch.delete(&BY_TEXT, &(room, Text::from(&**text))),
    }
}

/// The redaction that came before its target, by the target's number.
pub(super) fn redacted_by(
    snapshot: &Snapshot,
    room: RoomNumber,
    event: EventNumber,
) -> Result<Option<EventNumber>, Error> {
    let meta = snapshot.get(&METAS, &(room, event))?;
    Ok(meta.and_then(|meta| meta.redacted_by))
}

/// Whether the ID of a stub leads to it.
pub(super) fn leads(
    snapshot: &Snapshot,
    room: RoomNumber,
    id: &EventKey,
    event: EventNumber,
) -> Result<bool, Error> {
    Ok(number(snapshot, room, id)? == Some(event))
}

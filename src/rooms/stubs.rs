//! Events that a room has mentioned and this server has not: what they are cited as becomes theirs when they come.
//!
//! A stub has a number, an empty body and the flag [`flag::STUB`]. Its ID is kept by room and not among the IDs of events:
//! anybody may cite anything, so the same ID may be a stub in several rooms and an event in another.

use super::{
    Error, EventMeta, RoomNumber,
    event::{BODIES, Body, EventHash, METAS, flag},
};
use crate::{
    events::EventNumber,
    storage::{Batch, Family, Snapshot, Table},
};

static STUBS: Table<(RoomNumber, EventHash), u32> = Table::new("stubs", Family::EventIds, b's');

/// A stub that is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stub {
    pub(super) event: EventNumber,
    pub(super) hash: EventHash,
    /// A redaction that came before what it redacts.
    pub(super) redacted_by: Option<EventNumber>,
}

/// The number of a stub by the ID of the event.
pub(super) fn number(
    snapshot: &Snapshot,
    room: RoomNumber,
    hash: &EventHash,
) -> Result<Option<EventNumber>, Error> {
    Ok(snapshot.get(&STUBS, &(room, *hash))?.map(EventNumber))
}

/// Adds a stub, or replaces what is known of one.
pub(super) fn insert(batch: &mut Batch, room: RoomNumber, stub: &Stub) {
    batch.put(&STUBS, &(room, stub.hash), &stub.event.0);
    let body = Body {
        hash: stub.hash,
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
pub(super) fn remove(batch: &mut Batch, room: RoomNumber, hash: &EventHash) {
    batch.delete(&STUBS, &(room, *hash));
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
    hash: &EventHash,
    event: EventNumber,
) -> Result<bool, Error> {
    Ok(number(snapshot, room, hash)? == Some(event))
}

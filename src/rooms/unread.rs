//! Unread counts: running ordinals on every event, markers where a user has read to, and exceptions from the defaults.
//!
//! engine.md section 11.

use super::{
    Error, EventMeta, RoomNumber, Rooms, StoredEvent, TypeNumber, event::flag, head::Head,
    state::Source,
};
use crate::{events::Pdu, storage::Batch};

/// What an event counts as.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counted {
    /// The event moves its room up in a list of rooms.
    pub(super) moves_up: bool,
    /// Ordinal of the main timeline after the event.
    pub(super) ord_main: u64,
}

/// Gives the event its ordinals.
pub(super) fn count(
    _rooms: &Rooms,
    head: &Head,
    _source: &Source<'_>,
    pdu: &Pdu,
    meta: &mut EventMeta,
) -> Result<Counted, Error> {
    let notifies = pdu.state_key.is_none()
        && matches!(meta.event_type, TypeNumber::MESSAGE | TypeNumber::ENCRYPTED);
    let added = u64::from(notifies);
    if notifies {
        meta.flags |= flag::NOTIFIES;
    }
    meta.ord_all = head.row.ord_all + added;
    meta.ord_room = head.row.ord_room;
    meta.ord_thread = head.row.ord_main + added;
    Ok(Counted {
        moves_up: notifies,
        ord_main: head.row.ord_main + added,
    })
}

/// Adds markers and exceptions.
pub(super) fn insert(
    _batch: &mut Batch,
    _room: RoomNumber,
    _event: &StoredEvent,
    _counted: &Counted,
) {
}

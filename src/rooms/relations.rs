//! Relations between events: what replaces, annotates or refers to an event, and threads.
//!
//! engine.md section 5.4.

use super::{RoomNumber, StoredEvent, TypeNumber, event::Reader};
use crate::{
    accounts::UserNumber,
    events::EventNumber,
    storage::{Batch, Family, Index, Record, Table},
};

/// Events that relate to a parent, by relation, in timeline order.
pub(super) static RELATIONS: Table<(RoomNumber, EventNumber, u8, Index), RelationRow> =
    Table::new("relations", Family::Timeline, b'r');

/// An event that relates to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelationRow {
    pub event: EventNumber,
    pub sender: UserNumber,
    pub event_type: TypeNumber,
}

impl Record for RelationRow {
    fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.event.0.to_be_bytes());
        to.extend_from_slice(&self.sender.0.to_be_bytes());
        to.extend_from_slice(&self.event_type.0.to_be_bytes());
    }
    fn decode(from: &[u8]) -> Result<Self, String> {
        let mut reader = Reader(from);
        Ok(Self {
            event: EventNumber(reader.u32()?),
            sender: UserNumber(reader.u32()?),
            event_type: TypeNumber(reader.u16()?),
        })
    }
}

/// Adds the rows of an event that relates to another.
pub(super) fn insert(
    batch: &mut Batch,
    room: RoomNumber,
    event: &StoredEvent,
    _parent: Option<&StoredEvent>,
) {
    let Some((relation, parent)) = event.meta.relation else {
        return;
    };
    let row = RelationRow {
        event: event.number,
        sender: event.meta.sender,
        event_type: event.meta.event_type,
    };
    batch.put(
        &RELATIONS,
        &(room, parent, relation as u8, Index(event.meta.index)),
        &row,
    );
}

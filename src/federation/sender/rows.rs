//! What the sender keeps in the store: how far the log is dealt out, who has not got everything, partings, and EDUs that must
//! not be lost.
//!
//! Cursor and rows are written together, so that at any moment they say the same: up to the cursor, everybody has everything
//! but those with a row. engine.md section 13.

use serde::{Deserialize, Serialize};

use super::destinations::{Changes, DestinationRow, Queued};
use crate::{
    events::EventNumber,
    rooms::{RoomNumber, ServerNumber},
    storage::{self, Batch, Cbor, Family, Order, Position, PositionAt, Snapshot, Table},
};

pub(super) const FOLLOWER: &str = "federation";

static DESTINATIONS: Table<(ServerNumber,), Cbor<DestinationRow>> =
    Table::new("destinations", Family::Federation, b'd');
/// Events after which nobody of the server is in the room.
static PARTINGS: Table<(ServerNumber, RoomNumber, EventNumber), Position> =
    Table::new("partings", Family::Federation, b'r');
/// By server, position and a number that tells apart what is written at one position.
static EDUS: Table<EduKey, Cbor<EduRow>> = Table::new("queued_edus", Family::Federation, b'e');

pub(super) type EduKey = (ServerNumber, Position, u32);

/// An EDU that waits for a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct EduRow {
    pub(super) queued_ms: u64,
    /// Canonical JSON.
    pub(super) json: String,
}

/// What a start finds.
pub(super) struct Stored {
    /// `None`: the sender has never run.
    pub(super) cursor: Option<Position>,
    pub(super) destinations: Vec<(ServerNumber, DestinationRow)>,
    pub(super) with_edus: Vec<ServerNumber>,
}

pub(super) fn load(snapshot: &Snapshot) -> storage::Result<Stored> {
    let mut destinations = Vec::new();
    for row in snapshot.scan(DESTINATIONS.all(), Order::Forward) {
        let ((server,), Cbor(row)) = row?;
        destinations.push((server, row));
    }
    let mut with_edus = Vec::new();
    let mut next = Some(ServerNumber(0));
    while let Some(from) = next {
        let first = snapshot.first(EDUS.from(&(from,), &()), Order::Forward)?;
        next = None;
        if let Some(((server, ..), _)) = first {
            with_edus.push(server);
            next = server.0.checked_add(1).map(ServerNumber);
        }
    }
    Ok(Stored {
        cursor: snapshot.cursor(FOLLOWER)?,
        destinations,
        with_edus,
    })
}

/// Adds what the sender has to know after a restart.
pub(super) fn insert(batch: &mut Batch, changes: &Changes) {
    batch.cursor(FOLLOWER, changes.distributed);
    for (server, row) in &changes.put {
        batch.put(&DESTINATIONS, &(*server,), &Cbor(*row));
    }
    for server in &changes.delete {
        batch.delete(&DESTINATIONS, &(*server,));
    }
    for (server, event) in &changes.partings {
        let key = (*server, event.room, event.event);
        batch.put(&PARTINGS, &key, &event.position);
    }
}

/// The partings of a server at positions up to `upto`; at most `limit`.
pub(super) fn partings(
    snapshot: &Snapshot,
    server: ServerNumber,
    upto: Position,
    limit: usize,
) -> storage::Result<Vec<Queued>> {
    let mut found = Vec::new();
    for row in snapshot.scan(PARTINGS.prefix(&(server,)), Order::Forward) {
        let ((_, room, event), position) = row?;
        if found.len() == limit {
            break;
        }
        if position <= upto {
            found.push(Queued {
                position,
                room,
                event,
                is_parting: true,
            });
        }
    }
    Ok(found)
}

/// The server has the parting.
pub(super) fn delete_parting(batch: &mut Batch, server: ServerNumber, event: &Queued) {
    batch.delete(&PARTINGS, &(server, event.room, event.event));
}

/// Queues an EDU for a server. `number` tells it apart from others in the same batch.
pub(super) fn put_edu(batch: &mut Batch, server: ServerNumber, number: u32, row: EduRow) {
    let key = (server, Position::default(), number);
    batch.put_stamped(&EDUS, &key, &Cbor(row), PositionAt::Key(4));
}

/// Queues an EDU at a position of the log that tells of it: done twice, it is done once.
pub(super) fn put_edu_at(
    batch: &mut Batch,
    (server, position): (ServerNumber, Position),
    number: u32,
    row: EduRow,
) {
    batch.put(&EDUS, &(server, position, number), &Cbor(row));
}

/// The oldest EDUs of a server, at most `limit` and, but for the first, no more than `bytes` of them, and whether there are
/// more.
pub(super) fn edus(
    snapshot: &Snapshot,
    server: ServerNumber,
    (limit, bytes): (usize, usize),
) -> storage::Result<(Vec<(EduKey, EduRow)>, bool)> {
    let mut found = Vec::new();
    let mut left = bytes;
    for row in snapshot.scan(EDUS.prefix(&(server,)), Order::Forward) {
        let (key, Cbor(row)) = row?;
        if found.len() == limit || (row.json.len() > left && !found.is_empty()) {
            return Ok((found, true));
        }
        left = left.saturating_sub(row.json.len());
        found.push((key, row));
    }
    Ok((found, false))
}

pub(super) fn delete_edu(batch: &mut Batch, key: &EduKey) {
    batch.delete(&EDUS, key);
}

#[cfg(test)]
mod tests;

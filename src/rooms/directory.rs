//! The room directory: which rooms of this server are listed.

use super::RoomNumber;
use crate::storage::{Batch, Family, Table};

static PUBLISHED: Table<(RoomNumber,), ()> = Table::new("published_rooms", Family::RoomHeads, b'p');

/// Lists a room.
pub(super) fn publish(batch: &mut Batch, room: RoomNumber) {
    batch.put(&PUBLISHED, &(room,), &());
}

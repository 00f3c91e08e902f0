//! The current state of a room at earlier moments.
//!
//! As long as the graph of a room does not fork, the current state is that after the last event. Where it is another (two
//! branches resolve to something that neither has) a row says so, and holds until the next event that is shown.

use super::{Error, RoomNumber, Rooms, head::HeadRow, timeline};
use crate::{
    events::RootNumber,
    storage::{Batch, Family, Order, Position, PositionAt, Snapshot, Table},
};

static CURRENT: Table<(RoomNumber, Position), u32> =
    Table::new("current_states", Family::RoomHeads, b'c');

/// Notes that the current state is `root` from the position of the batch on.
pub(super) fn insert(batch: &mut Batch, room: RoomNumber, root: RootNumber) {
    const ROOM_BYTES: usize = 4;
    let key = (room, Position::default());
    batch.put_stamped(&CURRENT, &key, &root.0, PositionAt::Key(ROOM_BYTES));
}

/// Forgets what was noted from a position on.
pub(super) fn forget(batch: &mut Batch, room: RoomNumber, since: Position) {
    batch.delete_range(CURRENT.from(&(room, since), &(room,)));
}

impl Rooms {
    /// The current state of a room at a position; `None` if it was not here then.
    pub fn root_at(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        position: Position,
    ) -> Result<Option<RootNumber>, Error> {
        let Some(head) = self.head(snapshot, room)? else {
            return Ok(None);
        };
        if self.is_latest(snapshot, room, position) {
            return Ok(Some(head.root));
        }
        let last = match self.index_at(snapshot, room, position)? {
            i64::MIN => None,
            index => timeline::live_at_or_below(snapshot, room, index)?,
        };
        let last = match last {
            Some(row) => self.event(snapshot, room, row.event)?,
            None => None,
        };
        let since = last.as_ref().map(|last| last.meta.position);
        let since = since.unwrap_or_default();
        let noted = self.noted(snapshot, (room, &head), position)?;
        match noted.filter(|(noted_at, _)| *noted_at >= since) {
            Some((_, root)) => Ok(Some(root)),
            None => Ok(last.map(|last| last.meta.root_after)),
        }
    }

    /// Whether the current state of a room was, after a position, another than that after the last event.
    pub fn has_forked_since(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        since: Position,
    ) -> Result<bool, Error> {
        // Most rooms never did.
        let may = self.published(room);
        if may.is_some_and(|published| published.head.forks == 0) {
            return Ok(false);
        }
        let range = CURRENT.after(&(room, since), &(room,));
        Ok(snapshot.first(range, Order::Forward)?.is_some())
    }

    /// Whether nothing has happened in a room after `position`, up to the snapshot.
    fn is_latest(&self, snapshot: &Snapshot, room: RoomNumber, position: Position) -> bool {
        self.published(room).is_some_and(|published| {
            published.position <= position && published.position <= snapshot.position()
        })
    }

    fn noted(
        &self,
        snapshot: &Snapshot,
        (room, head): (RoomNumber, &HeadRow),
        position: Position,
    ) -> Result<Option<(Position, RootNumber)>, Error> {
        if head.forks == 0 {
            return Ok(None);
        }
        let range = CURRENT.through(&(room, position), &(room,));
        let row = snapshot.first(range, Order::Backward)?;
        Ok(row.map(|((_, noted_at), root)| (noted_at, RootNumber(root))))
    }
}

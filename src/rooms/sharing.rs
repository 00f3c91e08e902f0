//! Since when users of other servers have surely been in rooms with users of this one.
//!
//! Spec: s2s, "Device Management".

use super::{Class, Error, RoomNumber, Rooms, flag, membership, timeline};
use crate::{
    accounts::UserNumber,
    events::EventNumber,
    storage::{Position, Snapshot},
};

/// Rooms whose rows are read in one call.
const ROOMS_READ_AT_ONCE: usize = 64;

impl Rooms {
    /// Since when a user has been joined to one of `rooms` together with users of this server, without a pause: the first
    /// such time that is no later than `enough`, or else the earliest. `None`: nowhere, or nobody knows for sure.
    ///
    /// Where members of a room are still to be fetched, only those count who have come after us: of all others the room
    /// knows by what they cite themselves.
    pub fn shared_since(
        &self,
        snapshot: &Snapshot,
        user: UserNumber,
        (rooms, enough): (&[RoomNumber], Position),
    ) -> Result<Option<Position>, Error> {
        let mut earliest: Option<Position> = None;
        for rooms in rooms.chunks(ROOMS_READ_AT_ONCE) {
            for (room, joined, event) in membership::joins_among(snapshot, user, rooms)? {
                let Some(here) = self.here_since(snapshot, room)? else {
                    continue;
                };
                if self.is_partial(room) && !self.has_come_after_us(snapshot, room, event)? {
                    continue;
                }
                let since = joined.max(here);
                if since <= enough {
                    return Ok(Some(since));
                }
                earliest = earliest.into_iter().chain([since]).min();
            }
        }
        Ok(earliest)
    }

    /// Since when users of this server have been in a room; `None` if there are none.
    fn here_since(&self, snapshot: &Snapshot, room: RoomNumber) -> Result<Option<Position>, Error> {
        let published = self.published(room);
        let Some(published) = published.filter(|published| published.head.local > 0) else {
            return Ok(None);
        };
        let came = timeline::live_at_or_below(snapshot, room, published.head.taken_up)?;
        Ok(Some(came.map_or(Position::default(), |row| row.position)))
    }

    /// Whether a membership of a partial room is an event that came to it since we joined.
    fn has_come_after_us(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        event: EventNumber,
    ) -> Result<bool, Error> {
        let event = self.event(snapshot, room, event)?;
        Ok(event.is_some_and(|event| {
            event.meta.has(flag::STATE_PARTIAL) && !event.meta.has(flag::OUTLIER)
        }))
    }

    /// `rooms` with those first to which a user of this server is joined.
    pub fn own_first(
        &self,
        snapshot: &Snapshot,
        user: UserNumber,
        rooms: &[RoomNumber],
    ) -> Result<Vec<RoomNumber>, Error> {
        let own = self.rooms_of(snapshot, user)?;
        let joined = own.iter().filter(|entry| entry.class == Class::Join);
        let joined: std::collections::BTreeSet<RoomNumber> =
            joined.map(|entry| entry.room).collect();
        let (mut first, rest): (Vec<RoomNumber>, Vec<RoomNumber>) =
            rooms.iter().partition(|room| joined.contains(room));
        first.extend(rest);
        Ok(first)
    }
}

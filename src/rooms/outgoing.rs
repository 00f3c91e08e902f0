//! What of a room other servers are to get from this one, and which servers there are.
//!
//! An event goes out if it is of this server, or was given to it by another server to be passed on. The log tells of it; who
//! is behind finds it again in the timelines.

use std::collections::BTreeSet;

use ruma::{ServerName, UserId};

use super::{
    Class, Error, EventMeta, HeadRow, RoomNumber, Rooms, ServerNumber, StoredEvent, event, flag,
    membership, membership_of, timeline,
    writer::{LOG_EVENT, read_log_entry},
};
use crate::{
    accounts::UserNumber,
    events::{EventNumber, RootNumber},
    storage::{LogEntry, Position, Snapshot},
};

/// Rows of a timeline that are read in one call.
const PAGE: usize = 100;

/// An event that goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outgoing {
    pub position: Position,
    pub event: EventNumber,
    /// The state after it.
    pub root: RootNumber,
}

impl EventMeta {
    /// Whether this server sends the event to the other servers of the room.
    pub fn goes_out(&self) -> bool {
        let is_ours = self.has(flag::LOCAL | flag::RELAYED);
        is_ours
            && !self.has(
                flag::OUTLIER
                    | flag::REJECTED_BY_AUTH_EVENTS
                    | flag::REJECTED_BY_STATE
                    | flag::SOFT_FAILED
                    | flag::STUB
                    | flag::PURGED,
            )
    }
}

impl Rooms {
    /// The event that an entry of the log is about, if it is about an event.
    pub fn logged_event(entry: &LogEntry) -> Option<(RoomNumber, EventNumber)> {
        (entry.kind == LOG_EVENT)
            .then(|| read_log_entry(&entry.payload))
            .flatten()
    }

    /// Whether nobody of another server is joined to a room now.
    pub fn has_local_members_only(&self, room: RoomNumber) -> bool {
        let published = self.published(room);
        published.is_some_and(|published| has_local_members_only(&published.head))
    }

    /// Whether memory tells that an event goes out to no other server: nobody of one was in the room after it, and it has
    /// moved nobody out.
    pub fn stays_here(&self, room: RoomNumber, event: EventNumber) -> bool {
        let (Some(published), Some(event)) =
            (self.published(room), self.caches.events.get(&(room, event)))
        else {
            return false;
        };
        let is_moving = event.meta.event_type == super::TypeNumber::MEMBER;
        !is_moving
            && event.meta.root_after == published.head.root
            && has_local_members_only(&published.head)
    }

    /// The number of a server, given out now if it has none.
    pub fn server_number(&self, server: &ServerName) -> ServerNumber {
        self.numbers.intern_server(server)
    }

    /// The number of a server that this one has heard of.
    pub fn known_server(&self, server: &ServerName) -> Option<ServerNumber> {
        self.numbers.server(server)
    }

    /// Rooms in which something happened after `since` and where the server has joined members now.
    pub fn rooms_with_server(
        &self,
        snapshot: &Snapshot,
        server: ServerNumber,
        since: Position,
    ) -> Result<Vec<RoomNumber>, Error> {
        let changed = {
            let published = self
                .published
                .read()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            let changed = published.iter().filter(|(_, room)| room.position > since);
            let changed: BTreeSet<RoomNumber> = changed.map(|(room, _)| *room).collect();
            changed
        };
        let changed: Vec<RoomNumber> = changed.into_iter().collect();
        let mut rooms = membership::rooms_with(snapshot, &changed, server)?;
        for room in changed {
            if self.is_told_server(snapshot, room, server)? && !rooms.contains(&room) {
                rooms.push(room);
            }
        }
        Ok(rooms)
    }

    /// Those of `rooms` to which a user of any server is joined now, in their order.
    pub fn joined_among(
        &self,
        snapshot: &Snapshot,
        user: UserNumber,
        rooms: &[RoomNumber],
    ) -> Result<Vec<RoomNumber>, Error> {
        membership::joined_among(snapshot, user, rooms)
    }

    /// The events of a room that go out, of positions after the first and up to the second, newest first; at most `limit`,
    /// and at most so many as `walked` events of the timeline hold.
    pub fn outgoing_since(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        (after, upto): (Position, Position),
        (limit, walked): (usize, usize),
    ) -> Result<Vec<Outgoing>, Error> {
        let mut found = Vec::new();
        let mut page = Vec::with_capacity(PAGE);
        for row in timeline::rows_backward(snapshot, room).take(walked) {
            let (_, row) = row?;
            if row.position <= after {
                break;
            }
            if row.position <= upto {
                page.push((room, row.event));
            }
            if page.len() == PAGE {
                push_outgoing(snapshot, &mut page, &mut found)?;
            }
            if found.len() >= limit {
                break;
            }
        }
        push_outgoing(snapshot, &mut page, &mut found)?;
        found.truncate(limit);
        Ok(found)
    }

    /// The server whose user a membership event moves out of the room: it learns of that though it is in the room no more.
    /// `None` for any other event, and for an invitation, which goes another way.
    pub fn server_moved_out(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        event: &StoredEvent,
    ) -> Result<Option<ServerNumber>, Error> {
        let Some(target) = event.pdu.state_key.as_deref() else {
            return Ok(None);
        };
        let (true, Ok(target)) = (
            event.meta.event_type == super::TypeNumber::MEMBER,
            <&UserId>::try_from(target),
        ) else {
            return Ok(None);
        };
        if target.server_name() == self.own_name()
            || !matches!(Class::of(&membership_of(event)), Class::Leave | Class::Ban)
        {
            return Ok(None);
        }
        // Who was banned without ever having been here is not told.
        let before = (room, event.meta.root_before);
        let before = self.state_event(snapshot, before, "m.room.member", target.as_str())?;
        Ok(before.map(|_| self.server_number(target.server_name())))
    }
}

fn has_local_members_only(head: &HeadRow) -> bool {
    head.local >= head.joined && !head.partial
}

/// Takes `page` and adds those of its events that go out.
fn push_outgoing(
    snapshot: &Snapshot,
    page: &mut Vec<(RoomNumber, EventNumber)>,
    to: &mut Vec<Outgoing>,
) -> Result<(), Error> {
    let metas = snapshot.get_many(&event::METAS, page)?;
    for ((_, event), meta) in page.drain(..).zip(metas) {
        let Some(meta) = meta.filter(EventMeta::goes_out) else {
            continue;
        };
        to.push(Outgoing {
            position: meta.position,
            event,
            root: meta.root_after,
        });
    }
    Ok(())
}

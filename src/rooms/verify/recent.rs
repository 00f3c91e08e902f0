//! The check after a crash: what was written last must hang together. Cheap enough to be done before the server is ready.
//!
//! The commits of the store are atomic, so nothing of this should ever be found: it would mean that the disk, or what lies
//! between, has lost what it had confirmed.

use std::collections::BTreeSet;

use super::Violation;
use crate::{
    events::trie,
    rooms::{
        Error, HeadRow, RoomNumber, Rooms,
        event::{self, EventKey, METAS},
        gaps, membership, timeline,
        writer::{LOG_EVENT, LOG_STATE},
    },
    storage::{Order, Position, Snapshot},
};

/// Positions of the log whose rooms are looked at.
const POSITIONS: u64 = 10_000;
/// Rows of each timeline that are looked at.
const ROWS: usize = 100;

impl Rooms {
    /// Checks the newest rows of the rooms in which something happened lately. Empty if all is well.
    ///
    /// # Errors
    /// If a row cannot be read or decoded.
    pub async fn verify_recent(&self) -> Result<Vec<Violation>, Error> {
        let rooms = self.clone();
        let recent: BTreeSet<RoomNumber> = self
            .store
            .read(move |snapshot| rooms.recent(snapshot))
            .await?;
        let mut found = Vec::new();
        for room in recent {
            let rooms = self.clone();
            let read = move |snapshot: &Snapshot| rooms.verify_tail(snapshot, room);
            found.extend(self.store.read(read).await?);
        }
        Ok(found)
    }

    fn recent(&self, snapshot: &Snapshot) -> Result<BTreeSet<RoomNumber>, Error> {
        let last = snapshot.position();
        let first = last.sequence().saturating_sub(POSITIONS);
        let after = Position::new(last.writer(), first);
        let page = snapshot.log(after, usize::try_from(POSITIONS).unwrap_or(usize::MAX))?;
        let entries = page.entries.iter();
        let of_rooms = entries.filter(|entry| matches!(entry.kind, LOG_EVENT | LOG_STATE));
        let rooms = of_rooms.filter_map(|entry| entry.payload.first_chunk::<4>());
        Ok(rooms
            .map(|room| RoomNumber(u32::from_be_bytes(*room)))
            .collect())
    }

    /// Checks the head of a room and the newest rows of its timeline.
    fn verify_tail(&self, snapshot: &Snapshot, room: RoomNumber) -> Result<Vec<Violation>, Error> {
        let Some(head) = self.head(snapshot, room)? else {
            return Ok(Vec::new());
        };
        let mut texts = self.head_faults(snapshot, room, &head)?;
        texts.extend(self.timeline_faults(snapshot, room, &head)?);
        let found = texts.into_iter().map(|(invariant, text)| Violation {
            room,
            invariant,
            text,
        });
        Ok(found.collect())
    }

    fn head_faults(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        head: &HeadRow,
    ) -> Result<Vec<(&'static str, String)>, Error> {
        let mut found = Vec::new();
        let source = self.source(snapshot, room);
        let root = source.root(head.root)?;
        let core = trie::walk(&source, root.core)?.len() as u64;
        let members = trie::walk(&source, root.members)?.len() as u64;
        if (core, members) != (root.core_count, root.member_count) {
            found.push((
                "I3",
                "the current state does not count its entries".to_owned(),
            ));
        }
        for end in self.events(snapshot, room, &head.extremities)? {
            let is_shut_out = head.local == 0 && head.was_partial;
            if !is_shut_out && !end.is_some_and(|end| end.meta.is_accepted()) {
                found.push((
                    "I7",
                    "a forward extremity is not an accepted event".to_owned(),
                ));
            }
        }
        let counts = membership::server_counts(snapshot, room)?;
        let joined: i64 = counts.into_iter().map(|(_, joined)| joined).sum();
        if joined.unsigned_abs() != head.joined {
            let said = head.joined;
            found.push((
                "I9",
                format!("{joined} members are counted, the head says {said}"),
            ));
        }
        let last = snapshot.first(METAS.prefix(&(room,)), Order::Backward)?;
        if last.is_some_and(|((_, event), _)| event.0 >= head.next_event) {
            found.push((
                "I1",
                "there are events that the head does not know".to_owned(),
            ));
        }
        Ok(found)
    }

    fn timeline_faults(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        head: &HeadRow,
    ) -> Result<Vec<(&'static str, String)>, Error> {
        let mut found = Vec::new();
        let mut newer: Option<i64> = None;
        for row in timeline::rows_backward(snapshot, room).take(ROWS) {
            let (index, row) = row?;
            let event = self.event(snapshot, room, row.event)?;
            let Some(event) = event else {
                found.push(("I1", format!("the event at index {index} has no body")));
                continue;
            };
            if (event.meta.index, event.meta.position) != (index, row.position) {
                found.push(("I10", format!("the event at index {index} is not there")));
            }
            let place = event::place(snapshot, &EventKey::of(&event.pdu.event_id))?;
            if place.is_none_or(|place| (place.room, place.event) != (room, event.number)) {
                found.push(("I1", format!("no ID leads to the event at index {index}")));
            }
            let is_last = newer.is_none();
            // What a partial room showed last may have had to go.
            if is_last && index != head.high && !head.was_partial {
                found.push(("I10", format!("the newest event is not at {}", head.high)));
            }
            let is_next = newer.is_none_or(|newer| newer.saturating_sub(1) == index);
            if !is_next && gaps::is_before(snapshot, room, newer.unwrap_or(index))? {
                break;
            }
            newer = Some(index);
        }
        Ok(found)
    }
}

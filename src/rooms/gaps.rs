//! Gaps in a timeline: places before which events are missing, with the IDs of those that come next.
//!
//! A gap stands at the index of the event after it. Below it 2^32 indexes are free, which later history fills from above;
//! at the start of the timeline there is no end to them. engine.md section 5.4.

use ruma::{EventId, OwnedEventId};

use super::{
    Error, RoomNumber, Rooms,
    event::{EventKey, Reader, put_text, put_varint, take_text},
};
use crate::storage::{Batch, Family, Index, Order, Record, Snapshot, Table};

static GAPS: Table<(RoomNumber, Index), GapRow> = Table::new("gaps", Family::Timeline, b'g');

/// Indexes that a gap leaves free.
pub(super) const GAP_WIDTH: i64 = 1 << 32;
/// Where no event stands on so many indexes there is, or was, a gap: between what it parts there is no order.
pub(super) const PARTED: i64 = 1 << 24;
/// Most events that one gap names: what is missing beyond that is found on the way.
const MAX_MISSING: usize = 100;

/// The events that are missing, those that come next first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct GapRow(Vec<EventKey>);

impl Record for GapRow {
    /// The hashes with their number; then, if there are any, the IDs that are text.
    fn encode(&self, to: &mut Vec<u8>) {
        let is_hash = |id: &&EventKey| matches!(id, EventKey::Hash(_));
        put_varint(to, self.0.iter().filter(is_hash).count() as u64);
        for id in &self.0 {
            if let EventKey::Hash(hash) = id {
                to.extend_from_slice(hash);
            }
        }
        for id in &self.0 {
            if let EventKey::Text(text) = id {
                put_text(to, text);
            }
        }
    }
    fn decode(from: &[u8]) -> Result<Self, String> {
        let mut reader = Reader(from);
        let mut missing = Vec::new();
        for _ in 0..reader.varint()? {
            missing.push(EventKey::Hash(reader.array()?));
        }
        while !reader.0.is_empty() {
            missing.push(EventKey::Text(take_text(&mut reader)?));
        }
        Ok(Self(missing))
    }
}

/// A place in a timeline before which events are missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    pub room: RoomNumber,
    /// That of the event after the gap.
    pub index: i64,
    /// Where to ask on.
    pub missing: Vec<OwnedEventId>,
}

impl GapRow {
    pub(super) fn of<'a>(missing: impl IntoIterator<Item = &'a EventId>) -> Self {
        let mut missing: Vec<_> = missing.into_iter().map(EventKey::of).collect();
        missing.sort_unstable();
        missing.dedup();
        missing.truncate(MAX_MISSING);
        Self(missing)
    }

    pub(super) fn ids(&self) -> Vec<OwnedEventId> {
        self.0.iter().map(EventKey::id).collect()
    }
}

pub(super) fn insert(batch: &mut Batch, room: RoomNumber, index: i64, gap: &GapRow) {
    batch.put(&GAPS, &(room, Index(index)), gap);
}

pub(super) fn remove(batch: &mut Batch, room: RoomNumber, index: i64) {
    batch.delete(&GAPS, &(room, Index(index)));
}

/// Whether events are missing right before an index.
pub(super) fn is_before(snapshot: &Snapshot, room: RoomNumber, index: i64) -> Result<bool, Error> {
    Ok(snapshot.has(&GAPS, &(room, Index(index)))?)
}

/// Gaps that are looked through for an event.
const MAX_SEARCHED: usize = 1_000;

/// The newest gap in which an event is missing.
pub(super) fn naming(
    snapshot: &Snapshot,
    room: RoomNumber,
    id: &EventKey,
) -> Result<Option<Gap>, Error> {
    let rows = snapshot.scan(GAPS.prefix(&(room,)), Order::Backward);
    for row in rows.take(MAX_SEARCHED) {
        let ((_, Index(index)), gap) = row?;
        if gap.0.contains(id) {
            let missing = gap.ids();
            return Ok(Some(Gap {
                room,
                index,
                missing,
            }));
        }
    }
    Ok(None)
}

impl Rooms {
    /// Those of `ids` that a gap names. What they follow belongs to the history too.
    pub fn named_by_gaps(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        ids: &[OwnedEventId],
    ) -> Result<Vec<OwnedEventId>, Error> {
        let mut named = Vec::new();
        for id in ids {
            if naming(snapshot, room, &EventKey::of(id))?.is_some() {
                named.push(id.clone());
            }
        }
        Ok(named)
    }

    /// The next gap in a timeline on the way back from `index`, itself included.
    pub fn gap_at_or_below(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        index: i64,
    ) -> Result<Option<Gap>, Error> {
        let range = GAPS.through(&(room, Index(index)), &(room,));
        let found = snapshot.first(range, Order::Backward)?;
        Ok(found.map(|((_, Index(index)), gap)| Gap {
            room,
            index,
            missing: gap.ids(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use ruma::event_id;

    use super::*;

    #[test]
    fn a_gap_names_events_of_every_room_version() {
        let ids = [
            event_id!("$Rqnc-F-dvnEYJTyHq_iKxU2bZ1CI92-kuZq3a5lr5Zg"),
            event_id!("$acR1l0raoZnm60CBwAVgqbZqoO/mYU81xysh1u7XcJk"),
            event_id!("$a4ecee13e2accdadf56c1025:example.com"),
        ];
        for ids in [&ids[..], &ids[..1], &ids[1..], &[]] {
            let row = GapRow::of(ids.iter().copied());
            let mut bytes = Vec::new();
            row.encode(&mut bytes);
            let again = GapRow::decode(&bytes).expect("the row was just written");
            assert_eq!(again.ids(), row.ids());
            assert_eq!(again, row);
        }
    }
}

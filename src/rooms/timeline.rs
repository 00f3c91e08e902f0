//! The timeline of each room: which event stands where.
//!
//! Live events get the next higher index, backfilled ones the next lower; depth orders nothing, as it is under remote
//! control. Within the live part positions grow with the index, so a sync token is found by bisection.
//! engine.md section 5.4.

use std::sync::Arc;

use super::{Error, EventMeta, RoomNumber, Rooms, StoredEvent, event::Reader, gaps};
use crate::{
    events::EventNumber,
    storage::{
        Batch, Family, Index, Millis48, Order, Position, PositionAt, Record, Snapshot, Table,
        TableRange,
    },
};

static TIMELINE: Table<(RoomNumber, Index), TimelineRow> =
    Table::new("timeline", Family::Timeline, b't');
static BY_TIME: Table<(RoomNumber, Millis48, EventNumber), ()> =
    Table::new("timeline_by_time", Family::Timeline, b'x');

/// What stands at an index of a timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimelineRow {
    pub event: EventNumber,
    /// Zero for backfilled events.
    pub position: Position,
    /// The low byte of the event's flags.
    pub flags: u8,
}

impl TimelineRow {
    const POSITION: PositionAt = PositionAt::Value(4);

    fn new(event: &StoredEvent, position: Position) -> Self {
        Self {
            event: event.number,
            position,
            flags: event.meta.flags.to_le_bytes()[0],
        }
    }
}

impl Record for TimelineRow {
    fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.event.0.to_be_bytes());
        to.extend_from_slice(&self.position.0.to_be_bytes());
        to.push(self.flags);
    }
    fn decode(from: &[u8]) -> Result<Self, String> {
        let mut reader = Reader(from);
        Ok(Self {
            event: EventNumber(reader.u32()?),
            position: Position(reader.u64()?),
            flags: reader.u8()?,
        })
    }
}

/// Adds an event to the timeline.
pub(super) fn insert(batch: &mut Batch, room: RoomNumber, event: &StoredEvent) {
    if !event.meta.is_visible() {
        return;
    }
    let row = TimelineRow::new(event, event.meta.position);
    batch.put_stamped(
        &TIMELINE,
        &(room, Index(event.meta.index)),
        &row,
        TimelineRow::POSITION,
    );
    let time = Millis48(event.meta.timestamp);
    batch.put(&BY_TIME, &(room, time, event.number), &());
}

/// Adds an event that came before what is live: without a position.
pub(super) fn insert_past(batch: &mut Batch, room: RoomNumber, event: &StoredEvent) {
    if !event.meta.is_visible() {
        return;
    }
    let row = TimelineRow::new(event, Position::default());
    batch.put(&TIMELINE, &(room, Index(event.meta.index)), &row);
    let time = Millis48(event.meta.timestamp);
    batch.put(&BY_TIME, &(room, time, event.number), &());
}

/// Writes the row of a shown event again, whose flags have changed.
pub(super) fn replace(batch: &mut Batch, room: RoomNumber, event: &StoredEvent) {
    if !event.meta.is_visible() {
        return;
    }
    let row = TimelineRow::new(event, event.meta.position);
    batch.put(&TIMELINE, &(room, Index(event.meta.index)), &row);
}

/// Takes an event out of the timeline that should not have been in it.
pub(super) fn remove(batch: &mut Batch, room: RoomNumber, event: &StoredEvent) {
    batch.delete(&TIMELINE, &(room, Index(event.meta.index)));
    let time = Millis48(event.meta.timestamp);
    batch.delete(&BY_TIME, &(room, time, event.number));
}

/// Every row of a timeline, in order.
pub(super) fn rows(
    snapshot: &Snapshot,
    room: RoomNumber,
) -> impl Iterator<Item = Result<(i64, TimelineRow), Error>> {
    let rows = snapshot.scan(TIMELINE.prefix(&(room,)), Order::Forward);
    rows.map(|row| Ok(row.map(|((_, Index(index)), row)| (index, row))?))
}

/// Every row of a timeline, newest first.
pub(super) fn rows_backward(
    snapshot: &Snapshot,
    room: RoomNumber,
) -> impl Iterator<Item = Result<(i64, TimelineRow), Error>> {
    let rows = snapshot.scan(TIMELINE.prefix(&(room,)), Order::Backward);
    rows.map(|row| Ok(row.map(|((_, Index(index)), row)| (index, row))?))
}

/// The newest row up to an index that is no history.
pub(super) fn live_at_or_below(
    snapshot: &Snapshot,
    room: RoomNumber,
    index: i64,
) -> Result<Option<TimelineRow>, Error> {
    let range = TIMELINE.range(&(room,), &(room, Index(index.saturating_add(1))));
    for row in snapshot.scan(range, Order::Backward) {
        let (_, row) = row?;
        if row.position != Position::default() {
            return Ok(Some(row));
        }
    }
    Ok(None)
}

/// The newest rows of a timeline, oldest first, as far as they came since the start of the process: what nearly all readers
/// ask for, without a look at the store.
#[derive(Clone, Debug, Default)]
pub(super) struct Recent(Vec<(i64, TimelineRow)>);

/// Rows kept of each room.
const RECENT_ROWS: usize = 32;

impl Recent {
    /// With one more event. What lies before a gap is no part of it, as history comes in between.
    pub(super) fn with(&self, meta: &EventMeta, event: EventNumber) -> Self {
        let mut dropped = (self.0.len() + 1).saturating_sub(RECENT_ROWS);
        if meta.is_visible()
            && let Some((last, _)) = self.0.last()
            && meta.index != last.saturating_add(1)
        {
            dropped = self.0.len();
        }
        let kept = self.0.iter().skip(dropped).copied();
        if !meta.is_visible() {
            return Self(kept.collect());
        }
        let row = TimelineRow {
            event,
            position: meta.position,
            flags: meta.flags.to_le_bytes()[0],
        };
        Self(kept.chain([(meta.index, row)]).collect())
    }

    /// As [`Rooms::timeline_since`], from what `until` shows; `None` if this does not reach back so far.
    fn since(
        &self,
        (since, until): (Position, Position),
        before: i64,
        limit: usize,
    ) -> Option<(Vec<(i64, TimelineRow)>, bool)> {
        let oldest = self.0.first()?;
        let newest_first = self.0.iter().rev();
        let mut shown = newest_first
            .skip_while(|(index, row)| row.position > until || *index >= before)
            .take_while(|(_, row)| row.position > since);
        let rows: Vec<_> = shown.by_ref().take(limit).copied().collect();
        let has_more = shown.next().is_some();
        (has_more || oldest.1.position <= since).then_some((rows, has_more))
    }

    /// The index of the newest event at a position; `None` if this does not reach back so far.
    fn index_at(&self, position: Position) -> Option<i64> {
        let mut newest_first = self.0.iter().rev();
        let found = newest_first.find(|(_, row)| row.position <= position);
        found.map(|(index, _)| *index)
    }
}

/// An event with its place.
#[derive(Clone, Debug)]
pub struct Placed {
    pub index: i64,
    pub position: Position,
    pub event: Arc<StoredEvent>,
}

impl Rooms {
    /// Events of the timeline from `from` on in the direction of `order`, `from` itself excluded; at most `limit`.
    /// Purged events are passed over.
    pub fn timeline(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        from: i64,
        order: Order,
        limit: usize,
    ) -> Result<Vec<Placed>, Error> {
        let mut rows = Vec::with_capacity(limit);
        let range = match order {
            Order::Forward => TIMELINE.after(&(room, Index(from)), &(room,)),
            Order::Backward => TIMELINE.range(&(room,), &(room, Index(from))),
        };
        for row in snapshot.scan(range, order) {
            if rows.len() == limit {
                break;
            }
            let ((_, Index(index)), row) = row?;
            rows.push((index, row));
        }
        self.placed(snapshot, room, &rows)
    }

    /// The newest events with a position above `since` and an index below `before`, newest first; at most `limit`, and
    /// whether there are more. They end where events are missing. Since the beginning, history is among them.
    pub fn timeline_since(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        since: Position,
        before: i64,
        limit: usize,
    ) -> Result<(Vec<Placed>, bool), Error> {
        if let Some(published) = self.published(room)
            && let Some((rows, more)) =
                published
                    .recent
                    .since((since, snapshot.position()), before, limit)
        {
            return Ok((self.placed(snapshot, room, &rows)?, more));
        }
        let mut rows = Vec::new();
        let mut more = false;
        let mut after = (before != i64::MAX).then_some(before);
        for row in snapshot.scan(
            TIMELINE.range(&(room,), &(room, Index(before))),
            Order::Backward,
        ) {
            let ((_, Index(index)), row) = row?;
            let is_history = row.position == Position::default();
            let is_next = after.is_none_or(|after| after.saturating_sub(1) == index);
            let is_behind_gap =
                !is_next && gaps::is_before(snapshot, room, after.unwrap_or(index))?;
            if row.position <= since && !(is_history && since == Position::default()) {
                // There may be newer events below history that has filled a gap, and in the gap.
                more = is_history || is_behind_gap;
                break;
            }
            if is_behind_gap {
                more = true;
                break;
            }
            if rows.len() == limit {
                more = true;
                break;
            }
            after = Some(index);
            rows.push((index, row));
        }
        Ok((self.placed(snapshot, room, &rows)?, more))
    }

    fn placed(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        rows: &[(i64, TimelineRow)],
    ) -> Result<Vec<Placed>, Error> {
        let numbers: Vec<_> = rows.iter().map(|(_, row)| row.event).collect();
        let events = self.events(snapshot, room, &numbers)?;
        let placed = rows.iter().zip(events).filter_map(|((index, row), event)| {
            Some(Placed {
                index: *index,
                position: row.position,
                event: event?,
            })
        });
        Ok(placed.collect())
    }

    /// The highest index whose event was visible at `position`; `i64::MIN` if none was. History is no answer: nobody can tell
    /// when it came.
    pub fn index_at(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        position: Position,
    ) -> Result<i64, Error> {
        let at = position.min(snapshot.position());
        if let Some(published) = self.published(room)
            && let Some(index) = published.recent.index_at(at)
        {
            return Ok(index);
        }
        // The usual token is of the last moments, so the newest few rows come before a bisection.
        const WALKED: usize = 32;
        for (walked, row) in
            live_rows(snapshot, TIMELINE.prefix(&(room,)), Order::Backward).enumerate()
        {
            let (index, row) = row?;
            if row.position <= position {
                return Ok(index);
            }
            if walked == WALKED {
                let since = self
                    .published(room)
                    .map_or(BELOW_LIVE, |of| of.head.taken_up);
                return bisect(snapshot, room, position, (since, index));
            }
        }
        Ok(i64::MIN)
    }

    /// The highest index among the events that one follows in the graph; `None` if one of them is not a part of the timeline.
    pub fn follows(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        event: &StoredEvent,
    ) -> Result<Option<i64>, Error> {
        let prevs = self.events(snapshot, room, &event.meta.prev_events)?;
        let visible = |prev: Option<Arc<StoredEvent>>| prev.filter(|prev| prev.meta.is_visible());
        let indexes = prevs
            .into_iter()
            .map(|prev| visible(prev).map(|prev| prev.meta.index));
        let indexes: Option<Vec<i64>> = indexes.collect();
        Ok(indexes.and_then(|indexes| indexes.into_iter().max()))
    }

    /// The event closest to `timestamp` in a direction, by `origin_server_ts`: the first at or after it forwards, the
    /// last at or before it backwards. `accept` passes over events (those that the asker may not see).
    pub fn event_at_time(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        timestamp: u64,
        order: Order,
        mut accept: impl FnMut(&StoredEvent) -> Result<bool, Error>,
    ) -> Result<Option<Arc<StoredEvent>>, Error> {
        let range = match order {
            Order::Forward => BY_TIME.range(
                &(room, Millis48(timestamp)),
                &(RoomNumber(room.0.saturating_add(1)),),
            ),
            Order::Backward => {
                BY_TIME.range(&(room,), &(room, Millis48(timestamp.saturating_add(1))))
            }
        };
        for row in snapshot.scan(range, order).take(MAX_EVENTS_PASSED_OVER) {
            let ((_, _, number), ()) = row?;
            let Some(event) = self.event(snapshot, room, number)? else {
                continue;
            };
            if accept(&event)? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }
}

/// As [`Rooms::index_at`], knowing that the row at `above` is later than `position`; `since` is the index at which the room
/// was taken up, where it was.
fn bisect(
    snapshot: &Snapshot,
    room: RoomNumber,
    position: Position,
    (since, above): (i64, i64),
) -> Result<i64, Error> {
    let is_visible = |row: TimelineRow| row.position <= position;
    let start = snapshot.get(&TIMELINE, &(room, Index(since)))?;
    // No live row stands below; what was fetched since, and lies there, need not be walked through.
    let start = start.filter(|row| row.position != Position::default() && is_visible(*row));
    let mut low = start.map_or(BELOW_LIVE, |_| since);
    let mut high = above;
    // Nothing live from `high` on is visible. What is live at `low` is, and positions grow from one live row to the next.
    while low.saturating_add(1) < high {
        let middle = i64::midpoint(low, high);
        let range = TIMELINE.range(&(room, Index(middle)), &(room, Index(high)));
        let found = live_rows(snapshot, range, Order::Forward).next();
        match found.transpose()? {
            Some((index, row)) if is_visible(row) => low = index,
            _ => high = middle,
        }
    }
    Ok(if low == BELOW_LIVE { i64::MIN } else { low })
}

/// The first live event has a higher index.
const BELOW_LIVE: i64 = 0;

/// The index right below everything that is no history; `i64::MIN` if there is nothing.
pub(super) fn below_live(snapshot: &Snapshot, room: RoomNumber) -> Result<i64, Error> {
    let range = TIMELINE.after(&(room, Index(BELOW_LIVE)), &(room,));
    let first = live_rows(snapshot, range, Order::Forward).next();
    Ok(first
        .transpose()?
        .map_or(i64::MIN, |(index, _)| index.saturating_sub(1)))
}

/// The rows of a range that are no history.
fn live_rows(
    snapshot: &Snapshot,
    range: TableRange<(RoomNumber, Index), TimelineRow>,
    order: Order,
) -> impl Iterator<Item = Result<(i64, TimelineRow), Error>> {
    let rows = snapshot.scan(range, order);
    rows.filter_map(|row| match row {
        Ok((_, row)) if row.position == Position::default() => None,
        Ok(((_, Index(index)), row)) => Some(Ok((index, row))),
        Err(error) => Some(Err(error.into())),
    })
}

/// Events that a look-up by time passes over before it gives up.
const MAX_EVENTS_PASSED_OVER: usize = 1_000;

//! Older events, which fill a gap of the timeline from above.
//!
//! They have no position and change nothing of what the room is now: no client is woken, nothing is counted as unread.
//! All of a call is written at once, so a gap is never half moved. engine.md section 5.4.

use std::collections::BTreeSet;

use ruma::OwnedEventId;

use super::{Intake, Place, Verdict, judge};
use crate::{
    events::{Verified, extremities},
    rooms::{
        Error, EventMeta, RoomNumber, RoomWriter, Rooms, StoredEvent,
        draft::{Draft, Made},
        event,
        gaps::{self, Gap, GapRow, PARTED},
        head::{self, Head},
        membership::{self, MembershipChange},
        partial, redact, relations,
        state::{self, Source},
        stubs, timeline,
        writer::place::{self, Ends, Prepared, Was},
    },
    storage::{Batch, Order, Snapshot},
};

/// A batch is closed above this, in bytes.
const BATCH_BYTES: usize = 500_000;

/// An older event.
#[derive(Debug)]
pub struct HistoryEvent {
    pub event: Verified,
    /// The state before it as another server tells it, where its previous events stay unknown.
    pub state_before: Option<Vec<OwnedEventId>>,
}

/// What was read of a gap.
struct Edge {
    missing: Vec<OwnedEventId>,
    /// The highest index below that is taken.
    floor: i64,
    /// Ordinals of what lies below.
    ord_all: u64,
    ord_room: u64,
}

/// What came of older events.
struct Filled {
    prepared: Vec<Prepared>,
    made: Made,
    missing: Vec<OwnedEventId>,
    /// What the room is, if they come after what was an end of its graph.
    ends: Option<(Ends, Vec<MembershipChange>)>,
}

impl RoomWriter {
    /// Takes in events that belong right below a gap: the oldest first, each after its previous events. What has neither its
    /// previous events nor a state before it is passed over. The answer is the gap that is left, if there is one.
    ///
    /// # Errors
    /// [`Error::Invalid`] if a state names an event that is not known.
    pub async fn receive_history(
        &mut self,
        gap: &Gap,
        events: Vec<HistoryEvent>,
    ) -> Result<Option<Gap>, Error> {
        self.fill(gap, events, Intake::Live).await
    }

    pub(super) async fn fill(
        &mut self,
        gap: &Gap,
        events: Vec<HistoryEvent>,
        intake: Intake,
    ) -> Result<Option<Gap>, Error> {
        self.settled().await?;
        let (room, index) = (self.room(), gap.index);
        let rooms = self.rooms().clone();
        let read = move |snapshot: &Snapshot| edge(&rooms, snapshot, room, index);
        let Some(edge) = self.rooms().store.read(read).await? else {
            // Somebody else has filled it.
            return Ok(None);
        };
        let count = i64::try_from(events.len()).unwrap_or(i64::MAX);
        let lowest = index.saturating_sub(count);
        let apart = lowest.saturating_sub(PARTED);
        let parted = match apart.saturating_sub(PARTED) > edge.floor {
            true => self.count_parted(index, &events).await?,
            false => 0,
        };
        let mut arrivals = Vec::with_capacity(events.len());
        for (event, at) in events.into_iter().zip(0_i64..) {
            let pdu = event.event.into_pdu();
            let arrival = self.arrival(pdu, intake, event.state_before).await;
            let Ok(mut arrival) = arrival else { continue };
            let lowest = if at < parted { apart } else { lowest };
            arrival.place = Place::Past {
                index: lowest.saturating_add(at),
                ord_all: edge.ord_all,
                ord_room: edge.ord_room,
            };
            arrivals.push(arrival);
        }
        let filled = self
            .with_source(move |head, source| {
                let draft = Draft::new(head);
                let mut missing: BTreeSet<OwnedEventId> = edge.missing.iter().cloned().collect();
                let mut prepared = Vec::new();
                let source_with = source.with_draft(&draft);
                for arrival in &arrivals {
                    if let Verdict::Settled(settled, _) =
                        judge::judge_past(head, &source_with, &draft, arrival)?
                    {
                        let gap = settled.turn.as_ref().and_then(|turn| turn.gap.as_ref());
                        missing.extend(gap.into_iter().flat_map(GapRow::ids));
                        prepared.push(*settled);
                    }
                }
                let mut still = Vec::new();
                for id in missing {
                    let event = match source_with.event_number(&id)? {
                        Some(number) => source_with.event(number)?,
                        None => None,
                    };
                    if event.is_none_or(|event| event.meta.has(event::flag::OUTLIER)) {
                        still.push(id);
                    }
                }
                let ends = ends(head, &source_with, &draft, &prepared)?;
                Ok(Filled {
                    prepared,
                    missing: still,
                    ends,
                    made: draft.into_made().0,
                })
            })
            .await?;
        self.append_history(index, filled).await
    }

    /// How many of the events, from the oldest on, must stand apart from what is above the gap: an event that the last of
    /// them cites stands there, because it came first.
    async fn count_parted(&mut self, index: i64, events: &[HistoryEvent]) -> Result<i64, Error> {
        let cited: Vec<_> = events
            .iter()
            .map(|event| event.event.prev_events.clone())
            .collect();
        self.with_source(move |_head, source| {
            let mut parted = 0;
            for (cited, count) in cited.iter().zip(1..) {
                for id in cited {
                    let event = match source.event_number(id)? {
                        Some(number) => source.event(number)?,
                        None => None,
                    };
                    let is_above = |event: &EventMeta| {
                        let distance = event.index.saturating_sub(index);
                        event.is_visible() && (0..PARTED).contains(&distance)
                    };
                    if event.is_some_and(|event| is_above(&event.meta)) {
                        parted = count;
                    }
                }
            }
            Ok(parted)
        })
        .await
    }

    async fn append_history(&mut self, index: i64, filled: Filled) -> Result<Option<Gap>, Error> {
        let rooms = self.rooms().clone();
        let head = self.head_mut();
        let room = head.room;
        let visible = filled
            .prepared
            .iter()
            .filter(|past| past.event.meta.is_visible());
        let lowest = visible.map(|past| past.event.meta.index).min();
        let left = (!filled.missing.is_empty()).then(|| Gap {
            room,
            index: lowest.unwrap_or(index),
            missing: filled.missing,
        });
        let mut batches = vec![Batch::new()];
        let mut batch = batches.last_mut();
        if let Some(batch) = &mut batch {
            gaps::remove(batch, room, index);
            if let Some(left) = &left {
                let row = GapRow::of(left.missing.iter().map(|id| &**id));
                gaps::insert(batch, room, left.index, &row);
            }
            for (number, root) in &filled.made.roots {
                state::insert_root(batch, room, *number, root);
            }
        }
        for (number, node) in &filled.made.nodes {
            state::insert_node(open(&mut batches), room, *number, node);
        }
        head.remember_made(filled.made);
        let mut changed = Vec::new();
        for past in &filled.prepared {
            insert(open(&mut batches), room, past);
            let turn = past.turn.as_ref();
            if turn.is_some_and(|turn| turn.was == Was::Outlier) {
                changed.push(past.event.number);
            }
            changed.extend(
                past.redaction
                    .as_ref()
                    .map(|redacted| redacted.event.number),
            );
        }
        if let Some(last) = filled.prepared.last() {
            last.next.write(&mut head.row);
        }
        if let Some(lowest) = lowest {
            head.row.low = head.row.low.min(lowest);
        }
        for past in filled.prepared {
            head.remember_apart(past);
        }
        if let Some((ends, memberships)) = &filled.ends {
            move_on(&rooms, head, &mut batches, (ends, memberships));
        }
        if let Some(last) = batches.last_mut() {
            head::insert(last, room, &head.row);
            rooms.publish_head(last, room, head.row.clone(), changed);
        }
        for batch in &mut batches {
            head.count(batch);
        }
        for commit in self.submit_all(batches) {
            commit.await?;
        }
        Ok(left)
    }
}

/// Moves the head on to what the room is now.
pub(in crate::rooms) fn move_on(
    rooms: &Rooms,
    head: &mut Head,
    batches: &mut Vec<Batch>,
    (ends, memberships): (&Ends, &[MembershipChange]),
) {
    let (room, before) = (head.room, head.row.root);
    head.set_ends(ends, memberships);
    head.unread.follow_all(rooms, memberships);
    head.insert_ends(open(batches), ends, (before, before), before);
    for change in memberships {
        let batch = open(batches);
        membership::insert(batch, room, change);
        if change.is_local {
            rooms.invalidate_user_rooms(batch, change.user);
        }
    }
}

/// What the room is once older events belong to it: what they cite is no end any more.
fn ends(
    head: &Head,
    source: &Source<'_>,
    draft: &Draft,
    prepared: &[Prepared],
) -> Result<Option<(Ends, Vec<MembershipChange>)>, Error> {
    let before: BTreeSet<_> = head.extremities.iter().map(|(end, _)| *end).collect();
    let mut after = before.clone();
    for past in prepared {
        let (number, cited) = (past.event.number, &past.event.meta.prev_events);
        after = extremities::after(&after, number, cited, |number| {
            place::behind(source, number)
        })?;
        after.remove(&number);
    }
    if after == before || after.is_empty() {
        return Ok(None);
    }
    let kept = head
        .extremities
        .iter()
        .filter(|(end, _)| after.contains(end));
    let extremities: Vec<_> = kept.cloned().collect();
    let numbers: Vec<_> = after.into_iter().collect();
    place::ends_beside(head, source, draft, (&numbers, extremities)).map(Some)
}

/// The batch that is written to.
fn open(batches: &mut Vec<Batch>) -> &mut Batch {
    if batches.last().is_none_or(|last| last.bytes() > BATCH_BYTES) {
        batches.push(Batch::new());
    }
    batches.last_mut().expect("one was just added")
}

fn insert(batch: &mut Batch, room: RoomNumber, past: &Prepared) {
    event::insert_past(batch, room, &past.event, &past.id);
    partial::note(batch, room, &past.event, past.turn.as_deref());
    timeline::insert_past(batch, room, &past.event);
    if let Some(state) = &past.state {
        state::insert(batch, room, state, &past.id);
    }
    if let Some(turn) = &past.turn {
        for stub in &turn.stubs {
            stubs::insert(batch, room, stub);
        }
        if turn.was == Was::Stub {
            stubs::remove(batch, room, &past.id);
        }
    }
    relations::insert(batch, room, &past.event, past.thread.as_ref());
    if let Some(redacted) = &past.redaction {
        redact::insert(batch, room, redacted);
    }
}

/// The gap at an index as it is now, and the ordinals of what lies below it.
fn edge(
    rooms: &Rooms,
    snapshot: &Snapshot,
    room: RoomNumber,
    index: i64,
) -> Result<Option<Edge>, Error> {
    let found = rooms.gap_at_or_below(snapshot, room, index)?;
    let Some(gap) = found.filter(|gap| gap.index == index) else {
        return Ok(None);
    };
    let below = rooms
        .timeline(snapshot, room, index, Order::Backward, 1)?
        .pop();
    let of_event = |event: &StoredEvent| {
        let meta = &event.meta;
        (meta.index, meta.ord_all, meta.ord_room)
    };
    let nothing = (i64::MIN, 0, 0);
    let (floor, ord_all, ord_room) = below.map_or(nothing, |below| of_event(&below.event));
    Ok(Some(Edge {
        missing: gap.missing,
        floor,
        ord_all,
        ord_room,
    }))
}

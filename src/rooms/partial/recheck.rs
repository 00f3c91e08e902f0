//! From what was noted of a partial room to what is so: every noted event is judged again, its previous events first, with
//! the whole state before it.
//!
//! Some events are judged in one go, and the room is sound after each: its current state is that of its extremities. An
//! event that should not have been accepted leaves the timeline; one that should have been is a part of the room from then
//! on, and has no place in the timeline, as what came after it has been shown.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
};

use super::{
    NOTED, Noted, complete, noted, open,
    redress::{Redress, redress},
};
use crate::{
    events::{EventNumber, StateNumber},
    rooms::{
        Error, EventMeta, HeadRow, Published, RoomNumber, RoomWriter, Rooms, StoredEvent,
        draft::{Counters, Draft, Made},
        event::{METAS, flag},
        forks,
        head::{self, Head},
        membership::MembershipChange,
        receive::{Again, again, move_on},
        relations,
        state::{self, Source},
        threads::{self, ThreadChange},
        timeline,
        writer::place::{self, Ends},
    },
    storage::{Batch, Order, Position},
};

/// Events that are judged again in one go.
const CHUNK: usize = 100;

/// How far the events of a partial room have been judged again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recheck {
    /// The whole state before some events has to be fetched first.
    Lacking,
    More,
    /// The room is partial no more.
    Done,
}

/// An event that has been judged again.
struct Rechecked {
    again: Again,
    /// It was shown and should not have been: what it was, and what its thread loses.
    retracted: Option<(StoredEvent, Option<ThreadChange>)>,
    /// What becomes of the event that it redacts, or should not have redacted.
    redress: Option<Redress>,
}

/// What came of some events.
struct Work {
    rechecked: Vec<Rechecked>,
    made: Made,
    next: Counters,
    ends: Option<(Ends, Vec<MembershipChange>)>,
    is_done: bool,
    /// Since when what was noted of the current state counts no more.
    forks_since: Option<Position>,
}

impl RoomWriter {
    /// Judges some of the noted events of a partial room again. Waits until that is durable.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn recheck(&mut self) -> Result<Recheck, Error> {
        self.settled().await?;
        if !self.head().row.partial {
            return Ok(Recheck::Done);
        }
        let work = self.with_source(run).await?;
        let Some(work) = work else {
            return Ok(Recheck::Lacking);
        };
        let progress = match work.is_done {
            true => Recheck::Done,
            false => Recheck::More,
        };
        self.write_rechecked(work).await?;
        Ok(progress)
    }

    async fn write_rechecked(&mut self, work: Work) -> Result<(), Error> {
        let rooms = self.rooms().clone();
        let head = self.head_mut();
        let room = head.room;
        let mut batches = vec![Batch::new()];
        if let Some(since) = work.forks_since {
            forks::forget(open(&mut batches), room, since);
        }
        for (number, node) in &work.made.nodes {
            state::insert_node(open(&mut batches), room, *number, node);
        }
        for (number, root) in &work.made.roots {
            state::insert_root(open(&mut batches), room, *number, root);
        }
        for rechecked in &work.rechecked {
            insert(open(&mut batches), room, rechecked);
        }
        work.next.write(&mut head.row);
        head.remember_made(work.made);
        if work.is_done {
            head.row.partial = false;
            head.row.was_partial = true;
        }
        if let Some((ends, memberships)) = &work.ends {
            move_on(&rooms, head, &mut batches, (ends, memberships));
        }
        head.forget_state();
        let last = open(&mut batches);
        if work.is_done {
            complete(last, room);
        }
        head::insert(last, room, &head.row);
        rooms.publish_rechecked(last, room, head.row.clone(), &work.rechecked);
        self.submit_and_wait(batches).await
    }
}

/// Judges events again, as many as go at once; `None` if the state before some has to be fetched first.
fn run(head: &Head, source: &Source<'_>) -> Result<Option<Work>, Error> {
    let snapshot = source.snapshot()?;
    let rows: BTreeMap<EventNumber, Noted> = noted(snapshot, head.room)?.into_iter().collect();
    if rows.values().any(|noted| noted.lacks_members) {
        return Ok(None);
    }
    let draft = Draft::new(head);
    let source = source.with_draft(&draft);
    let order = in_order(&source, &rows)?;
    let mut rechecked: Vec<Rechecked> = Vec::new();
    let mut has_changed = false;
    for number in order.iter().take(CHUNK) {
        let event = place::event(&source, *number)?;
        let told = rows.get(number).and_then(|noted| noted.told);
        let mut again = again(head, &source, &draft, (&event, told))?;
        has_changed |= event.meta.is_accepted() != again.event.meta.is_accepted();
        let is_retracted = event.meta.is_visible() && !again.event.meta.is_visible();
        let retracted = match is_retracted {
            true => {
                let thread = ThreadChange::without(&source, &event)?;
                Some((StoredEvent::clone(&event), thread))
            }
            false => None,
        };
        let redress = redress(head, &source, &event, &mut again.event)?;
        let is_last = is_retracted || redress.is_some();
        rechecked.push(Rechecked {
            again,
            retracted,
            redress,
        });
        if is_last {
            // What threads lose is reckoned from what is stored.
            break;
        }
    }
    let is_done = rechecked.len() == order.len();
    let numbers: BTreeSet<_> = rechecked.iter().map(|of| of.again.event.number).collect();
    let moves = |(end, _): &(EventNumber, _)| numbers.contains(end);
    let ends = match has_changed || is_done || head.extremities.iter().any(moves) {
        true => Some(ends(head, &source, &draft, has_changed)?),
        false => None,
    };
    let forks_since = match is_done {
        true => timeline::live_at_or_below(snapshot, head.room, head.row.taken_up)?,
        false => None,
    };
    let (made, next) = draft.into_made();
    Ok(Some(Work {
        rechecked,
        made,
        next,
        ends,
        is_done,
        forks_since: forks_since.map(|row| row.position),
    }))
}

/// The noted events, each after those that it follows or that allow it.
fn in_order(
    source: &Source<'_>,
    noted: &BTreeMap<EventNumber, Noted>,
) -> Result<Vec<EventNumber>, Error> {
    let keys: Vec<_> = noted.keys().map(|event| (source.room, *event)).collect();
    let metas = source.snapshot()?.get_many(&METAS, &keys)?;
    let metas: BTreeMap<EventNumber, EventMeta> = noted
        .keys()
        .copied()
        .zip(metas)
        .filter_map(|(event, meta)| Some((event, meta?)))
        .collect();
    let by_state: BTreeMap<StateNumber, EventNumber> = metas
        .iter()
        .filter_map(|(event, meta)| Some((meta.state?, *event)))
        .collect();
    let mut missing: BTreeMap<EventNumber, usize> = BTreeMap::new();
    let mut later: BTreeMap<EventNumber, Vec<EventNumber>> = BTreeMap::new();
    for (event, meta) in &metas {
        let auth = meta
            .auth_states
            .iter()
            .filter_map(|state| by_state.get(state));
        let mut cited: BTreeSet<EventNumber> =
            meta.prev_events.iter().chain(auth).copied().collect();
        if meta.has(flag::REJECTED_BY_AUTH_EVENTS) {
            // By one, maybe, that has no number as a state event.
            for id in &place::event(source, *event)?.pdu.auth_events {
                cited.extend(source.event_number(id)?);
            }
        }
        let among = cited
            .into_iter()
            .filter(|cited| cited != event && metas.contains_key(cited));
        let mut count = 0;
        for cited in among {
            later.entry(cited).or_default().push(*event);
            count += 1;
        }
        missing.insert(*event, count);
    }
    let free = missing.iter().filter(|(_, count)| **count == 0);
    let mut ready: BTreeSet<EventNumber> = free.map(|(event, _)| *event).collect();
    let mut order = Vec::with_capacity(metas.len());
    while let Some(event) = ready.pop_first() {
        order.push(event);
        for next in later.remove(&event).unwrap_or_default() {
            if let Some(count) = missing.get_mut(&next) {
                *count -= 1;
                if *count == 0 {
                    ready.insert(next);
                }
            }
        }
    }
    match order.len() == noted.len() {
        true => Ok(order),
        false => Err(Error::corrupt("partial_events", "events cite each other")),
    }
}

/// What the room is with the events as they are in the draft; which events are its ends only if that may have changed.
fn ends(
    head: &Head,
    source: &Source<'_>,
    draft: &Draft,
    has_changed: bool,
) -> Result<(Ends, Vec<MembershipChange>), Error> {
    let mut numbers: Vec<EventNumber> = head.extremities.iter().map(|(end, _)| *end).collect();
    if has_changed {
        let mut metas = BTreeMap::new();
        let rows = source
            .snapshot()?
            .scan(METAS.prefix(&(head.room,)), Order::Forward);
        for row in rows {
            let ((_, event), meta) = row?;
            metas.insert(event, meta);
        }
        for (event, changed) in &draft.rows.borrow().events {
            metas.insert(*event, changed.meta.clone());
        }
        let found = ends_of(&metas, head.row.taken_up);
        // If the room does not let us in after all, the join stays what the room is known by.
        if !found.is_empty() {
            numbers = found.into_iter().collect();
        }
    }
    let mut extremities = Vec::with_capacity(numbers.len());
    for number in &numbers {
        let event = place::event(source, *number)?;
        extremities.push((*number, event.pdu.event_id.clone()));
    }
    place::ends_beside(head, source, draft, (&numbers, extremities))
}

/// The extremities of a room: what no accepted event cites, directly or through events that were not accepted.
pub(in crate::rooms) fn ends_of(
    metas: &BTreeMap<EventNumber, EventMeta>,
    taken_up: i64,
) -> BTreeSet<EventNumber> {
    let mut ends: BTreeSet<EventNumber> = BTreeSet::new();
    let mut cited: BTreeSet<EventNumber> = BTreeSet::new();
    let mut reached: Vec<EventNumber> = Vec::new();
    for (event, meta) in metas.iter().filter(|(_, meta)| meta.is_accepted()) {
        // Not what came as a part of the history.
        if meta.position != Position::default() && meta.index >= taken_up {
            ends.insert(*event);
        }
        reached.extend(&meta.prev_events);
    }
    while let Some(event) = reached.pop() {
        let Some(meta) = metas.get(&event).filter(|_| cited.insert(event)) else {
            continue;
        };
        if !meta.is_accepted() {
            reached.extend(&meta.prev_events);
        }
    }
    ends.difference(&cited).copied().collect()
}

fn insert(batch: &mut Batch, room: RoomNumber, rechecked: &Rechecked) {
    let Again {
        event, state, id, ..
    } = &rechecked.again;
    batch.put(&METAS, &(room, event.number), &event.meta);
    batch.delete(&NOTED, &(room, event.number));
    if let Some(state) = state {
        state::insert(batch, room, state, id);
        state::insert_graph(batch, room, state);
    }
    match &rechecked.retracted {
        Some((was, thread)) => {
            timeline::remove(batch, room, was);
            relations::retract(batch, room, was);
            if let Some(change) = thread {
                threads::insert(batch, room, change);
            }
        }
        None => timeline::replace(batch, room, event),
    }
    if let Some(redress) = &rechecked.redress {
        redress.insert(batch, room);
    }
}

impl Rooms {
    /// Makes the head known in memory when `batch` becomes visible, and forgets what was judged again.
    fn publish_rechecked(
        &self,
        batch: &mut Batch,
        room: RoomNumber,
        head: HeadRow,
        rechecked: &[Rechecked],
    ) {
        let rooms = self.clone();
        let redressed = rechecked.iter().filter_map(|of| of.redress.as_ref());
        let redressed = redressed.map(Redress::event);
        let events = rechecked.iter().map(|of| of.again.event.number);
        let events: Vec<_> = events.chain(redressed).collect();
        let states = rechecked.iter().filter_map(|of| of.again.event.meta.state);
        let states: Vec<_> = states.collect();
        batch.before_publish(move |position| {
            let caches = &rooms.caches;
            caches
                .bodies_changed
                .fetch_max(position.0, Ordering::AcqRel);
            for event in events {
                caches.events.remove(&(room, event));
            }
            for state in states {
                caches.graph.remove(&(room, state));
            }
            let mut all = rooms
                .published
                .write()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            let published = Published {
                head,
                position,
                state_position: position,
                recent: timeline::Recent::default(),
            };
            all.insert(room, Arc::new(published));
        });
    }
}

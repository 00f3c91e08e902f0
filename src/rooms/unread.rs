//! Unread counts: running ordinals on every event, markers where a user has read to, and exceptions from what everybody's
//! push rules make of an event.
//!
//! A count is a difference of two ordinals, so that a message costs nothing per member. What is true of single users only is
//! an exception: mentions, and what users make of the event who have rules of their own (those are evaluated for each
//! event). Exceptions are differences from the default, so a user's rules may change at any time without a recount.
//! engine.md section 11.

pub(super) mod check;
mod content;
mod locals;
mod markers;
mod notifications;
mod rules;

use std::{collections::HashMap, sync::Arc};

use ruma::OwnedUserId;
use smallvec::SmallVec;

use self::{
    content::Look,
    locals::Locals,
    markers::{EXCEPTIONS, Exception, MARKERS, MENTIONS, Marker, Source as MarkerSource, THREADS},
    rules::Evaluation,
};
pub(super) use self::{markers::StoredCache, rules::HabitsCache};
pub use self::{
    markers::{Count, ReadThread, Unread, UnreadThreads},
    notifications::{Notification, Notifications, Wanted},
};
use super::{
    Class, Error, EventMeta, HeadRow, RoomNumber, Rooms, StoredEvent, TypeNumber, event::flag,
    head::Head, membership::MembershipChange, state::Source,
};
use crate::{
    accounts::UserNumber,
    events::{EventNumber, Pdu},
    storage::{Batch, Index, Position},
};

/// Threads whose ordinal a writer keeps in memory.
const MAX_THREADS: usize = 1_024;

/// What an event counts as.
#[derive(Clone, Debug, Default)]
pub(super) struct Counted {
    /// The event moves its room up in a list of rooms.
    pub(super) moves_up: bool,
    /// Ordinal of the main timeline after the event.
    pub(super) ord_main: u64,
    /// Everybody is highlighted.
    is_room_mention: bool,
    /// A user of this server sent it, and it would count: who writes has read.
    is_own: bool,
    exceptions: Vec<(UserNumber, Exception)>,
    /// What had to be read for this event and serves the next ones.
    learned: Learned,
}

impl Counted {
    /// Of an event that is not shown, or that is history.
    pub(super) fn nothing(head: &HeadRow) -> Self {
        Self {
            ord_main: head.ord_main,
            ..Self::default()
        }
    }
}

/// What a writer keeps in memory for the next events.
#[derive(Clone, Debug, Default)]
struct Learned {
    locals: Option<Arc<Locals>>,
    /// Members whose rules have to be evaluated, and when the rules changed by which that was found.
    evaluated: Option<(Position, Arc<Vec<UserNumber>>)>,
}

/// The part of a [`Head`] that counts.
#[derive(Default)]
pub(super) struct Memory {
    learned: Learned,
    /// The ordinals of threads.
    threads: HashMap<EventNumber, u64>,
}

impl Memory {
    /// Moves on to after an event.
    pub(super) fn advance(
        &mut self,
        rooms: &Rooms,
        event: &StoredEvent,
        changes: &[MembershipChange],
        counted: &mut Counted,
    ) {
        if let Some(root) = event.meta.thread_root {
            self.threads.insert(root, event.meta.ord_thread);
        }
        if counted.learned.locals.is_some() {
            self.learned.locals = counted.learned.locals.take();
        }
        if counted.learned.evaluated.is_some() {
            self.learned.evaluated = counted.learned.evaluated.take();
        }
        self.follow_all(rooms, changes);
    }

    /// Moves on with the memberships of the current state.
    pub(super) fn follow_all(&mut self, rooms: &Rooms, changes: &[MembershipChange]) {
        for change in changes.iter().filter(|change| change.is_local) {
            self.follow(rooms, change);
        }
    }

    fn follow(&mut self, rooms: &Rooms, change: &MembershipChange) {
        if let Some((_, evaluated)) = &mut self.learned.evaluated {
            let own = rooms.accounts.own_rules(None).ok().flatten();
            let has_own = own.is_some_and(|own| own.users.contains(&change.user));
            let evaluated = Arc::make_mut(evaluated);
            evaluated.retain(|user| *user != change.user);
            if has_own && change.after == Some(Class::Join) {
                evaluated.push(change.user);
            }
        }
        if let Some(locals) = &mut self.learned.locals {
            let pdu = change.after.is_some().then_some(&*change.pdu);
            Arc::make_mut(locals).change(rooms, change.user, pdu);
        }
    }

    /// Forgets what the store has, if it has grown too large. Nothing is in flight.
    pub(super) fn settle(&mut self) {
        if self.threads.len() > MAX_THREADS {
            self.threads.clear();
        }
    }

    fn thread_ordinal(&self, source: &Source<'_>, root: EventNumber) -> Result<u64, Error> {
        match self.threads.get(&root) {
            Some(ordinal) => Ok(*ordinal),
            None if source.unborn => Ok(0),
            None => {
                let snapshot = source.snapshot.ok_or(Error::NotInMemory)?;
                markers::thread_ordinal(snapshot, source.room, root, i64::MAX)
            }
        }
    }
}

/// Types that move a room up in a list.
///
/// Spec: MSC4186, "bump_event_types".
const MOVE_UP: &[&str] = &[
    "m.room.create",
    "m.room.message",
    "m.room.encrypted",
    "m.sticker",
    "m.call.invite",
    "m.poll.start",
    "m.beacon_info",
];

/// Gives the event its ordinals, and finds out for whom it counts otherwise than by default.
pub(super) fn count(
    rooms: &Rooms,
    head: &Head,
    source: &Source<'_>,
    pdu: &Pdu,
    meta: &mut EventMeta,
) -> Result<Counted, Error> {
    let look = Look::at(pdu);
    let may_notify_room = look.mentions_room && may_notify_room(head, source, pdu)?;
    let default = rules::default_verdict(pdu, &look, may_notify_room);
    let added = u64::from(default.notify);
    if default.notify {
        meta.flags |= flag::NOTIFIES;
    }
    meta.ord_all = head.row.ord_all + added;
    meta.ord_room = head.row.ord_room + u64::from(default.highlight);
    let mut counted = Counted {
        moves_up: moves_up(pdu, meta),
        ord_main: head.row.ord_main,
        is_room_mention: default.highlight,
        is_own: default.notify && rooms.accounts.is_local(&pdu.sender),
        ..Counted::default()
    };
    match meta.thread_root {
        Some(root) => meta.ord_thread = head.unread.thread_ordinal(source, root)? + added,
        None => {
            counted.ord_main += added;
            meta.ord_thread = counted.ord_main;
        }
    }
    let candidates = candidates(rooms, head, source, (pdu, &look), &mut counted.learned)?;
    if !candidates.is_empty() {
        let evaluation = Evaluation::new(head, pdu, default, may_notify_room);
        for (user, id, name) in candidates
            .into_iter()
            .filter(|(_, id, _)| *id != pdu.sender)
        {
            let difference = evaluation.difference(rooms, source, user, (&id, &name))?;
            if let Some(exception) = difference {
                counted.exceptions.push((user, exception));
            }
        }
    }
    Ok(counted)
}

fn moves_up(pdu: &Pdu, meta: &EventMeta) -> bool {
    matches!(meta.event_type, TypeNumber::MESSAGE | TypeNumber::ENCRYPTED)
        || MOVE_UP.contains(&pdu.event_type.to_string().as_str())
}

/// Whether the sender may mention everybody.
fn may_notify_room(head: &Head, source: &Source<'_>, pdu: &Pdu) -> Result<bool, Error> {
    let levels = head.levels(source.rooms, source)?;
    Ok(levels.is_some_and(|levels| levels.may_notify(&pdu.sender, "room")))
}

/// A member whose rules have to be evaluated: number, ID and name in the room.
type Candidate = (UserNumber, OwnedUserId, String);

/// The members of this server for whom the event may count otherwise than by default: who is mentioned, whose name it says,
/// who has rules of their own.
fn candidates(
    rooms: &Rooms,
    head: &Head,
    source: &Source<'_>,
    (pdu, look): (&Pdu, &Look<'_>),
    learned: &mut Learned,
) -> Result<Vec<Candidate>, Error> {
    let known = &head.unread.learned;
    let own = rooms.accounts.own_rules(source.snapshot)?;
    let own = own.ok_or(Error::NotInMemory)?;
    let is_named = look
        .mentioned
        .iter()
        .any(|user| rooms.accounts.is_local(user));
    let has_text = look.body.is_some() && !look.has_mentions;
    let evaluated = known
        .evaluated
        .as_ref()
        .filter(|(at, _)| *at == own.changed);
    let needs_evaluated = evaluated.is_none() && !own.users.is_empty();
    if !(is_named || has_text || needs_evaluated) && evaluated.is_none_or(|(_, of)| of.is_empty()) {
        return Ok(Vec::new());
    }
    let locals = match &known.locals {
        Some(locals) => Arc::clone(locals),
        None => {
            let locals = Arc::new(Locals::load(rooms, head, source)?);
            learned.locals = Some(Arc::clone(&locals));
            locals
        }
    };
    let evaluated = match evaluated {
        Some((_, evaluated)) => Arc::clone(evaluated),
        None => {
            let members = own.users.iter().filter(|user| locals.has(**user)).copied();
            let evaluated = Arc::new(members.collect::<Vec<_>>());
            learned.evaluated = Some((own.changed, Arc::clone(&evaluated)));
            evaluated
        }
    };
    let mut found = Vec::new();
    for user in &look.mentioned {
        found.extend(locals.number(user));
    }
    if let Some(body) = look.body.as_deref().filter(|_| has_text) {
        locals.named_in(body, &mut found);
    }
    for user in evaluated.iter() {
        let habits = rules::habits(rooms, source.snapshot, *user, &own)?;
        if habits.is_evaluated(&head.room_id) {
            found.push(*user);
        }
    }
    found.sort_unstable();
    found.dedup();
    debug_assert!(pdu.depth > 0 || pdu.is_state());
    Ok(found
        .into_iter()
        .filter_map(|user| locals.member(user))
        .collect())
}

/// Adds markers and exceptions. Of whom is the answer.
pub(super) fn insert(
    batch: &mut Batch,
    room: RoomNumber,
    event: &StoredEvent,
    changes: &[MembershipChange],
    counted: &Counted,
) -> SmallVec<[UserNumber; 2]> {
    let mut changed = SmallVec::new();
    let meta = &event.meta;
    let thread = meta.thread_root.map_or(ReadThread::Main, ReadThread::Root);
    let index = Index(meta.index);
    if let Some(root) = meta.thread_root
        && meta.has(flag::NOTIFIES)
    {
        batch.put(&THREADS, &(room, root, index), &meta.ord_thread);
    }
    if counted.is_room_mention {
        batch.put(&MENTIONS, &(room, index), &thread.key());
    }
    for (user, exception) in &counted.exceptions {
        batch.put(&EXCEPTIONS, &(*user, room, thread.key(), index), exception);
        changed.push(*user);
    }
    let marker = Marker {
        index: meta.index,
        ord_all: meta.ord_all,
        ord_thread: meta.ord_thread,
        ord_room: meta.ord_room,
    };
    if counted.is_own {
        let key = (meta.sender, room, thread.key(), MarkerSource::Sent as u8);
        batch.put(&MARKERS, &key, &marker);
        changed.push(meta.sender);
    }
    let joins = changes
        .iter()
        .filter(|change| change.is_local && change.is_join());
    for change in joins {
        // A membership is no part of a thread.
        let marker = Marker {
            ord_thread: counted.ord_main,
            ..marker
        };
        let key = (
            change.user,
            room,
            ReadThread::All.key(),
            MarkerSource::Read as u8,
        );
        batch.put(&MARKERS, &key, &marker);
        changed.push(change.user);
    }
    changed
}

#[cfg(test)]
mod tests;

//! Threads: how many events each has, which is the latest, and who takes part.
//!
//! engine.md section 5.4.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Error, EventMeta, RoomNumber, Rooms, Sight, StoredEvent, event::Relation, page::Place, redact,
    state::Source,
};
use crate::{
    accounts::UserNumber,
    events::{EventNumber, version},
    storage::{
        Batch, Counter, Descending, Family, Order, Position, PositionAt, Snapshot, Stamped, Table,
    },
};

static THREADS: Table<(RoomNumber, EventNumber), Stamped<ThreadRow>> =
    Table::new("threads", Family::Timeline, b'h');
/// The newest thread first.
static BY_LATEST: Table<(RoomNumber, Descending, EventNumber), ()> =
    Table::new("threads_by_latest", Family::Timeline, b'H');
/// How many events of a thread a user has sent.
static PARTICIPANTS: Table<(RoomNumber, EventNumber, UserNumber), Counter> =
    Table::new("thread_participants", Family::Timeline, b'p');

/// A thread. The position in front of it is that of its last change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ThreadRow {
    /// Events of the thread that are not redacted; the root is none of them.
    pub count: u64,
    /// The event that came last, and its index; it stays so when it is redacted.
    pub latest: EventNumber,
    pub latest_index: i64,
}

/// What an event changes about a thread.
#[derive(Clone, Copy, Debug)]
pub(super) struct ThreadChange {
    root: EventNumber,
    /// Who sent what is added or taken away.
    sender: UserNumber,
    before: Option<ThreadRow>,
    /// `None`: nothing is left of the thread.
    pub(super) after: Option<ThreadRow>,
}

impl ThreadChange {
    /// The thread that changes.
    pub(super) fn root(&self) -> EventNumber {
        self.root
    }

    /// What an event adds to its thread, if it is said in one.
    pub(super) fn by(source: &Source<'_>, event: &StoredEvent) -> Result<Option<Self>, Error> {
        let Some((Relation::Thread, root)) = event.meta.relation else {
            return Ok(None);
        };
        let before = thread(source, root)?;
        let count = before.map_or(0, |thread| thread.count) + 1;
        let after = match before {
            // What comes from the history is not the latest.
            Some(before) if before.latest_index > event.meta.index => ThreadRow { count, ..before },
            _ => ThreadRow {
                count,
                latest: event.number,
                latest_index: event.meta.index,
            },
        };
        Ok(Some(Self {
            root,
            sender: event.meta.sender,
            before,
            after: Some(after),
        }))
    }

    /// What a redaction takes from the thread of its target.
    pub(super) fn without(
        source: &Source<'_>,
        target: &StoredEvent,
    ) -> Result<Option<Self>, Error> {
        let Some((Relation::Thread, root)) = target.meta.relation else {
            return Ok(None);
        };
        let Some(before) = thread(source, root)? else {
            return Ok(None);
        };
        let after = ThreadRow {
            count: before.count.saturating_sub(1),
            ..before
        };
        let after = (after.count > 0).then_some(after);
        Ok(Some(Self {
            root,
            sender: target.meta.sender,
            before: Some(before),
            after,
        }))
    }
}

/// A thread as it is, what is in flight included.
fn thread(source: &Source<'_>, root: EventNumber) -> Result<Option<ThreadRow>, Error> {
    match source
        .fresh
        .iter()
        .find_map(|fresh| fresh.threads.get(&root))
    {
        Some(thread) => Ok(*thread),
        None => {
            let row = source.snapshot()?.get(&THREADS, &(source.room, root))?;
            Ok(row.map(|Stamped(_, thread)| thread))
        }
    }
}

/// Adds the rows of a change.
pub(super) fn insert(batch: &mut Batch, room: RoomNumber, change: &ThreadChange) {
    let root = change.root;
    let place = |thread: &ThreadRow| (room, Descending(thread.latest_index), root);
    if let Some(before) = &change.before {
        batch.delete(&BY_LATEST, &place(before));
    }
    match &change.after {
        Some(after) => {
            let row = Stamped(Position::default(), *after);
            batch.put_stamped(&THREADS, &(room, root), &row, PositionAt::Value(0));
            batch.put(&BY_LATEST, &place(after), &());
        }
        None => batch.delete(&THREADS, &(room, root)),
    }
    let count = |thread: &Option<ThreadRow>| thread.map_or(0, |thread| thread.count);
    let delta = if count(&change.after) > count(&change.before) {
        1
    } else {
        -1
    };
    batch.add(&PARTICIPANTS, &(room, root, change.sender), delta);
}

/// Threads that are wanted of a room.
#[derive(Clone, Copy, Debug)]
pub struct ThreadQuery {
    /// Only those that the user takes part in.
    pub is_participated: bool,
    /// Only those whose latest event is before it.
    pub from: Option<Place>,
    pub limit: usize,
}

/// Threads looked at for one page.
const MAX_THREADS_WALKED: usize = 2_000;

impl Rooms {
    /// Roots of threads, the one with the latest event first, and where to go on if there are more.
    pub fn threads(
        &self,
        snapshot: &Snapshot,
        sight: &mut Sight,
        query: ThreadQuery,
    ) -> Result<(Vec<Arc<StoredEvent>>, Option<Place>), Error> {
        let room = sight.room();
        let range = match query.from {
            // Descending order: what is not above the place comes at it or after it.
            Some(Place(index)) => BY_LATEST.from(&(room, Descending(index)), &(room,)),
            None => BY_LATEST.prefix(&(room,)),
        };
        let mut roots = Vec::new();
        for row in snapshot
            .scan(range, Order::Forward)
            .take(MAX_THREADS_WALKED)
        {
            let ((_, Descending(index), root), ()) = row?;
            if roots.len() == query.limit {
                return Ok((roots, Some(Place(index))));
            }
            let Some(event) = self.event(snapshot, room, root)? else {
                continue;
            };
            let root = std::slice::from_ref(&event);
            if query.is_participated && self.takes_part(snapshot, sight, root)? == [false] {
                continue;
            }
            if sight.ignores(&event) {
                // Who does its own aggregation would see the thread as well, but not what its root says.
                roots.push(self.redacted_root(snapshot, room, &event)?);
            } else if self.may_see(snapshot, sight, &event)? {
                roots.push(event);
            }
        }
        Ok((roots, None))
    }

    fn redacted_root(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        root: &StoredEvent,
    ) -> Result<Arc<StoredEvent>, Error> {
        let head = self.head(snapshot, room)?.ok_or(Error::NotFound)?;
        let rules = ruma::RoomVersionId::try_from(head.version.as_str()).ok();
        let rules = rules
            .as_ref()
            .and_then(version::rules)
            .ok_or(Error::UnsupportedVersion)?;
        Ok(Arc::new(redact::redacted(root, rules)?.event))
    }

    /// Whether the user has sent the root of a thread or an event in it, for each of `roots`.
    pub(super) fn takes_part(
        &self,
        snapshot: &Snapshot,
        sight: &Sight,
        roots: &[Arc<StoredEvent>],
    ) -> Result<Vec<bool>, Error> {
        let (room, user) = (sight.room(), sight.user());
        let keys: Vec<_> = roots.iter().map(|root| (room, root.number, user)).collect();
        let sent = snapshot.get_many(&PARTICIPANTS, &keys)?;
        let takes_part = roots.iter().zip(sent).map(|(root, sent)| {
            root.meta.sender == user || sent.is_some_and(|Counter(sent)| sent > 0)
        });
        Ok(takes_part.collect())
    }

    /// The threads that start from `roots`, in their order.
    pub fn threads_of(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        roots: &[EventNumber],
    ) -> Result<Vec<Option<ThreadRow>>, Error> {
        let keys: Vec<_> = roots.iter().map(|root| (room, *root)).collect();
        let rows = snapshot.get_many(&THREADS, &keys)?;
        Ok(rows
            .into_iter()
            .map(|row| row.map(|Stamped(_, thread)| thread))
            .collect())
    }
}

/// Where the rows differ from what the events say.
pub(super) fn differences(
    snapshot: &Snapshot,
    room: RoomNumber,
    metas: &BTreeMap<EventNumber, EventMeta>,
) -> Result<Vec<String>, Error> {
    let mut counts: BTreeMap<EventNumber, u64> = BTreeMap::new();
    let mut sent: BTreeMap<(EventNumber, UserNumber), i64> = BTreeMap::new();
    for meta in metas.values() {
        if let Some((Relation::Thread, root)) = meta.relation {
            *counts.entry(root).or_default() += 1;
            *sent.entry((root, meta.sender)).or_default() += 1;
        }
    }
    let mut found = Vec::new();
    let mut latest = BTreeMap::new();
    for row in snapshot.scan(THREADS.prefix(&(room,)), Order::Forward) {
        let ((_, root), Stamped(_, thread)) = row?;
        if counts.remove(&root) != Some(thread.count) {
            found.push(format!(
                "the thread of {} has not {} events",
                root.0, thread.count
            ));
        }
        latest.insert(root, thread.latest_index);
    }
    found.extend(
        counts
            .keys()
            .map(|root| format!("the thread of {} is missing", root.0)),
    );
    for row in snapshot.scan(BY_LATEST.prefix(&(room,)), Order::Forward) {
        let ((_, Descending(index), root), ()) = row?;
        if latest.remove(&root) != Some(index) {
            found.push(format!("the thread of {} is listed at {index}", root.0));
        }
    }
    found.extend(
        latest
            .keys()
            .map(|root| format!("the thread of {} is not listed", root.0)),
    );
    for row in snapshot.scan(PARTICIPANTS.prefix(&(room,)), Order::Forward) {
        let ((_, root, user), Counter(count)) = row?;
        if sent.remove(&(root, user)).unwrap_or_default() != count {
            found.push(format!(
                "user {} has not sent {count} events to the thread of {}",
                user.0, root.0
            ));
        }
    }
    found.extend(
        sent.keys()
            .map(|(root, user)| format!("user {} is no participant of {}", user.0, root.0)),
    );
    Ok(found)
}

#[cfg(test)]
mod tests;

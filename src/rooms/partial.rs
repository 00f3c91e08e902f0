//! Rooms of whose state the memberships are not known yet.
//!
//! A server that lets us into a room may leave the memberships out of what it answers, so that the room can be used at once
//! (the faster join). Until the whole state has been fetched the room is *partial*. What comes meanwhile is judged by what
//! is known, to which an event's own auth events add the memberships that it claims, and with which they are resolved where
//! they differ; it is noted here, and judged again ([`recheck`]) when the whole state is there. Of who is in the room nothing is told before that: who asks waits.
//! engine.md section 7.

mod recheck;
mod redress;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use ruma::{OwnedEventId, OwnedServerName, UserId};

pub use self::recheck::Recheck;
pub(in crate::rooms) use self::recheck::ends_of;
use super::{
    Class, Error, RoomNumber, RoomWriter, Rooms, ServerNumber, StoredEvent, TypeNumber,
    draft::{Change, Draft, Entry},
    event::flag,
    head::Head,
    membership_of,
    receive::told,
    resolution,
    state::{self, Source},
    writer::place::{Basis, Turn, Was},
};
use crate::{
    events::{EventNumber, RootNumber, trie},
    storage::{Batch, Cbor, Family, Order, Position, PositionAt, Snapshot, Table, Topic},
};

/// Events that are to be judged again.
static NOTED: Table<(RoomNumber, EventNumber), Cbor<Noted>> =
    Table::new("partial_events", Family::RoomHeads, b'k');
/// The servers of a partial room, as the one said that let us in.
static SERVERS: Table<(RoomNumber, ServerNumber), ()> =
    Table::new("partial_servers", Family::RoomHeads, b's');
/// When a room was partial the last time.
static COMPLETED: Table<(RoomNumber,), Position> =
    Table::new("completed_rooms", Family::RoomHeads, b'z');

/// Servers of a room that are kept: more than any room has.
const MAX_SERVERS: usize = 20_000;
/// A batch is closed above this, in bytes.
const BATCH_BYTES: usize = 500_000;

/// What is needed to judge an event again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub(in crate::rooms) struct Noted {
    /// The state that another server told, where previous events were missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::rooms) told: Option<RootNumber>,
    /// Memberships were left out of that.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(in crate::rooms) lacks_members: bool,
}

impl Noted {
    pub(in crate::rooms) fn new(told: Option<RootNumber>, lacks_members: bool) -> Self {
        Self {
            told,
            lacks_members,
        }
    }
}

/// Notes an event that is to be judged again.
pub(in crate::rooms) fn note(
    batch: &mut Batch,
    room: RoomNumber,
    event: &StoredEvent,
    turn: Option<&Turn>,
) {
    let key = (room, event.number);
    if event.meta.has(flag::STATE_PARTIAL) {
        let noted = turn.and_then(|turn| turn.noted);
        batch.put(&NOTED, &key, &Cbor(noted.unwrap_or_default()));
    } else if turn.is_some_and(|turn| turn.was == Was::Outlier) {
        batch.delete(&NOTED, &key);
    }
}

/// Whether what is known of the state after any of these events lacks memberships.
pub(in crate::rooms) fn any_partial(
    source: &Source<'_>,
    events: impl IntoIterator<Item = EventNumber>,
) -> Result<bool, Error> {
    for number in events {
        let event = source.event(number)?;
        if event.is_some_and(|event| event.meta.has(flag::STATE_PARTIAL)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A state that lacks memberships, with those that an event cites. What the state does say of a user counts.
pub(in crate::rooms) fn filled(
    source: &Source<'_>,
    draft: &Draft,
    basis: Basis,
    cited: &[Arc<StoredEvent>],
) -> Result<Basis, Error> {
    let mut changes = differing(source, &basis, cited)?;
    changes.retain(|change| change.is_member && change.before.is_none());
    with(source, draft, basis, &changes)
}

/// The state by which an event is judged, where what is known of the state before it may lack something or be wrong: it,
/// resolved with itself as the events have it that are cited.
///
/// engine.md section 7.
pub(in crate::rooms) fn judged_by(
    head: &Head,
    source: &Source<'_>,
    draft: &Draft,
    basis: Basis,
    cited: &[Arc<StoredEvent>],
) -> Result<Basis, Error> {
    let changes = differing(source, &basis, cited)?;
    if changes.is_empty() {
        return Ok(basis);
    }
    let other = with(source, draft, basis, &changes)?;
    Ok(resolution::resolve(head, source, draft, &[basis.root, other.root])?.into())
}

/// What the events would change in a state.
fn differing(
    source: &Source<'_>,
    basis: &Basis,
    cited: &[Arc<StoredEvent>],
) -> Result<Vec<Change>, Error> {
    let entry = |event: &StoredEvent| Entry::of(source.rooms, event.meta.event_type, &event.pdu);
    let mut changes: Vec<Change> = Vec::new();
    for event in cited.iter().filter(|event| !event.meta.is_rejected()) {
        let Some(state) = event.meta.state else {
            continue;
        };
        let key = source.graph(state)?.key;
        let known = trie::get(source, basis.row.node(event.meta.event_type), key)?;
        if known == Some(state) || changes.iter().any(|change| change.key == key) {
            continue;
        }
        let before = source.events_of_states(known.as_slice())?;
        changes.push(Change {
            key,
            is_member: event.meta.event_type == TypeNumber::MEMBER,
            before: before.first().map(|before| entry(before)),
            after: Some((state, entry(event))),
        });
    }
    Ok(changes)
}

fn with(
    source: &Source<'_>,
    draft: &Draft,
    basis: Basis,
    changes: &[Change],
) -> Result<Basis, Error> {
    if changes.is_empty() {
        return Ok(basis);
    }
    let row = draft.changed(source, basis.row, changes)?;
    Ok((draft.add_root(row), row).into())
}

/// An event before which the whole state is to be fetched.
#[derive(Clone, Debug)]
pub struct Lacking {
    pub event: EventNumber,
    pub event_id: OwnedEventId,
    pub prev_events: Vec<OwnedEventId>,
}

impl Rooms {
    /// Whether memberships of a room are still to be fetched.
    pub fn is_partial(&self, room: RoomNumber) -> bool {
        self.published(room).is_some_and(|room| room.head.partial)
    }

    /// All rooms of which memberships are still to be fetched.
    pub fn partial_rooms(&self) -> Vec<RoomNumber> {
        let mut rooms = self.all();
        rooms.retain(|room| self.is_partial(*room));
        rooms.sort_unstable();
        rooms
    }

    /// Waits until all memberships of a room are known. False if that takes longer than `timeout`.
    pub async fn completed(&self, room: RoomNumber, timeout: Duration) -> bool {
        let deadline = tokio::time::Instant::now() + timeout;
        loop {
            let tick = self.store.tick();
            if !self.is_partial(room) {
                return true;
            }
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            if left.is_zero() {
                return false;
            }
            self.store.wait(&[Topic::Room(room.0)], tick, left).await;
        }
    }

    /// Whether the memberships of a room became known after `since`: who knows less of the room has to be told all of it.
    pub fn was_completed_since(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        since: Position,
    ) -> Result<bool, Error> {
        // Most rooms never were partial.
        if !self
            .published(room)
            .is_some_and(|room| room.head.was_partial)
        {
            return Ok(false);
        }
        let completed = snapshot.get(&COMPLETED, &(room,))?;
        Ok(completed.is_some_and(|completed| completed > since))
    }

    /// The servers of a partial room, as the one said that let us in; none of any other room.
    pub(super) fn told_servers(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
    ) -> Result<Vec<OwnedServerName>, Error> {
        if !self.is_partial(room) {
            return Ok(Vec::new());
        }
        let mut servers = Vec::new();
        for row in snapshot.scan(SERVERS.prefix(&(room,)), Order::Forward) {
            let ((_, server), ()) = row?;
            servers.extend(self.server_name(server));
        }
        Ok(servers)
    }

    /// Whether a server is one of [`Self::told_servers`].
    pub fn is_told_server(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        server: ServerNumber,
    ) -> Result<bool, Error> {
        Ok(self.is_partial(room) && snapshot.has(&SERVERS, &(room, server))?)
    }

    /// Keeps the servers of a room that is about to become partial, or is so already.
    pub(super) fn keep_told_servers(&self, room: RoomNumber, servers: &[OwnedServerName]) {
        let mut batch = Batch::new();
        if !self.is_partial(room) {
            batch.delete_range(SERVERS.prefix(&(room,)));
        }
        for server in servers.iter().take(MAX_SERVERS) {
            if server != self.own_name() {
                batch.put(&SERVERS, &(room, self.server_number(server)), &());
            }
        }
        drop(self.store.submit(batch));
    }

    /// The events before which the whole state of a partial room is to be fetched: the joins with which this server came.
    pub fn lacking(&self, snapshot: &Snapshot, room: RoomNumber) -> Result<Vec<Lacking>, Error> {
        let mut lacking = Vec::new();
        for (number, noted) in noted(snapshot, room)? {
            if !noted.lacks_members {
                continue;
            }
            let event = self.event(snapshot, room, number)?;
            let event = event.ok_or_else(|| Error::corrupt("partial_events", "no event"))?;
            lacking.push(Lacking {
                event: number,
                event_id: event.pdu.event_id.clone(),
                prev_events: event.pdu.prev_events.clone(),
            });
        }
        Ok(lacking)
    }
}

/// Servers of a partial room that are not among those told of when it was joined, and since when it has been partial.
#[derive(Clone, Debug, Default)]
pub struct Untold {
    pub servers: BTreeSet<OwnedServerName>,
    pub since: Position,
}

impl Rooms {
    /// The servers of a partial room, as far as the states that were fetched and the joins since then tell of others than
    /// those that were told of.
    pub fn untold_servers(&self, snapshot: &Snapshot, room: RoomNumber) -> Result<Untold, Error> {
        let mut untold = Untold::default();
        let mut since: Option<Position> = None;
        for (number, noted) in noted(snapshot, room)? {
            let Some(event) = self.event(snapshot, room, number)? else {
                continue;
            };
            let position = Some(event.meta.position).filter(|at| *at != Position::default());
            since = since.into_iter().chain(position).min();
            if let Some(root) = noted.told {
                untold
                    .servers
                    .extend(self.servers_at(snapshot, (room, root))?);
            }
            let user = event.pdu.state_key.as_deref().map(<&UserId>::try_from);
            if event.meta.event_type == TypeNumber::MEMBER
                && !event.meta.has(flag::OUTLIER)
                && Class::of(&membership_of(&event)) == Class::Join
                && let Some(Ok(user)) = user
            {
                untold.servers.insert(user.server_name().to_owned());
            }
        }
        for told in self.told_servers(snapshot, room)? {
            untold.servers.remove(&told);
        }
        untold.servers.remove(self.own_name());
        untold.since = since.unwrap_or_default();
        Ok(untold)
    }
}

/// The events of a room that are to be judged again.
pub(in crate::rooms) fn noted(
    snapshot: &Snapshot,
    room: RoomNumber,
) -> Result<Vec<(EventNumber, Noted)>, Error> {
    let rows = snapshot.scan(NOTED.prefix(&(room,)), Order::Forward);
    rows.map(|row| Ok(row.map(|((_, event), Cbor(noted))| (event, noted))?))
        .collect()
}

/// Notes that all memberships of a room are known from the position of the batch on.
fn complete(batch: &mut Batch, room: RoomNumber) {
    batch.delete_range(SERVERS.prefix(&(room,)));
    batch.put_stamped(
        &COMPLETED,
        &(room,),
        &Position::default(),
        PositionAt::Value(0),
    );
    batch.wake(Topic::Room(room.0));
}

impl RoomWriter {
    /// Keeps the whole state before an event of [`Rooms::lacking`], all of whose events must be known. Waits until it is durable.
    ///
    /// # Errors
    /// [`Error::Invalid`] if an event of the state is not known.
    pub async fn keep_whole_state(
        &mut self,
        event: EventNumber,
        state: Vec<OwnedEventId>,
    ) -> Result<(), Error> {
        self.settled().await?;
        let room = self.room();
        let (root, made, next) = self
            .with_source(move |head, source| {
                let draft = Draft::new(head);
                let source = source.with_draft(&draft);
                let row = source.snapshot()?.get(&NOTED, &(room, event))?;
                let like = row.and_then(|Cbor(noted)| noted.told).unwrap_or_default();
                let like = (like, source.root(like)?);
                let (root, _) = told::root(head, &source, &draft, (like, &state))?;
                let (made, next) = draft.into_made();
                Ok((root, made, next))
            })
            .await?;
        let mut batches = vec![Batch::new()];
        for (number, node) in &made.nodes {
            state::insert_node(open(&mut batches), room, *number, node);
        }
        for (number, row) in &made.roots {
            state::insert_root(open(&mut batches), room, *number, row);
        }
        let whole = Noted::new(Some(root), false);
        open(&mut batches).put(&NOTED, &(room, event), &Cbor(whole));
        let rooms = self.rooms().clone();
        let head = self.head_mut();
        next.write(&mut head.row);
        head.remember_made(made);
        if let Some(last) = batches.last_mut() {
            super::head::insert(last, room, &head.row);
            rooms.publish_head(last, room, head.row.clone(), Vec::new());
        }
        self.submit_and_wait(batches).await
    }

    async fn submit_and_wait(&mut self, mut batches: Vec<Batch>) -> Result<(), Error> {
        for batch in &mut batches {
            self.head_mut().count(batch);
        }
        for commit in self.submit_all(batches) {
            commit.await?;
        }
        self.head_mut().settle();
        Ok(())
    }
}

/// The batch that is written to.
fn open(batches: &mut Vec<Batch>) -> &mut Batch {
    if batches.last().is_none_or(|last| last.bytes() > BATCH_BYTES) {
        batches.push(Batch::new());
    }
    batches.last_mut().expect("one was just added")
}

#[cfg(test)]
mod tests;

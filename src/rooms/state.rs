//! The states of a room: two tries (members, and everything else) whose nodes are shared between states, and the graph of
//! state events.
//!
//! Rows are written once and never changed, so they are cached without expiry. A state is a [`RootNumber`]; zero is the
//! empty state. engine.md sections 5.3 and 7.

use std::{collections::HashMap, sync::Arc};

use ruma::{OwnedEventId, UserId, events::room::member::MembershipState};
use smallvec::SmallVec;

use super::{
    Error, RoomNumber, Rooms, StoredEvent, TypeNumber,
    draft::Draft,
    event::{EventKey, Reader, put_varint},
    stubs,
    threads::ThreadRow,
};
use crate::{
    events::{
        EventNumber, Fingerprint, NodeNumber, RootNumber, StateKeyNumber, StateNumber,
        trie::{self, Node, NodeSource},
    },
    storage::{Batch, Family, Order, Record, Snapshot, Table, Text},
};

pub(super) static KEYS: Table<(RoomNumber, StateKeyNumber), StateKey> =
    Table::new("state_keys", Family::State, b'k');
static KEY_NUMBERS: Table<(RoomNumber, TypeNumber, Text), u32> =
    Table::new("state_key_numbers", Family::State, b'K');
pub(super) static GRAPH: Table<(RoomNumber, StateNumber), GraphRow> =
    Table::new("state_graph", Family::State, b'g');
static STATE_IDS: Table<(RoomNumber, StateNumber), EventKey> =
    Table::new("state_ids", Family::State, b'i');
pub(super) static NODES: Table<(RoomNumber, NodeNumber), Node> =
    Table::new("state_nodes", Family::State, b'n');
pub(super) static ROOTS: Table<(RoomNumber, RootNumber), RootRow> =
    Table::new("state_roots", Family::State, b'r');

/// A (type, state key) pair.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct StateKey {
    pub event_type: TypeNumber,
    /// Where the type has no number of its own: its text, a NUL, then the state key.
    pub key: Box<str>,
}

impl Record for StateKey {
    fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.event_type.0.to_be_bytes());
        to.extend_from_slice(self.key.as_bytes());
    }
    fn decode(from: &[u8]) -> Result<Self, String> {
        let mut reader = Reader(from);
        let event_type = TypeNumber(reader.u16()?);
        let key = std::str::from_utf8(reader.0).map_err(|invalid| invalid.to_string())?;
        Ok(Self {
            event_type,
            key: key.into(),
        })
    }
}

/// A state event in the graph of auth events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GraphRow {
    pub event: EventNumber,
    pub key: StateKeyNumber,
    /// Bit 0: rejected by the state before it.
    pub flags: u8,
    pub parents: SmallVec<[StateNumber; 4]>,
}

/// First byte of graph and root rows.
const ROW_VERSION: u8 = 1;

impl Record for GraphRow {
    fn encode(&self, to: &mut Vec<u8>) {
        to.push(ROW_VERSION);
        put_varint(to, u64::from(self.event.0));
        put_varint(to, u64::from(self.key.0));
        to.push(self.flags);
        put_varint(to, self.parents.len() as u64);
        for parent in &self.parents {
            put_varint(to, u64::from(parent.0));
        }
        // No room of the versions served has a graph of state events besides the auth graph.
        put_varint(to, 0);
    }
    fn decode(from: &[u8]) -> Result<Self, String> {
        let mut reader = Reader(from);
        if reader.u8()? != ROW_VERSION {
            return Err("unknown version".to_owned());
        }
        let event = EventNumber(reader.varint_u32()?);
        let key = StateKeyNumber(reader.varint_u32()?);
        let flags = reader.u8()?;
        let mut parents = SmallVec::new();
        for _ in 0..reader.varint()? {
            parents.push(StateNumber(reader.varint_u32()?));
        }
        Ok(Self {
            event,
            key,
            flags,
            parents,
        })
    }
}

/// A state of the room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RootRow {
    /// Everything but members.
    pub core: NodeNumber,
    pub members: NodeNumber,
    /// Equal states have equal fingerprints; only meaningful inside this database.
    pub fingerprint: Fingerprint,
    pub core_count: u64,
    pub member_count: u64,
    pub joined: u64,
    pub invited: u64,
}

impl Record for RootRow {
    fn encode(&self, to: &mut Vec<u8>) {
        to.push(ROW_VERSION);
        to.extend_from_slice(&self.core.0.to_be_bytes());
        to.extend_from_slice(&self.members.0.to_be_bytes());
        to.extend_from_slice(&self.fingerprint.to_bytes());
        for count in [
            self.core_count,
            self.member_count,
            self.joined,
            self.invited,
        ] {
            put_varint(to, count);
        }
    }
    fn decode(from: &[u8]) -> Result<Self, String> {
        let mut reader = Reader(from);
        if reader.u8()? != ROW_VERSION {
            return Err("unknown version".to_owned());
        }
        Ok(Self {
            core: NodeNumber(reader.u32()?),
            members: NodeNumber(reader.u32()?),
            fingerprint: Fingerprint::from_bytes(reader.array()?),
            core_count: reader.varint()?,
            member_count: reader.varint()?,
            joined: reader.varint()?,
            invited: reader.varint()?,
        })
    }
}

impl Record for Node {
    fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&Node::encode(self));
    }
    fn decode(from: &[u8]) -> Result<Self, String> {
        Node::decode(from).map_err(|malformed| malformed.to_string())
    }
}

/// Rows of the state tables that a writer has made and that are not published yet.
#[derive(Default)]
pub(super) struct Fresh {
    pub(super) nodes: HashMap<NodeNumber, Arc<Node>>,
    pub(super) roots: HashMap<RootNumber, RootRow>,
    pub(super) graph: HashMap<StateNumber, Arc<GraphRow>>,
    pub(super) key_numbers: HashMap<StateKey, StateKeyNumber>,
    pub(super) events: HashMap<EventNumber, Arc<StoredEvent>>,
    pub(super) event_numbers: HashMap<OwnedEventId, EventNumber>,
    /// By root; `None`: nothing is left of the thread.
    pub(super) threads: HashMap<EventNumber, Option<ThreadRow>>,
    /// Redactions of events that have not come yet, by these.
    pub(super) redactions: HashMap<EventNumber, EventNumber>,
}

impl Fresh {
    pub(super) fn add_stubs(&mut self, stubs: &[stubs::Stub]) {
        for stub in stubs {
            self.event_numbers.insert(stub.id.id(), stub.event);
            if let Some(redaction) = stub.redacted_by {
                self.redactions.insert(stub.event, redaction);
            }
        }
    }
}

/// Where the state of one room is read: what its writer has in flight, then the caches, then a snapshot.
///
/// Without a snapshot a row that is not in memory is [`Error::NotInMemory`]: a writer tries so first, and moves to the
/// blocking pool only if it has to read.
pub(super) struct Source<'a> {
    pub(super) rooms: &'a Rooms,
    pub(super) room: RoomNumber,
    /// Newest first; empty for readers.
    pub(super) fresh: &'a [Fresh],
    /// What was made for the event that is being judged.
    pub(super) draft: Option<&'a Draft>,
    pub(super) snapshot: Option<&'a Snapshot>,
    /// Nothing of this room has ever been published: what is not fresh does not exist.
    pub(super) unborn: bool,
}

impl<'a> Source<'a> {
    pub(super) fn snapshot(&self) -> Result<&'a Snapshot, Error> {
        self.snapshot.ok_or(Error::NotInMemory)
    }

    /// The same with what is made for one event.
    pub(super) fn with_draft<'b>(&'b self, draft: &'b Draft) -> Source<'b> {
        Source {
            draft: Some(draft),
            ..*self
        }
    }

    /// What the writer of the room has made and no snapshot shows yet.
    pub(super) fn unpublished<T>(&self, find: impl Fn(&Fresh) -> Option<T>) -> Option<T> {
        let found = self.fresh.iter().find_map(&find);
        found.or_else(|| find(&self.draft?.rows.borrow()))
    }

    pub(super) fn root(&self, root: RootNumber) -> Result<RootRow, Error> {
        if root == RootNumber::default() {
            return Ok(RootRow::default());
        }
        if let Some(row) = self.unpublished(|fresh| fresh.roots.get(&root).copied()) {
            return Ok(row);
        }
        let key = (self.room, root);
        if let Some(row) = self.rooms.caches.roots.get(&key) {
            return Ok(row);
        }
        let row = self
            .snapshot()?
            .get(&ROOTS, &key)?
            .ok_or_else(|| Error::corrupt("state_roots", "missing"))?;
        self.rooms
            .caches
            .roots
            .put(key, row, size_of::<RootRow>() + ENTRY_BYTES);
        Ok(row)
    }

    /// The number of a state key; `None` if no event of the room ever had it.
    pub(super) fn key_number(&self, key: &StateKey) -> Result<Option<StateKeyNumber>, Error> {
        if let Some(number) = self.unpublished(|fresh| fresh.key_numbers.get(key).copied()) {
            return Ok(Some(number));
        }
        if self.unborn {
            return Ok(None);
        }
        let cache_key = (self.room, key.clone());
        if let Some(number) = self.rooms.caches.key_numbers.get(&cache_key) {
            return Ok(Some(number));
        }
        let row_key = (self.room, key.event_type, Text(key.key.clone()));
        let number = self
            .snapshot()?
            .get(&KEY_NUMBERS, &row_key)?
            .map(StateKeyNumber);
        if let Some(number) = number {
            let weight = cache_key.1.key.len() + ENTRY_BYTES;
            self.rooms.caches.key_numbers.put(cache_key, number, weight);
        }
        Ok(number)
    }

    pub(super) fn graph(&self, state: StateNumber) -> Result<Arc<GraphRow>, Error> {
        if let Some(row) = self.unpublished(|fresh| fresh.graph.get(&state).cloned()) {
            return Ok(row);
        }
        let key = (self.room, state);
        if let Some(row) = self.rooms.caches.graph.get(&key) {
            return Ok(row);
        }
        let row = self
            .snapshot()?
            .get(&GRAPH, &key)?
            .ok_or_else(|| Error::corrupt("state_graph", "missing"))?;
        let row = Arc::new(row);
        self.rooms
            .caches
            .graph
            .put(key, Arc::clone(&row), size_of::<GraphRow>() + ENTRY_BYTES);
        Ok(row)
    }

    /// The rows of many state events, in their order, in one call for those that are not in memory.
    pub(super) fn graph_many(&self, states: &[StateNumber]) -> Result<Vec<Arc<GraphRow>>, Error> {
        let mut rows = Vec::with_capacity(states.len());
        let mut missing = Vec::new();
        for (at, state) in states.iter().enumerate() {
            let row = self.unpublished(|fresh| fresh.graph.get(state).cloned());
            let row = row.or_else(|| self.rooms.caches.graph.get(&(self.room, *state)));
            if row.is_none() {
                missing.push((at, (self.room, *state)));
            }
            rows.push(row);
        }
        if !missing.is_empty() {
            let keys: Vec<_> = missing.iter().map(|(_, key)| *key).collect();
            let found = self.snapshot()?.get_many(&GRAPH, &keys)?;
            for ((at, key), row) in missing.into_iter().zip(found) {
                let row = Arc::new(row.ok_or_else(|| Error::corrupt("state_graph", "missing"))?);
                self.rooms.caches.graph.put(
                    key,
                    Arc::clone(&row),
                    size_of::<GraphRow>() + ENTRY_BYTES,
                );
                if let Some(place) = rows.get_mut(at) {
                    *place = Some(row);
                }
            }
        }
        Ok(rows.into_iter().flatten().collect())
    }

    /// The rows of the state events from `first` up to `next`, which is none of them. Read at once and not cached.
    pub(super) fn graph_rows(
        &self,
        first: StateNumber,
        next: StateNumber,
    ) -> Result<Vec<Arc<GraphRow>>, Error> {
        let range = GRAPH.range(&(self.room, first), &(self.room, next));
        let mut stored = self.snapshot()?.scan(range, Order::Forward).peekable();
        let mut rows = Vec::new();
        for number in (first.0..next.0).map(StateNumber) {
            let mut row = None;
            while let Some(found) = stored.next_if(|found| {
                let is_up_to = |((_, found), _): &((_, StateNumber), _)| *found <= number;
                found.as_ref().map_or(true, is_up_to)
            }) {
                let ((_, found), stored) = found?;
                row = (found == number).then(|| Arc::new(stored));
            }
            let row = row.or_else(|| self.unpublished(|fresh| fresh.graph.get(&number).cloned()));
            rows.push(row.ok_or_else(|| Error::corrupt("state_graph", "missing"))?);
        }
        Ok(rows)
    }

    /// The state events of these numbers, in their order.
    pub(super) fn events_of_states(
        &self,
        states: &[StateNumber],
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        let rows = self.graph_many(states)?;
        let numbers: Vec<_> = rows.iter().map(|row| row.event).collect();
        let events = self.events(&numbers)?.into_iter();
        let events = events
            .map(|event| event.ok_or_else(|| Error::corrupt("bodies", "a state event is missing")));
        events.collect()
    }

    /// The events of these numbers, in their order; `None` for stubs.
    pub(super) fn events(
        &self,
        numbers: &[EventNumber],
    ) -> Result<Vec<Option<Arc<StoredEvent>>>, Error> {
        let unpublished = |number: &EventNumber| {
            let found = self.unpublished(|fresh| fresh.events.get(number).cloned());
            found.or_else(|| self.rooms.caches.events.get(&(self.room, *number)))
        };
        let mut events: Vec<_> = numbers.iter().map(unpublished).collect();
        let missing = numbers
            .iter()
            .zip(&events)
            .filter(|(_, event)| event.is_none());
        let missing: Vec<_> = missing.map(|(number, _)| *number).collect();
        if missing.is_empty() {
            return Ok(events);
        }
        let found = self.rooms.events(self.snapshot()?, self.room, &missing)?;
        let mut found = found.into_iter();
        for event in events.iter_mut().filter(|event| event.is_none()) {
            *event = found.next().flatten();
        }
        Ok(events)
    }

    pub(super) fn event(&self, event: EventNumber) -> Result<Option<Arc<StoredEvent>>, Error> {
        if let Some(found) = self.unpublished(|fresh| fresh.events.get(&event).cloned()) {
            return Ok(Some(found));
        }
        if let Some(found) = self.rooms.caches.events.get(&(self.room, event)) {
            return Ok(Some(found));
        }
        self.rooms.event(self.snapshot()?, self.room, event)
    }

    /// The number of an event of this room by its ID.
    pub(super) fn event_number(
        &self,
        event_id: &ruma::EventId,
    ) -> Result<Option<EventNumber>, Error> {
        if let Some(number) = self.unpublished(|fresh| fresh.event_numbers.get(event_id).copied()) {
            return Ok(Some(number));
        }
        if self.unborn {
            return Ok(None);
        }
        let id = EventKey::of(event_id);
        let cached = self.rooms.caches.places.get(&id);
        if let Some(place) = cached.filter(|place| place.room == self.room) {
            return Ok(Some(place.event));
        }
        let place = super::event::place(self.snapshot()?, &id)?;
        if let Some(place) = place.filter(|place| place.room == self.room) {
            return Ok(Some(place.event));
        }
        stubs::number(self.snapshot()?, self.room, &id)
    }

    /// The state event at a key of a state.
    pub(super) fn state(
        &self,
        root: &RootRow,
        key: &StateKey,
    ) -> Result<Option<(StateNumber, Arc<StoredEvent>)>, Error> {
        let Some(number) = self.key_number(key)? else {
            return Ok(None);
        };
        let Some(state) = trie::get(self, root.node(key.event_type), number)? else {
            return Ok(None);
        };
        let row = self.graph(state)?;
        let event = self
            .event(row.event)?
            .ok_or_else(|| Error::corrupt("bodies", "a state event is missing"))?;
        Ok(Some((state, event)))
    }
}

/// What an entry of a cache costs besides its value, in bytes.
const ENTRY_BYTES: usize = 96;

impl RootRow {
    /// The trie in which events of this type are.
    pub(super) fn node(&self, event_type: TypeNumber) -> NodeNumber {
        if event_type == TypeNumber::MEMBER {
            self.members
        } else {
            self.core
        }
    }
}

impl NodeSource for Source<'_> {
    type Error = Error;

    fn nodes(&self, numbers: &[NodeNumber]) -> Result<Vec<Arc<Node>>, Error> {
        let mut nodes = Vec::with_capacity(numbers.len());
        let mut missing = Vec::new();
        for (at, number) in numbers.iter().enumerate() {
            let node = self.unpublished(|fresh| fresh.nodes.get(number).cloned());
            let node = node.or_else(|| self.rooms.caches.nodes.get(&(self.room, *number)));
            if node.is_none() {
                missing.push((at, (self.room, *number)));
            }
            nodes.push(node);
        }
        if !missing.is_empty() {
            let keys: Vec<_> = missing.iter().map(|(_, key)| *key).collect();
            let found = self.snapshot()?.get_many(&NODES, &keys)?;
            for ((at, key), node) in missing.into_iter().zip(found) {
                let node = Arc::new(node.ok_or_else(|| Error::corrupt("state_nodes", "missing"))?);
                self.rooms
                    .caches
                    .nodes
                    .put(key, Arc::clone(&node), NODE_BYTES);
                if let Some(place) = nodes.get_mut(at) {
                    *place = Some(node);
                }
            }
        }
        Ok(nodes.into_iter().flatten().collect())
    }
}

/// What a node costs in the cache: up to 64 pairs of 8 bytes.
const NODE_BYTES: usize = 512 + ENTRY_BYTES;

/// What one state event adds to the state tables.
pub(super) struct StateRows {
    pub(super) state: StateNumber,
    pub(super) graph: GraphRow,
    pub(super) key: StateKey,
    /// The event had no number before.
    pub(super) is_new: bool,
    /// No event of the room had this key before.
    pub(super) is_new_key: bool,
    pub(super) nodes: Vec<(NodeNumber, Arc<Node>)>,
    /// The state after the event, if it differs from the state before.
    pub(super) root: Option<(RootNumber, RootRow)>,
}

/// Adds the rows of a state event.
pub(super) fn insert(batch: &mut Batch, room: RoomNumber, rows: &StateRows, id: &EventKey) {
    if rows.is_new_key {
        let (number, key) = (rows.graph.key, &rows.key);
        batch.put(&KEYS, &(room, number), key);
        batch.put(
            &KEY_NUMBERS,
            &(room, key.event_type, Text(key.key.clone())),
            &number.0,
        );
    }
    if rows.is_new {
        batch.put(&GRAPH, &(room, rows.state), &rows.graph);
        batch.put(&STATE_IDS, &(room, rows.state), id);
    }
    for (number, node) in &rows.nodes {
        insert_node(batch, room, *number, node);
    }
    if let Some((number, root)) = &rows.root {
        insert_root(batch, room, *number, root);
    }
}

/// Writes the place of a state event in the graph again, whose flags have changed.
pub(super) fn insert_graph(batch: &mut Batch, room: RoomNumber, rows: &StateRows) {
    batch.put(&GRAPH, &(room, rows.state), &rows.graph);
}

pub(super) fn insert_node(batch: &mut Batch, room: RoomNumber, number: NodeNumber, node: &Node) {
    batch.put(&NODES, &(room, number), node);
}

pub(super) fn insert_root(batch: &mut Batch, room: RoomNumber, number: RootNumber, root: &RootRow) {
    batch.put(&ROOTS, &(room, number), root);
}

/// The IDs of state events, in their order, in one call.
pub(super) fn event_keys(
    snapshot: &Snapshot,
    room: RoomNumber,
    states: &[StateNumber],
) -> Result<Vec<Option<EventKey>>, Error> {
    let keys: Vec<_> = states.iter().map(|state| (room, *state)).collect();
    Ok(snapshot.get_many(&STATE_IDS, &keys)?)
}

impl Rooms {
    pub(super) fn source<'a>(&'a self, snapshot: &'a Snapshot, room: RoomNumber) -> Source<'a> {
        Source {
            rooms: self,
            room,
            fresh: &[],
            draft: None,
            snapshot: Some(snapshot),
            unborn: false,
        }
    }

    /// The key of (type, state key) in state tables; `None` if no event of that type was ever seen.
    pub(super) fn state_key(&self, event_type: &str, key: &str) -> Option<StateKey> {
        let number = self.numbers.type_number(event_type)?;
        Some(state_key(number, event_type, key))
    }

    /// Counts and fingerprint of a state.
    pub fn root(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        root: RootNumber,
    ) -> Result<RootRow, Error> {
        self.source(snapshot, room).root(root)
    }

    /// The state event of (type, state key) in a state.
    pub fn state_event(
        &self,
        snapshot: &Snapshot,
        at: (RoomNumber, RootNumber),
        event_type: &str,
        key: &str,
    ) -> Result<Option<Arc<StoredEvent>>, Error> {
        let source = self.source(snapshot, at.0);
        let Some(key) = self.state_key(event_type, key) else {
            return Ok(None);
        };
        let root = source.root(at.1)?;
        Ok(source.state(&root, &key)?.map(|(_, event)| event))
    }

    /// All state events of a state but the memberships, in no particular order.
    pub fn core_state(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        root: RootNumber,
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        let source = self.source(snapshot, room);
        let root = source.root(root)?;
        self.state_of(&source, root.core)
    }

    /// All membership events of a state.
    pub fn member_state(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        root: RootNumber,
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        let source = self.source(snapshot, room);
        let root = source.root(root)?;
        self.state_of(&source, root.members)
    }

    fn state_of(
        &self,
        source: &Source<'_>,
        node: NodeNumber,
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        let states: Vec<_> = trie::walk(source, node)?
            .into_iter()
            .map(|(_, state)| state)
            .collect();
        self.events_of_states(source, &states)
    }

    fn events_of_states(
        &self,
        source: &Source<'_>,
        states: &[StateNumber],
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        let numbers: Vec<_> = source
            .graph_many(states)?
            .iter()
            .map(|row| row.event)
            .collect();
        let events = self.events(source.snapshot()?, source.room, &numbers)?;
        Ok(events.into_iter().flatten().collect())
    }

    /// The state events at the keys of `keys` (type, state key) in a state, in one walk; those that exist.
    pub fn state_events(
        &self,
        snapshot: &Snapshot,
        at: (RoomNumber, RootNumber),
        keys: &[(&str, &str)],
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        let source = self.source(snapshot, at.0);
        let root = source.root(at.1)?;
        let mut states = Vec::with_capacity(keys.len());
        for (event_type, key) in keys {
            let Some(key) = self.state_key(event_type, key) else {
                continue;
            };
            let Some(number) = source.key_number(&key)? else {
                continue;
            };
            states.extend(trie::get(&source, root.node(key.event_type), number)?);
        }
        self.events_of_states(&source, &states)
    }

    /// The events of state `after` that are not in state `before` (removed keys are left out: no event says so), with
    /// or without memberships.
    pub fn state_since(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        (before, after): (RootNumber, RootNumber),
        members: Members,
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        let source = self.source(snapshot, room);
        let (before, after) = (source.root(before)?, source.root(after)?);
        let mut changes = trie::diff(&source, before.core, after.core)?;
        if members == Members::All {
            changes.extend(trie::diff(&source, before.members, after.members)?);
        }
        let states: Vec<_> = changes
            .into_iter()
            .filter_map(|change| change.after)
            .collect();
        self.events_of_states(&source, &states)
    }

    /// The membership of a user in a state; `leave` if there is none.
    pub fn membership_at(
        &self,
        snapshot: &Snapshot,
        at: (RoomNumber, RootNumber),
        user: &UserId,
    ) -> Result<MembershipState, Error> {
        let event = self.state_event(snapshot, at, "m.room.member", user.as_str())?;
        Ok(event.map_or(MembershipState::Leave, |event| membership_of(&event)))
    }
}

/// Whether a walk takes in the memberships.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Members {
    All,
    None,
}

/// The `membership` of a member event; `leave` if it has none.
pub fn membership_of(event: &StoredEvent) -> MembershipState {
    #[derive(serde::Deserialize)]
    struct Content {
        membership: MembershipState,
    }
    event
        .pdu
        .content_as::<Content>()
        .map_or(MembershipState::Leave, |content| content.membership)
}

/// The key of (type, state key), given the type's number.
pub(super) fn state_key(number: TypeNumber, event_type: &str, key: &str) -> StateKey {
    let key = if number == TypeNumber::OTHER {
        format!("{event_type}\0{key}").into()
    } else {
        key.into()
    };
    StateKey {
        event_type: number,
        key,
    }
}

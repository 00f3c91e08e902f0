//! The state of a room where its graph forks: what the states after several events resolve to.
//!
//! Nothing is resolved where the states are the same. Otherwise only the keys in conflict are looked at: engine.md
//! section 7 has the steps, `events::resolve` the algorithm.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use ruma::{
    EventId, OwnedEventId, RoomVersionId, events::StateEventType,
    room_version_rules::StateResolutionVersion, state_res::StateMap,
};
use smallvec::SmallVec;

use super::{
    Error, RoomNumber, Rooms, RootRow, StoredEvent, TypeNumber,
    draft::{Change, Draft, Entry},
    head::Head,
    state::{Source, StateKey, state_key},
};
use crate::events::{
    Pdu, RootNumber, StateKeyNumber, StateNumber,
    graph::Graph,
    resolve::{self, Resolution},
    trie,
};

/// A state with its number.
pub(super) type Root = (RootNumber, RootRow);

/// The resolution of states, which may be one of them or one that was resolved before.
///
/// Blocks for as long as it takes; without a snapshot only what needs no resolution is answered.
pub(super) fn resolve(
    head: &Head,
    source: &Source<'_>,
    draft: &Draft,
    roots: &[RootNumber],
) -> Result<Root, Error> {
    let distinct: BTreeSet<RootNumber> = roots.iter().copied().collect();
    let numbers: SmallVec<[RootNumber; 4]> = distinct.into_iter().collect();
    let mut states: Vec<Root> = Vec::with_capacity(numbers.len());
    for number in &numbers {
        let row = source.root(*number)?;
        let is_new = |(_, known): &Root| known.fingerprint != row.fingerprint;
        if states.iter().all(is_new) {
            states.push((*number, row));
        }
    }
    match states.as_slice() {
        [] => return Ok((RootNumber::default(), RootRow::default())),
        [only] => return Ok(*only),
        _ => {}
    }
    let known = draft.remembered(&numbers);
    if let Some(known) = known.or_else(|| head.resolved(&numbers)) {
        return Ok((known, source.root(known)?));
    }
    let row = Conflict::between(source, &states)?.resolve(head, source, draft)?;
    let is_same = |root: &&Root| root.1.fingerprint == row.fingerprint;
    let current = (head.row.root, head.root);
    let root = match states.iter().chain([&current]).find(is_same) {
        Some(known) => *known,
        None => (draft.add_root(row), row),
    };
    draft.remember((numbers, root.0));
    Ok(root)
}

/// The entries of a state at the keys in conflict.
type Conflicted = BTreeMap<StateKeyNumber, StateNumber>;

/// States that differ.
struct Conflict {
    first: RootRow,
    /// By state, the first among them.
    states: Vec<Conflicted>,
    /// All keys that differ, and whether each is a membership.
    keys: BTreeMap<StateKeyNumber, bool>,
}

impl Conflict {
    fn between(source: &Source<'_>, states: &[Root]) -> Result<Self, Error> {
        let first = states.first().map(|(_, row)| *row).unwrap_or_default();
        let mut keys = BTreeMap::new();
        let mut of_first = Conflicted::new();
        let mut differences = Vec::with_capacity(states.len());
        for (_, other) in states {
            let mut own = BTreeMap::new();
            for (is_member, before, after) in [
                (false, first.core, other.core),
                (true, first.members, other.members),
            ] {
                for difference in trie::diff(source, before, after)? {
                    keys.insert(difference.key, is_member);
                    of_first.extend(difference.before.map(|state| (difference.key, state)));
                    own.insert(difference.key, difference.after);
                }
            }
            differences.push(own);
        }
        let states = differences.into_iter().map(|own| {
            let mut entries = of_first.clone();
            for (key, state) in own {
                match state {
                    Some(state) => entries.insert(key, state),
                    None => entries.remove(&key),
                };
            }
            entries
        });
        Ok(Self {
            first,
            states: states.collect(),
            keys,
        })
    }

    /// The entries that all states have. Sorted.
    fn common(&self, source: &Source<'_>) -> Result<Vec<StateNumber>, Error> {
        let mut entries = trie::walk(source, self.first.core)?;
        entries.extend(trie::walk(source, self.first.members)?);
        let common = entries
            .into_iter()
            .filter(|(key, _)| !self.keys.contains_key(key));
        Ok(common.map(|(_, state)| state).collect())
    }

    fn resolve(&self, head: &Head, source: &Source<'_>, draft: &Draft) -> Result<RootRow, Error> {
        // What follows may take a while, so it is left to the threads that may read.
        source.snapshot()?;
        let next = StateNumber(draft.counters().state);
        let graph = source.rooms.take_graph(source, next)?;
        let sets: Vec<Vec<StateNumber>> = self
            .states
            .iter()
            .map(|state| state.values().copied().collect())
            .collect();
        let conflicted = sets.concat();
        let difference = match head.rules.state_res {
            StateResolutionVersion::V1 => Vec::new(),
            _ => graph.auth_difference(&self.common(source)?, &sets),
        };
        let subgraph = match head.rules.state_res.v2_rules() {
            Some(rules) if rules.consider_conflicted_state_subgraph => {
                graph.conflicted_subgraph(&conflicted)
            }
            _ => Vec::new(),
        };
        let set: BTreeSet<StateNumber> = [&conflicted, &difference, &subgraph]
            .into_iter()
            .flatten()
            .copied()
            .collect();
        let set: Vec<StateNumber> = set.into_iter().collect();
        let mut library = Library::new(head, source);
        library.load(&set)?;
        let base = self.base(head, source, &mut library, &set)?;
        let levels = source.rooms.state_key("m.room.power_levels", "");
        let levels = match levels {
            Some(levels) => source.key_number(&levels)?,
            None => None,
        };
        // A room without power levels has no key for them, and so none of their ancestry.
        let levels = levels.unwrap_or(StateKeyNumber(u32::MAX));
        library.load(&resolve::bodies(&graph, &set, &base, levels))?;
        let rooms = source.rooms;
        rooms.keep_graph(source.room, graph, StateNumber(head.row.next_state));
        let resolution = Resolution {
            version: library.version.clone(),
            conflicted: self
                .states
                .iter()
                .map(|state| library.map(state.values()))
                .collect(),
            base: library.map(&base),
            difference: library.ids(&difference),
            subgraph: library.ids(&subgraph),
            bodies: library.bodies()?,
        };
        let resolved = resolve::resolve(&resolution)
            .map_err(|error| Error::corrupt("state_graph", &error.to_string()))?;
        let changes = resolve::changes(&resolution, &resolved);
        self.apply(source, draft, &library, changes)
    }

    /// The entries that all states have and that the resolution looks at.
    fn base(
        &self,
        head: &Head,
        source: &Source<'_>,
        library: &mut Library<'_>,
        set: &[StateNumber],
    ) -> Result<Vec<StateNumber>, Error> {
        let events = set.iter().filter_map(|state| library.events.get(state));
        let keys = resolve::base_keys(&head.rules.authorization, events.map(|event| &*event.pdu));
        let mut base = Vec::new();
        for (event_type, key) in keys {
            let Some(key) = source.rooms.state_key(&event_type.to_string(), &key) else {
                continue;
            };
            let Some(number) = source.key_number(&key)? else {
                continue;
            };
            if !self.keys.contains_key(&number) {
                base.extend(trie::get(source, self.first.node(key.event_type), number)?);
            }
        }
        library.load(&base)?;
        Ok(base)
    }

    fn apply(
        &self,
        source: &Source<'_>,
        draft: &Draft,
        library: &Library<'_>,
        changes: Vec<((StateEventType, String), Option<OwnedEventId>)>,
    ) -> Result<RootRow, Error> {
        let rooms = source.rooms;
        let entry = |event: &StoredEvent| Entry::of(rooms, event.meta.event_type, &event.pdu);
        let mut applied = Vec::with_capacity(changes.len());
        for ((event_type, key), after) in changes {
            let key = rooms
                .state_key(&event_type.to_string(), &key)
                .ok_or_else(|| Error::corrupt("type_numbers", "a state event has no type"))?;
            let number = source
                .key_number(&key)?
                .ok_or_else(|| Error::corrupt("state_keys", "a state event has no key"))?;
            let before = self.states.first().and_then(|state| state.get(&number));
            let before = before.and_then(|state| library.events.get(state));
            let after = after.and_then(|id| library.by_id(&id));
            applied.push(Change {
                key: number,
                is_member: key.event_type == TypeNumber::MEMBER,
                before: before.map(|event| entry(event)),
                after: after.map(|(state, event)| (state, entry(event))),
            });
        }
        draft.changed(source, self.first, &applied)
    }
}

/// The events that a resolution reads, by number and by ID.
struct Library<'a> {
    source: &'a Source<'a>,
    version: RoomVersionId,
    create: Option<OwnedEventId>,
    events: BTreeMap<StateNumber, Arc<StoredEvent>>,
    numbers: HashMap<OwnedEventId, StateNumber>,
}

impl<'a> Library<'a> {
    fn new(head: &Head, source: &'a Source<'a>) -> Self {
        let create = head.rules.authorization.room_create_event_id_as_room_id;
        let create = create.then(|| create_event_id(&head.room_id)).flatten();
        Self {
            source,
            version: head.version(),
            create,
            events: BTreeMap::new(),
            numbers: HashMap::new(),
        }
    }

    fn load(&mut self, states: &[StateNumber]) -> Result<(), Error> {
        let is_missing = |state: &&StateNumber| !self.events.contains_key(state);
        let missing: Vec<_> = states.iter().filter(is_missing).copied().collect();
        let found = self.source.events_of_states(&missing)?;
        for (state, event) in missing.into_iter().zip(found) {
            self.numbers.insert(event.pdu.event_id.clone(), state);
            self.events.insert(state, event);
        }
        Ok(())
    }

    fn by_id(&self, id: &EventId) -> Option<(StateNumber, &Arc<StoredEvent>)> {
        let state = self.numbers.get(id)?;
        Some((*state, self.events.get(state)?))
    }

    fn map<'b>(&self, states: impl IntoIterator<Item = &'b StateNumber>) -> StateMap<OwnedEventId> {
        let events = states
            .into_iter()
            .filter_map(|state| self.events.get(state));
        let entries = events.map(|event| {
            let key = event.pdu.state_key.clone().unwrap_or_default();
            let event_type = StateEventType::from(event.pdu.event_type.to_string());
            ((event_type, key), event.pdu.event_id.clone())
        });
        entries.collect()
    }

    fn ids(&self, states: &[StateNumber]) -> Vec<OwnedEventId> {
        let events = states.iter().filter_map(|state| self.events.get(state));
        events.map(|event| event.pdu.event_id.clone()).collect()
    }

    fn bodies(&self) -> Result<HashMap<OwnedEventId, Arc<Pdu>>, Error> {
        let events = self.events.values();
        let mut bodies: HashMap<_, _> = events
            .map(|event| (event.pdu.event_id.clone(), Arc::clone(&event.pdu)))
            .collect();
        if let Some(create) = &self.create
            && let Some(number) = self.source.event_number(create)?
            && let Some(event) = self.source.event(number)?
        {
            bodies.insert(create.clone(), Arc::clone(&event.pdu));
        }
        Ok(bodies)
    }
}

/// The ID of the create event that gives a room its ID, from version 12 on.
pub(super) fn create_event_id(room_id: &ruma::RoomId) -> Option<OwnedEventId> {
    let hash = room_id.as_str().strip_prefix('!')?;
    EventId::parse(format!("${hash}")).ok()
}

impl Rooms {
    /// The auth graph of a room up to `next`; the first time in a while it is read as a whole.
    fn take_graph(&self, source: &Source<'_>, next: StateNumber) -> Result<Arc<Graph>, Error> {
        let mut graph = self.caches.graphs.take(&source.room).unwrap_or_else(|| {
            let mut graph = Graph::default();
            // Numbers begin at one.
            graph.push(StateKeyNumber(0), &[]);
            Arc::new(graph)
        });
        let first = graph.next();
        if first < next {
            let graph = Arc::make_mut(&mut graph);
            for row in source.graph_rows(first, next)? {
                let number = graph.next();
                if row.parents.iter().any(|parent| *parent >= number) {
                    return Err(Error::corrupt("state_graph", "a parent is not smaller"));
                }
                graph.push(row.key, &row.parents);
            }
        }
        Ok(graph)
    }

    /// Keeps a graph for the next time, without what was numbered in a draft.
    fn keep_graph(&self, room: RoomNumber, mut graph: Arc<Graph>, next: StateNumber) {
        if graph.next() > next {
            Arc::make_mut(&mut graph).truncate(next);
        }
        let weight = graph.memory();
        self.caches.graphs.put(room, graph, weight);
    }

    /// Forgets the graph of a room whose writer has given up what it had numbered.
    pub(super) fn forget_graph(&self, room: RoomNumber) {
        self.caches.graphs.remove(&room);
    }
}

/// The key of an event in a state.
pub(super) fn key_of(event_type: TypeNumber, pdu: &Pdu) -> Option<StateKey> {
    let key = pdu.state_key.as_deref()?;
    Some(state_key(event_type, &pdu.event_type.to_string(), key))
}

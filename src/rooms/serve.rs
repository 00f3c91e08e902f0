//! What another server is shown of a room: single events, states with their auth chains, what came before an event.
//!
//! Only servers with joined members are answered, or those that had them at the events they ask about, which is for the
//! caller to check ([`Rooms::is_server_joined`], [`Rooms::was_server_joined`]). What the members of a server could not see under the history visibility of the moment, the server gets redacted: it needs the
//! event for its graph, and not its content.

use std::{
    collections::{BTreeSet, BinaryHeap, HashMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;
use ruma::{
    EventId, OwnedEventId, OwnedServerName, RoomVersionId, ServerName, UserId,
    events::room::{history_visibility::HistoryVisibility, member::MembershipState},
    room_version_rules::RoomVersionRules,
};

use super::{
    Error, EventMeta, RoomNumber, Rooms, StoredEvent,
    event::{self, flag},
    membership, membership_of,
    state::{self, Source},
};
use crate::{
    events::{
        EventNumber, NodeNumber, RootNumber, StateKeyNumber, StateNumber, redact, trie, version,
    },
    storage::Snapshot,
};

/// What one server may see of one room.
pub struct ServerSight {
    room: RoomNumber,
    server: OwnedServerName,
    rules: &'static RoomVersionRules,
    /// The keys of the memberships of the server's users, once they were asked for.
    users: Option<Vec<StateKeyNumber>>,
    /// By the trie of what is no membership.
    visibilities: HashMap<NodeNumber, HistoryVisibility>,
    /// The closest that a user of the server was to the room, by the trie of memberships.
    memberships: HashMap<NodeNumber, MembershipState>,
}

/// The state before an event, as it is told to other servers.
#[derive(Clone, Debug)]
pub struct ServedState {
    pub state: Vec<StateNumber>,
    /// Everything that `state` cites as auth events, directly or through others.
    pub auth_chain: Vec<StateNumber>,
}

/// What a server lacks.
#[derive(Clone, Debug)]
pub struct MissingQuery {
    /// Events whose predecessors are asked for.
    pub latest: Vec<OwnedEventId>,
    /// Events that the server has: neither they nor what is reached only through them is answered.
    pub earliest: Vec<OwnedEventId>,
    pub limit: usize,
    pub min_depth: u64,
}

/// Users of one server whose memberships are looked at in one state.
const MAX_USERS_LOOKED_AT: usize = 10_000;
/// Rows that one look-up asks for.
const CHUNK: usize = 1_000;
/// Events that a walk back passes over, at most this many times those it answers.
const MAX_WALKED_PER_ANSWER: usize = 20;

impl Rooms {
    /// Whether a server has joined members now. In a partial room, whether it may have.
    pub fn is_server_joined(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        server: &ServerName,
    ) -> Result<bool, Error> {
        match self.numbers.server(server) {
            Some(number) => Ok(membership::joined_of(snapshot, room, number)? > 0
                || self.is_told_server(snapshot, room, number)?),
            None => Ok(false),
        }
    }

    /// Whether a server that may have left was in the room at each of these events: had joined members right before or after
    /// it. Who was put out asks for what led to that.
    pub fn was_server_joined(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        server: &ServerName,
        at: &[OwnedEventId],
    ) -> Result<bool, Error> {
        let known = self.numbers.server(server);
        let has_been = match known {
            Some(number) => membership::has_been_joined(snapshot, room, number)?,
            None => false,
        };
        if !has_been || at.is_empty() {
            return Ok(false);
        }
        let mut sight = self.server_sight(snapshot, room, server)?;
        for event_id in at {
            let event = self.event_in_room(snapshot, room, event_id)?;
            let has_state = |event: &Arc<StoredEvent>| is_served(&event.meta);
            let Some(event) = event.filter(has_state) else {
                return Ok(false);
            };
            let mut was_in = false;
            for root in [event.meta.root_before, event.meta.root_after] {
                let members = self.root(snapshot, room, root)?.members;
                let closest = self.closest(snapshot, &mut sight, members)?;
                was_in |= closest == MembershipState::Join;
            }
            if !was_in {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What a server may see of a room.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown room.
    pub fn server_sight(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        server: &ServerName,
    ) -> Result<ServerSight, Error> {
        Ok(ServerSight {
            room,
            server: server.to_owned(),
            rules: self.served_rules(snapshot, room)?,
            users: None,
            visibilities: HashMap::new(),
            memberships: HashMap::new(),
        })
    }

    /// Whether the members of the server could see an event. State is shown to every server in the room: it needs all of it
    /// to judge events.
    pub fn server_may_see(
        &self,
        snapshot: &Snapshot,
        sight: &mut ServerSight,
        event: &StoredEvent,
    ) -> Result<bool, Error> {
        let after = event.meta.root_after;
        // What has no state is an outlier: of what its members could see nothing is known.
        if event.pdu.is_state() || after == RootNumber::default() {
            return Ok(event.pdu.is_state());
        }
        let root = self.root(snapshot, sight.room, after)?;
        let visibility = match sight.visibilities.get(&root.core) {
            Some(visibility) => visibility.clone(),
            None => {
                let found = self.history_visibility(snapshot, sight.room, after)?;
                sight.visibilities.insert(root.core, found.clone());
                found
            }
        };
        Ok(match visibility {
            HistoryVisibility::Joined => {
                self.closest(snapshot, sight, root.members)? == MembershipState::Join
            }
            HistoryVisibility::Invited => {
                let closest = self.closest(snapshot, sight, root.members)?;
                matches!(closest, MembershipState::Join | MembershipState::Invite)
            }
            _ => true,
        })
    }

    /// The JSON of an event as the server may see it: whole, or redacted.
    pub fn shown_to_server(
        &self,
        snapshot: &Snapshot,
        sight: &mut ServerSight,
        event: &StoredEvent,
    ) -> Result<Bytes, Error> {
        if self.server_may_see(snapshot, sight, event)? {
            return Ok(event.pdu.json.clone());
        }
        redact::redact(&event.pdu.json, &sight.rules.redaction)
            .map_err(|damaged| Error::corrupt("bodies", &damaged.to_string()))
    }

    /// `join` if a user of the server is joined in a state, else `invite` if one is invited, else `leave`.
    fn closest(
        &self,
        snapshot: &Snapshot,
        sight: &mut ServerSight,
        members: NodeNumber,
    ) -> Result<MembershipState, Error> {
        if let Some(known) = sight.memberships.get(&members) {
            return Ok(known.clone());
        }
        let room = sight.room;
        let source = self.source(snapshot, room);
        let mut closest = MembershipState::Leave;
        for user in self.users_of(&source, sight)? {
            let Some(state) = trie::get(&source, members, *user)? else {
                continue;
            };
            let row = source.graph(state)?;
            let Some(event) = self.event(snapshot, room, row.event)? else {
                continue;
            };
            match membership_of(&event) {
                MembershipState::Join => {
                    closest = MembershipState::Join;
                    break;
                }
                MembershipState::Invite => closest = MembershipState::Invite,
                _ => {}
            }
        }
        sight.memberships.insert(members, closest.clone());
        Ok(closest)
    }

    /// The memberships of a server's users: who ever had one has one in the current state.
    fn users_of<'a>(
        &self,
        source: &Source<'_>,
        sight: &'a mut ServerSight,
    ) -> Result<&'a [StateKeyNumber], Error> {
        if sight.users.is_none() {
            let snapshot = source.snapshot()?;
            let head = self.head(snapshot, sight.room)?.ok_or(Error::NotFound)?;
            let members = source.root(head.root)?.members;
            let keys: Vec<_> = trie::walk(source, members)?
                .into_iter()
                .map(|(key, _)| key)
                .collect();
            let mut users = Vec::new();
            for keys in keys.chunks(CHUNK) {
                let rows: Vec<_> = keys.iter().map(|key| (sight.room, *key)).collect();
                let rows = snapshot.get_many(&state::KEYS, &rows)?;
                let is_of_server = |user: &str| {
                    <&UserId>::try_from(user).is_ok_and(|user| user.server_name() == sight.server)
                };
                let found = keys
                    .iter()
                    .zip(rows)
                    .filter(|(_, row)| row.as_ref().is_some_and(|row| is_of_server(&row.key)));
                users.extend(found.map(|(key, _)| *key));
            }
            users.truncate(MAX_USERS_LOOKED_AT);
            sight.users = Some(users);
        }
        Ok(sight.users.as_deref().unwrap_or_default())
    }

    /// The state before an event, with its auth chain.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the event, or the state before it, is not known here.
    pub fn state_before(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        event_id: &EventId,
    ) -> Result<ServedState, Error> {
        let event = self
            .event_in_room(snapshot, room, event_id)?
            .filter(|event| !event.meta.has(flag::OUTLIER | flag::STATE_PARTIAL))
            .ok_or(Error::NotFound)?;
        let source = self.source(snapshot, room);
        let root = source.root(event.meta.root_before)?;
        let mut state = Vec::new();
        for node in [root.core, root.members] {
            state.extend(
                trie::walk(&source, node)?
                    .into_iter()
                    .map(|(_, state)| state),
            );
        }
        let auth_chain = self.auth_chain(snapshot, room, &state)?;
        Ok(ServedState { state, auth_chain })
    }

    /// Everything that state events cite as auth events, directly or through others. The create event of a room whose ID is
    /// made from it is cited by none and stands in the chain of all.
    ///
    /// Spec: rooms/v12, "Event format".
    pub fn auth_chain(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        of: &[StateNumber],
    ) -> Result<Vec<StateNumber>, Error> {
        let source = self.source(snapshot, room);
        let mut chain = BTreeSet::new();
        let mut next: Vec<StateNumber> = of.to_vec();
        while !next.is_empty() {
            let mut found = Vec::new();
            for states in next.chunks(CHUNK) {
                for row in source.graph_many(states)? {
                    found.extend(row.parents.iter().copied());
                }
            }
            found.retain(|parent| chain.insert(*parent));
            next = found;
        }
        if let Some(create) = self.implicit_create(snapshot, room)?
            && of.iter().any(|state| *state != create)
        {
            chain.insert(create);
        }
        Ok(chain.into_iter().collect())
    }

    /// The auth chain of one event of any kind.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the event is not known here.
    pub fn auth_chain_of(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        event_id: &EventId,
    ) -> Result<Vec<StateNumber>, Error> {
        let event = self
            .event_in_room(snapshot, room, event_id)?
            .ok_or(Error::NotFound)?;
        let cited: Vec<_> = event.meta.auth_states.to_vec();
        let mut chain: BTreeSet<_> = self
            .auth_chain(snapshot, room, &cited)?
            .into_iter()
            .collect();
        chain.extend(cited);
        let create = self.implicit_create(snapshot, room)?;
        chain.extend(create.filter(|create| event.meta.state != Some(*create)));
        Ok(chain.into_iter().collect())
    }

    fn implicit_create(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
    ) -> Result<Option<StateNumber>, Error> {
        let rules = self.served_rules(snapshot, room)?;
        let room_id = self.room_id(room).ok_or(Error::NotFound)?;
        let Some(event_id) = version::implicit_create(&room_id, rules) else {
            return Ok(None);
        };
        let event = self.event_in_room(snapshot, room, &event_id)?;
        Ok(event.and_then(|event| event.meta.state))
    }

    /// The IDs of state events.
    pub fn state_event_ids(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        states: &[StateNumber],
    ) -> Result<Vec<OwnedEventId>, Error> {
        let mut ids = Vec::with_capacity(states.len());
        for states in states.chunks(CHUNK) {
            for id in state::event_keys(snapshot, room, states)? {
                let id = id.ok_or_else(|| Error::corrupt("state_ids", "missing"))?;
                ids.push(id.id());
            }
        }
        Ok(ids)
    }

    /// Gives the JSON of state events to `take`, one after the other. Read anew and not cached: there are many, once.
    pub fn each_state_event(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        states: &[StateNumber],
        mut take: impl FnMut(&[u8]),
    ) -> Result<(), Error> {
        let source = self.source(snapshot, room);
        for states in states.chunks(CHUNK) {
            let rows = source.graph_many(states)?;
            let keys: Vec<_> = rows.iter().map(|row| (room, row.event)).collect();
            for body in snapshot.get_many(&event::BODIES, &keys)? {
                let body = body.filter(|body| !body.json.is_empty());
                let body =
                    body.ok_or_else(|| Error::corrupt("bodies", "a state event is missing"))?;
                take(&body.json);
            }
        }
        Ok(())
    }

    /// The events `from` and what came before them, the latest first; at most `limit`.
    pub fn history_before(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        from: &[OwnedEventId],
        limit: usize,
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        let mut walk = Walk::new(limit);
        for event_id in from {
            if let Some(event) = self.event_in_room(snapshot, room, event_id)? {
                walk.push(event);
            }
        }
        let mut found = Vec::new();
        while found.len() < limit
            && let Some(event) = walk.pop()
        {
            for previous in self.events(snapshot, room, &event.meta.prev_events)? {
                previous
                    .into_iter()
                    .for_each(|previous| walk.push(previous));
            }
            if is_served(&event.meta) {
                found.push(event);
            }
        }
        Ok(found)
    }

    /// What lies between the events that a server has and those that it got, oldest first.
    pub fn missing_events(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        query: &MissingQuery,
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        let mut seen: HashSet<EventNumber> = HashSet::new();
        let mut front = Vec::new();
        for event_id in &query.earliest {
            if let Some(event) = self.event_in_room(snapshot, room, event_id)? {
                seen.insert(event.number);
            }
        }
        for event_id in &query.latest {
            if let Some(event) = self.event_in_room(snapshot, room, event_id)?
                && seen.insert(event.number)
            {
                front.extend(event.meta.prev_events.iter().copied());
            }
        }
        let mut found = Vec::new();
        let most = query.limit.saturating_mul(MAX_WALKED_PER_ANSWER);
        while !front.is_empty() && found.len() < query.limit && seen.len() < most {
            front.retain(|number| seen.insert(*number));
            let mut next = Vec::new();
            for event in self.events(snapshot, room, &front)?.into_iter().flatten() {
                if event.meta.depth < query.min_depth {
                    continue;
                }
                next.extend(event.meta.prev_events.iter().copied());
                if is_served(&event.meta) && found.len() < query.limit {
                    found.push(event);
                }
            }
            front = next;
        }
        found.sort_by_key(|event| (event.meta.depth, event.number));
        Ok(found)
    }

    fn served_rules(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
    ) -> Result<&'static RoomVersionRules, Error> {
        let head = self.head(snapshot, room)?.ok_or(Error::NotFound)?;
        RoomVersionId::try_from(head.version.as_str())
            .ok()
            .and_then(|version| version::rules(&version))
            .ok_or(Error::UnsupportedVersion)
    }
}

impl ServerSight {
    pub fn room(&self) -> RoomNumber {
        self.room
    }

    pub fn server(&self) -> &ServerName {
        &self.server
    }
}

/// Whether an event is told to servers that ask for history: what is rejected is nobody's history. What is soft-failed may
/// be good for others.
fn is_served(meta: &EventMeta) -> bool {
    !meta.has(
        flag::OUTLIER
            | flag::REJECTED_BY_AUTH_EVENTS
            | flag::REJECTED_BY_STATE
            | flag::STUB
            | flag::PURGED,
    )
}

/// A walk back through the graph, the deepest event first.
struct Walk {
    heap: BinaryHeap<Step>,
    seen: HashSet<EventNumber>,
    most: usize,
}

struct Step(Arc<StoredEvent>);

impl Walk {
    fn new(limit: usize) -> Self {
        Self {
            heap: BinaryHeap::new(),
            seen: HashSet::new(),
            most: limit.saturating_mul(MAX_WALKED_PER_ANSWER),
        }
    }

    fn push(&mut self, event: Arc<StoredEvent>) {
        if self.seen.len() < self.most && self.seen.insert(event.number) {
            self.heap.push(Step(event));
        }
    }

    fn pop(&mut self) -> Option<Arc<StoredEvent>> {
        self.heap.pop().map(|Step(event)| event)
    }
}

impl Step {
    fn key(&self) -> (u64, EventNumber) {
        (self.0.meta.depth, self.0.number)
    }
}

impl PartialEq for Step {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Step {}

impl PartialOrd for Step {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Step {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

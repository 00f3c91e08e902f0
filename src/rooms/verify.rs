//! The checker: whether the rows of a room agree with each other. Run by `hearth db check`, and by tests after crashes.
//!
//! The numbers of the findings are those of engine.md section 18.

mod recent;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
};

use ruma::{RoomVersionId, room_version_rules::RoomVersionRules};

use super::{
    Class, Error, EventMeta, HeadRow, RoomNumber, Rooms, RootRow, StoredEvent,
    draft::Draft,
    event::{self, BODIES, Body, METAS, flag},
    gaps::PARTED,
    head::Head,
    membership, membership_of,
    partial::{self, ends_of},
    relations, resolution,
    state::{self, GraphRow, StateKey},
    stubs, threads, timeline, unread,
};
use crate::{
    accounts::UserNumber,
    events::{
        EventNumber, Fingerprint, NodeNumber, Pdu, RootNumber, StateKeyNumber, StateNumber,
        canonical::Loose,
        trie::{self, Node},
        version,
    },
    storage::{Order, Snapshot},
};

/// Rows that contradict each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub room: RoomNumber,
    /// `I1` to `I22`, `relations`, `threads`, `partial`.
    pub invariant: &'static str,
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "room {}: {}: {}",
            self.room.0, self.invariant, self.text
        )
    }
}

/// Findings in one room before the check of it ends: one fault often shows in many rows.
const MAX_FINDINGS: usize = 100;

impl Rooms {
    /// Checks every row of a room against the others. Empty if all is well. Blocks, and reads the whole room.
    ///
    /// # Errors
    /// If a row cannot be read or decoded.
    pub fn verify(&self, snapshot: &Snapshot, room: RoomNumber) -> Result<Vec<Violation>, Error> {
        let Some(storage_head) = snapshot.get(&super::head::HEADS, &(room,))? else {
            return Ok(Vec::new());
        };
        let mut check = Check::load(self, snapshot, room, storage_head.1)?;
        check.events()?;
        check.graph();
        check.states()?;
        check.extremities();
        check.current()?;
        check.members()?;
        check.timeline()?;
        check.counts()?;
        check.partial()?;
        for text in relations::differences(snapshot, room, &check.metas)? {
            check.report("relations", text);
        }
        for text in threads::differences(snapshot, room, &check.metas)? {
            check.report("threads", text);
        }
        Ok(check.found)
    }
}

/// The rows of a room and what was found wrong with them.
struct Check<'a> {
    rooms: &'a Rooms,
    snapshot: &'a Snapshot,
    room: RoomNumber,
    head: HeadRow,
    rules: &'static RoomVersionRules,
    metas: BTreeMap<EventNumber, EventMeta>,
    graph: BTreeMap<StateNumber, GraphRow>,
    keys: BTreeMap<StateKeyNumber, StateKey>,
    nodes: HashMap<NodeNumber, Node>,
    roots: BTreeMap<RootNumber, RootRow>,
    found: Vec<Violation>,
}

impl<'a> Check<'a> {
    fn load(
        rooms: &'a Rooms,
        snapshot: &'a Snapshot,
        room: RoomNumber,
        head: HeadRow,
    ) -> Result<Self, Error> {
        let rules = RoomVersionId::try_from(head.version.as_str())
            .ok()
            .and_then(|version| version::rules(&version))
            .ok_or(Error::UnsupportedVersion)?;
        let mut check = Self {
            rooms,
            snapshot,
            room,
            head,
            rules,
            metas: BTreeMap::new(),
            graph: BTreeMap::new(),
            keys: BTreeMap::new(),
            nodes: HashMap::new(),
            roots: BTreeMap::new(),
            found: Vec::new(),
        };
        for row in snapshot.scan(METAS.prefix(&(room,)), Order::Forward) {
            let ((_, event), meta) = row?;
            check.metas.insert(event, meta);
        }
        for row in snapshot.scan(state::GRAPH.prefix(&(room,)), Order::Forward) {
            let ((_, number), row) = row?;
            check.graph.insert(number, row);
        }
        for row in snapshot.scan(state::KEYS.prefix(&(room,)), Order::Forward) {
            let ((_, number), key) = row?;
            check.keys.insert(number, key);
        }
        for row in snapshot.scan(state::NODES.prefix(&(room,)), Order::Forward) {
            let ((_, number), node) = row?;
            check.nodes.insert(number, node);
        }
        for row in snapshot.scan(state::ROOTS.prefix(&(room,)), Order::Forward) {
            let ((_, number), root) = row?;
            check.roots.insert(number, root);
        }
        Ok(check)
    }

    fn report(&mut self, invariant: &'static str, text: String) {
        if self.found.len() < MAX_FINDINGS {
            self.found.push(Violation {
                room: self.room,
                invariant,
                text,
            });
        }
    }

    /// I1 and I18: bodies, IDs and metadata belong together.
    fn events(&mut self) -> Result<(), Error> {
        let numbers: Vec<_> = self.metas.keys().copied().collect();
        for number in numbers {
            let Some(meta) = self.metas.get(&number) else {
                continue;
            };
            let without_body = meta.has(flag::STUB | flag::PURGED);
            let state = meta.state;
            let Some(body) = self.snapshot.get(&BODIES, &(self.room, number))? else {
                self.report("I1", format!("event {} has no body", number.0));
                continue;
            };
            let leads = match meta.has(flag::STUB) {
                true => stubs::leads(self.snapshot, self.room, &body.id, number)?,
                false => {
                    let place = event::place(self.snapshot, &body.id)?;
                    place.is_some_and(|place| place.room == self.room && place.event == number)
                }
            };
            if !leads {
                self.report(
                    "I1",
                    format!("{} does not lead to event {}", body.id.id(), number.0),
                );
            }
            if !without_body {
                self.body(number, &body);
            }
            if let Some(state) = state {
                let ids = state::event_keys(self.snapshot, self.room, &[state])?;
                if ids.into_iter().flatten().next().as_ref() != Some(&body.id) {
                    self.report("I1", format!("state {} has another ID", state.0));
                }
            }
        }
        Ok(())
    }

    fn body(&mut self, number: EventNumber, body: &Body) {
        let is_strict = self.rules.authorization.strict_canonical_json;
        let id = body.id.id();
        match Loose::parse(&body.json) {
            Ok(event) if (event.is_canonical() || !is_strict) && event.to_vec() == body.json => {
                let told = event.object.get("event_id").and_then(|id| id.as_str());
                let expected = self.rules.event_format.require_event_id;
                if told != expected.then_some(id.as_str()) {
                    self.report(
                        "I1",
                        format!("the body of event {} is of another", number.0),
                    );
                }
            }
            _ => self.report("I18", format!("event {} is not canonical JSON", number.0)),
        }
        if Pdu::from_stored(id, body.json.clone(), false).is_err() {
            self.report("I1", format!("the body of event {} is no event", number.0));
        }
    }

    /// I2: the auth graph is total and grows upwards.
    fn graph(&mut self) {
        let mut found = Vec::new();
        for (number, row) in &self.graph {
            for parent in &row.parents {
                if parent >= number || !self.graph.contains_key(parent) {
                    found.push(format!("state {} has the parent {}", number.0, parent.0));
                }
            }
            let own = self.metas.get(&row.event).and_then(|meta| meta.state);
            if own != Some(*number) {
                found.push(format!(
                    "state {} is event {}, which says {own:?}",
                    number.0, row.event.0
                ));
            }
            if !self.keys.contains_key(&row.key) {
                found.push(format!(
                    "state {} has the unknown key {}",
                    number.0, row.key.0
                ));
            }
        }
        for (event, meta) in &self.metas {
            let numbered = meta.state.is_some();
            let counts = meta.has(flag::STATE) && !meta.has(flag::REJECTED_BY_AUTH_EVENTS);
            if numbered != counts {
                found.push(format!(
                    "event {} is state: {counts}, has a number: {numbered}",
                    event.0
                ));
            }
        }
        for text in found {
            self.report("I2", text);
        }
    }

    /// I3 and I5: states recompute, and follow from each other by their events.
    fn states(&mut self) -> Result<(), Error> {
        let numbers: Vec<_> = self.roots.keys().copied().collect();
        for number in numbers {
            let root = self.roots.get(&number).copied().unwrap_or_default();
            for node in [root.core, root.members] {
                if node != trie::EMPTY && !self.nodes.contains_key(&node) {
                    self.report(
                        "I3",
                        format!("state {} lacks the node {}", number.0, node.0),
                    );
                    return Ok(());
                }
            }
        }
        self.recompute(self.head.root)?;
        let steps: Vec<_> = self
            .metas
            .iter()
            .filter(|(_, meta)| !meta.has(flag::STUB | flag::OUTLIER | flag::PURGED))
            .filter(|(_, meta)| !meta.is_rejected())
            .map(|(event, meta)| (*event, meta.root_before, meta.root_after, meta.state))
            .collect();
        for (event, before, after, state) in steps {
            self.step(event, (before, after), state)?;
        }
        Ok(())
    }

    /// The state after an event is that before it with the event in its place, or the same.
    fn step(
        &mut self,
        event: EventNumber,
        (before, after): (RootNumber, RootNumber),
        state: Option<StateNumber>,
    ) -> Result<(), Error> {
        if before == after {
            return Ok(());
        }
        let row = state.and_then(|state| self.graph.get(&state).map(|row| (state, row.key)));
        let Some((state, key)) = row else {
            self.report(
                "I5",
                format!("event {} is no state event but changes the state", event.0),
            );
            return Ok(());
        };
        let source = self.rooms.source(self.snapshot, self.room);
        let (before, after) = (source.root(before)?, source.root(after)?);
        let mut changes = trie::diff(&source, before.core, after.core)?;
        changes.extend(trie::diff(&source, before.members, after.members)?);
        let is_own = changes.len() == 1
            && changes
                .first()
                .is_some_and(|change| change.key == key && change.after == Some(state));
        if !is_own {
            self.report(
                "I5",
                format!(
                    "event {} changes {} keys of the state",
                    event.0,
                    changes.len()
                ),
            );
        }
        Ok(())
    }

    /// Counts and fingerprint of a state.
    fn recompute(&mut self, number: RootNumber) -> Result<(), Error> {
        let source = self.rooms.source(self.snapshot, self.room);
        let stored = source.root(number)?;
        let mut counted = RootRow {
            core: stored.core,
            members: stored.members,
            ..RootRow::default()
        };
        for event in self.rooms.core_state(self.snapshot, self.room, number)? {
            counted.core_count += 1;
            counted.fingerprint = counted.fingerprint.with(self.entry(&event));
        }
        for event in self.rooms.member_state(self.snapshot, self.room, number)? {
            counted.member_count += 1;
            counted.fingerprint = counted.fingerprint.with(self.entry(&event));
            match Class::of(&membership_of(&event)) {
                Class::Join => counted.joined += 1,
                Class::Invite => counted.invited += 1,
                Class::Knock | Class::Leave | Class::Ban => {}
            }
        }
        if counted != stored {
            self.report(
                "I3",
                format!("state {} is {stored:?} but counts {counted:?}", number.0),
            );
        }
        Ok(())
    }

    fn entry(&self, event: &StoredEvent) -> Fingerprint {
        let event_type = event.pdu.event_type.to_string().into();
        let key = event.pdu.state_key.as_deref().unwrap_or_default();
        self.rooms
            .fingerprint_key
            .entry(&event_type, key, &event.pdu.event_id)
    }

    /// I7: the extremities are what no accepted event cites, directly or through events that were not accepted.
    fn extremities(&mut self) {
        let ends = ends_of(&self.metas, self.head.taken_up);
        if ends.is_empty() && self.head.local == 0 && self.head.was_partial {
            // The room has not let this server in after all.
            return;
        }
        let ends: Vec<_> = ends.into_iter().collect();
        let mut stored = self.head.extremities.clone();
        stored.sort_unstable();
        if ends != stored {
            self.report(
                "I7",
                format!("the extremities are {stored:?}, but {ends:?} are cited by none"),
            );
        }
    }

    /// I6: the current state is the resolution of the states after the extremities.
    fn current(&mut self) -> Result<(), Error> {
        let mut roots = Vec::new();
        for end in &self.head.extremities {
            roots.extend(self.metas.get(end).map(|meta| meta.root_after));
        }
        let head = Head::load(self.rooms, self.snapshot, self.room)?;
        let draft = Draft::new(&head);
        let source = self.rooms.source(self.snapshot, self.room);
        let source = source.with_draft(&draft);
        let (_, resolved) = resolution::resolve(&head, &source, &draft, &roots)?;
        let stored = source.root(self.head.root)?;
        if resolved.fingerprint != stored.fingerprint {
            let text = format!(
                "the current state is {:?}, and not what {roots:?} resolve to",
                self.head.root
            );
            self.report("I6", text);
        }
        Ok(())
    }

    /// I8 and I9: memberships by room, by user and by server are those of the current state.
    fn members(&mut self) -> Result<(), Error> {
        let mut wanted: BTreeMap<UserNumber, (Class, EventNumber)> = BTreeMap::new();
        let mut servers: BTreeMap<String, i64> = BTreeMap::new();
        let mut local = 0;
        for event in self
            .rooms
            .member_state(self.snapshot, self.room, self.head.root)?
        {
            let Some(Ok(user)) = event
                .pdu
                .state_key
                .as_deref()
                .map(<&ruma::UserId>::try_from)
            else {
                continue;
            };
            let class = Class::of(&membership_of(&event));
            if class == Class::Join {
                *servers.entry(user.server_name().to_string()).or_default() += 1;
                local += u64::from(self.rooms.accounts.is_local(user));
            }
            match self.rooms.accounts.user_number(self.snapshot, user)? {
                Some(number) => {
                    wanted.insert(number, (class, event.number));
                }
                None => self.report("I8", format!("{user} has no number")),
            }
        }
        let mut stored = BTreeMap::new();
        for class in Class::ALL {
            for (user, _, row) in self
                .rooms
                .members(self.snapshot, self.room, class, usize::MAX)?
            {
                if stored.insert(user, (class, row.event)).is_some() {
                    self.report("I8", format!("user {} has two memberships", user.0));
                }
            }
        }
        if stored != wanted {
            let differ = stored
                .iter()
                .filter(|(user, row)| wanted.get(user) != Some(row))
                .count();
            self.report(
                "I8",
                format!(
                    "{differ} of {} memberships differ from the current state",
                    wanted.len()
                ),
            );
        }
        self.by_user(&wanted)?;
        let joined = servers.values().sum::<i64>().unsigned_abs();
        if (joined, local) != (self.head.joined, self.head.local) {
            let (joined_said, local_said) = (self.head.joined, self.head.local);
            let text = format!(
                "{joined} joined, {local} local; the head says {joined_said} and {local_said}"
            );
            self.report("I9", text);
        }
        self.servers(&servers)
    }

    /// I9: the members by server are those of the current state.
    fn servers(&mut self, wanted: &BTreeMap<String, i64>) -> Result<(), Error> {
        let mut counted = BTreeMap::new();
        for (server, joined) in membership::server_counts(self.snapshot, self.room)? {
            let name = self
                .rooms
                .server_name(server)
                .map(|name| name.to_string())
                .unwrap_or_default();
            if joined != 0 {
                counted.insert(name, joined);
            }
        }
        if counted != *wanted {
            self.report(
                "I9",
                format!("servers are counted as {counted:?}, but are {wanted:?}"),
            );
        }
        Ok(())
    }

    /// The rows by user of the local users.
    fn by_user(
        &mut self,
        wanted: &BTreeMap<UserNumber, (Class, EventNumber)>,
    ) -> Result<(), Error> {
        for (user, (class, event)) in wanted {
            let id = self.rooms.accounts.user_id(self.snapshot, *user)?;
            if !self.rooms.accounts.is_local(&id) {
                continue;
            }
            let rows = membership::rows_of(self.snapshot, *user, self.room)?;
            let is_outside = matches!(rows.as_slice(), [(_, EventNumber(0))]);
            if is_outside && self.head.local == 0 {
                // This server has left the room and heard of it since by an invite.
                continue;
            }
            if rows != [(*class, *event)] {
                self.report("I8", format!("{id} is {class:?} but listed as {rows:?}"));
            }
        }
        Ok(())
    }

    /// I10, I11 and I12: the timeline is an order of the graph in which positions and ordinals never fall.
    fn timeline(&mut self) -> Result<(), Error> {
        let mut last_position = 0;
        let mut last_ordinals = (0, 0);
        let mut before: BTreeSet<EventNumber> = BTreeSet::new();
        let mut found = Vec::new();
        let rows = timeline::rows(self.snapshot, self.room).collect::<Result<Vec<_>, _>>()?;
        let runs = runs(&rows);
        let run_of = |index: i64| runs.partition_point(|start| *start <= index);
        for (index, row) in rows {
            let Some(meta) = self.metas.get(&row.event) else {
                found.push((
                    "I10",
                    format!("index {index} has the unknown event {}", row.event.0),
                ));
                continue;
            };
            if meta.index != index || meta.position != row.position {
                found.push((
                    "I10",
                    format!("event {} is not where its metadata says", row.event.0),
                ));
            }
            // Between events that a gap has parted there is no order.
            let is_after = |event: &&EventNumber| {
                let previous = self.metas.get(event).filter(|meta| meta.is_visible());
                let is_near = |meta: &EventMeta| run_of(meta.index) == run_of(index);
                previous.is_some_and(is_near) && !before.contains(event)
            };
            if let Some(event) = meta.prev_events.iter().find(is_after) {
                found.push((
                    "I10",
                    format!(
                        "event {} stands before its prev event {}",
                        row.event.0, event.0
                    ),
                ));
            }
            before.insert(row.event);
            if row.position.0 != 0 {
                if row.position.0 < last_position {
                    found.push(("I11", format!("the position falls at index {index}")));
                }
                if meta.ord_all < last_ordinals.0 || meta.ord_room < last_ordinals.1 {
                    found.push(("I12", format!("the ordinals fall at index {index}")));
                }
                last_position = row.position.0;
                last_ordinals = (meta.ord_all, meta.ord_room);
            }
        }
        let visible = self.metas.values().filter(|meta| meta.is_visible()).count();
        if visible != before.len() {
            found.push((
                "I10",
                format!(
                    "{visible} events are visible, {} are in the timeline",
                    before.len()
                ),
            ));
        }
        for (invariant, text) in found {
            self.report(invariant, text);
        }
        Ok(())
    }

    /// I12 and I13: the ordinals are what the events add up to.
    fn counts(&mut self) -> Result<(), Error> {
        let live = self.metas.values();
        // What was shown for a while has been counted.
        let is_counted = |meta: &&EventMeta| {
            meta.is_visible() || (meta.is_rejected() && meta.has(flag::NOTIFIES))
        };
        let live = live.filter(|meta| is_counted(meta) && meta.position.0 != 0);
        let live = live.map(|meta| (meta.index, meta)).collect();
        for text in unread::check::verify(self.snapshot, self.room, &self.head, &live)? {
            self.report("I12", text);
        }
        Ok(())
    }

    /// What is to be judged again is noted, and nothing else; only partial rooms have such events.
    fn partial(&mut self) -> Result<(), Error> {
        let noted = partial::noted(self.snapshot, self.room)?;
        let noted: BTreeSet<_> = noted.into_iter().map(|(event, _)| event).collect();
        let flagged = self.metas.iter();
        let flagged = flagged.filter(|(_, meta)| meta.has(flag::STATE_PARTIAL));
        let flagged: BTreeSet<_> = flagged.map(|(event, _)| *event).collect();
        if noted != flagged || self.head.partial == noted.is_empty() {
            let is_partial = self.head.partial;
            self.report(
                "partial",
                format!(
                    "the room is partial: {is_partial}; {flagged:?} are flagged, {noted:?} noted"
                ),
            );
        }
        Ok(())
    }
}

/// Where the runs of a timeline begin that gaps part.
fn runs(rows: &[(i64, timeline::TimelineRow)]) -> Vec<i64> {
    let mut last = None;
    let mut starts = Vec::new();
    for (index, _) in rows {
        if last.is_none_or(|last: i64| index.saturating_sub(last) >= PARTED) {
            starts.push(*index);
        }
        last = Some(*index);
    }
    starts
}

//! State resolution on whole rooms: our wrapper, called as the room engine calls it, against the library on everything.

#![allow(clippy::indexing_slicing, reason = "what is missing fails the test")]

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use hearth::events::{
    Pdu, StateKeyNumber, StateNumber, auth,
    graph::Graph,
    resolve::{self, Resolution},
    version,
};
use proptest::prelude::*;
use rand::{SeedableRng as _, rngs::StdRng};
use ruma::{
    EventId, OwnedEventId, RoomVersionId,
    events::StateEventType,
    room_version_rules::RoomVersionRules,
    state_res::{self, StateMap, utils::event_id_set::EventIdSet},
};
use serde_json::{Value, json};

pub(crate) type Key = (StateEventType, String);

pub(crate) fn key(event: &Pdu) -> Key {
    let state_key = event.state_key.clone().expect("the event is in a state");
    (event.event_type.to_string().into(), state_key)
}

pub(crate) fn rules(version: &RoomVersionId) -> &'static RoomVersionRules {
    version::rules(version).expect("the version is served")
}

/// The state events of a room, numbered in their order, and the states to resolve.
pub(crate) struct Room {
    version: RoomVersionId,
    numbers: HashMap<OwnedEventId, StateNumber>,
    events: Vec<Arc<Pdu>>,
    keys: BTreeMap<Key, StateKeyNumber>,
    graph: Graph,
    states: Vec<StateMap<OwnedEventId>>,
}

impl Room {
    pub(crate) fn new(
        version: RoomVersionId,
        events: Vec<Arc<Pdu>>,
        states: &[Vec<OwnedEventId>],
    ) -> Self {
        let mut room = Self {
            version,
            numbers: HashMap::new(),
            events: Vec::new(),
            keys: BTreeMap::new(),
            graph: Graph::default(),
            states: Vec::new(),
        };
        for event in events {
            let next =
                StateKeyNumber(u32::try_from(room.keys.len()).expect("rooms of tests are small"));
            let key = *room.keys.entry(key(&event)).or_insert(next);
            let parents: Vec<StateNumber> = event
                .auth_events
                .iter()
                .map(|id| room.numbers[id])
                .collect();
            room.numbers
                .insert(event.event_id.clone(), room.graph.push(key, &parents));
            room.events.push(event);
        }
        room.states = states
            .iter()
            .map(|ids| {
                ids.iter()
                    .map(|id| (key(room.event(id)), id.clone()))
                    .collect()
            })
            .collect();
        room
    }

    fn event(&self, id: &EventId) -> &Arc<Pdu> {
        self.by_number(self.numbers[id])
    }

    fn by_number(&self, number: StateNumber) -> &Arc<Pdu> {
        &self.events[usize::try_from(number.0).expect("numbers are small")]
    }

    fn number_all<'a>(&self, ids: impl IntoIterator<Item = &'a OwnedEventId>) -> Vec<StateNumber> {
        ids.into_iter().map(|id| self.numbers[id]).collect()
    }

    fn ids(&self, numbers: &[StateNumber]) -> Vec<OwnedEventId> {
        numbers
            .iter()
            .map(|number| self.by_number(*number).event_id.clone())
            .collect()
    }

    /// The chain of each state by sets, with the state itself if `inclusive`.
    fn chains(&self, inclusive: bool) -> Vec<EventIdSet<OwnedEventId>> {
        let chain = |state: &StateMap<OwnedEventId>| {
            let mut seen: HashSet<OwnedEventId> = HashSet::new();
            let mut found: Vec<OwnedEventId> = match inclusive {
                true => state.values().cloned().collect(),
                false => state
                    .values()
                    .flat_map(|id| self.event(id).auth_events.clone())
                    .collect(),
            };
            while let Some(id) = found.pop() {
                if seen.insert(id.clone()) {
                    found.extend(self.event(&id).auth_events.clone());
                }
            }
            seen.into_iter().collect()
        };
        self.states.iter().map(chain).collect()
    }

    /// The library on whole states, whole chains, and all events of the room.
    pub(crate) fn resolved_by_library(&self, inclusive: bool) -> BTreeSet<OwnedEventId> {
        let rules = rules(&self.version);
        let state_res_rules = rules
            .state_res
            .v2_rules()
            .expect("version 1 is not the library's");
        let fetch = |id: &EventId| {
            self.numbers
                .get(id)
                .map(|number| Arc::clone(self.by_number(*number)))
        };
        let subgraph = |conflicted: &StateMap<Vec<OwnedEventId>>| {
            let numbers = self.number_all(conflicted.values().flatten());
            Some(
                self.ids(&self.graph.conflicted_subgraph(&numbers))
                    .into_iter()
                    .collect(),
            )
        };
        let chains = self.chains(inclusive);
        let resolved = state_res::resolve(
            &rules.authorization,
            state_res_rules,
            &self.states,
            chains,
            fetch,
            subgraph,
        );
        resolved
            .expect("the events are well formed")
            .into_values()
            .collect()
    }

    /// Our wrapper, as the room engine calls it: trimmed maps, numbers, and only the bodies it names.
    pub(crate) fn resolved_by_us(&self) -> BTreeSet<OwnedEventId> {
        let (conflicted, common) = self.split();
        let sets: Vec<_> = conflicted
            .iter()
            .map(|state| self.number_all(state.values()))
            .collect();
        let difference = self
            .graph
            .auth_difference(&self.number_all(common.values()), &sets);
        let subgraph = match rules(&self.version).state_res.v2_rules() {
            Some(rules) if rules.consider_conflicted_state_subgraph => {
                self.graph.conflicted_subgraph(&sets.concat())
            }
            _ => Vec::new(),
        };
        let set = [sets.concat(), difference.clone(), subgraph.clone()].concat();
        let base = self.base(&set, &common);
        let resolution = Resolution {
            version: self.version.clone(),
            conflicted,
            bodies: self.bodies(&set, &base),
            base,
            difference: self.ids(&difference),
            subgraph: self.ids(&subgraph),
        };

        let resolved = resolve::resolve(&resolution).expect("everything needed was loaded");
        let mut state = self.states[0].clone();
        for (key, id) in resolve::changes(&resolution, &resolved) {
            match id {
                Some(id) => state.insert(key, id),
                None => state.remove(&key),
            };
        }
        state.into_values().collect()
    }

    /// The conflicted entries of each state, and those that all states have.
    fn split(&self) -> (Vec<StateMap<OwnedEventId>>, StateMap<OwnedEventId>) {
        let is_common = |key: &Key| {
            self.states
                .iter()
                .all(|state| state.get(key) == self.states[0].get(key))
        };
        let part = |state: &StateMap<OwnedEventId>, common: bool| -> StateMap<OwnedEventId> {
            let entries = state.iter().filter(|(key, _)| is_common(key) == common);
            entries.map(|(key, id)| (key.clone(), id.clone())).collect()
        };
        (
            self.states.iter().map(|state| part(state, false)).collect(),
            part(&self.states[0], true),
        )
    }

    /// The common entries that a resolution of these events needs.
    fn base(&self, set: &[StateNumber], common: &StateMap<OwnedEventId>) -> StateMap<OwnedEventId> {
        let events = set.iter().map(|number| &**self.by_number(*number));
        let keys = resolve::base_keys(&rules(&self.version).authorization, events);
        let entries = keys.iter().filter_map(|key| common.get_key_value(key));
        entries.map(|(key, id)| (key.clone(), id.clone())).collect()
    }

    fn bodies(
        &self,
        set: &[StateNumber],
        base: &StateMap<OwnedEventId>,
    ) -> HashMap<OwnedEventId, Arc<Pdu>> {
        let power_levels = self.keys[&(StateEventType::RoomPowerLevels, String::new())];
        let numbers = resolve::bodies(
            &self.graph,
            set,
            &self.number_all(base.values()),
            power_levels,
        );
        let create = StateNumber(0);
        let events = numbers
            .into_iter()
            .chain([create])
            .map(|number| self.by_number(number));
        events
            .map(|event| (event.event_id.clone(), Arc::clone(event)))
            .collect()
    }
}

/// A room that several servers write to without hearing of each other.
struct Fork {
    version: RoomVersionId,
    random: StdRng,
    room_id: String,
    events: Vec<Arc<Pdu>>,
    branches: Vec<HashMap<Key, Arc<Pdu>>>,
}

const USERS: usize = 6;

fn user(number: usize) -> String {
    format!("@u{number}:s{}.example", number % 3)
}

impl Fork {
    fn new(version: RoomVersionId, seed: u64) -> Self {
        let random = StdRng::seed_from_u64(seed);
        let room_id = "!r:s0.example".to_owned();
        let mut fork = Self {
            version,
            random,
            room_id,
            events: Vec::new(),
            branches: vec![HashMap::new()],
        };
        let create = json!({ "creator": user(0), "room_version": fork.version.as_str() });
        let create = fork
            .send(0, ("m.room.create", ""), &create, 0)
            .expect("a room can be created");
        if rules(&fork.version)
            .authorization
            .room_create_event_id_as_room_id
        {
            fork.room_id = create.event_id.as_str().replacen('$', "!", 1);
        }
        fork.send(
            0,
            ("m.room.member", &user(0)),
            &json!({ "membership": "join" }),
            0,
        );
        let levels = match fork.version {
            RoomVersionId::V12 => json!({ "users": { user(1): 50 } }),
            _ => json!({ "users": { user(0): 100, user(1): 50 } }),
        };
        fork.send(0, ("m.room.power_levels", ""), &levels, 0);
        fork.send(
            0,
            ("m.room.join_rules", ""),
            &json!({ "join_rule": "public" }),
            0,
        );
        fork
    }

    /// Sends an event that cites the state of a branch and is allowed there.
    fn send(
        &mut self,
        sender: usize,
        (event_type, state_key): (&str, &str),
        content: &Value,
        branch: usize,
    ) -> Option<Arc<Pdu>> {
        let authorization = &rules(&self.version).authorization;
        let number = self.events.len();
        let id = blake3::hash(&[self.random.random(), self.random.random()]).to_hex();
        let id = EventId::parse(format!("${}{number}", &id[..20])).expect("this is an event ID");
        let mut event = json!({
            "type": event_type, "sender": user(sender), "state_key": state_key, "content": content, "depth": 1,
            "origin_server_ts": 1000 + number / 2 + self.random.random_range(0..4), "prev_events": [], "auth_events": [],
        });
        let is_create = event_type == "m.room.create";
        if !(is_create && authorization.room_create_event_id_as_room_id) {
            event["room_id"] = self.room_id.clone().into();
        }
        if number == 1 {
            event["prev_events"] = json!([self.events[0].event_id]);
        }
        let parse = |event: &Value| {
            Pdu::from_stored(id.clone(), event.to_string().into(), false)
                .expect("all fields are there")
        };
        let draft = parse(&event);
        let state = &self.branches[branch];
        let wanted = auth::selection(
            authorization,
            &draft.event_type,
            &draft.sender,
            Some(state_key),
            &draft.content,
        );
        let auth_events: Vec<_> = wanted
            .iter()
            .filter_map(|key| state.get(key))
            .map(|event| &event.event_id)
            .collect();
        event["auth_events"] = json!(auth_events);

        let event = Arc::new(parse(&event));
        self.accept(branch, &event)?;
        self.events.push(Arc::clone(&event));
        Some(event)
    }

    /// Makes an event part of a branch, if it is allowed there.
    fn accept(&mut self, branch: usize, event: &Arc<Pdu>) -> Option<()> {
        let state = &mut self.branches[branch];
        let fetch = |event_type: &StateEventType, state_key: &str| {
            state
                .get(&(event_type.clone(), state_key.to_owned()))
                .cloned()
        };
        auth::check(&rules(&self.version).authorization, event, fetch).ok()?;
        state.insert(key(event), Arc::clone(event));
        Some(())
    }

    /// One server hears of an event of another, but not of all before it.
    fn gossip(&mut self) {
        let [from, to] = [(); 2].map(|()| self.random.random_range(0..self.branches.len()));
        let heard = self.random.random_range(0..self.branches[from].len());
        let mut events: Vec<_> = self.branches[from].values().cloned().collect();
        events.sort_by(|one, other| one.event_id.cmp(&other.event_id));
        self.accept(to, &events[heard]);
    }

    fn step(&mut self) {
        if self.branches.len() < 4 && self.random.random_ratio(1, 8) {
            let copied = self.random.random_range(0..self.branches.len());
            self.branches.push(self.branches[copied].clone());
        }
        if self.random.random_ratio(1, 3) {
            return self.gossip();
        }
        let branch = self.random.random_range(0..self.branches.len());
        let sender = self.random.random_range(0..USERS);
        let other = self.random.random_range(0..USERS);
        let level = [0, 0, 25, 50, 75, 100][self.random.random_range(0..6)];
        match self.random.random_range(0..12) {
            0..=3 => self.send(
                sender,
                ("m.room.member", &user(sender)),
                &json!({ "membership": "join", "n": level }),
                branch,
            ),
            4 => self.send(
                sender,
                ("m.room.member", &user(sender)),
                &json!({ "membership": "leave" }),
                branch,
            ),
            5 => self.send(
                sender,
                ("m.room.member", &user(other)),
                &json!({ "membership": "leave" }),
                branch,
            ),
            6 => self.send(
                sender,
                ("m.room.member", &user(other)),
                &json!({ "membership": "ban" }),
                branch,
            ),
            7 => self.send(
                sender,
                ("m.room.member", &user(other)),
                &json!({ "membership": "invite" }),
                branch,
            ),
            8 => {
                let rule = ["public", "invite", "knock"][self.random.random_range(0..3)];
                self.send(
                    sender,
                    ("m.room.join_rules", ""),
                    &json!({ "join_rule": rule }),
                    branch,
                )
            }
            9 | 10 => {
                let current =
                    &self.branches[branch][&(StateEventType::RoomPowerLevels, String::new())];
                let mut levels: Value = current.content_as().expect("levels are an object");
                levels["users"][user(other)] = level.into();
                self.send(sender, ("m.room.power_levels", ""), &levels, branch)
            }
            _ => self.send(
                sender,
                ("m.room.topic", ""),
                &json!({ "topic": level }),
                branch,
            ),
        };
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn trimmed_resolution_equals_that_of_whole_states(
        seed: u64,
        steps in 5..80_usize,
        version in prop::sample::select(version::SERVED.to_vec()),
    ) {
        let mut fork = Fork::new(version.clone(), seed);
        (0..steps).for_each(|_| fork.step());
        let ids = |state: &HashMap<Key, Arc<Pdu>>| state.values().map(|event| event.event_id.clone()).collect();
        let states: Vec<Vec<OwnedEventId>> = fork.branches.iter().map(ids).collect();
        let mut reversed = states.clone();
        reversed.reverse();

        let room = Room::new(version.clone(), fork.events.clone(), &states);
        let resolved = room.resolved_by_us();
        if rules(&version).state_res.v2_rules().is_some() {
            prop_assert_eq!(&resolved, &room.resolved_by_library(true));
        }
        let room = Room::new(version, fork.events, &reversed);
        prop_assert_eq!(&resolved, &room.resolved_by_us(), "the order of the states does not matter");
    }
}

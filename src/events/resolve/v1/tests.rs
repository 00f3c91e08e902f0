//! Conflicts of each kind, by hand; and that the order of the states does not matter.

use std::collections::HashMap;

use proptest::prelude::*;
use ruma::{EventId, RoomVersionId};
use serde_json::{Value, json};

use super::*;
use crate::events::resolve::{base_keys, resolve as resolve_any, tests::event_at};

const ALICE: &str = "@alice:x.example";
const BOB: &str = "@bob:x.example";
const CAROL: &str = "@carol:x.example";

/// A room of Alice in which Bob is as well, and states of it that differ.
struct Room {
    base: Vec<Arc<Pdu>>,
    states: Vec<Vec<Arc<Pdu>>>,
}

/// An event with this ID at this depth.
fn event(id: &str, depth: u64, event_type: &str, users: [&str; 2], content: &Value) -> Arc<Pdu> {
    event_at(depth, &[id], event_type, users, content)
}

fn member(id: &str, depth: u64, users: [&str; 2], membership: &str) -> Arc<Pdu> {
    let content = json!({ "membership": membership });
    event(id, depth, "m.room.member", users, &content)
}

fn levels(id: &str, depth: u64, sender: &str, bob: i64) -> Arc<Pdu> {
    let users = json!({ ALICE: 100, BOB: bob });
    let content = json!({ "users": users, "state_default": 50 });
    event(id, depth, "m.room.power_levels", [sender, ""], &content)
}

fn join_rules(id: &str, depth: u64, sender: &str, rule: &str) -> Arc<Pdu> {
    let content = json!({ "join_rule": rule });
    event(id, depth, "m.room.join_rules", [sender, ""], &content)
}

fn topic(id: &str, depth: u64, sender: &str) -> Arc<Pdu> {
    event(
        id,
        depth,
        "m.room.topic",
        [sender, ""],
        &json!({ "topic": id }),
    )
}

fn key(event: &Pdu) -> Key {
    let state_key = event.state_key.clone().expect("the event is in a state");
    (event.event_type.to_string().into(), state_key)
}

impl Room {
    fn new(base: Vec<Arc<Pdu>>, states: Vec<Vec<Arc<Pdu>>>) -> Self {
        let creator = json!({ "creator": ALICE });
        let mut all = vec![
            event(
                "$create:x.example",
                1,
                "m.room.create",
                [ALICE, ""],
                &creator,
            ),
            member("$alice:x.example", 2, [ALICE, ALICE], "join"),
        ];
        all.extend(base);
        Self { base: all, states }
    }

    fn resolution(&self) -> Resolution {
        let rules = AuthorizationRules::V1;
        let map = |events: &[Arc<Pdu>]| -> StateMap<OwnedEventId> {
            let entries = events.iter();
            entries
                .map(|event| (key(event), event.event_id.clone()))
                .collect()
        };
        let conflicted = self.states.iter().flatten();
        let wanted = base_keys(&rules, conflicted.clone().map(|event| &**event));
        let mut base = map(&self.base);
        base.retain(|key, _| wanted.contains(key));
        let all = self.base.iter().chain(conflicted);
        Resolution {
            version: RoomVersionId::V1,
            conflicted: self.states.iter().map(|state| map(state)).collect(),
            base,
            difference: Vec::new(),
            subgraph: Vec::new(),
            bodies: all
                .map(|event| (event.event_id.clone(), Arc::clone(event)))
                .collect::<HashMap<_, _>>(),
        }
    }

    fn resolved(&self) -> Vec<String> {
        let resolved = resolve_any(&self.resolution()).expect("everything is loaded");
        let name = |id: &OwnedEventId| {
            let id = id.as_str().trim_start_matches('$');
            id.trim_end_matches(":x.example").to_owned()
        };
        let mut names: Vec<_> = resolved.values().map(name).collect();
        names.sort_unstable();
        names
    }
}

fn check(base: Vec<Arc<Pdu>>, states: Vec<Vec<Arc<Pdu>>>, expected: &[&str]) {
    assert_eq!(Room::new(base, states).resolved(), expected);
}

/// Bob is a moderator.
fn with_bob() -> Vec<Arc<Pdu>> {
    vec![
        levels("$pl:x.example", 3, ALICE, 50),
        member("$bob:x.example", 4, [BOB, BOB], "join"),
    ]
}

#[test]
fn what_only_some_states_have_is_not_in_conflict() {
    check(
        with_bob(),
        vec![vec![topic("$a:x.example", 5, BOB)], Vec::new()],
        &["a"],
    );
}

#[test]
fn the_deepest_event_that_is_allowed_counts() {
    let three = |last| {
        vec![
            vec![topic("$a:x.example", 5, ALICE)],
            vec![topic("$b:x.example", 6, BOB)],
            vec![topic("$c:x.example", 7, last)],
        ]
    };
    check(with_bob(), three(BOB), &["c"]);
    check(with_bob(), three(CAROL), &["b"]);
}

#[test]
fn of_events_none_of_which_is_allowed_the_least_deep_counts() {
    let states = vec![
        vec![topic("$a:x.example", 7, CAROL)],
        vec![topic("$b:x.example", 6, CAROL)],
    ];
    check(with_bob(), states, &["b"]);
}

#[test]
fn of_events_of_the_same_depth_the_lowest_hash_counts() {
    // SHA-1 of `$a:x.example` and `$b:x.example`.
    let hash = |id: &str| Sha1::digest(id.as_bytes());
    let expected = match hash("$a:x.example") < hash("$b:x.example") {
        true => "a",
        false => "b",
    };
    let states = vec![
        vec![topic("$a:x.example", 5, ALICE)],
        vec![topic("$b:x.example", 5, ALICE)],
    ];
    check(with_bob(), states, &[expected]);
}

#[test]
fn power_levels_follow_each_other_as_long_as_each_was_allowed() {
    let bob = || member("$bob:x.example", 4, [BOB, BOB], "join");
    let states = |second, third| {
        vec![
            vec![levels("$p1:x.example", 3, ALICE, 50)],
            vec![levels("$p2:x.example", 5, second, 0)],
            vec![levels("$p3:x.example", 6, third, 10)],
        ]
    };
    check(vec![bob()], states(ALICE, ALICE), &["p3"]);
    // Bob takes his own power, and then cannot take it back.
    check(vec![bob()], states(BOB, BOB), &["p2"]);
    // What comes after a refused event does not count, whoever sent it.
    check(vec![bob()], states(CAROL, ALICE), &["p1"]);
}

#[test]
fn join_rules_see_the_power_levels_and_members_see_the_join_rules() {
    let bob = || member("$bob:x.example", 4, [BOB, BOB], "join");
    let sides = |bobs_level| {
        vec![
            vec![
                levels("$p1:x.example", 3, ALICE, 50),
                join_rules("$j1:x.example", 5, ALICE, "invite"),
                member("$c1:x.example", 6, [CAROL, CAROL], "leave"),
            ],
            vec![
                levels("$p2:x.example", 7, ALICE, bobs_level),
                join_rules("$j2:x.example", 8, BOB, "public"),
                member("$c2:x.example", 9, [CAROL, CAROL], "join"),
            ],
        ]
    };
    check(vec![bob()], sides(50), &["c2", "j2", "p2"]);
    check(vec![bob()], sides(0), &["c1", "j1", "p2"]);
}

#[test]
fn members_do_not_see_each_other_but_all_else_sees_them() {
    let states = vec![
        vec![
            member("$b1:x.example", 5, [BOB, BOB], "join"),
            member("$c1:x.example", 6, [CAROL, CAROL], "join"),
            topic("$t1:x.example", 7, ALICE),
        ],
        vec![
            member("$b2:x.example", 8, [ALICE, BOB], "ban"),
            member("$c2:x.example", 9, [BOB, CAROL], "leave"),
            topic("$t2:x.example", 10, BOB),
        ],
    ];
    // Bob may not kick, as while members are resolved it is open whether he is one; and is banned when topics are.
    let base = vec![levels("$pl:x.example", 3, ALICE, 50)];
    check(base, states, &["b2", "c1", "t1"]);
}

#[test]
fn an_event_that_was_not_loaded_is_an_error() {
    let room = Room::new(
        with_bob(),
        vec![
            vec![topic("$a:x.example", 5, ALICE)],
            vec![topic("$b:x.example", 6, BOB)],
        ],
    );
    let mut resolution = room.resolution();
    let missing = EventId::parse("$b:x.example").expect("this is an event ID");
    resolution.bodies.remove(&missing);
    assert!(matches!(
        resolve_any(&resolution),
        Err(ResolveError::NotLoaded(id)) if id == missing
    ));
}

/// A few events of every kind, at random depths.
fn any_state() -> impl Strategy<Value = Vec<(u64, usize, usize)>> {
    prop::collection::vec((1..12_u64, 0..4_usize, 0..3_usize), 0..5)
}

fn built(state: usize, entries: &[(u64, usize, usize)]) -> Vec<Arc<Pdu>> {
    let users = [ALICE, BOB, CAROL];
    let events = entries.iter().enumerate();
    let events = events.map(|(at, (depth, kind, user))| {
        let id = format!("$s{state}e{at}:x.example");
        let user = users.get(*user).copied().unwrap_or(ALICE);
        match kind {
            0 => levels(&id, *depth, user, 50),
            1 => join_rules(&id, *depth, user, "public"),
            2 => member(&id, *depth, [user, CAROL], "join"),
            _ => topic(&id, *depth, user),
        }
    });
    // One event of each key.
    let by_key: BTreeMap<Key, Arc<Pdu>> = events.map(|event| (key(&event), event)).collect();
    by_key.into_values().collect()
}

proptest! {
    #[test]
    fn the_order_of_the_states_does_not_matter(states in prop::collection::vec(any_state(), 2..4)) {
        let states: Vec<_> = states.iter().enumerate().map(|(at, state)| built(at, state)).collect();
        let bob = vec![member("$bob:x.example", 4, [BOB, BOB], "join")];
        let forward = Room::new(bob.clone(), states.clone()).resolved();
        let backward = Room::new(bob, states.into_iter().rev().collect()).resolved();
        prop_assert_eq!(forward, backward);
    }
}

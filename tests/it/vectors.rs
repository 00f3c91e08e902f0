//! State resolution and auth rules against the answers of another implementation: the library alone, and our wrappers around it.
//!
//! The files and their fields are described in engine.md section 19.

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    io::{BufRead as _, BufReader},
    sync::Arc,
};

use flate2::read::GzDecoder;
use hearth::events::{Pdu, PowerLevels, auth};
use ruma::{OwnedEventId, RoomVersionId, events::StateEventType, state_res};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use crate::resolution::{Key, Room, key, rules};

#[derive(Deserialize)]
struct AuthVector {
    seed: u64,
    room_version: RoomVersionId,
    state: Vec<Map<String, Value>>,
    event: Map<String, Value>,
    allow: bool,
    other_implementation_allows: Option<bool>,
}

#[derive(Deserialize)]
struct ResolutionVector {
    seed: u64,
    room_version: RoomVersionId,
    events: Vec<Map<String, Value>>,
    state_sets: Vec<Vec<OwnedEventId>>,
    expected: BTreeSet<OwnedEventId>,
    #[serde(default)]
    sensitive_to_inclusive_auth_chain: bool,
}

fn vectors<T: DeserializeOwned>(name: &str) -> impl Iterator<Item = T> {
    let path = format!(
        "{}/tests/vectors/{name}.jsonl.gz",
        env!("CARGO_MANIFEST_DIR")
    );
    let file = File::open(&path).expect("the vectors are part of the repository");
    let lines = BufReader::new(GzDecoder::new(file)).lines();
    lines.map(|line| {
        let line = line.expect("the file is a gzip archive of text");
        serde_json::from_str(&line).expect("every line is a vector")
    })
}

/// The event of a vector. What the rules do not look at is left out there.
fn pdu(mut event: Map<String, Value>) -> Arc<Pdu> {
    let event_id = event
        .remove("event_id")
        .expect("events of vectors have an ID");
    let event_id: OwnedEventId = serde_json::from_value(event_id).expect("the ID is an event ID");
    event.entry("depth").or_insert(1.into());
    let json = serde_json::to_vec(&event).expect("a JSON value is written as JSON");
    let pdu = Pdu::from_stored(event_id, json.into(), false);
    let pdu = pdu.expect("events of vectors have all fields");
    // Only rooms of versions before those of the vectors have floats, and only there they count.
    let judged = None;
    Arc::new(Pdu { judged, ..pdu })
}

#[test]
fn auth_rules_answer_as_the_vectors() {
    let (mut count, mut refused_by_library, mut different) = (0, BTreeSet::new(), BTreeSet::new());
    for vector in vectors::<AuthVector>("auth-rule-vectors") {
        let rules = &rules(&vector.room_version).authorization;
        let state: HashMap<Key, Arc<Pdu>> = vector
            .state
            .into_iter()
            .map(pdu)
            .map(|event| (key(&event), event))
            .collect();
        let event = pdu(vector.event);
        let fetch = |event_type: &StateEventType, state_key: &str| {
            state
                .get(&(event_type.clone(), state_key.to_owned()))
                .cloned()
        };

        let ours = auth::check(rules, &event, fetch).is_ok();
        let create =
            fetch(&StateEventType::RoomCreate, "").expect("every state has a create event");
        let levels = fetch(&StateEventType::RoomPowerLevels, "");
        let levels = PowerLevels::new(rules, levels.as_deref(), &create);
        let with_levels = auth::check_with_levels(rules, &event, &levels, fetch).is_ok();
        assert_eq!(
            with_levels, ours,
            "with parsed levels, seed {}",
            vector.seed
        );
        let library = state_res::check_state_dependent_auth_rules(rules, &event, fetch).is_ok();

        let other = vector.other_implementation_allows.unwrap_or(vector.allow);
        assert_eq!(library, other, "library, seed {}", vector.seed);
        if ours != vector.allow {
            different.insert(vector.seed);
        }
        if ours != library {
            assert!(
                ours,
                "we refuse what the library allows, seed {}",
                vector.seed
            );
            refused_by_library.insert(vector.seed);
        }
        count += 1;
    }
    assert_eq!(count, 8110);
    assert_eq!(different, AS_THE_LIBRARY.into());
    assert_eq!(refused_by_library, WITHOUT_JOIN_RULES.into());
}

#[test]
fn states_resolve_as_in_the_vectors() {
    let (mut count, mut sensitive) = (0, 0);
    for vector in vectors::<ResolutionVector>("state-res-vectors") {
        let events = vector.events.into_iter().map(pdu).collect();
        let room = Room::new(vector.room_version, events, &vector.state_sets);

        assert_eq!(
            room.resolved_by_us(),
            vector.expected,
            "we, seed {}",
            vector.seed
        );
        assert_eq!(
            room.resolved_by_library(true),
            vector.expected,
            "library, seed {}",
            vector.seed
        );
        if vector.sensitive_to_inclusive_auth_chain {
            assert_ne!(
                room.resolved_by_library(false),
                vector.expected,
                "exclusive chains, seed {}",
                vector.seed
            );
            sensitive += 1;
        }
        count += 1;
    }
    assert_eq!((count, sensitive), (1004, 4));
}

/// Membership events in a room without join rules: allowed by us and by the source of the vectors,
/// refused by the library.
const WITHOUT_JOIN_RULES: [u64; 190] = [
    229, 354, 470, 491, 545, 594, 731, 758, 803, 1083, 1233, 2074, 2080, 2408, 3074, 3142, 3254,
    3322, 3366, 3419, 3732, 3993, 4153, 4288, 4511, 4521, 4734, 4911, 5286, 5376, 5767, 6037, 6251,
    6404, 6909, 6919, 7363, 7380, 7418, 7552, 8078, 8355, 8806, 8820, 8928, 9129, 9303, 9314, 9549,
    9590, 9753, 10_178, 10_455, 10_540, 10_583, 10_618, 10_654, 10_668, 10_963, 11_776, 11_993,
    12_043, 12_082, 12_088, 12_178, 12_356, 12_607, 12_711, 12_768, 12_795, 13_110, 13_318, 13_459,
    13_716, 13_727, 14_082, 14_328, 14_770, 14_877, 14_928, 14_943, 14_962, 14_973, 15_012, 15_153,
    15_242, 15_266, 15_463, 15_787, 16_023, 17_042, 17_157, 17_262, 17_443, 17_662, 17_897, 18_496,
    18_865, 18_920, 19_062, 19_143, 19_265, 19_376, 19_840, 20_314, 20_405, 20_830, 21_078, 21_534,
    22_007, 22_147, 22_662, 23_039, 23_189, 23_507, 23_544, 23_588, 23_633, 24_059, 24_164, 24_276,
    24_346, 24_411, 24_543, 24_560, 25_478, 25_536, 25_693, 25_886, 26_192, 26_246, 26_996, 27_237,
    27_708, 27_888, 28_144, 28_184, 28_295, 28_298, 28_400, 28_695, 29_049, 29_106, 29_434, 29_600,
    29_636, 29_813, 29_835, 29_932, 30_099, 30_177, 30_374, 30_389, 30_897, 31_320, 31_496, 31_748,
    32_027, 32_122, 32_268, 32_363, 32_511, 32_664, 33_197, 33_241, 34_254, 34_395, 34_483, 34_921,
    34_935, 34_941, 35_082, 35_422, 35_857, 36_177, 36_657, 36_977, 37_125, 37_232, 37_313, 37_335,
    37_411, 37_926, 38_152, 38_244, 38_575, 39_063, 39_095, 39_202, 39_816,
];

/// Where we and the library answer otherwise than the source of the vectors: remote targets in a
/// room that does not federate, power levels with a state key, power levels compared with a default.
const AS_THE_LIBRARY: [u64; 43] = [
    225, 1462, 2104, 2231, 3040, 3676, 4198, 4356, 4397, 7491, 7670, 8012, 8374, 8444, 11_663,
    14_912, 15_085, 15_750, 16_762, 17_456, 17_470, 18_476, 19_721, 19_861, 20_156, 24_287, 24_606,
    25_083, 25_574, 27_276, 27_759, 29_327, 29_464, 29_692, 30_072, 30_272, 31_019, 33_745, 33_905,
    35_105, 36_843, 37_161, 37_559,
];

//! What the wrapper adds to the library. The rules themselves are in `tests/it/vectors.rs`.

use std::collections::HashMap;

use proptest::prelude::*;
use ruma::room_version_rules::RoomVersionRules;
use serde_json::{Value, json};

use super::*;
use crate::events::version;

type State = HashMap<(StateEventType, String), Arc<Pdu>>;

const CREATOR: &str = "@creator:x.example";
const LOCAL: &str = "@local:x.example";
const REMOTE: &str = "@remote:y.example";

fn event(
    event_type: &str,
    sender: &str,
    state_key: Option<&str>,
    content: &Value,
    auth_events: &[&str],
) -> Pdu {
    let mut json = json!({
        "type": event_type, "sender": sender, "content": content, "depth": 1, "room_id": "!r:x.example",
        "origin_server_ts": 1, "prev_events": ["$p"], "auth_events": auth_events,
    });
    if let Some(state_key) = state_key {
        json["state_key"] = state_key.into();
    }
    let id = format!("${event_type}|{}", state_key.unwrap_or("-"));
    let id = EventId::parse(id.replace(':', ".")).expect("this is an event ID");
    Pdu::from_stored(id, json.to_string().into(), false).expect("all fields are there")
}

fn member(sender: &str, target: &str, membership: &str) -> Pdu {
    event(
        "m.room.member",
        sender,
        Some(target),
        &json!({ "membership": membership }),
        &[],
    )
}

fn state(events: impl IntoIterator<Item = Pdu>) -> State {
    let entry = |event: Pdu| {
        let state_key = event.state_key.clone().expect("these are state events");
        (
            (event.event_type.to_string().into(), state_key),
            Arc::new(event),
        )
    };
    events.into_iter().map(entry).collect()
}

fn in_state(state: &State) -> impl Fn(&StateEventType, &str) -> Option<Arc<Pdu>> {
    |event_type, state_key| {
        state
            .get(&(event_type.clone(), state_key.to_owned()))
            .cloned()
    }
}

fn create(content: &Value) -> Pdu {
    event("m.room.create", CREATOR, Some(""), content, &[])
}

#[test]
fn a_room_without_sound_join_rules_is_joined_by_invitation() {
    let rules = &RoomVersionRules::V11.authorization;
    let with_rules = |content: Value| event("m.room.join_rules", CREATOR, Some(""), &content, &[]);
    let rooms = [
        None,
        Some(with_rules(json!({}))),
        Some(with_rules(json!({ "join_rule": 7 }))),
    ];
    for join_rules in rooms {
        let mut state = state(
            [create(&json!({})), member(CREATOR, CREATOR, "join")]
                .into_iter()
                .chain(join_rules),
        );
        assert!(check(rules, &member(LOCAL, LOCAL, "join"), in_state(&state)).is_err());
        state.insert(
            (StateEventType::RoomMember, LOCAL.to_owned()),
            Arc::new(member(CREATOR, LOCAL, "invite")),
        );
        assert_eq!(
            check(rules, &member(LOCAL, LOCAL, "join"), in_state(&state)),
            Ok(())
        );
    }
    let private = with_rules(json!({ "join_rule": "private" }));
    let state = state([
        create(&json!({})),
        private,
        member(CREATOR, LOCAL, "invite"),
    ]);
    assert!(
        check(rules, &member(LOCAL, LOCAL, "join"), in_state(&state)).is_err(),
        "an unknown rule is a rule"
    );
}

#[test]
fn users_of_other_servers_are_not_invited_into_a_room_that_does_not_federate() {
    let rules = &RoomVersionRules::V11.authorization;
    let check_invite = |federate: Value, target: &str, expected: bool| {
        let state = state([create(&federate), member(CREATOR, CREATOR, "join")]);
        let invite = member(CREATOR, target, "invite");
        assert_eq!(
            check(rules, &invite, in_state(&state)),
            Ok(()),
            "receiving it is no matter"
        );
        assert_eq!(
            check_sending(rules, &invite, in_state(&state)).is_ok(),
            expected,
            "{federate} {target}"
        );
    };
    check_invite(json!({ "m.federate": false }), REMOTE, false);
    check_invite(json!({ "m.federate": false }), LOCAL, true);
    check_invite(json!({ "m.federate": true }), REMOTE, true);
    check_invite(json!({}), REMOTE, true);
}

#[test]
fn auth_events_must_be_known_sound_and_as_selected() {
    let rules = &RoomVersionRules::V11.authorization;
    let (create, join) = (create(&json!({})), member(CREATOR, CREATOR, "join"));
    let ids = [create.event_id.as_str(), join.event_id.as_str()];
    let message =
        |auth_events: &[&str]| event("m.room.message", CREATOR, None, &json!({}), auth_events);
    let known = |id: &EventId| {
        [&create, &join]
            .into_iter()
            .find(|event| event.event_id == id)
            .cloned()
            .map(Arc::new)
    };

    assert_eq!(check_independent(rules, &message(&ids), known), Ok(()));
    assert!(matches!(
        check_independent(rules, &message(&ids[1..]), known),
        Err(AuthError::Refused(_))
    ));
    assert!(matches!(
        check_independent(rules, &message(&[ids[0], ids[0]]), known),
        Err(AuthError::Refused(_))
    ));
    let missing = check_independent(rules, &message(&[ids[0], "$unknown"]), known);
    assert_eq!(
        missing,
        Err(AuthError::MissingAuthEvent(
            event_id!("$unknown").to_owned()
        ))
    );
    let rejected = |id: &EventId| {
        known(id).map(|event| {
            Arc::new(Pdu {
                rejected: true,
                ..(*event).clone()
            })
        })
    };
    assert!(matches!(
        check_independent(rules, &message(&ids), rejected),
        Err(AuthError::Refused(_))
    ));
}

#[test]
fn content_that_no_rule_allows_still_has_a_selection() {
    let content = RawValue::from_string("{}".to_owned()).expect("the text is JSON");
    let sender = user_id!("@creator:x.example");
    let keys = |rules: &RoomVersionRules| {
        selection(
            &rules.authorization,
            &TimelineEventType::RoomMember,
            sender,
            Some(CREATOR),
            &content,
        )
        .len()
    };
    assert_eq!(
        (keys(&RoomVersionRules::V11), keys(&RoomVersionRules::V12)),
        (3, 2)
    );
}

/// A level as an event may hold it, most often a number.
fn any_level() -> impl Strategy<Value = Value> {
    prop_oneof![
        8 => (-10..110_i64).prop_map(Value::from),
        1 => (-10..110_i64).prop_map(|level| level.to_string().into()),
        1 => prop::sample::select(vec![json!(null), json!([]), json!("x"), json!("1.5")]),
    ]
}

fn any_levels() -> impl Strategy<Value = Value> {
    let fields = [
        "users_default",
        "events_default",
        "state_default",
        "ban",
        "kick",
        "redact",
        "invite",
    ];
    let user = prop::sample::select(vec![CREATOR, LOCAL, REMOTE, "nobody"]);
    let event_type = prop::sample::select(vec![
        "m.room.message",
        "m.room.topic",
        "m.room.redaction",
        "other",
    ]);
    (
        prop::collection::btree_map(prop::sample::select(fields.to_vec()), any_level(), 0..3),
        prop::option::of(prop::collection::btree_map(user, any_level(), 0..3)),
        prop::option::of(prop::collection::btree_map(event_type, any_level(), 0..3)),
    )
        .prop_map(|(fields, users, events)| {
            let mut levels = json!(fields);
            let maps = [
                ("users", users.map(|users| json!(users))),
                ("events", events.map(|events| json!(events))),
            ];
            for (field, map) in maps {
                if let Some(map) = map {
                    levels[field] = map;
                }
            }
            levels
        })
}

fn any_create() -> impl Strategy<Value = Value> {
    prop::sample::select(vec![
        json!({}),
        json!({ "creator": CREATOR }),
        json!({ "creator": CREATOR, "m.federate": false }),
        json!({ "creator": LOCAL, "m.federate": true, "additional_creators": [LOCAL] }),
        json!({ "creator": CREATOR, "m.federate": "no" }),
        json!({ "creator": CREATOR, "additional_creators": [1] }),
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn with_parsed_levels_the_answer_is_the_same(
        version in prop::sample::select(version::SERVED.to_vec()),
        content in any_create(),
        levels in prop::option::weighted(0.9, any_levels()),
        membership in prop::option::weighted(0.9, prop::sample::select(vec!["join", "join", "join", "leave", "odd"])),
        event_type in prop::sample::select(vec!["m.room.message", "m.room.topic", "m.room.redaction", "m.room.power_levels", "m.room.member", "m.room.aliases", "other"]),
        sender in prop::sample::select(vec![CREATOR, LOCAL, REMOTE]),
        state_key in prop::option::of(prop::sample::select(vec!["", "x", CREATOR, LOCAL])),
    ) {
        let rules = &version::rules(&version).expect("served versions have rules").authorization;
        let power_levels = levels.map(|levels| event("m.room.power_levels", CREATOR, Some(""), &levels, &[]));
        let member = membership.map(|membership| member(sender, sender, membership));
        let create = create(&content);
        let parsed = PowerLevels::new(rules, power_levels.as_ref(), &create);
        let state = state([create].into_iter().chain(power_levels).chain(member));
        let event = event(event_type, sender, state_key, &json!({}), &[]);

        let expected = check(rules, &event, in_state(&state)).is_ok();
        let answer = check_with_levels(rules, &event, &parsed, in_state(&state)).is_ok();
        prop_assert_eq!(answer, expected);
    }
}

//! Tests of filters.

use ruma::{api::client::filter::FilterDefinition, room_id, user_id};
use serde_json::{Value, json};

use super::{Filter, matches, path};

fn filter(definition: Value) -> Filter {
    Filter::new(&serde_json::from_value::<FilterDefinition>(definition).expect("a filter"))
}

#[test]
fn a_star_stands_for_any_letters() {
    for (wanted, text, expected) in [
        ("m.room.message", "m.room.message", true),
        ("m.room.message", "m.room.messages", false),
        ("m.room.*", "m.room.name", true),
        ("m.room.*", "m.room", false),
        ("*", "", true),
        ("*", "anything", true),
        ("*.name", "m.room.name", true),
        ("m.*.*me", "m.room.name", true),
        ("m.*e*e", "m.e", false),
        ("a*a", "a", false),
        ("", "", true),
        ("", "a", false),
    ] {
        assert_eq!(matches(wanted, text), expected, "{wanted} {text}");
    }
}

#[test]
fn a_dot_in_a_field_may_be_escaped() {
    assert_eq!(path("content.body"), ["content", "body"]);
    assert_eq!(
        path(r"content.m\.relates_to.a\\b"),
        ["content", "m.relates_to", r"a\b"]
    );
    assert_eq!(path(r"\x"), [r"\x"]);
}

#[test]
fn exclusion_wins_over_inclusion() {
    let filter = filter(json!({
        "room": {
            "rooms": ["!a:x", "!b:x"], "not_rooms": ["!b:x"],
            "timeline": {
                "types": ["m.room.*"], "not_types": ["m.room.name"],
                "senders": ["@a:x", "@b:x"], "not_senders": ["@b:x"], "rooms": ["!a:x"], "limit": 1_000_000,
            },
            "state": { "lazy_load_members": true, "types": [] },
        },
    }));
    assert!(filter.rooms.accepts(room_id!("!a:x")));
    assert!(!filter.rooms.accepts(room_id!("!b:x")) && !filter.rooms.accepts(room_id!("!c:x")));
    let timeline = &filter.timeline;
    assert!(timeline.accepts_type("m.room.topic") && !timeline.accepts_type("m.room.name"));
    assert!(
        timeline.accepts_sender(user_id!("@a:x")) && !timeline.accepts_sender(user_id!("@b:x"))
    );
    assert!(timeline.accepts_room(room_id!("!a:x")) && !timeline.accepts_room(room_id!("!b:x")));
    assert!(!timeline.accepts_all() && filter.ephemeral.accepts_all());
    assert!(
        !filter.state.accepts_room(room_id!("!a:x")),
        "no type is wanted"
    );
    assert!(filter.has_lazy_members && !filter.has_thread_counts);
    assert_eq!(filter.timeline_limit, super::MAX_TIMELINE_LIMIT);
}

#[test]
fn without_a_filter_all_is_wanted() {
    let filter = Filter::default();
    assert!(filter.timeline.accepts_all() && filter.rooms.accepts_all() && !filter.include_leave);
    assert_eq!(filter.timeline_limit, 10);
    assert_ne!(
        filter.hash,
        self::filter(json!({ "event_fields": ["type"] })).hash
    );
}

#[test]
fn the_stored_form_of_a_filter_is_the_same_filter() {
    for definition in [
        json!({}),
        json!({ "event_format": "federation", "event_fields": [] }),
        json!({ "room": { "state": { "lazy_load_members": true, "include_redundant_members": true } } }),
        json!({ "room": { "state": { "include_redundant_members": true }, "timeline": { "limit": 0, "contains_url": false } } }),
        json!({ "presence": { "types": [] }, "room": { "rooms": [], "include_leave": true } }),
    ] {
        let read: FilterDefinition = serde_json::from_value(definition).expect("a filter");
        let stored = serde_json::to_vec(&read).expect("what was read can be written");
        let again: FilterDefinition = serde_json::from_slice(&stored).expect("it can be read");
        assert_eq!(Filter::new(&again).hash, Filter::new(&read).hash);
    }
}

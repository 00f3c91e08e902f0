//! Levels of old and new rooms.

use ruma::{event_id, user_id};
use serde_json::{Value, json};

use super::*;

fn event(event_type: &str, content: &Value) -> Pdu {
    let json = json!({
        "type": event_type, "sender": "@creator:x.example", "state_key": "", "content": content, "depth": 1,
        "origin_server_ts": 1, "prev_events": [], "auth_events": [],
    });
    Pdu::from_stored(event_id!("$e").to_owned(), json.to_string().into(), false)
        .expect("all fields are there")
}

fn levels(rules: &AuthorizationRules, create: &Value, levels: Option<&Value>) -> PowerLevels {
    let levels = levels.map(|levels| event("m.room.power_levels", levels));
    PowerLevels::new(rules, levels.as_ref(), &event("m.room.create", create))
}

#[test]
fn without_power_levels_the_creator_has_100_and_others_nothing() {
    let levels = levels(&AuthorizationRules::V11, &json!({}), None);
    assert_eq!(
        levels.user(user_id!("@creator:x.example")),
        Level::Number(100)
    );
    assert_eq!(levels.user(user_id!("@other:x.example")), Level::Number(0));
    assert!(levels.may_send_message(
        user_id!("@other:x.example"),
        &TimelineEventType::RoomMessage
    ));
    assert!(!levels.may_send_state(user_id!("@other:x.example"), &TimelineEventType::RoomName));
}

#[test]
fn before_version_11_the_create_event_names_the_creator() {
    let levels = levels(
        &AuthorizationRules::V10,
        &json!({ "creator": "@first:x.example" }),
        None,
    );
    assert_eq!(
        levels.user(user_id!("@first:x.example")),
        Level::Number(100)
    );
    assert_eq!(
        levels.user(user_id!("@creator:x.example")),
        Level::Number(0)
    );
}

#[test]
fn creators_of_version_12_are_above_every_number() {
    let create = json!({ "additional_creators": ["@second:x.example"] });
    let users = json!({ "users": { "@admin:x.example": 9_007_199_254_740_991_i64 }, "ban": 9_007_199_254_740_991_i64 });
    let levels = levels(&AuthorizationRules::V12, &create, Some(&users));
    let (creator, second) = (
        user_id!("@creator:x.example"),
        user_id!("@second:x.example"),
    );
    let admin = user_id!("@admin:x.example");
    assert!(levels.is_creator(creator) && levels.is_creator(second) && !levels.is_creator(admin));
    assert!(levels.may_ban(creator, admin) && !levels.may_ban(admin, creator));
    assert!(!levels.may_ban(creator, second));
}

#[test]
fn levels_are_those_of_the_event_or_their_defaults() {
    let content = json!({
        "users": { "@mod:x.example": 50 }, "users_default": 5, "events": { "m.room.name": 20, "m.reaction": 10 },
        "events_default": 4, "redact": 30, "notifications": { "room": 60 },
    });
    let levels = levels(&AuthorizationRules::V11, &json!({}), Some(&content));
    let (moderator, user) = (user_id!("@mod:x.example"), user_id!("@user:x.example"));
    assert_eq!(levels.user(user), Level::Number(5));
    assert_eq!(levels.message(&"m.reaction".into()), Level::Number(10));
    assert_eq!(
        levels.message(&TimelineEventType::RoomMessage),
        Level::Number(4)
    );
    assert_eq!(
        levels.state(&TimelineEventType::RoomName),
        Level::Number(20)
    );
    assert_eq!(
        levels.state(&TimelineEventType::RoomTopic),
        Level::Number(50)
    );
    assert_eq!(
        (levels.kick(), levels.invite()),
        (Level::Number(50), Level::Number(0))
    );
    assert!(levels.may_redact_others(moderator) && !levels.may_notify(moderator, "room"));
    assert!(levels.may_kick(moderator, user) && !levels.may_kick(moderator, moderator));
    assert!(levels.is_sound());
}

#[test]
fn strings_are_numbers_before_version_10_and_malformed_after() {
    let content = json!({ "users": { "@mod:x.example": "50" }, "ban": " 7 " });
    let create = json!({ "creator": "@creator:x.example" });
    let old = levels(&AuthorizationRules::V8, &create, Some(&content));
    assert_eq!(
        (old.user(user_id!("@mod:x.example")), old.ban()),
        (Level::Number(50), Level::Number(7))
    );
    assert!(old.is_sound());
    let new = levels(&AuthorizationRules::V10, &create, Some(&content));
    assert_eq!(
        (new.user(user_id!("@mod:x.example")), new.ban()),
        (Level::Number(0), Level::Number(50))
    );
    assert!(!new.is_sound());
}

#[test]
fn floats_count_as_whole_numbers_in_old_rooms() {
    let content = json!({ "ban": 50.57, "users": { "@other:x.example": 5.114_698E4 } });
    let create = json!({ "creator": "@creator:x.example" });
    let levels = levels(&AuthorizationRules::V1, &create, Some(&content));
    assert!(levels.is_sound());
    assert_eq!(levels.ban(), Level::Number(50));
    assert_eq!(
        levels.user(user_id!("@other:x.example")),
        Level::Number(51_146)
    );
}

#[test]
fn texts_and_floats_become_numbers_for_a_new_room() {
    let content = json!({
        "ban": " +50 ", "kick": "-007", "invite": 1.9, "redact": 60, "notifications": { "room": "20" },
        "users": { "@other:x.example": "100", "@odd:x.example": "much" }, "historical": null,
    });
    let levels = in_whole_numbers(&event("m.room.power_levels", &content));
    let expected = json!({
        "ban": 50, "kick": -7, "invite": 1, "redact": 60, "notifications": { "room": 20 },
        "users": { "@other:x.example": 100, "@odd:x.example": "much" }, "historical": null,
    });
    assert_eq!(serde_json::to_value(levels).expect("JSON"), expected);
}

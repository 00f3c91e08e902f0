//! Templates for other servers' users, and events that are not in the room yet.

use ruma::{RoomVersionId, user_id};
use serde_json::{Value, json};

use super::*;
use crate::rooms::{
    Preset, object,
    tests::{alice, plan, rooms},
};

fn member(user: &UserId, membership: &str) -> NewEvent {
    let content = object(json!({ "membership": membership })).unwrap();
    NewEvent::state(
        user.to_owned(),
        TimelineEventType::RoomMember,
        user.as_str(),
        content,
    )
}

#[tokio::test]
async fn a_template_has_the_place_in_the_graph_and_no_signature() {
    for version in [RoomVersionId::V10, RoomVersionId::V11, RoomVersionId::V12] {
        let rooms = rooms().await;
        let room_id = rooms
            .create(plan(&alice(), Preset::PublicChat, version.clone()))
            .await
            .unwrap();
        let room = rooms.resident(&room_id).unwrap();
        let before = rooms.published(room).unwrap().head.clone();
        let mut writer = rooms.write(room).await.unwrap();

        let (event, found) = writer
            .template(member(user_id!("@zoe:away.org"), "join"))
            .await
            .unwrap();

        assert_eq!(found, version);
        let event = serde_json::to_value(event).unwrap();
        assert_eq!(event["room_id"], room_id.as_str());
        assert_eq!(event["depth"], json!(before.max_depth + 1));
        assert_eq!(event["prev_events"].as_array().map(Vec::len), Some(1));
        // Create event (but in version 12), power levels, join rules.
        let cites_create = version != RoomVersionId::V12;
        let cited = event["auth_events"].as_array().map(Vec::len);
        assert_eq!(cited, Some(2 + usize::from(cites_create)));
        assert_eq!(
            (&event["hashes"], &event["signatures"]),
            (&Value::Null, &Value::Null)
        );
        drop(writer);
        assert_eq!(rooms.published(room).unwrap().head, before);
    }
}

#[tokio::test]
async fn who_may_not_join_gets_no_template() {
    let rooms = rooms().await;
    let room_id = rooms
        .create(plan(&alice(), Preset::PrivateChat, RoomVersionId::V11))
        .await
        .unwrap();
    let room = rooms.resident(&room_id).unwrap();
    let mut writer = rooms.write(room).await.unwrap();

    let refused = writer
        .template(member(user_id!("@zoe:away.org"), "join"))
        .await;

    assert!(matches!(refused, Err(Error::NotAllowed(_))), "{refused:?}");
}

#[tokio::test]
async fn who_is_invited_is_shown_whole_events() {
    let rooms = rooms().await;
    let room_id = rooms
        .create(plan(&alice(), Preset::PrivateChat, RoomVersionId::V12))
        .await
        .unwrap();
    let room = rooms.resident(&room_id).unwrap();
    let mut writer = rooms.write(room).await.unwrap();

    let shown = writer.shown_state(&alice()).await.unwrap();

    let shown: Vec<Value> = shown
        .iter()
        .map(|event| serde_json::from_str(event.get()).unwrap())
        .collect();
    let kinds: Vec<_> = shown
        .iter()
        .map(|event| event["type"].as_str().unwrap())
        .collect();
    assert_eq!(
        kinds,
        [
            "m.room.create",
            "m.room.join_rules",
            "m.room.name",
            "m.room.member"
        ]
    );
    assert!(shown.iter().all(|event| event["signatures"].is_object()));
}

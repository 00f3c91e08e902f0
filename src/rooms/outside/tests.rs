//! Invites into rooms that the server is not in, and what becomes of them.

use ruma::{
    MilliSecondsSinceUnixEpoch, RoomVersionId, event_id, events::TimelineEventType, owned_room_id,
    owned_server_name, uint, user_id,
};
use serde_json::{Value, json};

use super::*;
use crate::rooms::{
    Extra, Preset,
    tests::{alice, bob, plan, rooms},
};

fn member(membership: &str, sender: &UserId, target: &UserId) -> Pdu {
    let content = json!({ "membership": membership }).to_string();
    let content = RawValue::from_string(content).unwrap();
    let json = json!({
        "auth_events": [],
        "content": content,
        "depth": 3,
        "origin_server_ts": 5,
        "prev_events": [],
        "room_id": "!far:away.org",
        "sender": sender,
        "state_key": target,
        "type": "m.room.member",
    });
    Pdu {
        event_id: event_id!("$far").to_owned(),
        room_id: Some(owned_room_id!("!far:away.org")),
        sender: sender.to_owned(),
        event_type: TimelineEventType::RoomMember,
        state_key: Some(target.to_string()),
        content,
        judged: None,
        origin_server_ts: MilliSecondsSinceUnixEpoch(uint!(5)),
        depth: 3,
        prev_events: Vec::new(),
        auth_events: Vec::new(),
        redacts: None,
        rejected: false,
        json: json.to_string().into_bytes().into(),
    }
}

fn change(class: Class, event: &Pdu, user: &UserId) -> OutsideChange {
    let told = r#"{"type":"m.room.name","state_key":"","sender":"@zoe:away.org","content":{"name":"Far"}}"#;
    OutsideChange {
        user: user.to_owned(),
        room_id: owned_room_id!("!far:away.org"),
        class,
        row: Outside::new("11", event, vec![owned_server_name!("away.org")]),
        stripped: (class != Class::Leave).then(|| StrippedState::new([told].into_iter(), event)),
    }
}

/// The class of a user's row and who made it so.
async fn standing(rooms: &Rooms, user: &UserId) -> Option<(Class, Option<OwnedUserId>)> {
    let number = rooms.accounts.intern(&[user]).await.unwrap()[0];
    let snapshot = rooms.store.snapshot().unwrap();
    let room = rooms.number(&owned_room_id!("!far:away.org"))?;
    let entry = rooms.user_room(&snapshot, number, room).unwrap()?;
    let sender = rooms
        .sender_of_membership(&snapshot, number, &entry)
        .unwrap();
    Some((entry.class, sender))
}

#[tokio::test]
async fn an_invite_from_afar_is_shown_and_its_end_forgotten_when_the_user_wants() {
    let rooms = rooms().await;
    let zoe = user_id!("@zoe:away.org");
    let invite = member("invite", zoe, &alice());

    assert!(
        rooms
            .set_outside(change(Class::Invite, &invite, &alice()))
            .await
            .unwrap()
    );

    assert_eq!(
        standing(&rooms, &alice()).await,
        Some((Class::Invite, Some(zoe.to_owned())))
    );
    let number = rooms.accounts.intern(&[&alice()]).await.unwrap()[0];
    let room = rooms.number(&owned_room_id!("!far:away.org")).unwrap();
    let snapshot = rooms.store.snapshot().unwrap();
    let shown = rooms
        .stripped_state(&snapshot, number, room)
        .unwrap()
        .unwrap();
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown[0]["content"]["name"], "Far");
    assert_eq!(shown[1]["content"]["membership"], "invite");
    assert!(rooms.forget(&alice(), room).await.is_err());

    let leave = member("leave", &alice(), &alice());
    assert!(
        rooms
            .set_outside(change(Class::Leave, &leave, &alice()))
            .await
            .unwrap()
    );

    let snapshot = rooms.store.snapshot().unwrap();
    assert_eq!(rooms.stripped_state(&snapshot, number, room).unwrap(), None);
    let entry = rooms.user_room(&snapshot, number, room).unwrap().unwrap();
    let event = rooms
        .outside_event(&snapshot, number, &entry)
        .unwrap()
        .unwrap();
    assert_eq!(event.pdu.sender, alice());
    rooms.forget(&alice(), room).await.unwrap();
    assert_eq!(standing(&rooms, &alice()).await, None);
}

#[tokio::test]
async fn who_has_no_invite_cannot_end_one() {
    let rooms = rooms().await;
    let leave = member("leave", &bob(), &bob());

    assert!(
        !rooms
            .set_outside(change(Class::Leave, &leave, &bob()))
            .await
            .unwrap()
    );

    assert_eq!(standing(&rooms, &bob()).await, None);
}

#[tokio::test]
async fn a_knock_that_is_answered_becomes_an_invite() {
    let rooms = rooms().await;
    let knock = member("knock", &bob(), &bob());
    let invite = member("invite", user_id!("@zoe:away.org"), &bob());

    assert!(
        rooms
            .set_outside(change(Class::Knock, &knock, &bob()))
            .await
            .unwrap()
    );
    assert!(
        rooms
            .set_outside(change(Class::Invite, &invite, &bob()))
            .await
            .unwrap()
    );

    let (class, _) = standing(&rooms, &bob()).await.unwrap();
    assert_eq!(class, Class::Invite);
}

#[tokio::test]
async fn in_a_room_that_is_here_its_own_events_count() {
    let rooms = rooms().await;
    let room_id = rooms
        .create(plan(&alice(), Preset::PublicChat, RoomVersionId::V11))
        .await
        .unwrap();
    assert_eq!(rooms.residence(&room_id), Residence::Resident);
    let invite = member("invite", user_id!("@zoe:away.org"), &bob());
    let change = OutsideChange {
        room_id: room_id.clone(),
        ..change(Class::Invite, &invite, &bob())
    };

    assert!(!rooms.set_outside(change).await.unwrap());

    rooms.join(&bob(), &room_id, Extra::new()).await.unwrap();
    assert_eq!(
        rooms.residence(&owned_room_id!("!far:away.org")),
        Residence::Away
    );
}

#[test]
fn stripped_state_keeps_what_is_sound_within_its_limits() {
    let own = member("invite", user_id!("@zoe:away.org"), &alice());
    let long = "x".repeat(50_000);
    let topic = |text: &str| {
        json!({ "type": "m.room.topic", "state_key": text, "sender": "@zoe:away.org", "content": {} })
            .to_string()
    };
    let told = [
        topic("a"),
        topic(&long),
        topic(&format!("{long}y")),
        "nonsense".to_owned(),
        json!({ "type": "m.room.message", "sender": "@zoe:away.org", "content": {} }).to_string(),
        json!({ "type": "m.room.member", "state_key": alice(), "sender": "@eve:evil.org", "content": {} })
            .to_string(),
    ];

    let stripped = StrippedState::new(told.iter().map(String::as_str), &own);

    assert!(stripped.as_str().len() <= MAX_STRIPPED_BYTES);
    let events: Vec<Value> = serde_json::from_str(stripped.as_str()).unwrap();
    let kinds: Vec<_> = events
        .iter()
        .map(|event| event["type"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["m.room.topic", "m.room.topic", "m.room.member"]);
    assert_eq!(events[2]["sender"], "@zoe:away.org");
}

//! History visibility against the words of the specification, on random histories.

use proptest::prelude::*;
use ruma::{OwnedRoomId, events::TimelineEventType};
use serde_json::json;

use super::*;
use crate::{
    rooms::{
        Extra, MembershipAction, NewEvent, Preset, object,
        tests::{alice, bob, message, plan, rooms},
    },
    storage::Order,
};

const VISIBILITIES: [&str; 4] = ["world_readable", "shared", "invited", "joined"];

/// What happens in a room, if the rules allow it.
#[derive(Clone, Copy, Debug)]
enum Step {
    Say,
    Show(usize),
    Invite,
    Join,
    Leave,
    Kick,
    Ban,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => Just(Step::Say),
        2 => (0..VISIBILITIES.len()).prop_map(Step::Show),
        2 => Just(Step::Invite),
        3 => Just(Step::Join),
        2 => Just(Step::Leave),
        1 => Just(Step::Kick),
        1 => Just(Step::Ban),
    ];
    prop::collection::vec(step, 1..25)
}

async fn take(rooms: &Rooms, room_id: &OwnedRoomId, step: Step) {
    let change = |sender, membership: &str| MembershipAction {
        sender,
        target: bob(),
        membership: membership.into(),
        extra: Extra::new(),
        before: &[],
    };
    let membership = match step {
        Step::Say => {
            rooms
                .send(room_id, message(&alice(), "text"))
                .await
                .unwrap();
            return;
        }
        Step::Show(visibility) => {
            let content = json!({ "history_visibility": VISIBILITIES.get(visibility) });
            let event_type = TimelineEventType::RoomHistoryVisibility;
            let event = NewEvent::state(alice(), event_type, "", object(content).unwrap());
            rooms.send(room_id, event).await.unwrap();
            return;
        }
        Step::Invite => change(alice(), "invite"),
        Step::Join => change(bob(), "join"),
        Step::Leave => change(bob(), "leave"),
        Step::Kick => change(alice(), "leave"),
        Step::Ban => change(alice(), "ban"),
    };
    // What the rules refuse did not happen.
    rooms.set_membership(room_id, membership).await.ok();
}

/// The visibility and bob's membership, before and after an event.
struct Moment {
    before: (String, String),
    after: (String, String),
    is_exception: bool,
}

/// Spec: c2s, "Room History Visibility", "Server behavior", word by word.
fn is_visible(history: &[Moment], at: usize) -> bool {
    let moment = &history[at];
    let joins_later = history[at..].iter().any(|later| later.after.1 == "join");
    let allows = |(visibility, membership): &(String, String)| match &**visibility {
        "world_readable" => true,
        _ if membership == "join" => true,
        "shared" => joins_later,
        "invited" => membership == "invite",
        _ => false,
    };
    allows(&moment.before) || (moment.is_exception && allows(&moment.after))
}

async fn check(steps: Vec<Step>) {
    let rooms = rooms().await;
    let room = plan(&alice(), Preset::PublicChat, ruma::RoomVersionId::V11);
    let room_id = rooms.create(room).await.unwrap();
    for step in steps {
        take(&rooms, &room_id, step).await;
    }
    let room = rooms.resident(&room_id).unwrap();
    let number = rooms.accounts.intern(&[&bob()]).await.unwrap()[0];
    let snapshot = rooms.store.snapshot().unwrap();
    let timeline = rooms
        .timeline(&snapshot, room, i64::MIN, Order::Forward, 1_000)
        .unwrap();
    let mut state = ("shared".to_owned(), "leave".to_owned());
    let history: Vec<_> = timeline
        .iter()
        .map(|placed| {
            let before = state.clone();
            let content: serde_json::Value = placed.event.pdu.content_as().unwrap();
            let is_own = placed.event.pdu.state_key.as_deref() == Some(bob().as_str());
            let mut is_exception = false;
            if let Some(visibility) = content["history_visibility"].as_str() {
                (state.0, is_exception) = (visibility.to_owned(), true);
            } else if let (true, Some(membership)) = (is_own, content["membership"].as_str()) {
                (state.1, is_exception) = (membership.to_owned(), true);
            }
            Moment {
                before,
                after: state.clone(),
                is_exception,
            }
        })
        .collect();

    let mut sight = rooms.sight(&snapshot, &bob(), number, room).unwrap();
    for (at, placed) in timeline.iter().enumerate() {
        let seen = rooms.may_see(&snapshot, &mut sight, &placed.event).unwrap();
        assert_eq!(
            seen,
            is_visible(&history, at),
            "{} of {}",
            at,
            placed.event.pdu.event_type
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn an_event_is_seen_by_whom_the_specification_says(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(check(steps));
    }
}

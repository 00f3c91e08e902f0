//! EDUs that are built from what waits.

use ruma::{event_id, room_id, user_id};

use super::*;
use crate::{accounts::UserNumber, rooms::RoomNumber};

fn receipt(user: &UserId, event: &ruma::EventId, thread: Option<&str>) -> Arc<Receipt> {
    Arc::new(Receipt {
        room: room_id!("!room:one.example").to_owned(),
        user: user.to_owned(),
        event: event.to_owned(),
        ts: 5,
        thread: thread.map(str::to_owned),
    })
}

#[test]
fn the_newest_of_each_kind_goes_out_as_canonical_json() {
    let mut volatile = Volatile::default();
    let alice = user_id!("@alice:one.example");
    for is_typing in [true, false] {
        let typing = LocalTyping {
            room: RoomNumber(1),
            user: alice.to_owned(),
            is_typing,
        };
        volatile.typing(&typing, room_id!("!room:one.example"));
    }
    volatile.receipt(&receipt(alice, event_id!("$old"), None));
    volatile.receipt(&receipt(alice, event_id!("$new"), None));
    volatile.presence(&Arc::new(LocalPresence {
        number: UserNumber(1),
        user: alice.to_owned(),
        state: "online",
        status: None,
        active_ago_ms: 12,
        is_active: true,
    }));
    let edus = volatile.take_edus(100);
    assert_eq!(
        edus,
        [
            r#"{"content":{"room_id":"!room:one.example","typing":false,"user_id":"@alice:one.example"},"edu_type":"m.typing"}"#,
            r#"{"content":{"!room:one.example":{"m.read":{"@alice:one.example":{"data":{"ts":5},"event_ids":["$new"]}}}},"edu_type":"m.receipt"}"#,
            r#"{"content":{"push":[{"currently_active":true,"last_active_ago":12,"presence":"online","user_id":"@alice:one.example"}]},"edu_type":"m.presence"}"#,
        ]
    );
    assert!(volatile.is_empty());
}

#[test]
fn receipts_of_several_threads_of_one_user_are_several_edus() {
    let mut volatile = Volatile::default();
    let (alice, bob) = (user_id!("@alice:one.example"), user_id!("@bob:one.example"));
    volatile.receipt(&receipt(alice, event_id!("$a"), None));
    volatile.receipt(&receipt(alice, event_id!("$b"), Some("main")));
    volatile.receipt(&receipt(bob, event_id!("$c"), Some("$root")));
    let edus = volatile.take_edus(1);
    assert_eq!(edus.len(), 1);
    assert!(edus[0].contains("$a") && edus[0].contains("$c") && !edus[0].contains("$b"));
    assert!(!volatile.is_empty());
    let edus = volatile.take_edus(5);
    assert_eq!(edus.len(), 1);
    assert!(edus[0].contains(r#""data":{"thread_id":"main","ts":5}"#));
}

#[test]
fn too_much_is_dropped_and_what_is_newer_wins() {
    let typing = |number: usize, is_typing| LocalTyping {
        room: RoomNumber(1),
        user: OwnedUserId::try_from(format!("@user{number}:one.example")).unwrap(),
        is_typing,
    };
    let room = room_id!("!room:one.example");
    let (mut older, mut newer) = (Volatile::default(), Volatile::default());
    for number in 0..MAX_ENTRIES + 10 {
        older.typing(&typing(number, true), room);
    }
    newer.typing(&typing(3, false), room);
    newer.typing(&typing(MAX_ENTRIES + 5, true), room);
    older.extend(newer);
    let edus = older.take_edus(usize::MAX);
    assert_eq!(edus.len(), MAX_ENTRIES);
    let stopped: Vec<_> = edus.iter().filter(|edu| edu.contains("false")).collect();
    assert_eq!(stopped.len(), 1);
    assert!(stopped[0].contains("@user3:"));
}

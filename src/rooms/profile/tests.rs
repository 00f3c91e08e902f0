//! Tests of carrying profiles into rooms: twice, from a lost place in the log, and at an account's end.

use ruma::{OwnedRoomId, RoomVersionId, server_name};
use serde_json::{Value, json};

use super::*;
use crate::{
    accounts::{Accounts, Erase, LocalUser, NewUser},
    clock::Clock,
    rooms::{
        Config, Extra, Preset,
        tests::{Parts, plan},
    },
    storage::Store,
};

struct Scene {
    rooms: Rooms,
    accounts: Accounts,
    store: Store,
    alice: LocalUser,
    room_id: OwnedRoomId,
}

/// Alice is in a room that Bob made.
async fn scene() -> Scene {
    let clock = Clock::seeded(1_700_000_000_000, 7);
    let name = server_name!("hearth.test");
    let parts = Parts::new(Store::memory(), clock, name, Config::default()).await;
    let Parts {
        store,
        accounts,
        rooms,
        ..
    } = parts;
    let create = async |localpart: &str| {
        let new = NewUser {
            localpart: Some(localpart.to_owned()),
            ..NewUser::default()
        };
        accounts
            .create_user(new, None, Batch::new())
            .await
            .unwrap()
            .0
    };
    let (alice, bob) = (create("alice").await, create("bob").await);
    let plan = plan(&bob.id, Preset::PublicChat, RoomVersionId::V12);
    let room_id = rooms.create(plan).await.unwrap();
    rooms.join(&alice.id, &room_id, Extra::new()).await.unwrap();
    Scene {
        rooms,
        accounts,
        store,
        alice,
        room_id,
    }
}

impl Scene {
    async fn name(&self, name: &str) {
        let value = Some(json!(name));
        self.accounts
            .set_profile_field(self.alice.number, DISPLAYNAME, value)
            .await
            .unwrap();
    }

    /// The member event of Alice: its number and content.
    async fn member(&self) -> (u32, Value) {
        let room = self.rooms.resident(&self.room_id).unwrap();
        let mut writer = self.rooms.write(room).await.unwrap();
        let event = writer
            .state("m.room.member", self.alice.id.as_str())
            .await
            .unwrap()
            .unwrap();
        (event.number.0, event.pdu.content_as().unwrap())
    }
}

#[tokio::test]
async fn a_change_that_is_carried_twice_makes_one_event() {
    let scene = scene().await;
    scene.name("Alice").await;
    let page = scene.store.log(Position::default(), 10_000).await.unwrap();
    scene.rooms.carry_page(&page).await.unwrap();
    let first = scene.member().await;
    assert_eq!(
        first.1,
        json!({ "membership": "join", "displayname": "Alice" })
    );
    scene.rooms.carry_page(&page).await.unwrap();
    assert_eq!(scene.member().await, first);
    let snapshot = scene.store.snapshot().unwrap();
    assert_eq!(snapshot.cursor(FOLLOWER).unwrap(), Some(page.upto));
}

#[tokio::test]
async fn a_log_that_does_not_reach_back_makes_it_look_at_everybody() {
    let scene = scene().await;
    scene.name("Alice").await;
    let upto = scene.store.position();
    let page = LogPage {
        entries: Vec::new(),
        upto,
        has_gap: true,
    };
    scene.rooms.carry_page(&page).await.unwrap();
    assert_eq!(scene.member().await.1["displayname"], "Alice");
}

#[tokio::test]
async fn an_ended_account_leaves_also_when_it_is_told_twice() {
    let scene = scene().await;
    scene
        .accounts
        .deactivate(scene.alice.number, Erase::No)
        .await
        .unwrap();
    let page = scene.store.log(Position::default(), 10_000).await.unwrap();
    for _ in 0..2 {
        scene.rooms.carry_page(&page).await.unwrap();
        assert_eq!(scene.member().await.1, json!({ "membership": "leave" }));
    }
}

#[test]
fn what_is_of_one_join_only_does_not_go_along() {
    let object = |value: Value| serde_json::from_value::<CanonicalJsonObject>(value).unwrap();
    let before = object(
        json!({ "membership": "join", "reason": "hello", "is_direct": true, "avatar_url": "mxc://a/b" }),
    );
    let profile = Profile {
        fields: [(DISPLAYNAME.to_owned(), json!("A"))].into(),
    };
    let after = with_profile(&before, &profile);
    assert_eq!(
        after,
        Some(object(
            json!({ "membership": "join", "is_direct": true, "displayname": "A" })
        ))
    );
    let same = object(json!({ "membership": "join", "displayname": "A", "reason": "hello" }));
    assert_eq!(with_profile(&same, &profile), None);
}

//! Queues of devices on a store in memory.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use ruma::{OwnedDeviceId, server_name};

use super::*;
use crate::{
    accounts::{Accounts, NewDevice, NewUser, Refreshable, Settings},
    clock::Clock,
    rooms::{self, Rooms, identity},
    storage::Store,
    telemetry::Metrics,
};

pub(in crate::encryption) struct World {
    pub(in crate::encryption) encryption: Encryption,
    pub(in crate::encryption) store: Store,
    pub(in crate::encryption) user: UserNumber,
}

pub(in crate::encryption) fn alice() -> OwnedUserId {
    UserId::parse("@alice:example.org").unwrap()
}

impl World {
    /// Alice with these devices.
    pub(in crate::encryption) async fn new(devices: &[&str]) -> Self {
        let clock = Clock::seeded(1_700_000_000_000, 7);
        let store = Store::memory_with(clock.clone());
        let name = server_name!("example.org").to_owned();
        let metrics = Metrics::new();
        let signer = identity::signer(&store, &clock, name.clone())
            .await
            .unwrap();
        let settings = Settings::default();
        let accounts = Accounts::new(store.clone(), clock.clone(), name, settings, &metrics);
        let new = NewUser {
            localpart: Some("alice".to_owned()),
            password: None,
            displayname: None,
            is_admin: false,
            is_service: false,
        };
        let (alice, _) = accounts.create_user(new, None, Batch::new()).await.unwrap();
        for device in devices {
            let new = NewDevice {
                id: Some((*device).into()),
                display_name: None,
                refreshable: Refreshable::No,
            };
            accounts.sign_in(alice.number, new).await.unwrap();
        }
        let config = rooms::Config::default();
        let rooms = Rooms::new(
            store.clone(),
            clock.clone(),
            signer,
            accounts.clone(),
            config,
        );
        let rooms = rooms.unwrap();
        Self {
            encryption: Encryption::new(store.clone(), clock, accounts, rooms).unwrap(),
            store,
            user: alice.number,
        }
    }

    async fn send(&self, transaction: &str, devices: &[&str], text: &str) {
        let sender = (alice(), self.user, 0);
        let mut letter = Letter::of_client(sender, "m.test".to_owned(), transaction);
        letter.recipients = devices
            .iter()
            .map(|device| Recipient {
                user: alice(),
                device: DeviceIdOrAllDevices::try_from(*device).unwrap(),
                content: format!("{{\"body\":\"{text}\"}}").into_bytes(),
            })
            .collect();
        self.encryption.deliver(letter).await.unwrap();
    }

    /// The bodies that a device gets, and the token with which it asks next.
    fn sync(&self, device: &str, since: Option<Position>) -> (Vec<String>, Position) {
        let snapshot = self.store.snapshot().unwrap();
        let device = (self.user, device_hash(&OwnedDeviceId::from(device)));
        let messages = self.encryption.messages(&snapshot, device, since).unwrap();
        let bodies = messages.events.iter().map(|event| {
            let event: serde_json::Value = serde_json::from_slice(event).unwrap();
            assert_eq!(event["sender"], "@alice:example.org");
            assert_eq!(event["type"], "m.test");
            event["content"]["body"].as_str().unwrap().to_owned()
        });
        let next = messages.upto.unwrap_or(snapshot.position());
        (bodies.collect(), next)
    }

    fn rows(&self) -> usize {
        let snapshot = self.store.snapshot().unwrap();
        snapshot.scan(MESSAGES.all(), Order::Forward).count()
    }
}

#[tokio::test]
async fn a_message_stays_until_a_token_says_that_it_has_come() {
    let world = World::new(&["A", "B"]).await;
    let (_, start) = world.sync("A", None);
    world.send("t1", &["A"], "one").await;
    let (first, next) = world.sync("A", Some(start));
    assert_eq!(first, ["one"]);
    assert_eq!(world.sync("A", Some(start)).0, ["one"], "as often as asked");
    assert_eq!(world.sync("A", None).0, ["one"]);
    assert_eq!(world.rows(), 1);
    assert_eq!(world.sync("B", Some(start)).0, Vec::<String>::new());

    let (nothing, _) = world.sync("A", Some(next));
    assert_eq!(nothing, Vec::<String>::new());
    world.send("t2", &["B"], "other").await;
    assert_eq!(world.rows(), 1, "the first is deleted");
    assert_eq!(world.sync("A", Some(start)).0, Vec::<String>::new());
    assert_eq!(world.sync("A", None).0, Vec::<String>::new());
    world.send("t3", &["A"], "two").await;
    assert_eq!(world.sync("A", Some(next)).0, ["two"]);
}

#[tokio::test]
async fn a_repeated_letter_is_stored_once() {
    let world = World::new(&["A"]).await;
    for _ in 0..2 {
        world.send("t1", &["A"], "one").await;
    }
    assert_eq!(world.sync("A", None).0, ["one"]);
    world.send("t2", &["A"], "one").await;
    assert_eq!(world.sync("A", None).0, ["one", "one"]);
}

#[tokio::test]
async fn what_a_crash_has_cut_short_goes_on_where_it_was() {
    let world = World::new(&["A"]).await;
    let text = "x".repeat(60_000);
    let devices = ["A"; 20];
    let letter = Letter::of_client((alice(), world.user, 0), "m.test".to_owned(), "t1");
    // As if seven of the twenty had been stored.
    let mut batch = Batch::new();
    let expiry = Millis48(u64::MAX >> 16);
    batch.put(&LETTERS, &(letter.id,), &Expiring(expiry, 7));
    world.store.submit(batch).await.unwrap();
    world.send("t1", &devices, &text).await;
    assert_eq!(world.rows(), 13);
    world.send("t1", &devices, &text).await;
    assert_eq!(world.rows(), 13);
}

#[tokio::test]
async fn an_answer_holds_a_hundred_messages_and_the_next_one_goes_on() {
    let world = World::new(&["A"]).await;
    for number in 0..250 {
        let transaction = format!("t{number}");
        world.send(&transaction, &["A"], &number.to_string()).await;
    }
    let (mut all, mut since) = (Vec::new(), None);
    for expected in [100, 100, 50, 0] {
        let (messages, next) = world.sync("A", since);
        assert_eq!(messages.len(), expected);
        assert_eq!(world.sync("A", since).0, messages);
        all.extend(messages);
        since = Some(next);
    }
    let expected: Vec<String> = (0..250).map(|number| number.to_string()).collect();
    assert_eq!(all, expected);
    world.send("last", &["A"], "x").await;
    assert_eq!(world.rows(), 1);
}

#[tokio::test]
async fn an_answer_with_large_messages_holds_fewer() {
    let world = World::new(&["A"]).await;
    let text = "x".repeat(60_000);
    for number in 0..20 {
        world.send(&format!("t{number}"), &["A"], &text).await;
    }
    let (messages, next) = world.sync("A", None);
    assert_eq!(messages.len(), 18, "up to the one that passes a megabyte");
    assert_eq!(world.sync("A", Some(next)).0.len(), 2);
}

#[tokio::test]
async fn what_one_letter_sends_to_a_device_is_told_at_once() {
    let world = World::new(&["A"]).await;
    world.send("t1", &["A"; 130], "one").await;
    world.send("t2", &["A"], "two").await;
    let (messages, next) = world.sync("A", None);
    assert_eq!(messages.len(), 130);
    assert_eq!(world.sync("A", Some(next)).0, ["two"]);
}

#[tokio::test]
async fn messages_for_nobody_are_skipped_and_a_star_means_all_devices() {
    let world = World::new(&["A", "B"]).await;
    world.send("t1", &["C", "*"], "one").await;
    for device in ["A", "B"] {
        assert_eq!(world.sync(device, None).0, ["one"]);
    }
    assert_eq!(world.rows(), 2);
}

#[test]
fn rows_have_these_bytes() {
    use crate::storage::Record;
    let mut bytes = Vec::new();
    Expiring(Millis48(5), 7_u32).encode(&mut bytes);
    assert_eq!(bytes, [0, 0, 0, 0, 0, 5, 7]);
    let event = event(&alice(), "m.\"test", b"{}");
    let expected = r#"{"content":{},"sender":"@alice:example.org","type":"m.\"test"}"#;
    assert_eq!(event, expected);
}

/// What may happen to a device, in any order.
#[derive(Clone, Debug)]
enum Step {
    Send,
    /// Syncs with the newest token it has.
    Sync,
    /// Syncs with an older one again.
    SyncAgain,
    /// The server forgets what it has in memory.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Send),
        2 => Just(Step::Sync),
        1 => Just(Step::SyncAgain),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Each message is in the answers that a device goes on from once; an older token tells nothing that is not so.
    #[test]
    fn a_device_gets_everything_once(steps in proptest::collection::vec(step(), 0..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let world = World::new(&["A"]).await;
            let (mut sent, mut got) = (0, Vec::new());
            let mut tokens = BTreeMap::from([(world.sync("A", None).1, Vec::new())]);
            for step in steps.into_iter().chain([Step::Sync]) {
                let newest = *tokens.keys().next_back().unwrap();
                match step {
                    Step::Send => {
                        world.send(&format!("t{sent}"), &["A"], &sent.to_string()).await;
                        sent += 1;
                    }
                    Step::Sync => {
                        let (messages, next) = world.sync("A", Some(newest));
                        got.extend(messages.clone());
                        tokens.entry(newest).or_insert_with(Vec::new);
                        tokens.insert(newest, messages);
                        tokens.entry(next).or_insert_with(Vec::new);
                    }
                    Step::SyncAgain => {
                        let oldest = *tokens.keys().next().unwrap();
                        let (messages, _) = world.sync("A", Some(oldest));
                        let sent: BTreeSet<String> = (0..sent).map(|number: u32| number.to_string()).collect();
                        assert!(messages.iter().all(|message| sent.contains(message)));
                    }
                    Step::Restart => world.encryption.inner.to_device.queues.clear(),
                }
            }
            let expected: Vec<String> = (0..sent).map(|number| number.to_string()).collect();
            assert_eq!(got, expected);
        });
    }
}

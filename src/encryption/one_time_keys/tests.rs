//! Keys are given out once, in their order, on a store in memory.
#![allow(clippy::disallowed_methods, reason = "tests start tasks as they like")]

use ruma::DeviceId;

use super::*;
use crate::{
    encryption::{
        Publisher, Upload,
        to_device::tests::{World, alice},
    },
    events::canonical,
    storage::Record,
};

const ALGORITHM: &str = "signed_curve25519";

fn key(name: &str, text: &str) -> NewKey {
    NewKey {
        algorithm: ALGORITHM.to_owned(),
        id: format!("{ALGORITHM}:{name}"),
        json: format!("{{\"key\":\"{text}\"}}"),
    }
}

fn keys(names: &[&str]) -> Vec<NewKey> {
    names.iter().map(|name| key(name, name)).collect()
}

impl World {
    async fn publish(&self, upload: Upload) -> Result<Arc<KeyCounts>, Error> {
        let publisher = Publisher {
            user: self.user,
            device: "A".into(),
        };
        self.encryption.upload_keys(publisher, upload).await
    }

    async fn publish_one_time(&self, names: &[&str]) -> u64 {
        let upload = Upload {
            one_time_keys: keys(names),
            ..Upload::default()
        };
        let counts = self.publish(upload).await.unwrap();
        counts.one_time.get(ALGORITHM).copied().unwrap_or_default()
    }

    async fn publish_fallback(&self, name: &str) {
        let upload = Upload {
            fallback_keys: keys(&[name]),
            ..Upload::default()
        };
        self.publish(upload).await.unwrap();
    }

    /// The name of the key that a claim gives.
    async fn claim(&self) -> Option<String> {
        let device = BTreeMap::from([("A".into(), ALGORITHM.into())]);
        let claims = Claims::from([(alice(), device)]);
        let claimed = self.encryption.claim_keys(claims).await.unwrap();
        let keys = claimed.into_values().flatten().map(|(_, keys)| keys);
        let mut ids = keys.flatten().map(|(id, _)| id);
        let id = ids.next()?;
        assert_eq!(ids.next(), None, "one key");
        Some(id.strip_prefix(ALGORITHM).unwrap()[1..].to_owned())
    }

    fn counts(&self) -> Arc<KeyCounts> {
        let snapshot = self.store.snapshot().unwrap();
        let place = (self.user, device_hash(<&DeviceId>::from("A")));
        self.encryption.key_counts(&snapshot, place).unwrap()
    }

    fn has_unused_fallback(&self) -> bool {
        self.counts().unused_fallback.contains(ALGORITHM)
    }
}

#[tokio::test]
async fn keys_are_given_once_in_the_order_in_which_they_came_and_then_the_fallback_key() {
    let world = World::new(&["A"]).await;
    assert_eq!(world.claim().await, None);
    assert_eq!(world.publish_one_time(&["b"]).await, 1);
    assert_eq!(world.publish_one_time(&["a"]).await, 2);
    world.publish_fallback("f").await;
    assert!(world.has_unused_fallback());
    let before = world.counts().position;
    for expected in ["b", "a"] {
        assert_eq!(world.claim().await.as_deref(), Some(expected));
    }
    assert!(world.counts().one_time.is_empty());
    assert!(world.counts().position > before);
    assert!(world.has_unused_fallback());
    for _ in 0..2 {
        assert_eq!(world.claim().await.as_deref(), Some("f"));
        assert!(!world.has_unused_fallback());
    }
    // The same one is still used; another one is not.
    world.publish_fallback("f").await;
    assert!(!world.has_unused_fallback());
    world.publish_fallback("g").await;
    assert!(world.has_unused_fallback());
    assert_eq!(world.claim().await.as_deref(), Some("g"));
    assert_eq!(world.publish_one_time(&["c"]).await, 1);
    assert_eq!(world.claim().await.as_deref(), Some("c"));
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_at_the_same_time_get_different_keys() {
    let world = Arc::new(World::new(&["A"]).await);
    let names: Vec<String> = (0..40).map(|number| format!("k{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    assert_eq!(world.publish_one_time(&names).await, 40);
    let claims = (0..50).map(|_| {
        let world = Arc::clone(&world);
        tokio::spawn(async move { world.claim().await })
    });
    let claims: Vec<_> = claims.collect();
    let mut claimed = BTreeSet::new();
    let mut nothing = 0;
    for claim in claims {
        match claim.await.unwrap() {
            Some(name) => assert!(claimed.insert(name), "given twice"),
            None => nothing += 1,
        }
    }
    assert_eq!((claimed.len(), nothing), (40, 10));
    let snapshot = world.store.snapshot().unwrap();
    assert_eq!(verify(&snapshot).unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_key_may_be_published_again_and_another_one_of_its_id_may_not() {
    let world = World::new(&["A"]).await;
    assert_eq!(world.publish_one_time(&["a", "b", "c"]).await, 3);
    let before = world.counts().position;
    assert_eq!(world.publish_one_time(&["a", "b", "c"]).await, 3);
    assert_eq!(world.counts().position, before, "nothing has changed");
    assert_eq!(world.publish_one_time(&["b", "c", "d"]).await, 4);
    let upload = Upload {
        one_time_keys: vec![key("e", "e"), key("a", "other")],
        ..Upload::default()
    };
    let refused = world.publish(upload).await;
    assert!(matches!(refused, Err(Error::KeyInUse(id)) if id == "signed_curve25519:a"));
    assert_eq!(world.publish_one_time(&["a"]).await, 4, "all or nothing");
    let many: Vec<String> = (0..MAX_ONE_TIME_KEYS).map(|k| format!("k{k}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let upload = Upload {
        one_time_keys: keys(&many),
        ..Upload::default()
    };
    let refused = world.publish(upload).await;
    assert!(matches!(refused, Err(Error::TooManyKeys)));
}

#[tokio::test]
async fn what_other_keys_have_signed_ends_with_them() {
    let world = World::new(&["A"]).await;
    let upload = |identity: &str, name: &str| {
        let text = format!(r#"{{"keys":{{"ed25519:A":"{identity}"}},"x":"{name}"}}"#);
        Upload {
            device_keys: Some(canonical::parse(text.as_bytes()).unwrap()),
            one_time_keys: keys(&[name]),
            ..Upload::default()
        }
    };
    for (identity, name, expected) in [("1", "a", 1), ("1", "b", 2), ("2", "a", 1)] {
        let counts = world.publish(upload(identity, name)).await.unwrap();
        assert_eq!(counts.one_time[ALGORITHM], expected, "{identity} {name}");
    }
    assert_eq!(world.claim().await.as_deref(), Some("a"));
    assert_eq!(world.claim().await, None);
}

#[tokio::test]
async fn a_device_that_there_is_not_has_no_keys() {
    let world = World::new(&["B"]).await;
    let upload = Upload {
        one_time_keys: keys(&["a"]),
        ..Upload::default()
    };
    let refused = world.publish(upload).await;
    assert!(matches!(refused, Err(Error::UnknownDevice)));
    assert_eq!(world.claim().await, None);
}

#[test]
fn rows_have_these_bytes() {
    fn check<R: Record + PartialEq + std::fmt::Debug>(record: &R, expected: &str) {
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, expected);
        assert_eq!(R::decode(&bytes).as_ref(), Ok(record));
    }
    let (id, json) = ("a:b".to_owned(), "{}".to_owned());
    let row = KeyRow {
        id: id.clone(),
        json: json.clone(),
    };
    check(
        &Stamped(Position(9), row),
        "0000000000000009a262696463613a62646a736f6e627b7d",
    );
    let row = FallbackRow {
        id,
        json,
        is_used: true,
    };
    check(
        &Stamped(Position(9), row),
        "0000000000000009a362696463613a62646a736f6e627b7d6769735f75736564f5",
    );
}

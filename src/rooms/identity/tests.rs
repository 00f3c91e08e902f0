//! A key that is changed leaves its public half behind.

use std::time::Duration;

use ruma::server_name;

use super::{next_key_id, old_keys, rotate, signer};
use crate::{clock::Clock, rooms::Error, storage::Store};

#[tokio::test]
async fn a_new_key_takes_over_at_the_next_start_and_the_old_one_is_still_published() {
    let (store, clock) = (Store::memory(), Clock::manual(1_000));
    let name = server_name!("hearth.test").to_owned();
    let first = signer(&store, &clock, name.clone()).await.unwrap();

    let next = rotate(&store, &clock, name.clone()).await.unwrap();
    let (planned, old) = store
        .read(|snapshot| Ok::<_, Error>((next_key_id(snapshot)?, old_keys(snapshot)?)))
        .await
        .unwrap();
    assert_eq!(planned.as_deref(), Some(next.key_id().as_str()));
    assert!(old.is_empty(), "nothing has ended yet");

    clock.advance(Duration::from_secs(60));
    let second = signer(&store, &clock, name.clone()).await.unwrap();
    let third = signer(&store, &clock, name).await.unwrap();
    assert_eq!(second.key_id(), next.key_id());
    assert_eq!(third.key_id(), next.key_id(), "it changes once");
    let old = store.read(old_keys).await.unwrap();
    let [key] = old.as_slice() else {
        panic!("one key has ended: {old:?}");
    };
    assert_eq!(key.key_id, first.key_id().as_str());
    assert_eq!(key.verify_key, first.verify_key());
    assert_eq!(key.expired_ms, 61_000);
}

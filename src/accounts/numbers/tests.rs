//! Tests of user numbers.

use super::*;
use crate::{accounts::Settings, clock::Clock, storage::Store, telemetry::Metrics};

fn accounts(store: &Store) -> Accounts {
    let server_name = ruma::owned_server_name!("hearth.test");
    Accounts::new(
        store.clone(),
        Clock::manual(1),
        server_name,
        Settings::default(),
        &Metrics::new(),
    )
}

fn id(name: &str) -> OwnedUserId {
    UserId::parse(format!("@{name}:elsewhere.test")).expect("a user ID")
}

#[tokio::test]
async fn numbers_are_given_out_once_and_found_in_both_directions() {
    let store = Store::memory();
    let first = accounts(&store);
    let (a, b, long) = (id("a"), id("b"), id(&"x".repeat(300)));
    let numbers = first.intern(&[&a, &b, &a, &long]).await.expect("numbers");
    assert_eq!(
        numbers,
        [UserNumber(1), UserNumber(2), UserNumber(1), UserNumber(3)]
    );

    // Another instance has nothing cached.
    let second = accounts(&store);
    assert_eq!(
        second.intern(&[&long, &b]).await.expect("numbers"),
        [UserNumber(3), UserNumber(2)]
    );
    let third = accounts(&store);
    let snapshot = store.snapshot().expect("a snapshot");
    let ids = third.user_ids(&snapshot, &numbers).expect("IDs");
    assert_eq!(ids, [a.clone(), b.clone(), a.clone(), long]);
    assert_eq!(third.user_ids(&snapshot, &numbers).expect("IDs"), ids);
    let found = third
        .user_numbers(&snapshot, &[&id("c"), &b])
        .expect("a read");
    assert_eq!(found, [None, Some(UserNumber(2))]);
}

#[tokio::test]
async fn two_who_ask_at_once_get_the_same_number() {
    let store = Store::memory();
    let accounts = accounts(&store);
    let (a, b) = (id("a"), id("b"));
    let (first, second): ([&UserId; 1], [&UserId; 2]) = ([&a], [&b, &a]);
    let (one, two) = tokio::join!(accounts.intern(&first), accounts.intern(&second));
    let (one, two) = (one.expect("numbers"), two.expect("numbers"));
    assert_eq!(one.first(), two.last());
}

//! Tests of locks.
#![allow(clippy::disallowed_methods, reason = "tests start tasks as they like")]

use futures_util::FutureExt;

use super::*;

#[tokio::test]
async fn one_holder_at_a_time_first_come_first_served() {
    let locks = Locks::new();
    let order = Arc::new(Mutex::new(Vec::new()));
    let first = locks.lock("room").await;
    let mut waiting = Vec::new();
    for number in 0..10 {
        let (locks, order) = (locks.clone(), Arc::clone(&order));
        waiting.push(tokio::spawn(async move {
            let _guard = locks.lock("room").await;
            tokio::task::yield_now().await;
            lock(&order).push(number);
        }));
        tokio::task::yield_now().await;
    }
    let _other = locks.lock("another room").await;
    assert!(lock(&order).is_empty());
    drop(first);
    for task in waiting {
        task.await.unwrap();
    }
    assert_eq!(*lock(&order), (0..10).collect::<Vec<_>>());
}

#[tokio::test]
async fn entries_vanish_when_nobody_holds_or_waits() {
    let locks = Locks::new();
    let guard = locks.lock(1).await;
    assert!(locks.try_lock(1).is_none());
    let mut waiting = Box::pin(locks.lock(1));
    assert!((&mut waiting).now_or_never().is_none());
    drop(waiting);
    assert_eq!(locks.len(), 1);
    assert_eq!(*guard.key(), 1);
    drop(guard);
    assert!(locks.is_empty());
    assert!(locks.try_lock(1).is_some());
    assert!(locks.is_empty());
}

#[tokio::test]
async fn a_waiter_that_gives_up_does_not_hold_the_next_one() {
    let locks = Locks::new();
    let guard = locks.lock(1).await;
    let mut quitter = Box::pin(locks.lock(1));
    let mut patient = Box::pin(locks.lock(1));
    assert!((&mut quitter).now_or_never().is_none());
    assert!((&mut patient).now_or_never().is_none());
    drop(guard);
    drop(quitter);
    let _guard = patient.await;
}

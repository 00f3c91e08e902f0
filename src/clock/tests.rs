//! Tests of the clock.

use futures_util::FutureExt as _;

use super::*;

#[test]
fn a_manual_clock_moves_only_when_told() {
    let clock = Clock::manual(1_000);
    let start = clock.instant();
    assert_eq!(clock.now_ms(), 1_000);
    clock.clone().advance(Duration::from_secs(2));
    assert_eq!(clock.now_ms(), 3_000);
    assert_eq!(clock.instant() - start, Duration::from_secs(2));
}

#[test]
fn equal_seeds_give_equal_randomness() {
    let draw = |seed| Clock::seeded(0, seed).random_string(20);
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
}

#[test]
fn random_strings_have_the_length_and_letters_asked_for() {
    let text = Clock::system().random_string(1_000);
    assert_eq!(text.len(), 1_000);
    assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    assert_eq!(Clock::system().random_below(1), 0);
    assert!((0..100).all(|_| Clock::system().random_below(7) < 7));
}

#[tokio::test]
async fn a_sleep_ends_when_the_manual_clock_has_been_moved_so_far() {
    let clock = Clock::manual(1_000);
    let mut sleep = Box::pin(clock.sleep(Duration::from_millis(50)));
    assert!((&mut sleep).now_or_never().is_none());
    assert_eq!(clock.next_wait(), Some(1_050));
    clock.advance(Duration::from_millis(49));
    assert!((&mut sleep).now_or_never().is_none());
    clock.advance(Duration::from_millis(1));
    sleep.await;
    assert_eq!(clock.next_wait(), None);
    clock.sleep_until(1_050).await;
    clock.sleep(Duration::ZERO).await;
}

#[tokio::test]
async fn the_first_of_all_waits_is_told_and_an_abandoned_one_is_not() {
    let clock = Clock::manual(0);
    let waiting: Vec<_> = [30, 10, 20, 10]
        .map(|until_ms| {
            let clock = clock.clone();
            let mut sleep = Box::pin(async move { clock.sleep_until(until_ms).await });
            assert!((&mut sleep).now_or_never().is_none());
            sleep
        })
        .into();
    assert_eq!(clock.next_wait(), Some(10));
    let mut waiting = waiting.into_iter();
    drop(waiting.nth(1));
    assert_eq!(clock.next_wait(), Some(10), "another one waits for it");
    drop(waiting);
    assert_eq!(clock.next_wait(), None);
    assert_eq!(Clock::system().next_wait(), None);
}

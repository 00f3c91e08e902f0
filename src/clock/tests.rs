//! Tests of the clock.

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

//! Tests of the caches.

use super::*;

#[test]
fn a_row_read_before_a_change_is_not_kept() {
    let cache: Cache<u32, &str> = Cache::new(64);
    cache.forget(&1, Position(5));
    cache.fill(1, "old", Position(4));
    assert_eq!(cache.get(&1), None);
    cache.fill(1, "new", Position(5));
    assert_eq!(cache.get(&1), Some("new"));
}

#[test]
fn a_change_forgets_the_row() {
    let cache: Cache<u32, &str> = Cache::new(64);
    cache.fill(1, "old", Position(1));
    cache.forget(&1, Position(2));
    assert_eq!(cache.get(&1), None);
}

#[test]
fn the_cache_is_bounded() {
    let cache: Cache<u32, u32> = Cache::new(64);
    for number in 0..10_000 {
        cache.fill(number, number, Position(1));
    }
    let kept = (0..10_000)
        .filter(|number| cache.get(number).is_some())
        .count();
    assert!(kept <= 64, "{kept} rows are kept");
}

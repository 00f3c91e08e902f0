//! Buckets run empty and fill again.

use super::*;
use crate::units::{Rate, RatePeriod};

fn limits(clock: &Clock) -> Limits {
    let rate = Rate {
        count: 60.try_into().expect("not zero"),
        per: RatePeriod::Minute,
    };
    let login = Limit::Rate {
        rate,
        burst: 3.try_into().expect("not zero"),
    };
    let config = rate_limits::Config {
        login,
        message: Limit::Off,
        ..rate_limits::Config::default()
    };
    Limits::new(clock.clone(), config, &Metrics::new())
}

#[test]
fn a_burst_is_let_through_and_then_one_in_each_interval() {
    let clock = Clock::manual(0);
    let limits = limits(&clock);
    let taken = |expected: Result<(), Duration>| {
        assert_eq!(limits.take(Bucket::Login, Subject::User(1)), expected)
    };
    for _ in 0..3 {
        taken(Ok(()));
    }
    taken(Err(Duration::from_secs(1)));
    clock.advance(Duration::from_millis(400));
    taken(Err(Duration::from_millis(600)));
    clock.advance(Duration::from_millis(600));
    taken(Ok(()));
    taken(Err(Duration::from_secs(1)));
    clock.advance(Duration::from_secs(3600));
    for _ in 0..3 {
        taken(Ok(()));
    }
    taken(Err(Duration::from_secs(1)));
}

#[test]
fn users_and_buckets_are_counted_apart() {
    let limits = limits(&Clock::manual(0));
    for _ in 0..3 {
        assert!(limits.take(Bucket::Login, Subject::User(1)).is_ok());
    }
    assert!(limits.take(Bucket::Login, Subject::User(1)).is_err());
    assert!(limits.take(Bucket::Login, Subject::User(2)).is_ok());
    assert!(limits.take(Bucket::Join, Subject::User(1)).is_ok());
    for _ in 0..1_000 {
        assert!(
            limits.take(Bucket::Message, Subject::User(1)).is_ok(),
            "it is off"
        );
    }
}

#[test]
fn addresses_of_one_network_are_one_subject() {
    let subject = |text: &str| Subject::address(text.parse().expect("an address"));
    assert_eq!(subject("2001:db8::1"), subject("2001:db8::2"));
    assert_ne!(subject("2001:db8::1"), subject("2001:db8:0:1::1"));
    assert_eq!(subject("::ffff:192.0.2.1"), subject("192.0.2.1"));
}

#[test]
fn memory_is_bounded() {
    let limits = limits(&Clock::manual(0));
    for number in 0..200_000 {
        assert!(limits.take(Bucket::Login, Subject::User(number)).is_ok());
    }
    let kept: usize = limits
        .shards
        .iter()
        .map(|shard| shard.lock().expect("whole").full_at.len())
        .sum();
    assert!(kept <= SHARDS * MAX_BUCKETS_PER_SHARD, "{kept}");
}

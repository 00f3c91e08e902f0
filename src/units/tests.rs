//! What people write, and what they read back.

use super::*;

#[test]
fn a_period_is_read_and_printed_in_its_largest_unit() {
    for (written, printed) in [
        ("90s", "90s"),
        ("60s", "1m"),
        ("48h", "2d"),
        ("1500ms", "1500ms"),
        ("0s", "0ms"),
        ("5 m", "5m"),
    ] {
        let period: Period = written.parse().expect("a good period");
        assert_eq!(period.to_string(), printed);
    }
}

#[test]
fn a_size_is_read_and_printed_in_its_largest_unit() {
    for (written, printed) in [
        ("50MiB", "50MiB"),
        ("1024KiB", "1MiB"),
        ("1kB", "1000B"),
        ("0B", "0B"),
    ] {
        let size: ByteSize = written.parse().expect("a good size");
        assert_eq!(size.to_string(), printed);
    }
}

#[test]
fn a_rate_knows_the_time_between_two() {
    let rate: Rate = "100/min".parse().expect("a good rate");
    assert_eq!(rate.interval(), Duration::from_millis(600));
    assert_eq!(rate.to_string(), "100/min");
}

#[test]
fn a_number_without_a_unit_is_refused() {
    assert_eq!("30".parse::<Period>(), Err(ParseError::Period));
    assert_eq!("1048576".parse::<ByteSize>(), Err(ParseError::ByteSize));
    assert_eq!("10".parse::<Rate>(), Err(ParseError::Rate));
    assert_eq!("0/s".parse::<Rate>(), Err(ParseError::Rate));
    assert_eq!(
        "99999999999999999999d".parse::<Period>(),
        Err(ParseError::Period)
    );
    assert_eq!(
        "18446744073709551615d".parse::<Period>(),
        Err(ParseError::Period)
    );
}

#[test]
fn a_secret_is_never_printed() {
    let secret = Secret::from("hunter2".to_owned());
    assert!(!format!("{secret:?}").contains("hunter2"));
    assert_eq!(
        serde_json::to_string(&secret).expect("a string"),
        "\"********\""
    );
}

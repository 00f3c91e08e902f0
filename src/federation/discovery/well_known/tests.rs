//! What a file says and how long it counts.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::{
    DEFAULT_LIFETIME, MAX_ERROR_LIFETIME, MAX_LIFETIME, MIN_LIFETIME, error_lifetime, http_date,
    lifetime, parse,
};

#[track_caller]
fn check_file(file: &str, expected: Option<&str>) {
    let found = parse(file.as_bytes());
    assert_eq!(found.as_ref().map(|name| name.as_str()), expected, "{file}");
}

#[test]
fn only_a_server_name_is_a_delegation() {
    check_file(r#"{"m.server":"a.example"}"#, Some("a.example"));
    check_file(
        r#"{"m.server":"a.example:443","more":[1.5]}"#,
        Some("a.example:443"),
    );
    check_file(r#"{"m.server":"[::1]:1"}"#, Some("[::1]:1"));
    for file in [
        "",
        "[]",
        "<html>",
        "{}",
        r#"{"m.server":""}"#,
        r#"{"m.server":null}"#,
        r#"{"m.server":"https://a.example"}"#,
        r#"{"m.server":"a.example:99999"}"#,
        r#"{"m.server":"a.example/x"}"#,
    ] {
        check_file(file, None);
    }
}

const NOW_MS: u64 = 784_111_777_000;

#[track_caller]
fn check_lifetime(lines: &[(HeaderName, &'static str)], expected: Duration) {
    let headers: HeaderMap = lines
        .iter()
        .map(|(name, value)| (name.clone(), HeaderValue::from_static(value)))
        .collect();
    assert_eq!(lifetime(&headers, NOW_MS), expected, "{lines:?}");
}

#[test]
fn the_headers_say_how_long_a_file_counts() {
    let seconds = Duration::from_secs;
    check_lifetime(&[], DEFAULT_LIFETIME);
    check_lifetime(
        &[(header::CACHE_CONTROL, "public, Max-Age=3600")],
        seconds(3_600),
    );
    check_lifetime(&[(header::CACHE_CONTROL, "max-age=1")], MIN_LIFETIME);
    check_lifetime(&[(header::CACHE_CONTROL, "max-age=99999999")], MAX_LIFETIME);
    check_lifetime(
        &[(header::CACHE_CONTROL, "no-store, max-age=3600")],
        MIN_LIFETIME,
    );
    check_lifetime(&[(header::CACHE_CONTROL, "max-age=no")], DEFAULT_LIFETIME);
    let in_two_hours = (header::EXPIRES, "Sun, 06 Nov 1994 10:49:37 GMT");
    check_lifetime(std::slice::from_ref(&in_two_hours), seconds(7_200));
    check_lifetime(
        &[in_two_hours, (header::CACHE_CONTROL, "max-age=600")],
        seconds(600),
    );
    check_lifetime(&[(header::EXPIRES, "0")], MIN_LIFETIME);
}

#[test]
fn a_missing_file_is_asked_for_less_and_less() {
    let lifetimes: Vec<u64> = (0..7)
        .map(|failures| error_lifetime(failures).as_secs() / 60)
        .collect();
    assert_eq!(lifetimes, [2, 4, 8, 16, 32, 60, 60]);
    assert_eq!(error_lifetime(u32::MAX), MAX_ERROR_LIFETIME);
}

#[test]
fn dates_are_read() {
    for (text, expected) in [
        ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
        ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
        ("Tue, 29 Feb 2000 12:00:00 GMT", Some(951_825_600)),
        ("Wed, 01 Mar 2000 00:00:00 GMT", Some(951_868_800)),
        ("Sat, 21 Nov 2026 15:00:00 GMT", Some(1_795_273_200)),
        ("Sat, 21 Nov 2026 15:00:00 CET", None),
        ("Sat, 21 Now 2026 15:00:00 GMT", None),
        ("Sat, 21 Nov 2026 25:00:00 GMT", None),
        ("Sun Nov  6 08:49:37 1994", None),
        ("", None),
    ] {
        assert_eq!(http_date(text), expected, "{text}");
    }
}

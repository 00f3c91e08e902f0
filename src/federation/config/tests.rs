//! Who matches a pattern, and whom a configuration allows.

use ruma::ServerName;

use super::{Config, Mode, ServerPattern};

#[track_caller]
fn check(pattern: &str, server: &str, is_match: bool) {
    let parsed: ServerPattern = pattern.parse().expect("a pattern");
    let server = <&ServerName>::try_from(server).expect("a server name");
    assert_eq!(parsed.matches(server), is_match, "{pattern} {server}");
}

#[test]
fn a_pattern_matches_the_name_or_its_host() {
    check("example.org", "example.org", true);
    check("example.org", "EXAMPLE.org", true);
    check("example.org", "example.org:8449", true);
    check("example.org:8449", "example.org:8449", true);
    check("example.org:8449", "example.org", false);
    check("example.org", "an.example.org", false);
    check("*.example.org", "an.example.org", true);
    check("*.example.org", "a.b.example.org:1", true);
    check("*.example.org", "example.org", false);
    check(
        "ex?mple.org",
        "exámple.org".replace('á', "a").as_str(),
        true,
    );
    check("*a*b*", "xaxxbx", true);
    check("*a*b*", "xbxxax", false);
    check("*", "[::1]:8448", true);
    check("[::1]", "[::1]:8448", true);
}

#[test]
fn a_pattern_that_no_server_could_match_is_refused() {
    for text in ["", "https://example.org", "example org"] {
        assert!(text.parse::<ServerPattern>().is_err(), "{text}");
    }
}

#[test]
fn the_mode_says_which_list_counts() {
    let server = <&ServerName>::try_from("an.example.org").expect("a server name");
    let list = |text: &str| vec![text.parse().expect("a pattern")];
    let mut config = Config::default();
    assert!(config.allows(server));
    config.deny = list("*.example.org");
    assert!(!config.allows(server));
    config.mode = Mode::Allowlist;
    config.allow = list("an.example.org");
    assert!(!config.allows(server), "denied all the same");
    config.deny.clear();
    assert!(config.allows(server));
    config.allow = list("other.example");
    assert!(!config.allows(server));
    config.allow = list("*");
    config.mode = Mode::Off;
    assert!(!config.allows(server));
}

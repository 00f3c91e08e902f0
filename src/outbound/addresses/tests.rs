//! Ranges, exceptions, and other ways to write an address.

use super::{Rules, default_denied_ranges, literal};

fn check(rules: &Rules, address: &str, is_allowed: bool) {
    let parsed = address.parse().expect("an address");
    assert_eq!(rules.allow(parsed), is_allowed, "{address}");
}

#[test]
fn only_public_addresses_are_allowed_by_default() {
    let rules = Rules::new(default_denied_ranges(), Vec::new());
    for address in ["1.1.1.1", "172.32.0.1", "2606:4700::1111", "100.128.0.1"] {
        check(&rules, address, true);
    }
    for address in [
        "0.0.0.0",
        "10.1.2.3",
        "100.64.0.1",
        "127.0.0.1",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fd00::1",
        "fe80::1",
        "ff02::1",
    ] {
        check(&rules, address, false);
    }
}

#[test]
fn an_address_in_disguise_is_what_it_leads_to() {
    let rules = Rules::new(default_denied_ranges(), Vec::new());
    check(&rules, "::ffff:127.0.0.1", false);
    check(&rules, "::ffff:1.1.1.1", true);
    check(&rules, "64:ff9b::7f00:1", false);
    check(&rules, "64:ff9b::101:101", true);
    check(&rules, "2002:7f00:1::", false);
    check(&rules, "2002:101:101::", true);
}

#[test]
fn an_exception_wins_over_a_denied_range() {
    let allowed = vec!["10.1.0.0/16".parse().expect("a range")];
    let rules = Rules::new(default_denied_ranges(), allowed);
    check(&rules, "10.1.2.3", true);
    check(&rules, "10.2.2.3", false);
    check(&rules, "::ffff:10.1.2.3", true);
    check(&rules, "64:ff9b::a01:203", true);
}

#[test]
fn a_literal_is_told_from_a_name() {
    assert_eq!(literal("127.0.0.1"), "127.0.0.1".parse().ok());
    assert_eq!(literal("[::1]"), "::1".parse().ok());
    assert_eq!(literal("::1"), "::1".parse().ok());
    assert_eq!(literal("example.org"), None);
    assert_eq!(literal("[127.0.0.1]"), None);
    assert_eq!(literal("127.1"), None);
}

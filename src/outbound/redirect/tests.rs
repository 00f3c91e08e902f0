//! Where a location leads.

use super::join;

#[track_caller]
fn check(location: &str, expected: Option<&str>) {
    let url = "https://example.org:8443/.well-known/matrix/server?x"
        .parse()
        .expect("a URL");
    let joined = join(&url, location).map(|url| url.to_string());
    assert_eq!(joined.as_deref(), expected, "{location}");
}

#[test]
fn a_location_is_seen_from_where_it_was_found() {
    check("https://other.example/x", Some("https://other.example/x"));
    check("http://other.example/x", Some("http://other.example/x"));
    check("//other.example/x", Some("https://other.example/x"));
    check("/x?y", Some("https://example.org:8443/x?y"));
    check("x", Some("https://example.org:8443/.well-known/matrix/x"));
    check("/x#part", Some("https://example.org:8443/x"));
    check("https://exa mple/", None);
}

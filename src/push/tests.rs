//! Tests of pushers.

use super::*;

#[test]
fn a_gateway_is_known_by_its_path() {
    assert!(is_gateway(
        "https://push.example.org/_matrix/push/v1/notify"
    ));
    assert!(is_gateway("http://gateway:7183/_matrix/push/v1/notify"));
    for bad in [
        "push.example.org/_matrix/push/v1/notify",
        "https://push.example.org",
        "https://push.example.org/_matrix/push/v1/notify/more",
        "https://push.example.org/other?/_matrix/push/v1/notify",
        "ftp://push.example.org/_matrix/push/v1/notify",
    ] {
        assert!(!is_gateway(bad), "{bad}");
    }
}

#[test]
fn keys_tell_applications_from_pushkeys() {
    let ids = |app_id: &str, pushkey: &str| PusherIds::new(pushkey.to_owned(), app_id.to_owned());
    assert_ne!(key(&ids("a", "bc")), key(&ids("ab", "c")));
    assert_eq!(key(&ids("a", "b")), key(&ids("a", "b")));
}

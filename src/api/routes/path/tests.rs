//! Which paths an endpoint has, and what is read from a request's.

use super::*;

#[test]
fn each_v3_path_is_served_as_r0_too() {
    let paths = all([
        "/_matrix/client/v3/sync",
        "/_matrix/client/unstable/org.example/sync",
    ]
    .into_iter());
    assert_eq!(
        paths,
        [
            "/_matrix/client/r0/sync",
            "/_matrix/client/unstable/org.example/sync",
            "/_matrix/client/v3/sync"
        ]
    );
}

#[test]
fn an_empty_state_key_needs_no_segment() {
    let paths = all(["/rooms/{room_id}/state/{event_type}/{state_key}"].into_iter());
    assert_eq!(
        paths,
        [
            "/rooms/{room_id}/state/{event_type}",
            "/rooms/{room_id}/state/{event_type}/",
            "/rooms/{room_id}/state/{event_type}/{state_key}"
        ]
    );
}

#[test]
fn variables_are_named_by_their_place() {
    assert_eq!(
        numbered("/rooms/{room_id}/event/{event_id}"),
        "/rooms/{2}/event/{4}"
    );
}

#[test]
fn arguments_are_percent_decoded_and_a_plus_stays_a_plus() {
    let args =
        PathArgs::decode(["%21room%3Aa%2Fb", "a+b", "%C3%A9"].into_iter()).expect("good arguments");
    assert_eq!(args.as_strs().as_slice(), ["!room:a/b", "a+b", "é"]);
    for bad in ["%", "%2", "%zz", "%ff", "%+1"] {
        assert!(PathArgs::decode([bad].into_iter()).is_err(), "{bad}");
    }
}

#[test]
fn a_form_has_pluses_for_spaces() {
    assert_eq!(form_value("a=1&b=x+y%2B&c", "b").as_deref(), Some("x y+"));
    assert_eq!(form_value("a=1&b=x+y&c", "c").as_deref(), Some(""));
    assert_eq!(form_value("a=1", "b"), None);
}

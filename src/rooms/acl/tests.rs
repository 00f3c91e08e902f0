//! What malformed lists mean.

use ruma::server_name;
use serde_json::json;

use super::*;

/// Who of a good, an evil and a nameless server is let in.
fn allowed(content: Value) -> [bool; 3] {
    let list = serde_json::from_value::<Given>(content)
        .expect("an object")
        .read();
    [
        server_name!("good.test"),
        server_name!("evil.test:8448"),
        server_name!("1.2.3.4"),
    ]
    .map(|server| list.is_allowed(server))
}

#[test]
fn a_list_says_who_takes_part() {
    let list = json!({ "allow": ["*"], "deny": ["evil.test"], "allow_ip_literals": false });
    assert_eq!(allowed(list), [true, false, false]);
}

#[test]
fn what_is_no_text_in_a_list_is_passed_over_and_the_rest_holds() {
    let list = json!({ "allow": ["*", 1, null], "deny": [["x"], "evil.test"] });
    assert_eq!(allowed(list), [true, false, true]);
}

#[test]
fn what_is_no_list_is_an_empty_one() {
    assert_eq!(
        allowed(json!({ "allow": ["*"], "deny": "evil.test" })),
        [true; 3]
    );
    assert_eq!(
        allowed(json!({ "allow": "*", "deny": ["evil.test"] })),
        [false; 3]
    );
    assert_eq!(allowed(json!({})), [false; 3]);
}

#[test]
fn what_is_no_boolean_allows_addresses() {
    let list = json!({ "allow": ["*"], "allow_ip_literals": "false" });
    assert_eq!(allowed(list), [true; 3]);
}

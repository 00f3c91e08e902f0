//! Tests of what follows a user from a room to its successor.

use super::*;

#[test]
fn a_direct_chat_stays_one_in_the_new_room() {
    let follow = |json: &str| {
        let direct = RawValue::from_string(json.to_owned()).expect("JSON");
        with_successor(&direct, "!old:a", "!new:a").map(|after| after.get().to_owned())
    };
    let changed = follow(r#"{"@a:a":["!old:a","!x:a"],"@b:a":["!y:a"]}"#);
    assert_eq!(
        changed.as_deref(),
        Some(r#"{"@a:a":["!old:a","!x:a","!new:a"],"@b:a":["!y:a"]}"#)
    );
    assert_eq!(follow(r#"{"@a:a":["!old:a","!new:a"]}"#), None);
    assert_eq!(follow(r#"{"@a:a":"!old:a"}"#), None);
    assert_eq!(follow("[]"), None);
}

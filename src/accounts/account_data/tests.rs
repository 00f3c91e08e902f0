//! Tests of account data.

use super::*;

#[test]
fn a_part_has_these_bytes() {
    let part = Part {
        position: Position(5),
        parts: 2,
        json: Bytes::from_static(b"{}"),
    };
    let mut bytes = Vec::new();
    part.encode(&mut bytes);
    assert_eq!(bytes, b"\0\0\0\0\0\0\0\x05\0\x02{}");
    assert_eq!(Part::decode(&bytes), Ok(part));
}

#[test]
fn only_user_ids_are_ignored() {
    let ignored = |json: &str| {
        let content = RawValue::from_string(json.to_owned()).expect("JSON");
        parse_ignored(&content).len()
    };
    assert_eq!(
        ignored(r#"{"ignored_users":{"@a:b":{},"nonsense":{},"@c:d":null}}"#),
        2
    );
    assert_eq!(ignored(r#"{"ignored_users":["@a:b"]}"#), 0);
    assert_eq!(ignored("{}"), 0);
    assert_eq!(ignored("[]"), 0);
}

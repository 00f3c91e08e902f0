//! How messages are put into EDUs.

use ruma::user_id;
use serde_json::{Value, json};

use super::*;

fn message(user: &str, device: &str, bytes: usize) -> Recipient {
    Recipient {
        user: OwnedUserId::try_from(user).unwrap(),
        device: DeviceIdOrAllDevices::try_from(device).unwrap(),
        content: serde_json::to_vec(&json!({ "a": "x".repeat(bytes) })).unwrap(),
    }
}

#[test]
fn an_edu_is_canonical_json() {
    let messages = in_parts(vec![
        message("@b:two", "*", 1),
        message("@a:two", "D\"2", 2),
        message("@a:two", "D1", 3),
    ]);
    assert_eq!(messages.len(), 1);
    let edu = write_edu(&user_id!("@s:one").to_owned(), "m.x", "id", &messages[0]);
    let parsed = canonical::parse(edu.as_bytes()).unwrap();
    assert_eq!(canonical::to_vec(&parsed), edu.as_bytes());
    let edu: Value = serde_json::from_str(&edu).unwrap();
    let expected = json!({
        "edu_type": "m.direct_to_device",
        "content": {
            "sender": "@s:one",
            "type": "m.x",
            "message_id": "id",
            "messages": {
                "@a:two": { "D1": { "a": "xxx" }, "D\"2": { "a": "xx" } },
                "@b:two": { "*": { "a": "x" } },
            },
        },
    });
    assert_eq!(edu, expected);
}

#[test]
fn messages_are_cut_into_edus_that_a_row_can_hold() {
    let most = MAX_CONTENT_BYTES - 8;
    let parts = in_parts(vec![
        message("@a:two", "A", most),
        message("@a:two", "B", 10),
        message("@a:two", "C", 30_000),
        message("@a:two", "D", 30_000),
        message("@a:two", "E", 30_000),
    ]);
    let devices: Vec<Vec<&str>> = parts
        .iter()
        .map(|part| part["@a:two"].keys().map(String::as_str).collect())
        .collect();
    assert_eq!(devices, [vec!["A"], vec!["B", "C", "D"], vec!["E"]]);
}

//! Keys with the names of their devices; the bytes of rows.

use super::*;
use crate::storage::Record;

#[test]
fn a_name_stands_in_what_is_not_signed() {
    let named = |json: &str, name: Option<&str>| {
        let device = DeviceWithKeys {
            json: json.to_owned(),
            display_name: name.map(str::to_owned),
        };
        device.with_name()
    };
    assert_eq!(named(r#"{"a":1}"#, None), r#"{"a":1}"#);
    let expected = r#"{"a":1,"unsigned":{"device_display_name":"My \"phone\""}}"#;
    assert_eq!(named(r#"{"a":1}"#, Some("My \"phone\"")), expected);
    let expected = r#"{"unsigned":{"device_display_name":""}}"#;
    assert_eq!(named("{}", Some("")), expected);
}

#[test]
fn rows_have_these_bytes() {
    let row = DeviceKeysRow {
        json: "{}".to_owned(),
    };
    let mut bytes = Vec::new();
    Stamped(Position(9), row).encode(&mut bytes);
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, "0000000000000009a1646a736f6e627b7d");
}

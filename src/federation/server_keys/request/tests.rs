//! What a request signs.

use bytes::Bytes;

use super::Target;

fn check(body: &str, content: Option<&str>) {
    let target = Target {
        method: "PUT".to_owned(),
        uri: "/_matrix/federation/v1/send/1?a=\"b\"".to_owned(),
        origin: "one.test".to_owned(),
        destination: "two.test".to_owned(),
        body: Bytes::copy_from_slice(body.as_bytes()),
    };
    let rest = r#""destination":"two.test","method":"PUT","origin":"one.test","uri":"/_matrix/federation/v1/send/1?a=\"b\""}"#;
    let expected = content.map(|content| match content {
        "" => format!("{{{rest}"),
        content => format!("{{\"content\":{content},{rest}"),
    });
    let signed = target
        .signed_text()
        .map(|text| String::from_utf8(text).unwrap());
    assert_eq!(signed, expected);
}

#[test]
fn the_body_is_signed_in_canonical_form() {
    check("", Some(""));
    check("{}", Some("{}"));
    check(
        r#"{ "b": [1, {"z": null, "y": "é"}], "a": true }"#,
        Some(r#"{"a":true,"b":[1,{"y":"é","z":null}]}"#),
    );
}

#[test]
fn numbers_that_are_not_canonical_are_signed_as_they_came() {
    check(
        r#"{"pdus": [ {"depth": 1.50, "c": -0, "a": "\u00e9"} ], "edus": []}"#,
        Some(r#"{"edus":[],"pdus":[{"a":"é","c":-0,"depth":1.50}]}"#),
    );
}

#[test]
fn what_is_no_json_or_too_deep_is_not_signed() {
    check("{", None);
    let deep = format!("{}1.5{}", "[".repeat(60), "]".repeat(60));
    check(&format!("{{\"a\":{deep}}}"), None);
}

//! Reading and writing, against the library's.

use proptest::prelude::*;

use super::*;

/// Any canonical JSON value.
pub(in crate::events) fn any_value() -> impl Strategy<Value = CanonicalJsonValue> {
    let leaf = prop_oneof![
        Just(CanonicalJsonValue::Null),
        any::<bool>().prop_map(CanonicalJsonValue::Bool),
        (i64::from(Int::MIN)..=i64::from(Int::MAX)).prop_map(|number| {
            CanonicalJsonValue::Integer(
                Int::try_from(number).expect("the range is that of the type"),
            )
        }),
        any::<String>().prop_map(CanonicalJsonValue::String),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(CanonicalJsonValue::Array),
            prop::collection::btree_map(any::<String>(), inner, 0..6)
                .prop_map(CanonicalJsonValue::Object),
        ]
    })
}

/// Any canonical JSON object.
pub(in crate::events) fn any_object() -> impl Strategy<Value = CanonicalJsonObject> {
    prop::collection::btree_map(any::<String>(), any_value(), 0..6)
}

/// JSON text of all kinds of numbers. Keys do not repeat: a value that does not count is checked all the same, but not by the library.
fn any_text() -> impl Strategy<Value = String> {
    let number = prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|n| n.to_string()),
        "-?[0-9]{1,17}(\\.0|e1)?"
    ];
    let leaf = prop_oneof![
        number,
        "\"(\\\\u00[0-9a-f]{2}|[a-z])*\"",
        Just("null".to_owned()),
        Just("true".to_owned())
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4)
                .prop_map(|values| format!("[{}]", values.join(","))),
            prop::collection::btree_map("[a-d]", inner, 0..4).prop_map(|entries| {
                let entries: Vec<String> = entries
                    .iter()
                    .map(|(key, value)| format!(" \"{key}\" : {value}"))
                    .collect();
                format!("{{{}}}", entries.join(","))
            }),
        ]
    })
}

proptest! {
    #[test]
    fn what_is_written_is_what_the_library_writes_and_reads_back(object in any_object()) {
        let written = to_vec(&object);
        prop_assert_eq!(&written, &serde_json::to_vec(&object).expect("canonical JSON is JSON"));
        prop_assert_eq!(parse(&written).expect("it was just written"), object);
    }

    #[test]
    fn what_the_library_reads_is_read_and_nothing_else(text in any_text()) {
        let read = parse(text.as_bytes()).ok();
        prop_assert_eq!(read, serde_json::from_str::<CanonicalJsonObject>(&text).ok());
    }
}

#[test]
fn what_canonical_json_cannot_say_is_refused() {
    for text in [
        r#"{"a":1.5}"#,
        r#"{"a":1.0}"#,
        r#"{"a":1e3}"#,
        r#"{"a":-0}"#,
        r#"{"a":9007199254740992}"#,
        r#"{"a":-9007199254740992}"#,
        r#"{"a":18446744073709551616}"#,
        r#"{"a":"\ud800"}"#,
        r#"{"a":1}{}"#,
        r#"{"a":1,}"#,
        r#"{1:1}"#,
        "[]",
        "1",
        "",
    ] {
        assert!(parse(text.as_bytes()).is_err(), "{text}");
    }
    assert!(parse(b"{\"a\":\"\xff\"}").is_err());
    assert!(parse("[".repeat(100_000).as_bytes()).is_err());
    assert!(parse(format!("{{\"a\":{}", "[".repeat(100_000)).as_bytes()).is_err());
}

#[test]
fn of_a_duplicate_key_the_last_value_counts() {
    let object =
        parse(br#" {"b" : 1, "a":{"c":1,"c":[]}, "b":"\u65e5\n" } "#).expect("this is an object");
    assert_eq!(
        to_vec(&object),
        "{\"a\":{\"c\":[]},\"b\":\"日\\n\"}".as_bytes()
    );
}

#[test]
fn integers_of_the_whole_range_are_kept() {
    let text = r#"{"a":[9007199254740991,-9007199254740991,0]}"#;
    assert_eq!(
        to_vec(&parse(text.as_bytes()).expect("this is an object")),
        text.as_bytes()
    );
}

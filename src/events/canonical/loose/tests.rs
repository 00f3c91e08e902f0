//! What is read and written again.

use proptest::prelude::*;

use super::*;
use crate::events::canonical::{self, tests::any_object};

fn again(text: &str) -> Option<String> {
    let loose = Loose::parse(text.as_bytes()).ok()?;
    Some(String::from_utf8(loose.to_vec()).expect("JSON is UTF-8"))
}

#[test]
fn numbers_stay_as_their_sender_wrote_them() {
    for number in [
        "1.0",
        "-0",
        "-0.0",
        "1e2",
        "5.114698E4",
        "9007199254740992",
        "-9007199254740992",
        "123456789012345678901234567890",
    ] {
        let text = format!(r#"{{"a":[{number},{{"b":{number}}}],"c":1}}"#);
        assert_eq!(again(&text).as_deref(), Some(&*text));
        assert!(parse(text.as_bytes()).is_err());
    }
}

#[test]
fn keys_are_sorted_and_the_last_of_two_counts() {
    assert_eq!(
        again(r#" {"b": 1.50, "a": "x\u0041", "b" : 2.5, "c":null,"d":true} "#).as_deref(),
        Some(r#"{"a":"xA","b":2.5,"c":null,"d":true}"#)
    );
}

#[test]
fn what_is_no_json_or_beyond_all_limits_is_refused() {
    for text in [
        "",
        "1.5",
        "[1.5]",
        r#"{"a":1.5"#,
        r#"{"a":01.5}"#,
        r#"{"a":1e999}"#,
        r#"{"a":1.7976931348623159e308}"#,
        r#"{"a":NaN}"#,
        r#"{1.5:2}"#,
    ] {
        assert_eq!(again(text), None, "{text}");
    }
    let nested = |depth: usize| {
        let (open, close) = ("[".repeat(depth), "]".repeat(depth));
        format!(r#"{{"a":{open}1.5{close}}}"#)
    };
    assert!(again(&nested(MAX_DEPTH - 1)).is_some());
    assert!(again(&nested(MAX_DEPTH)).is_none());
    assert!(again(&nested(30_000)).is_none());
}

#[test]
fn what_is_kept_can_be_read_by_all() {
    let mut mantissa = "17976931348623157".to_owned();
    for exponent in 280..300 {
        mantissa.push('9');
        for number in [format!("{mantissa}e{exponent}"), mantissa.repeat(18)] {
            let text = format!(r#"{{"a":{number},"b":0.5}}"#);
            let read: Result<serde_json::Value, _> = serde_json::from_str(&text);
            assert_eq!(again(&text).is_some(), read.is_ok(), "{text}");
        }
    }
}

#[test]
fn no_string_passes_for_a_number() {
    let forged = format!(r#"{{"a":"{MARK}1.5","b":"x"}}"#);
    // Without other numbers a string is a string.
    assert_eq!(again(&forged).as_deref(), Some(&*forged));
    let mixed = format!(r#"{{"a":"{MARK},\"c\":1","b":1.5}}"#);
    assert_eq!(again(&mixed), None);
}

proptest! {
    #[test]
    fn what_is_canonical_is_read_and_written_as_such(object in any_object()) {
        let text = canonical::to_vec(&object);
        let loose = Loose::parse(&text).expect("the text is JSON");
        prop_assert!(loose.is_canonical());
        prop_assert_eq!(loose.to_vec(), text);
    }

    #[test]
    fn one_other_number_changes_nothing_else(object in any_object()) {
        prop_assume!(!serde_json::to_string(&object).expect("an object is JSON").contains(MARK));
        let mut text = canonical::to_vec(&object);
        let with = match object.is_empty() {
            true => br#"{"":0.5}"#.to_vec(),
            false => [br#"{"":0.5,"#, text.split_off(1).as_slice()].concat(),
        };
        prop_assume!(!object.contains_key(""));
        let loose = Loose::parse(&with).expect("the text is JSON");
        prop_assert!(!loose.is_canonical());
        prop_assert_eq!(loose.to_vec(), with);
    }
}

//! Power levels with a decimal point or an exponent: what is behind the point does not count.
//!
//! Only rooms before version 6 hold such events. Their content stays as it was signed; the rules are given this form of it.
//!
//! Spec: rooms/v1, "`m.room.power_levels` events accept values as floats".

use serde_json::{Value, value::RawValue};

/// The content with whole numbers, if not all were.
pub(super) fn truncated(content: &RawValue) -> Option<Box<RawValue>> {
    if !has_float(content.get()) {
        return None;
    }
    let mut value: Value = serde_json::from_str(content.get()).ok()?;
    truncate(&mut value);
    serde_json::value::to_raw_value(&value).ok()
}

/// Whether a number of a JSON text has a point or an exponent.
fn has_float(text: &str) -> bool {
    let (mut is_text, mut is_escaped, mut is_number) = (false, false, false);
    for byte in text.bytes() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_text => is_escaped = true,
            b'"' => (is_text, is_number) = (!is_text, false),
            _ if is_text => {}
            b'.' | b'e' | b'E' if is_number => return true,
            _ => is_number = byte.is_ascii_digit(),
        }
    }
    false
}

fn truncate(value: &mut Value) {
    match value {
        Value::Object(fields) => fields.values_mut().for_each(truncate),
        Value::Array(elements) => elements.iter_mut().for_each(truncate),
        Value::Number(number) if number.is_f64() => {
            let whole = number.as_f64().map(f64::trunc);
            // What is beyond the integers of JSON stays, and the rules refuse it.
            let whole = whole.map(|whole| format!("{whole:.0}"));
            if let Some(whole) = whole.and_then(|whole| whole.parse::<i64>().ok()) {
                *value = whole.into();
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(content: &str, expected: Option<&str>) {
        let content = RawValue::from_string(content.to_owned()).expect("the text is JSON");
        assert_eq!(truncated(&content).as_deref().map(RawValue::get), expected);
    }

    #[test]
    fn what_is_behind_the_point_does_not_count() {
        check(
            r#"{"ban":50.57,"kick":5.114698E4,"users":{"@a:x.example":-1.9}}"#,
            Some(r#"{"ban":50,"kick":51146,"users":{"@a:x.example":-1}}"#),
        );
        check(
            r#"{"ban":1e2,"kick":"1.5"}"#,
            Some(r#"{"ban":100,"kick":"1.5"}"#),
        );
        check(r#"{"ban":-0.5}"#, Some(r#"{"ban":0}"#));
    }

    #[test]
    fn whole_numbers_and_texts_stay_as_they_are() {
        check(
            r#"{"ban":50,"users":{"@1.e5:x.example":"1.5e\"3.1"}}"#,
            None,
        );
        check(r#"{"ban":null,"kick":true,"x":false}"#, None);
    }
}

//! Canonical JSON: strict reading, and writing without detours.
//!
//! Reading refuses what canonical JSON cannot say (floats, exponents, `-0`, integers beyond 2^53 - 1). Of a duplicate key the last value
//! counts, as with other servers, and only the canonical form made here is kept: a duplicate never survives.
//!
//! Spec: appendices, "Canonical JSON".

mod loose;

use std::fmt;

use ruma::{CanonicalJsonObject, CanonicalJsonValue, Int};
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

pub use self::loose::Loose;
pub(in crate::events) use self::loose::to_vec as loose_to_vec;

/// The greatest integer of canonical JSON, 2^53 - 1.
pub const MAX_INTEGER: u64 = (1 << 53) - 1;

/// Text that is not JSON, is no object, or cannot be written as canonical JSON.
#[derive(Debug, thiserror::Error)]
#[error("not a canonical JSON object: {0}")]
pub struct NotCanonical(#[from] serde_json::Error);

/// Reads one object and nothing after it. Nesting is limited to 128 levels by the parser.
///
/// # Errors
///
/// If the text is no JSON object or holds a number that canonical JSON lacks.
pub fn parse(text: &[u8]) -> Result<CanonicalJsonObject, NotCanonical> {
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let object = deserializer.deserialize_map(Object)?;
    deserializer.end()?;
    Ok(object)
}

/// Any value, as a seed of itself: it has no state.
struct Value;

struct Object;

impl<'de> DeserializeSeed<'de> for Value {
    type Value = CanonicalJsonValue;

    fn deserialize<D: Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> Result<CanonicalJsonValue, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value {
    type Value = CanonicalJsonValue;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a canonical JSON value")
    }

    fn visit_unit<E>(self) -> Result<CanonicalJsonValue, E> {
        Ok(CanonicalJsonValue::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<CanonicalJsonValue, E> {
        Ok(CanonicalJsonValue::Bool(value))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<CanonicalJsonValue, E> {
        integer(value)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<CanonicalJsonValue, E> {
        integer(value)
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<CanonicalJsonValue, E> {
        Err(E::custom("number that is not a plain integer"))
    }

    fn visit_str<E>(self, value: &str) -> Result<CanonicalJsonValue, E> {
        Ok(CanonicalJsonValue::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<CanonicalJsonValue, E> {
        Ok(CanonicalJsonValue::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<CanonicalJsonValue, A::Error> {
        let mut array = Vec::new();
        while let Some(value) = access.next_element_seed(Value)? {
            array.push(value);
        }
        Ok(CanonicalJsonValue::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, access: A) -> Result<CanonicalJsonValue, A::Error> {
        Object.visit_map(access).map(CanonicalJsonValue::Object)
    }
}

fn integer<E: serde::de::Error>(value: impl TryInto<Int>) -> Result<CanonicalJsonValue, E> {
    match value.try_into() {
        Ok(integer) => Ok(CanonicalJsonValue::Integer(integer)),
        Err(_) => Err(E::custom("integer out of range")),
    }
}

impl<'de> Visitor<'de> for Object {
    type Value = CanonicalJsonObject;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<CanonicalJsonObject, A::Error> {
        let mut object = CanonicalJsonObject::new();
        while let Some(key) = access.next_key::<String>()? {
            let value = access.next_value_seed(Value)?;
            object.insert(key, value);
        }
        Ok(object)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<CanonicalJsonObject, A::Error> {
        Err(A::Error::custom("an array is no object"))
    }
}

/// The canonical bytes of `object`.
pub fn to_vec(object: &CanonicalJsonObject) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    write_object(object, &mut out);
    out
}

/// Appends the canonical form of `object`.
pub fn write_object(object: &CanonicalJsonObject, out: &mut Vec<u8>) {
    Writer(write_string).object(object, out);
}

/// Appends the canonical form of `value`.
pub fn write_value(value: &CanonicalJsonValue, out: &mut Vec<u8>) {
    Writer(write_string).value(value, out);
}

/// Writes values, and their strings by its function.
struct Writer<F>(F);

impl<F: Fn(&str, &mut Vec<u8>)> Writer<F> {
    fn object(&self, object: &CanonicalJsonObject, out: &mut Vec<u8>) {
        out.push(b'{');
        for (index, (key, value)) in object.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            write_string(key, out);
            out.push(b':');
            self.value(value, out);
        }
        out.push(b'}');
    }

    fn value(&self, value: &CanonicalJsonValue, out: &mut Vec<u8>) {
        match value {
            CanonicalJsonValue::Null => out.extend_from_slice(b"null"),
            CanonicalJsonValue::Bool(true) => out.extend_from_slice(b"true"),
            CanonicalJsonValue::Bool(false) => out.extend_from_slice(b"false"),
            CanonicalJsonValue::Integer(number) => write_integer(i64::from(*number), out),
            CanonicalJsonValue::String(text) => self.0(text, out),
            CanonicalJsonValue::Array(values) => self.array(values, out),
            CanonicalJsonValue::Object(object) => self.object(object, out),
        }
    }

    fn array(&self, values: &[CanonicalJsonValue], out: &mut Vec<u8>) {
        out.push(b'[');
        for (index, value) in values.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            self.value(value, out);
        }
        out.push(b']');
    }
}

/// Appends a decimal integer.
pub(in crate::events) fn write_integer(number: i64, out: &mut Vec<u8>) {
    let mut digits = [0_u8; 20];
    let mut rest = number.unsigned_abs();
    let mut length = 0;
    for digit in digits.iter_mut().rev() {
        // A remainder of a division by ten fits.
        *digit = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
        length += 1;
        if rest == 0 {
            break;
        }
    }
    if number < 0 {
        out.push(b'-');
    }
    out.extend(digits.iter().skip(digits.len() - length));
}

/// Appends a string with its quotes. Only `"`, `\` and control characters are escaped, in their shortest form.
pub fn write_string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    if text.bytes().any(needs_escape) {
        text.bytes().for_each(|byte| write_escaped(byte, out));
    } else {
        out.extend_from_slice(text.as_bytes());
    }
    out.push(b'"');
}

fn needs_escape(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

fn write_escaped(byte: u8, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    match byte {
        b'"' => out.extend_from_slice(b"\\\""),
        b'\\' => out.extend_from_slice(b"\\\\"),
        0x08 => out.extend_from_slice(b"\\b"),
        b'\t' => out.extend_from_slice(b"\\t"),
        b'\n' => out.extend_from_slice(b"\\n"),
        0x0c => out.extend_from_slice(b"\\f"),
        b'\r' => out.extend_from_slice(b"\\r"),
        0x00..0x20 => {
            out.extend_from_slice(b"\\u00");
            let digits = [byte >> 4, byte & 15];
            out.extend(
                digits
                    .iter()
                    .filter_map(|digit| HEX.get(usize::from(*digit))),
            );
        }
        _ => out.push(byte),
    }
}

#[cfg(test)]
pub(in crate::events) mod tests;

//! Objects that may hold numbers canonical JSON lacks: floats, exponents, `-0`, integers beyond 2^53 - 1.
//!
//! Rooms of the versions before 6 hold such events, which were hashed and signed with the numbers as their sender wrote them. So a number
//! of that kind is kept as its text: in the object it is a string that begins with [`MARK`], and writing turns it back into the number.
//! No string of an event begins with that character by itself: such an event is refused where these numbers are read.
//!
//! Spec: rooms/v1, "Canonical JSON".

use std::collections::BTreeMap;

use ruma::{CanonicalJsonObject, CanonicalJsonValue, Int};
use serde::de::Error as _;
use serde_json::value::RawValue;

use super::{NotCanonical, Writer, parse, write_string};

/// Begins the string that stands for a number. A character that Unicode has set aside for use inside of programs.
const MARK: char = '\u{10ffff}';

/// Levels of an object with such numbers. Each level is read once for every one above it.
const MAX_DEPTH: usize = 32;

/// An object as it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Loose {
    pub object: CanonicalJsonObject,
    /// Numbers that canonical JSON lacks are in it, as strings.
    has_other_numbers: bool,
}

impl From<CanonicalJsonObject> for Loose {
    fn from(object: CanonicalJsonObject) -> Self {
        Self {
            object,
            has_other_numbers: false,
        }
    }
}

impl Loose {
    /// An object in which other numbers stand as strings already.
    pub(in crate::events) fn with_other_numbers(object: CanonicalJsonObject) -> Self {
        Self {
            object,
            has_other_numbers: true,
        }
    }

    /// Reads one object and nothing after it.
    ///
    /// # Errors
    ///
    /// If the text is no JSON object, is nested too deep, or holds a number beyond those of 64 bits in floating point.
    pub fn parse(text: &[u8]) -> Result<Self, NotCanonical> {
        if let Ok(object) = parse(text) {
            return Ok(object.into());
        }
        let fields: BTreeMap<String, &RawValue> = serde_json::from_slice(text)?;
        Ok(Self::with_other_numbers(read_object(fields, 0)?))
    }

    /// Whether the object is canonical JSON, so that everybody writes it alike.
    pub fn is_canonical(&self) -> bool {
        !self.has_other_numbers
    }

    /// The bytes of the object: sorted, without spaces, and with the numbers as they came.
    pub fn to_vec(&self) -> Vec<u8> {
        match self.has_other_numbers {
            true => to_vec(&self.object),
            false => super::to_vec(&self.object),
        }
    }

    /// A number of the object as its text.
    pub fn number<'a>(&self, value: &'a CanonicalJsonValue) -> Option<&'a str> {
        match value {
            CanonicalJsonValue::String(text) if self.has_other_numbers => text.strip_prefix(MARK),
            _ => None,
        }
    }
}

fn read_object(
    fields: BTreeMap<String, &RawValue>,
    depth: usize,
) -> Result<CanonicalJsonObject, serde_json::Error> {
    if depth >= MAX_DEPTH {
        return Err(serde_json::Error::custom("nested too deep"));
    }
    fields
        .into_iter()
        .map(|(key, value)| Ok((key, read_value(value, depth)?)))
        .collect()
}

fn read_value(value: &RawValue, depth: usize) -> Result<CanonicalJsonValue, serde_json::Error> {
    let text = value.get();
    match text.as_bytes().first() {
        Some(b'{') => {
            read_object(serde_json::from_str(text)?, depth + 1).map(CanonicalJsonValue::Object)
        }
        Some(b'[') if depth + 1 >= MAX_DEPTH => Err(serde_json::Error::custom("nested too deep")),
        Some(b'[') => {
            let elements: Vec<&RawValue> = serde_json::from_str(text)?;
            let read = |element| read_value(element, depth + 1);
            let elements: Result<_, _> = elements.into_iter().map(read).collect();
            elements.map(CanonicalJsonValue::Array)
        }
        Some(b'"') => {
            let text: String = serde_json::from_str(text)?;
            match text.starts_with(MARK) {
                true => Err(serde_json::Error::custom("a string begins with U+10FFFF")),
                false => Ok(CanonicalJsonValue::String(text)),
            }
        }
        Some(b'-' | b'0'..=b'9') => read_number(text),
        Some(b'n') => Ok(CanonicalJsonValue::Null),
        _ => serde_json::from_str(text).map(CanonicalJsonValue::Bool),
    }
}

fn read_number(text: &str) -> Result<CanonicalJsonValue, serde_json::Error> {
    let integer = text.parse().ok().filter(|_| text != "-0");
    if let Some(integer) = integer.and_then(|integer: i64| Int::try_from(integer).ok()) {
        return Ok(CanonicalJsonValue::Integer(integer));
    }
    // Whoever reads the event later reads the number so, and relies on that it can be read.
    let _readable: serde_json::Value = serde_json::from_str(text)?;
    Ok(CanonicalJsonValue::String(format!("{MARK}{text}")))
}

/// The bytes of an object with strings that stand for numbers.
pub(in crate::events) fn to_vec(object: &CanonicalJsonObject) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    Writer(write_string_or_number).object(object, &mut out);
    out
}

fn write_string_or_number(text: &str, out: &mut Vec<u8>) {
    match text.strip_prefix(MARK) {
        Some(number) => out.extend_from_slice(number.as_bytes()),
        None => write_string(text, out),
    }
}

#[cfg(test)]
mod tests;

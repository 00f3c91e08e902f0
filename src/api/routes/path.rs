//! Paths: the ones an endpoint is registered under, and the arguments found in a request's.

use std::{borrow::Cow, collections::BTreeSet};

use smallvec::SmallVec;

use crate::api::error::Error;

/// The values of a path's variables, in order, percent-decoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathArgs(SmallVec<[String; 4]>);

impl PathArgs {
    /// The value of the variable at `index`, or an empty text if the path has fewer.
    pub fn get(&self, index: usize) -> &str {
        self.0.get(index).map_or("", String::as_str)
    }

    pub(super) fn as_strs(&self) -> SmallVec<[&str; 4]> {
        self.0.iter().map(String::as_str).collect()
    }

    /// # Errors
    /// `M_INVALID_PARAM` if an argument is not percent-encoded UTF-8.
    pub(super) fn decode<'a>(encoded: impl Iterator<Item = &'a str>) -> Result<Self, Error> {
        let mut args = SmallVec::new();
        for arg in encoded {
            args.push(percent_decode(arg)?.into_owned());
        }
        Ok(Self(args))
    }
}

/// Every path an endpoint is served under: those that ruma knows, `r0` for each `v3` since old clients call it, and paths
/// that end in an empty state key.
pub(super) fn all(known: impl Iterator<Item = &'static str>) -> Vec<String> {
    let mut paths = BTreeSet::new();
    for path in known {
        paths.insert(path.to_owned());
        if let Some(rest) = path.strip_prefix("/_matrix/client/v3/") {
            paths.insert(format!("/_matrix/client/r0/{rest}"));
        }
    }
    let without_key: Vec<String> = paths
        .iter()
        .filter_map(|path| path.strip_suffix("/{state_key}"))
        .map(str::to_owned)
        .collect();
    for path in without_key {
        paths.insert(format!("{path}/"));
        paths.insert(path);
    }
    paths.into_iter().collect()
}

/// The path with its variables numbered: the router wants the same name for a variable at the same place.
pub(super) fn numbered(path: &str) -> String {
    let segments = path.split('/').enumerate().map(|(index, segment)| {
        if segment.starts_with('{') {
            Cow::Owned(format!("{{{index}}}"))
        } else {
            Cow::Borrowed(segment)
        }
    });
    segments.collect::<Vec<_>>().join("/")
}

fn percent_decode(text: &str) -> Result<Cow<'_, str>, Error> {
    if !text.contains('%') {
        return Ok(Cow::Borrowed(text));
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let (digits, after) = after.split_at_checked(2).ok_or_else(malformed)?;
        rest = after;
        let byte = digits.iter().try_fold(0_u8, |byte, digit| {
            let value = char::from(*digit).to_digit(16)?;
            Some(byte << 4 | u8::try_from(value).ok()?)
        });
        decoded.push(byte.ok_or_else(malformed)?);
    }
    String::from_utf8(decoded)
        .map(Cow::Owned)
        .map_err(|_error| malformed())
}

fn malformed() -> Error {
    Error::invalid_param("The path is not percent-encoded UTF-8")
}

/// The first value of `name` in a form or a query; nothing if it cannot be read.
pub(super) fn form_value(text: &str, name: &str) -> Option<String> {
    let fields = text
        .split('&')
        .map(|field| field.split_once('=').unwrap_or((field, "")));
    let value = fields.into_iter().find(|(field, _)| *field == name)?.1;
    percent_decode(&value.replace('+', " "))
        .ok()
        .map(Cow::into_owned)
}

#[cfg(test)]
mod tests;

//! Sync tokens: a position of the log, and a count of what is never stored.
//!
//! Printed as `s<writer>.<sequence>_…~<start>.<count>`, numbers but the writer's in base 36. One node prints one writer;
//! positions compare as they are, so of several the highest counts. engine.md section 2.

use std::{fmt, str::FromStr};

use crate::{ephemeral::Volatile, storage::Position};

/// A moment up to which a client knows everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Token {
    pub position: Position,
    pub volatile: Volatile,
}

/// Text that is no token of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the sync token is not valid")]
pub struct Malformed;

/// More than any token of ours has.
const MAX_TOKEN_BYTES: usize = 1_024;
const SEQUENCE_LIMIT: u64 = 1 << 48;

impl fmt::Display for Token {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { position, volatile } = self;
        write!(to, "s{}.", position.writer())?;
        base36(to, position.sequence())?;
        to.write_str("~")?;
        base36(to, volatile.start)?;
        to.write_str(".")?;
        base36(to, volatile.count)
    }
}

fn base36(to: &mut fmt::Formatter<'_>, mut number: u64) -> fmt::Result {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut digits = [0; 13];
    let mut at = digits.len();
    while let Some(place) = at.checked_sub(1).and_then(|at| digits.get_mut(at)) {
        let digit = usize::try_from(number % 36).unwrap_or_default();
        *place = DIGITS.get(digit).copied().unwrap_or(b'0');
        at -= 1;
        number /= 36;
        if number == 0 {
            break;
        }
    }
    let text = digits.get(at..).unwrap_or_default();
    to.write_str(std::str::from_utf8(text).unwrap_or_default())
}

impl FromStr for Token {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        if text.len() > MAX_TOKEN_BYTES {
            return Err(Malformed);
        }
        let (stored, volatile) = text
            .strip_prefix('s')
            .and_then(|rest| rest.split_once('~'))
            .ok_or(Malformed)?;
        let mut position = Position::default();
        for part in stored.split('_') {
            let (writer, sequence) = part.split_once('.').ok_or(Malformed)?;
            let writer = plain(writer).ok_or(Malformed)?;
            let sequence = number(sequence)
                .filter(|number| *number < SEQUENCE_LIMIT)
                .ok_or(Malformed)?;
            position = position.max(Position::new(writer, sequence));
        }
        let (start, count) = volatile.split_once('.').ok_or(Malformed)?;
        let volatile = Volatile {
            start: number(start).ok_or(Malformed)?,
            count: number(count).ok_or(Malformed)?,
        };
        Ok(Self { position, volatile })
    }
}

fn plain(text: &str) -> Option<u16> {
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())
        .flatten()
}

fn number(text: &str) -> Option<u64> {
    text.bytes()
        .all(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase())
        .then(|| u64::from_str_radix(text, 36).ok())
        .flatten()
}

#[cfg(test)]
mod tests;

//! Sync tokens: a position of the log, and a count of what is never stored. Where the device has not been given all messages
//! from other devices up to the position, the one up to which it has stands at the end.
//!
//! Printed as `s<writer>.<sequence>_…~<start>.<count>-<position>`, numbers but the writer's in base 36. One node prints one writer;
//! positions compare as they are, so of several the highest counts. engine.md section 2.

use std::{fmt, str::FromStr};

use crate::{ephemeral::Volatile, storage::Position};

/// A moment up to which a client knows everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Token {
    pub position: Position,
    pub volatile: Volatile,
    /// Up to where messages from other devices are known, if not up to `position`.
    pub to_device: Option<Position>,
}

/// Text that is no token of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the sync token is not valid")]
pub struct Malformed;

/// More than any token of ours has.
const MAX_TOKEN_BYTES: usize = 1_024;
const SEQUENCE_LIMIT: u64 = 1 << 48;

impl Token {
    /// Up to where messages from other devices are known.
    pub(super) fn to_device(self) -> Position {
        self.to_device.unwrap_or(self.position)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            position,
            volatile,
            to_device,
        } = self;
        write!(to, "s{}.", position.writer())?;
        base36(to, position.sequence())?;
        to.write_str("~")?;
        base36(to, volatile.start)?;
        to.write_str(".")?;
        base36(to, volatile.count)?;
        match to_device {
            Some(position) => {
                to.write_str("-")?;
                base36(to, position.0)
            }
            None => Ok(()),
        }
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
        let (volatile, to_device) = match volatile.split_once('-') {
            Some((volatile, position)) => (volatile, Some(number(position).ok_or(Malformed)?)),
            None => (volatile, None),
        };
        let (start, count) = volatile.split_once('.').ok_or(Malformed)?;
        let volatile = Volatile {
            start: number(start).ok_or(Malformed)?,
            count: number(count).ok_or(Malformed)?,
        };
        Ok(Self {
            position,
            volatile,
            to_device: to_device.map(Position),
        })
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

//! Keys: tuples whose encoded byte order is the order of the tuples.
//!
//! Every part says where it ends (fixed width, or closed with `0x00`), so that the order of a tuple's bytes is the
//! order of its parts, and a shorter tuple is a prefix of the longer ones.

use super::Position;

#[cfg(test)]
mod tests;

/// A key that cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed key")]
pub struct KeyError;

/// One element of a key tuple. `encode` then `decode` gives the same; byte order is value order.
///
/// Newtypes over numbers implement it by handing both calls to the number.
pub trait KeyPart: Sized {
    fn encode(&self, to: &mut Vec<u8>);
    /// Takes the element off the front of `from`.
    fn decode(from: &mut &[u8]) -> Result<Self, KeyError>;
}

/// A whole key: a tuple of up to five [`KeyPart`]s (also the unit, for tables of one row).
pub trait TableKey: Sized {
    fn encode(&self, to: &mut Vec<u8>);
    fn decode(from: &[u8]) -> Result<Self, KeyError>;
}

/// Text in a key, escaped and closed with `0x00`, so that it can be followed by other parts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Text(pub Box<str>);

/// A signed number whose sign bit is flipped in the key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Index(pub i64);

/// A signed number whose greatest value comes first in the key's order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Descending(pub i64);

/// Milliseconds since the Unix epoch in six bytes. Larger values become the largest that fits (year 10889).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis48(pub u64);

impl Millis48 {
    /// The largest value a key can hold.
    pub const MAX: Self = Self((1 << 48) - 1);
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl std::ops::Deref for Text {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

/// Takes `N` bytes off the front of `from`.
fn take<const N: usize>(from: &mut &[u8]) -> Result<[u8; N], KeyError> {
    let (head, rest) = from.split_first_chunk::<N>().ok_or(KeyError)?;
    *from = rest;
    Ok(*head)
}

macro_rules! big_endian {
    ($($number:ty),*) => {$(
        impl KeyPart for $number {
            fn encode(&self, to: &mut Vec<u8>) {
                to.extend_from_slice(&self.to_be_bytes());
            }
            fn decode(from: &mut &[u8]) -> Result<Self, KeyError> {
                Ok(Self::from_be_bytes(take(from)?))
            }
        }
    )*};
}

big_endian!(u8, u16, u32, u64);

impl<const N: usize> KeyPart for [u8; N] {
    fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(self);
    }
    fn decode(from: &mut &[u8]) -> Result<Self, KeyError> {
        take(from)
    }
}

impl KeyPart for Position {
    fn encode(&self, to: &mut Vec<u8>) {
        self.0.encode(to);
    }
    fn decode(from: &mut &[u8]) -> Result<Self, KeyError> {
        u64::decode(from).map(Self)
    }
}

impl KeyPart for Index {
    fn encode(&self, to: &mut Vec<u8>) {
        (self.0.cast_unsigned() ^ (1 << 63)).encode(to);
    }
    fn decode(from: &mut &[u8]) -> Result<Self, KeyError> {
        Ok(Self((u64::decode(from)? ^ (1 << 63)).cast_signed()))
    }
}

impl KeyPart for Descending {
    fn encode(&self, to: &mut Vec<u8>) {
        Index(!self.0).encode(to);
    }
    fn decode(from: &mut &[u8]) -> Result<Self, KeyError> {
        Ok(Self(!Index::decode(from)?.0))
    }
}

impl PartialOrd for Descending {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Descending {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.0.cmp(&self.0)
    }
}

impl KeyPart for Millis48 {
    fn encode(&self, to: &mut Vec<u8>) {
        let [_, _, six @ ..] = self.0.min(Self::MAX.0).to_be_bytes();
        to.extend_from_slice(&six);
    }
    fn decode(from: &mut &[u8]) -> Result<Self, KeyError> {
        let [a, b, c, d, e, f] = take(from)?;
        Ok(Self(u64::from_be_bytes([0, 0, a, b, c, d, e, f])))
    }
}

impl KeyPart for Text {
    fn encode(&self, to: &mut Vec<u8>) {
        encode_text(&self.0, to);
    }
    fn decode(from: &mut &[u8]) -> Result<Self, KeyError> {
        decode_text(from).map(|text| Self(text.into()))
    }
}

impl KeyPart for String {
    fn encode(&self, to: &mut Vec<u8>) {
        encode_text(self, to);
    }
    fn decode(from: &mut &[u8]) -> Result<Self, KeyError> {
        decode_text(from)
    }
}

/// `0x00` becomes `01 01` and `0x01` becomes `01 02`, so that the closing `0x00` is below every continuation.
fn encode_text(text: &str, to: &mut Vec<u8>) {
    to.reserve(text.len() + 1);
    for byte in text.bytes() {
        match byte {
            0 => to.extend_from_slice(&[1, 1]),
            1 => to.extend_from_slice(&[1, 2]),
            other => to.push(other),
        }
    }
    to.push(0);
}

fn decode_text(from: &mut &[u8]) -> Result<String, KeyError> {
    let end = from.iter().position(|byte| *byte == 0).ok_or(KeyError)?;
    let (escaped, rest) = from.split_at_checked(end).ok_or(KeyError)?;
    *from = rest.get(1..).ok_or(KeyError)?;
    let mut bytes = Vec::with_capacity(escaped.len());
    let mut source = escaped.iter();
    while let Some(byte) = source.next() {
        match byte {
            1 => bytes.push(
                source
                    .next()
                    .filter(|escape| matches!(escape, 1 | 2))
                    .ok_or(KeyError)?
                    - 1,
            ),
            other => bytes.push(*other),
        }
    }
    String::from_utf8(bytes).map_err(|_utf8| KeyError)
}

impl TableKey for () {
    fn encode(&self, _to: &mut Vec<u8>) {}
    fn decode(from: &[u8]) -> Result<Self, KeyError> {
        if from.is_empty() {
            Ok(())
        } else {
            Err(KeyError)
        }
    }
}

macro_rules! tuple_keys {
    ($(($($part:ident $name:ident),+))*) => {$(
        impl<$($part: KeyPart),+> TableKey for ($($part,)+) {
            fn encode(&self, to: &mut Vec<u8>) {
                let ($($name,)+) = self;
                $($name.encode(to);)+
            }
            fn decode(mut from: &[u8]) -> Result<Self, KeyError> {
                $(let $name = $part::decode(&mut from)?;)+
                if from.is_empty() { Ok(($($name,)+)) } else { Err(KeyError) }
            }
        }
    )*};
}

tuple_keys! {
    (A a)
    (A a, B b)
    (A a, B b, C c)
    (A a, B b, C c, D d)
    (A a, B b, C c, D d, E e)
}

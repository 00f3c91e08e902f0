//! Keys: tuples whose encoded byte order is the order of the tuples.

/// A key that cannot be decoded.
#[derive(Debug, thiserror::Error)]
#[error("malformed key")]
pub struct KeyError;

/// One element of a key tuple. `encode` then `decode` gives the same; byte order is value order.
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

/// Milliseconds since the Unix epoch in six bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis48(pub u64);

//! Records: the bytes of a value.

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use super::{Millis48, Position};

#[cfg(test)]
mod tests;

/// The bytes of a value.
pub trait Record: Sized {
    fn encode(&self, to: &mut Vec<u8>);
    /// The reason, if `from` is no such record.
    fn decode(from: &[u8]) -> Result<Self, String>;
}

/// A serde struct in CBOR: structs and enums by name, so that records can grow by optional fields.
///
/// What serde cannot tell apart does not come back: `Some(None)` becomes `None`; `()` and `RawValue` are refused (keep JSON
/// as `String`, or the struct in [`Json`]).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cbor<T>(pub T);

/// A serde struct in JSON, for what holds a `RawValue` (ruma's `Raw`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Json<T>(pub T);

/// A position (filled in by the committer when the row is written with `put_stamped`), then the record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stamped<T>(pub Position, pub T);

/// A record of [`super::Family::Temporary`]: the moment from which it may vanish, then the struct in CBOR.
/// Readers compare the moment themselves; what has expired is dropped some time later.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expiring<T>(pub Millis48, pub T);

/// Bytes as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Raw(pub Bytes);

/// A commutative counter, changed by `Batch::add`; 8 bytes little endian.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter(pub i64);

impl Record for () {
    fn encode(&self, _to: &mut Vec<u8>) {}
    fn decode(_from: &[u8]) -> Result<Self, String> {
        Ok(())
    }
}

macro_rules! big_endian {
    ($($number:ty),*) => {$(
        impl Record for $number {
            fn encode(&self, to: &mut Vec<u8>) {
                to.extend_from_slice(&self.to_be_bytes());
            }
            fn decode(from: &[u8]) -> Result<Self, String> {
                exactly(from).map(Self::from_be_bytes)
            }
        }
    )*};
}

big_endian!(u8, u16, u32, u64);

/// A counter as the engines read it when they add: what is none counts as 0.
pub(super) fn number(bytes: &[u8]) -> i64 {
    bytes.try_into().map_or(0, i64::from_le_bytes)
}

/// `from` as an array, if it has that length.
fn exactly<const N: usize>(from: &[u8]) -> Result<[u8; N], String> {
    from.try_into()
        .map_err(|_length| format!("{} bytes instead of {N}", from.len()))
}

impl<const N: usize> Record for [u8; N] {
    fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(self);
    }
    fn decode(from: &[u8]) -> Result<Self, String> {
        exactly(from)
    }
}

impl Record for Position {
    fn encode(&self, to: &mut Vec<u8>) {
        self.0.encode(to);
    }
    fn decode(from: &[u8]) -> Result<Self, String> {
        u64::decode(from).map(Self)
    }
}

impl Record for Counter {
    fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.0.to_le_bytes());
    }
    fn decode(from: &[u8]) -> Result<Self, String> {
        exactly(from).map(|bytes| Self(i64::from_le_bytes(bytes)))
    }
}

impl Record for Raw {
    fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.0);
    }
    fn decode(from: &[u8]) -> Result<Self, String> {
        Ok(Self(Bytes::copy_from_slice(from)))
    }
}

impl Record for Bytes {
    fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(self);
    }
    fn decode(from: &[u8]) -> Result<Self, String> {
        Ok(Self::copy_from_slice(from))
    }
}

impl Record for Vec<u8> {
    fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(self);
    }
    fn decode(from: &[u8]) -> Result<Self, String> {
        Ok(from.to_vec())
    }
}

impl Record for String {
    fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(self.as_bytes());
    }
    fn decode(from: &[u8]) -> Result<Self, String> {
        std::str::from_utf8(from)
            .map(str::to_owned)
            .map_err(|error| error.to_string())
    }
}

impl<T: Serialize + DeserializeOwned> Record for Cbor<T> {
    fn encode(&self, to: &mut Vec<u8>) {
        encode_cbor(&self.0, to);
    }
    fn decode(from: &[u8]) -> Result<Self, String> {
        decode_cbor(from).map(Self)
    }
}

impl<T: Serialize + DeserializeOwned> Record for Json<T> {
    fn encode(&self, to: &mut Vec<u8>) {
        serde_json::to_writer(to, &self.0)
            .expect("a vector takes all bytes and our records have text keys");
    }
    fn decode(from: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(from)
            .map(Self)
            .map_err(|error| error.to_string())
    }
}

impl<T: Serialize + DeserializeOwned> Record for Stamped<T> {
    fn encode(&self, to: &mut Vec<u8>) {
        Record::encode(&self.0, to);
        encode_cbor(&self.1, to);
    }
    fn decode(from: &[u8]) -> Result<Self, String> {
        let (position, rest) = from.split_first_chunk::<8>().ok_or("no position")?;
        Ok(Self(
            Position(u64::from_be_bytes(*position)),
            decode_cbor(rest)?,
        ))
    }
}

impl<T: Serialize + DeserializeOwned> Record for Expiring<T> {
    fn encode(&self, to: &mut Vec<u8>) {
        super::KeyPart::encode(&self.0, to);
        encode_cbor(&self.1, to);
    }
    fn decode(mut from: &[u8]) -> Result<Self, String> {
        let expiry =
            <Millis48 as super::KeyPart>::decode(&mut from).map_err(|error| error.to_string())?;
        Ok(Self(expiry, decode_cbor(from)?))
    }
}

/// The unit is null, as in JSON: as an empty array it could not be told from one when read without a type.
fn encode_cbor<T: Serialize>(value: &T, to: &mut Vec<u8>) {
    let mut serializer = minicbor_serde::Serializer::new(to);
    serializer.serialize_unit_as_null(true);
    value
        .serialize(&mut serializer)
        .expect("a vector takes all bytes and our records serialize");
}

fn decode_cbor<T: DeserializeOwned>(from: &[u8]) -> Result<T, String> {
    minicbor_serde::from_slice(from).map_err(|error| error.to_string())
}

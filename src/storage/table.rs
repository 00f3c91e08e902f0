//! Typed tables: what a row of a family means.

use std::marker::PhantomData;

use super::{KeyPart, Position, Result, TableKey};

/// A group of tables with the same access pattern: one RocksDB column family. engine.md section 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    Meta, Interned, EventIds, Events, EventMeta, State, Timeline, RoomHeads,
    Users, Keys, ToDevice, Log, Federation, Media, Temporary, Membership,
}

/// Direction of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order { Forward, Backward }

/// The bytes of a value.
pub trait Record: Sized {
    fn encode(&self, to: &mut Vec<u8>);
    /// The reason, if `from` is no such record.
    fn decode(from: &[u8]) -> std::result::Result<Self, String>;
}

/// A serde struct in CBOR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cbor<T>(pub T);

/// A position (filled in by the committer when the row is written with `put_stamped`), then the record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamped<T>(pub Position, pub T);

/// Bytes as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raw(pub bytes::Bytes);

/// A commutative counter, changed by `Batch::add`; 8 bytes little endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter(pub i64);

/// A typed table. Declare as a private `static` of the module that owns it.
pub struct Table<K, V> {
    name: &'static str,
    family: Family,
    tag: u8,
    types: PhantomData<fn() -> (K, V)>,
}

/// A range of keys of one table.
pub struct TableRange<K, V> {
    pub(super) types: PhantomData<fn() -> (K, V)>,
}

impl<K: TableKey, V: Record> Table<K, V> {
    /// `tag` is the first byte of the table's keys, unique in its family.
    pub const fn new(name: &'static str, family: Family, tag: u8) -> Self {
        Self { name, family, tag, types: PhantomData }
    }

    /// Every row.
    pub fn all(&self) -> TableRange<K, V> {
        todo!()
    }

    /// Rows whose key starts with the parts of `prefix`, a shorter tuple of the same leading types.
    pub fn prefix<P: TableKey>(&self, prefix: &P) -> TableRange<K, V> {
        todo!()
    }

    /// Rows from `start` (inclusive) to `end` (exclusive); either may be a shorter tuple.
    pub fn range<A: TableKey, B: TableKey>(&self, start: &A, end: &B) -> TableRange<K, V> {
        todo!()
    }

    /// Rows after every key that starts with `start`, within the keys that start with `within`.
    pub fn after<A: TableKey, P: TableKey>(&self, start: &A, within: &P) -> TableRange<K, V> {
        todo!()
    }
}

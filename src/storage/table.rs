//! Typed tables: what a row of a family means.

use std::marker::PhantomData;

use super::{Record, TableKey};

/// A group of tables with the same access pattern: one RocksDB column family. engine.md section 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    Meta,
    Interned,
    EventIds,
    Events,
    EventMeta,
    State,
    Timeline,
    RoomHeads,
    Users,
    Keys,
    ToDevice,
    Log,
    Federation,
    Media,
    Temporary,
    Membership,
}

impl Family {
    /// In the order of their numbers.
    pub const ALL: [Self; 16] = [
        Self::Meta,
        Self::Interned,
        Self::EventIds,
        Self::Events,
        Self::EventMeta,
        Self::State,
        Self::Timeline,
        Self::RoomHeads,
        Self::Users,
        Self::Keys,
        Self::ToDevice,
        Self::Log,
        Self::Federation,
        Self::Media,
        Self::Temporary,
        Self::Membership,
    ];

    /// The name on disk and in metrics.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Interned => "int",
            Self::EventIds => "eid",
            Self::Events => "ev",
            Self::EventMeta => "em",
            Self::State => "st",
            Self::Timeline => "tl",
            Self::RoomHeads => "rh",
            Self::Users => "us",
            Self::Keys => "key",
            Self::ToDevice => "td",
            Self::Log => "log",
            Self::Federation => "fd",
            Self::Media => "med",
            Self::Temporary => "tmp",
            Self::Membership => "mb",
        }
    }
}

/// Direction of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Forward,
    Backward,
}

/// A typed table. Declare as a private `static` of the module that owns it.
pub struct Table<K, V> {
    name: &'static str,
    family: Family,
    tag: u8,
    types: PhantomData<fn() -> (K, V)>,
}

/// A range of keys of one table.
pub struct TableRange<K, V> {
    pub(super) name: &'static str,
    pub(super) family: Family,
    /// Encoded, with the tag; the first key of the range or one below it.
    pub(super) start: Vec<u8>,
    /// Encoded, with the tag; the first key after the range.
    pub(super) end: Vec<u8>,
    pub(super) types: PhantomData<fn() -> (K, V)>,
}

impl<K, V> Clone for TableRange<K, V> {
    fn clone(&self) -> Self {
        Self {
            start: self.start.clone(),
            end: self.end.clone(),
            ..*self
        }
    }
}

impl<K: TableKey, V: Record> Table<K, V> {
    /// `tag` is the first byte of the table's keys, unique in its family.
    pub const fn new(name: &'static str, family: Family, tag: u8) -> Self {
        assert!(tag < 0xff, "the end of the table is the next tag");
        Self {
            name,
            family,
            tag,
            types: PhantomData,
        }
    }

    pub const fn name(&self) -> &'static str {
        self.name
    }

    pub const fn family(&self) -> Family {
        self.family
    }

    /// Every row.
    pub fn all(&self) -> TableRange<K, V> {
        self.between(vec![self.tag], vec![self.tag + 1])
    }

    /// Rows whose key starts with the parts of `prefix`, a shorter tuple of the same leading types.
    pub fn prefix<P: TableKey>(&self, prefix: &P) -> TableRange<K, V> {
        let start = self.key(prefix);
        let end = successor(start.clone());
        self.between(start, end)
    }

    /// Rows from `start` (inclusive) to `end` (exclusive); either may be a shorter tuple.
    pub fn range<A: TableKey, B: TableKey>(&self, start: &A, end: &B) -> TableRange<K, V> {
        self.between(self.key(start), self.key(end))
    }

    /// Rows after every key that starts with `start`, within the keys that start with `within`.
    pub fn after<A: TableKey, P: TableKey>(&self, start: &A, within: &P) -> TableRange<K, V> {
        self.between(successor(self.key(start)), successor(self.key(within)))
    }

    /// Rows from the first key that starts with `start`, within the keys that start with `within`.
    pub fn from<A: TableKey, P: TableKey>(&self, start: &A, within: &P) -> TableRange<K, V> {
        self.between(self.key(start), successor(self.key(within)))
    }

    /// Rows before every key that starts with `end`, within the keys that start with `within`.
    pub fn before<B: TableKey, P: TableKey>(&self, end: &B, within: &P) -> TableRange<K, V> {
        self.between(self.key(within), self.key(end))
    }

    /// Rows up to and including the keys that start with `end`, within the keys that start with `within`.
    pub fn through<B: TableKey, P: TableKey>(&self, end: &B, within: &P) -> TableRange<K, V> {
        self.between(self.key(within), successor(self.key(end)))
    }

    /// The tag and the encoded `key`, a whole one or a shorter tuple.
    pub(super) fn key<P: TableKey>(&self, key: &P) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(32);
        self.encode_key(key, &mut bytes);
        bytes
    }

    pub(super) fn encode_key<P: TableKey>(&self, key: &P, to: &mut Vec<u8>) {
        to.push(self.tag);
        key.encode(to);
    }

    fn between(&self, start: Vec<u8>, end: Vec<u8>) -> TableRange<K, V> {
        TableRange {
            name: self.name,
            family: self.family,
            start,
            end,
            types: PhantomData,
        }
    }
}

/// The first key after all that start with `prefix`. The tag is below 0xff, so there is one.
pub(super) fn successor(mut prefix: Vec<u8>) -> Vec<u8> {
    while let Some(last) = prefix.pop() {
        if last < 0xff {
            prefix.push(last + 1);
            break;
        }
    }
    prefix
}

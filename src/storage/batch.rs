//! What one commit writes.
//!
//! A batch is plain data in one buffer: operations point into it. So a batch costs few allocations, the committer
//! writes positions in place, and joining two batches is a copy.

use std::ops::Range;

use super::{Counter, Family, Position, Record, Table, TableKey, TableRange, Text, Topic, meta};

/// Where the committer writes the batch's position.
#[derive(Clone, Copy, Debug)]
pub enum PositionAt {
    /// At this offset of the encoded key, counted after the tag byte.
    Key(usize),
    /// At this offset of the encoded value.
    Value(usize),
}

pub(super) type Hook = Box<dyn FnOnce(Position) + Send>;

/// Writes that happen together or not at all, at one [`Position`].
#[derive(Default)]
pub struct Batch {
    buffer: Vec<u8>,
    ops: Vec<Op>,
    /// Where the position goes: absolute places in the buffer.
    stamps: Vec<usize>,
    log: Vec<u8>,
    wake: Vec<Topic>,
    hooks_before: Vec<Hook>,
    hooks: Vec<Hook>,
    has_expectations: bool,
    relaxed: bool,
}

#[derive(Clone)]
struct Op {
    kind: Kind,
    family: Family,
    /// Both are ranges of the buffer; of a range delete the first key and the key after the last.
    key: Range<usize>,
    value: Range<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Put,
    Delete,
    DeleteRange,
    Add,
    Expect,
    ExpectAbsent,
}

/// One write, as the engine sees it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Write<'a> {
    Put {
        key: &'a [u8],
        value: &'a [u8],
    },
    Delete {
        key: &'a [u8],
    },
    DeleteRange {
        start: &'a [u8],
        end: &'a [u8],
    },
    /// The value is a delta, 8 bytes little endian.
    Add {
        key: &'a [u8],
        delta: &'a [u8],
    },
}

/// One precondition.
pub(super) struct Expectation<'a> {
    pub(super) family: Family,
    pub(super) key: &'a [u8],
    pub(super) value: Option<&'a [u8]>,
}

impl Batch {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn put<K: TableKey, V: Record>(&mut self, table: &Table<K, V>, key: &K, value: &V) {
        self.push(Kind::Put, table, key, |buffer| value.encode(buffer));
    }

    /// As `put`; the 8 bytes at `at` are overwritten with the position of this batch.
    pub fn put_stamped<K: TableKey, V: Record>(
        &mut self,
        table: &Table<K, V>,
        key: &K,
        value: &V,
        at: PositionAt,
    ) {
        let (key, value) = self.push(Kind::Put, table, key, |buffer| value.encode(buffer));
        let (within, offset) = match at {
            PositionAt::Key(offset) => (key, offset + 1),
            PositionAt::Value(offset) => (value, offset),
        };
        let place = within.start + offset;
        assert!(
            place + 8 <= within.end,
            "the position of table {} lies outside its bytes",
            table.name()
        );
        self.stamps.push(place);
    }

    pub fn delete<K: TableKey, V: Record>(&mut self, table: &Table<K, V>, key: &K) {
        self.push(Kind::Delete, table, key, |_value| {});
    }

    pub fn delete_range<K: TableKey, V: Record>(&mut self, range: TableRange<K, V>) {
        if range.start < range.end {
            let key = self.write(|buffer| buffer.extend(range.start));
            let value = self.write(|buffer| buffer.extend(range.end));
            self.ops.push(Op {
                kind: Kind::DeleteRange,
                family: range.family,
                key,
                value,
            });
        }
    }

    pub fn add<K: TableKey>(&mut self, table: &Table<K, Counter>, key: &K, delta: i64) {
        self.push(Kind::Add, table, key, |buffer| {
            Counter(delta).encode(buffer)
        });
    }

    /// The batch is written only if the row is `value` (`None`: absent); else its commit is `Error::Conflict`.
    pub fn expect<K: TableKey, V: Record>(
        &mut self,
        table: &Table<K, V>,
        key: &K,
        value: Option<&V>,
    ) {
        self.has_expectations = true;
        match value {
            Some(value) => self.push(Kind::Expect, table, key, |buffer| value.encode(buffer)),
            None => self.push(Kind::ExpectAbsent, table, key, |_value| {}),
        };
    }

    /// An entry of the log. Kinds: engine.md section 10.
    pub fn log(&mut self, kind: u8, payload: &[u8]) {
        super::log::encode_entry(kind, payload, &mut self.log);
    }

    /// Sets the cursor of `follower`: it has dealt with the log up to `position`.
    pub fn cursor(&mut self, follower: &str, position: Position) {
        self.put(&meta::CURSORS, &(Text::from(follower),), &position);
    }

    pub fn wake(&mut self, topic: Topic) {
        self.wake.push(topic);
    }

    /// This batch may be lost in a crash soon after its commit resolved (engine.md section 14: receipts): its commit
    /// need not wait for the disk.
    pub fn relaxed(&mut self) {
        self.relaxed = true;
    }

    /// Runs on the committer's thread when the batch is durable, before any snapshot shows it: for what readers find
    /// in memory and must never be older than their snapshot (summaries, caches). Who reads it with an older snapshot
    /// finds what is newer, and must not put back what it replaced: compare positions. Must be short and must not
    /// block.
    pub fn before_publish(&mut self, then: impl FnOnce(Position) + Send + 'static) {
        self.hooks_before.push(Box::new(then));
    }

    /// Runs on the committer's thread when snapshots show the batch, before waiters wake: for what may be dropped
    /// because it can be read now. Must be short and must not block.
    pub fn on_publish(&mut self, then: impl FnOnce(Position) + Send + 'static) {
        self.hooks.push(Box::new(then));
    }

    /// Keeps `lock` until snapshots show the batch, also if nobody waits for its commit any more: who takes the lock next
    /// finds what its last holder has written.
    pub fn hold(&mut self, lock: impl Send + 'static) {
        self.on_publish(move |_position| drop(lock));
    }

    /// Adds everything of `other` after what is here. Relaxed only if both are.
    pub fn append(&mut self, mut other: Batch) {
        if self.is_empty() {
            *self = other;
            return;
        }
        self.relaxed &= other.relaxed || other.is_empty();
        let base = self.buffer.len();
        let shift = |range: &Range<usize>| range.start + base..range.end + base;
        self.buffer.append(&mut other.buffer);
        self.ops.extend(other.ops.iter().map(|op| Op {
            key: shift(&op.key),
            value: shift(&op.value),
            ..op.clone()
        }));
        self.stamps
            .extend(other.stamps.iter().map(|place| place + base));
        self.log.append(&mut other.log);
        self.wake.append(&mut other.wake);
        self.hooks_before.append(&mut other.hooks_before);
        self.hooks.append(&mut other.hooks);
        self.has_expectations |= other.has_expectations;
    }

    pub fn is_empty(&self) -> bool {
        let has_hooks = !self.hooks_before.is_empty() || !self.hooks.is_empty();
        self.ops.is_empty() && self.log.is_empty() && self.wake.is_empty() && !has_hooks
    }

    /// About how much it takes in memory and in the write-ahead log.
    pub fn bytes(&self) -> usize {
        self.buffer.len() + self.log.len() + self.ops.len() * 8
    }

    fn push<K: TableKey, V: Record>(
        &mut self,
        kind: Kind,
        table: &Table<K, V>,
        key: &K,
        value: impl FnOnce(&mut Vec<u8>),
    ) -> (Range<usize>, Range<usize>) {
        let key = self.write(|buffer| table.encode_key(key, buffer));
        let value = self.write(value);
        self.ops.push(Op {
            kind,
            family: table.family(),
            key: key.clone(),
            value: value.clone(),
        });
        (key, value)
    }

    /// The range of the buffer that `fill` has added.
    fn write(&mut self, fill: impl FnOnce(&mut Vec<u8>)) -> Range<usize> {
        let start = self.buffer.len();
        fill(&mut self.buffer);
        start..self.buffer.len()
    }
}

/// The committer's side.
impl Batch {
    pub(super) fn is_relaxed(&self) -> bool {
        self.relaxed
    }

    pub(super) fn stamp(&mut self, position: Position) {
        for place in &self.stamps {
            if let Some(bytes) = self.buffer.get_mut(*place..*place + 8) {
                bytes.copy_from_slice(&position.0.to_be_bytes());
            }
        }
    }

    /// In the order in which they were put in.
    pub(super) fn writes(&self) -> impl DoubleEndedIterator<Item = (Family, Write<'_>)> {
        self.ops.iter().filter_map(|op| {
            let (key, value) = (self.bytes_at(&op.key), self.bytes_at(&op.value));
            let write = match op.kind {
                Kind::Put => Write::Put { key, value },
                Kind::Delete => Write::Delete { key },
                Kind::DeleteRange => Write::DeleteRange {
                    start: key,
                    end: value,
                },
                Kind::Add => Write::Add { key, delta: value },
                Kind::Expect | Kind::ExpectAbsent => return None,
            };
            Some((op.family, write))
        })
    }

    pub(super) fn has_expectations(&self) -> bool {
        self.has_expectations
    }

    pub(super) fn expectations(&self) -> impl Iterator<Item = Expectation<'_>> {
        self.ops.iter().filter_map(|op| {
            let value = match op.kind {
                Kind::Expect => Some(self.bytes_at(&op.value)),
                Kind::ExpectAbsent => None,
                Kind::Put | Kind::Delete | Kind::DeleteRange | Kind::Add => return None,
            };
            Some(Expectation {
                family: op.family,
                key: self.bytes_at(&op.key),
                value,
            })
        })
    }

    /// All log entries, as the row of the log holds them.
    pub(super) fn log_row(&self) -> &[u8] {
        &self.log
    }

    pub(super) fn topics(&self) -> &[Topic] {
        &self.wake
    }

    pub(super) fn take_hooks_before(&mut self) -> Vec<Hook> {
        std::mem::take(&mut self.hooks_before)
    }

    pub(super) fn take_hooks(&mut self) -> Vec<Hook> {
        std::mem::take(&mut self.hooks)
    }

    /// The longest key and the longest value.
    pub(super) fn longest(&self) -> (usize, usize) {
        let longest = |lengths: &mut dyn Iterator<Item = usize>| lengths.max().unwrap_or(0);
        (
            longest(&mut self.ops.iter().map(|op| op.key.len())),
            longest(&mut self.ops.iter().map(|op| op.value.len())),
        )
    }

    fn bytes_at(&self, range: &Range<usize>) -> &[u8] {
        self.buffer
            .get(range.clone())
            .expect("every operation lies inside the buffer it was written to")
    }
}

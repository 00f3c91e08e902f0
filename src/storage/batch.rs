//! What one commit writes.

use super::{Counter, Position, Record, Table, TableKey, TableRange, Topic};

/// Where the committer writes the batch's position.
#[derive(Clone, Copy, Debug)]
pub enum PositionAt {
    /// At this offset of the encoded key, counted after the tag byte.
    Key(usize),
    /// At this offset of the encoded value.
    Value(usize),
}

/// Writes that happen together or not at all, at one [`Position`].
#[derive(Default)]
pub struct Batch {}

impl Batch {
    pub fn new() -> Self {
        Self::default()
    }
    pub fn put<K: TableKey, V: Record>(&mut self, table: &Table<K, V>, key: &K, value: &V) {
        todo!()
    }
    /// As `put`; the 8 bytes at `at` are overwritten with the position of this batch.
    pub fn put_stamped<K: TableKey, V: Record>(&mut self, table: &Table<K, V>, key: &K, value: &V, at: PositionAt) {
        todo!()
    }
    pub fn delete<K: TableKey, V: Record>(&mut self, table: &Table<K, V>, key: &K) {
        todo!()
    }
    pub fn delete_range<K: TableKey, V: Record>(&mut self, range: TableRange<K, V>) {
        todo!()
    }
    pub fn add<K: TableKey>(&mut self, table: &Table<K, Counter>, key: &K, delta: i64) {
        todo!()
    }
    /// The batch is written only if the row is `value` (`None`: absent); else its commit is `Error::Conflict`.
    pub fn expect<K: TableKey, V: Record>(&mut self, table: &Table<K, V>, key: &K, value: Option<&V>) {
        todo!()
    }
    /// An entry of the log. Kinds: engine.md section 10.
    pub fn log(&mut self, kind: u8, payload: &[u8]) {
        todo!()
    }
    pub fn wake(&mut self, topic: Topic) {
        todo!()
    }
    /// Runs on the committer's thread after the batch is durable and before waiters wake: for what readers find in
    /// memory (summaries, caches). Must be short and must not block.
    pub fn on_publish(&mut self, then: impl FnOnce(Position) + Send + 'static) {
        todo!()
    }
    /// Adds everything of `other` after what is here.
    pub fn append(&mut self, other: Batch) {
        todo!()
    }
    pub fn is_empty(&self) -> bool {
        todo!()
    }
}

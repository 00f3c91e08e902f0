//! Ordered typed tables, snapshots, atomic batches, positions, the log and waking. Knows no Matrix.
//!
//! [`Store`] is the typed face; `Engine` (in `engine.rs`) is the seam, in bytes. Design: engine.md sections 4, 5, 9, 14, 16.

mod batch;
mod commit;
mod key;
mod locks;
mod table;
mod watch;

use std::{sync::Arc, time::Duration};

pub use self::{
    batch::{Batch, PositionAt},
    commit::Commit,
    key::{Index, KeyError, KeyPart, Millis48, TableKey, Text},
    locks::{Guard, Locks},
    table::{Cbor, Counter, Family, Order, Raw, Record, Stamped, Table, TableRange},
    watch::Topic,
};

/// What went wrong in the store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A precondition of the batch did not hold; read again and retry.
    #[error("a precondition of the batch does not hold")]
    Conflict,
    /// A stored row cannot be decoded: the database is damaged or from another version.
    #[error("a row of table {table} cannot be decoded: {reason}")]
    Corrupt { table: &'static str, reason: String },
    /// The engine failed. Writes that fail end the process before this is seen.
    #[error("the database failed: {0}")]
    Engine(String),
    /// The store is closing.
    #[error("the store is closed")]
    Closed,
    /// The database cannot be opened: locked, of a newer schema, of another server name.
    #[error("the database cannot be opened: {0}")]
    Open(String),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The moment at which a batch became visible: writer number in the top 16 bits, sequence in the 48 below.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Position(pub u64);

/// A moment of this process, later than all changes that had woken waiters when it was taken. See [`Store::tick`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tick(u64);

/// The typed face of the database. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {}

impl Store {
    /// A store in memory, for tests.
    pub fn memory() -> Self {
        todo!()
    }

    /// A consistent view of everything published so far. Blocking calls: use inside [`Store::read`].
    pub fn snapshot(&self) -> Result<Snapshot> {
        todo!()
    }

    /// Runs `closure` on one snapshot on the blocking pool, holding one of a bounded number of permits.
    pub async fn read<T, E>(&self, closure: impl FnOnce(&Snapshot) -> Result<T, E> + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        todo!()
    }

    /// Queues `batch`. The order of calls is the order of the log. Never blocks.
    pub fn submit(&self, batch: Batch) -> Commit {
        todo!()
    }

    /// Bytes queued and not yet committed; above `QUEUE_LIMIT_BYTES` callers wait in [`Store::has_room`].
    pub async fn has_room(&self) {
        todo!()
    }

    /// The last published position.
    pub fn position(&self) -> Position {
        todo!()
    }

    /// Now, in ticks of waking. Take it before the snapshot whose data it shall guard.
    pub fn tick(&self) -> Tick {
        todo!()
    }

    /// Resolves when one of `topics` changed after `since` (at once if it already has) or after `timeout`.
    /// True if something changed.
    pub async fn wait(&self, topics: &[Topic], since: Tick, timeout: Duration) -> bool {
        todo!()
    }

    /// Wakes `topics` without a write: for what is never stored (typing, presence).
    pub fn touch(&self, topics: &[Topic]) {
        todo!()
    }
}

/// A consistent view of the database. Lives for one request or 5 s, whichever is less.
pub struct Snapshot {}

impl Snapshot {
    /// The last position that this view holds.
    pub fn position(&self) -> Position {
        todo!()
    }

    pub fn get<K: TableKey, V: Record>(&self, table: &Table<K, V>, key: &K) -> Result<Option<V>> {
        todo!()
    }

    /// Rows of `keys`, in their order; one round trip on a remote engine.
    pub fn get_many<K: TableKey, V: Record>(&self, table: &Table<K, V>, keys: &[K]) -> Result<Vec<Option<V>>> {
        todo!()
    }

    /// Rows of `range` (made by [`Table::all`], [`Table::prefix`], [`Table::range`]) in key order or backwards.
    pub fn scan<'a, K: TableKey + 'a, V: Record + 'a>(
        &'a self,
        range: TableRange<K, V>,
        order: Order,
    ) -> impl Iterator<Item = Result<(K, V)>> + 'a {
        std::iter::empty()
    }
}

//! A RocksDB snapshot that owns its database: the library's own borrows it. The only unsafe code of `storage`.
#![allow(unsafe_code, reason = "a value and a borrow of it in one struct")]

use std::sync::Arc;

use rocksdb::SnapshotWithThreadMode;

use super::Database;

pub(super) struct Owned {
    /// Before the database: fields are dropped in this order.
    snapshot: SnapshotWithThreadMode<'static, Database>,
    database: Arc<Database>,
}

impl Owned {
    pub(super) fn new(database: Arc<Database>) -> Self {
        // SAFETY: The database lies behind the `Arc` and does not move. It lives as long as the `Arc` beside the
        // snapshot does, which is dropped after it. The borrow is handed out only for as long as `self` is borrowed.
        let borrowed: &'static Database = unsafe { &*Arc::as_ptr(&database) };
        Self {
            snapshot: borrowed.snapshot(),
            database,
        }
    }

    pub(super) fn get(&self) -> &SnapshotWithThreadMode<'_, Database> {
        &self.snapshot
    }

    pub(super) fn database(&self) -> &Database {
        &self.database
    }
}

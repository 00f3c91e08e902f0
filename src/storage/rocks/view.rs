//! Reading from RocksDB: a snapshot that keeps its database open.

use std::sync::Arc;

use rocksdb::{ColumnFamily, DBRawIteratorWithThreadMode, ReadOptions};

use super::{Database, failed, snapshot::Owned};
use crate::storage::{Family, Order, Result};

/// Bytes of the tag and the room, which is what the prefix filters of room tables know.
pub(super) const PREFIX_BYTES: usize = 5;

pub(in crate::storage) struct View {
    /// Of the snapshot; for reading by key.
    options: ReadOptions,
    snapshot: Owned,
}

pub(in crate::storage) struct Scan<'a> {
    iterator: DBRawIteratorWithThreadMode<'a, Database>,
    start: Vec<u8>,
    order: Order,
    place: Place,
}

enum Place {
    Before,
    At,
    After,
}

pub(super) fn handle(database: &Database, family: Family) -> &ColumnFamily {
    database
        .cf_handle(family.code())
        .expect("the database was opened with every family")
}

impl View {
    pub(super) fn new(database: Arc<Database>) -> Self {
        let snapshot = Owned::new(database);
        let mut options = ReadOptions::default();
        options.set_snapshot(snapshot.get());
        Self { options, snapshot }
    }

    pub(in crate::storage) fn get<R>(
        &self,
        family: Family,
        key: &[u8],
        read: impl FnOnce(&[u8]) -> R,
    ) -> Result<Option<R>> {
        let database = self.snapshot.database();
        let row = database
            .get_pinned_cf_opt(handle(database, family), key, &self.options)
            .map_err(failed)?;
        Ok(row.map(|value| read(&value)))
    }

    pub(in crate::storage) fn get_many<R>(
        &self,
        family: Family,
        keys: &[&[u8]],
        mut read: impl FnMut(&[u8]) -> R,
    ) -> Result<Vec<Option<R>>> {
        let database = self.snapshot.database();
        let keys = keys.iter().copied();
        let rows =
            database.batched_multi_get_cf_opt(handle(database, family), keys, false, &self.options);
        rows.into_iter()
            .map(|row| Ok(row.map_err(failed)?.map(|value| read(&value))))
            .collect()
    }

    pub(in crate::storage) fn scan(
        &self,
        family: Family,
        start: Vec<u8>,
        end: Vec<u8>,
        order: Order,
    ) -> Scan<'_> {
        let mut options = ReadOptions::default();
        options.set_snapshot(self.snapshot.get());
        // Filters by prefix may only be asked where the sought key has the prefix of all keys of the range; backwards
        // that is the end, which has the next prefix.
        let within_prefix = order == Order::Forward && is_within_prefix(&start, &end);
        options.set_prefix_same_as_start(within_prefix);
        options.set_total_order_seek(!within_prefix);
        let place = if start < end {
            Place::Before
        } else {
            Place::After
        };
        options.set_iterate_lower_bound(start.clone());
        options.set_iterate_upper_bound(end);
        let database = self.snapshot.database();
        let iterator = database.raw_iterator_cf_opt(handle(database, family), options);
        Scan {
            iterator,
            start,
            order,
            place,
        }
    }
}

/// Whether all keys of the range start with the same prefix.
fn is_within_prefix(start: &[u8], end: &[u8]) -> bool {
    let Some(prefix) = start.get(..PREFIX_BYTES) else {
        return false;
    };
    end.starts_with(prefix) || end == crate::storage::table::successor(prefix.to_vec())
}

impl Scan<'_> {
    pub(in crate::storage) fn next<R>(
        &mut self,
        read: impl FnOnce(&[u8], &[u8]) -> R,
    ) -> Result<Option<R>> {
        match (&self.place, self.order) {
            (Place::After, _) => return Ok(None),
            (Place::Before, Order::Forward) => self.iterator.seek(&self.start),
            (Place::Before, Order::Backward) => self.iterator.seek_to_last(),
            (Place::At, Order::Forward) => self.iterator.next(),
            (Place::At, Order::Backward) => self.iterator.prev(),
        }
        if let Some((key, value)) = self.iterator.item() {
            self.place = Place::At;
            return Ok(Some(read(key, value)));
        }
        self.place = Place::After;
        self.iterator.status().map_err(failed)?;
        Ok(None)
    }
}

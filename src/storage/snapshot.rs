//! A consistent view of the database, and reading from it by table.

use std::sync::Arc;

use super::{
    Error, LogPage, Order, Position, Record, Result, Table, TableKey, TableRange, Text,
    engine::View, log, meta, shared::Published,
};

/// A consistent view of the database. Lives for one request or 5 s, whichever is less.
#[derive(Clone)]
pub struct Snapshot {
    published: Arc<Published>,
}

impl Snapshot {
    pub(super) fn new(published: Arc<Published>) -> Self {
        Self { published }
    }

    fn view(&self) -> &View {
        self.published.counters.read();
        &self.published.view
    }

    /// The last position that this view holds.
    pub fn position(&self) -> Position {
        self.published.position
    }

    pub fn get<K: TableKey, V: Record>(&self, table: &Table<K, V>, key: &K) -> Result<Option<V>> {
        let row = self
            .view()
            .get(table.family(), &table.key(key), V::decode)?;
        row.transpose().map_err(|reason| Error::Corrupt {
            table: table.name(),
            reason,
        })
    }

    /// Whether there is such a row.
    pub fn has<K: TableKey, V: Record>(&self, table: &Table<K, V>, key: &K) -> Result<bool> {
        let row = self
            .view()
            .get(table.family(), &table.key(key), |_value| ())?;
        Ok(row.is_some())
    }

    /// Rows of `keys`, in their order; one round trip on a remote engine.
    pub fn get_many<K: TableKey, V: Record>(
        &self,
        table: &Table<K, V>,
        keys: &[K],
    ) -> Result<Vec<Option<V>>> {
        let mut bytes = Vec::with_capacity(keys.len() * 16);
        let mut ends = Vec::with_capacity(keys.len());
        for key in keys {
            table.encode_key(key, &mut bytes);
            ends.push(bytes.len());
        }
        let mut rest = bytes.as_slice();
        let mut start = 0;
        let mut slices = Vec::with_capacity(keys.len());
        for end in ends {
            let (key, after) = rest.split_at(end - start);
            slices.push(key);
            (rest, start) = (after, end);
        }
        let rows = self.view().get_many(table.family(), &slices, V::decode)?;
        let checked = rows
            .into_iter()
            .map(Option::transpose)
            .collect::<Result<_, String>>();
        checked.map_err(|reason| Error::Corrupt {
            table: table.name(),
            reason,
        })
    }

    /// Rows of `range` (made by [`Table::all`], [`Table::prefix`], [`Table::range`]) in key order or backwards.
    pub fn scan<'a, K: TableKey + 'a, V: Record + 'a>(
        &'a self,
        range: TableRange<K, V>,
        order: Order,
    ) -> impl Iterator<Item = Result<(K, V)>> + 'a {
        let table = range.name;
        let mut rows = self
            .view()
            .scan(range.family, range.start, range.end, order);
        std::iter::from_fn(move || {
            rows.next(|key, value| decode_row(table, key, value))
                .and_then(Option::transpose)
                .transpose()
        })
    }

    /// The first row of `range` in that order.
    pub fn first<K: TableKey, V: Record>(
        &self,
        range: TableRange<K, V>,
        order: Order,
    ) -> Result<Option<(K, V)>> {
        let table = range.name;
        let mut rows = self
            .view()
            .scan(range.family, range.start, range.end, order);
        rows.next(|key, value| decode_row(table, key, value))
            .and_then(Option::transpose)
    }

    /// How far `follower` has dealt with the log.
    pub fn cursor(&self, follower: &str) -> Result<Option<Position>> {
        self.get(&meta::CURSORS, &(Text::from(follower),))
    }

    /// All followers and how far they are.
    pub fn cursors(&self) -> Result<Vec<(String, Position)>> {
        let rows = self.scan(meta::CURSORS.all(), Order::Forward);
        rows.map(|row| row.map(|((name,), position)| (String::from(name.0), position)))
            .collect()
    }

    /// At least `limit` entries of the log after `after`, if there are so many: a batch's are never torn apart.
    pub fn log(&self, after: Position, limit: usize) -> Result<LogPage> {
        log::page(self, after, limit)
    }
}

fn decode_row<K: TableKey, V: Record>(
    table: &'static str,
    key: &[u8],
    value: &[u8],
) -> Result<(K, V)> {
    let untagged = key.get(1..).unwrap_or_default();
    let key = K::decode(untagged).map_err(|error| Error::Corrupt {
        table,
        reason: error.to_string(),
    })?;
    let value = V::decode(value).map_err(|reason| Error::Corrupt { table, reason })?;
    Ok((key, value))
}

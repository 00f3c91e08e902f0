//! The log: what happened, in the order of positions, for those who follow. Kept for seven days.
//!
//! A row holds all entries of one batch. Followers read it with [`super::Store::log`] from where their cursor stands;
//! the newest rows are also kept in memory, so that who keeps up does not touch the disk.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;

use super::{
    Batch, Error, Family, Order, Position, Raw, Record, Result, Snapshot, Table, engine::View, meta,
};

#[cfg(test)]
mod tests;

/// The entries of each batch that has some.
pub(super) static ROWS: Table<(Position,), Raw> = Table::new("log", Family::Log, b'l');
/// The last position before each hour since the Unix epoch, while the log reaches back to it.
static HOURS: Table<(u32,), Position> = Table::new("log_hours", Family::Log, b'h');

/// How long the log is kept. Followers that are behind it walk what they need from the tables.
const KEPT_HOURS: u32 = 7 * 24;
const HOUR_MS: u64 = 3_600_000;
/// Rows and bytes kept in memory.
const RING_ROWS: usize = 16_384;
const RING_BYTES: usize = 4 << 20;

/// One entry. Kinds: engine.md section 10.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    pub position: Position,
    pub kind: u8,
    pub payload: Bytes,
}

/// A piece of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogPage {
    pub entries: Vec<LogEntry>,
    /// Everything up to here is in this page or before it: go on from here, and set the cursor to it.
    pub upto: Position,
    /// Entries between the position asked for and the first here have been dropped, being too old.
    pub has_gap: bool,
}

/// Adds an entry to a row: its kind, the length of its payload in LEB128, its payload.
pub(super) fn encode_entry(kind: u8, payload: &[u8], to: &mut Vec<u8>) {
    to.push(kind);
    let mut length = payload.len();
    loop {
        let seven = u8::try_from(length & 0x7f).expect("seven bits");
        length >>= 7;
        if length == 0 {
            to.push(seven);
            break;
        }
        to.push(seven | 0x80);
    }
    to.extend_from_slice(payload);
}

/// Takes the first entry off `row`; `None` if it is malformed.
fn decode_entry(row: &mut Bytes) -> Option<(u8, Bytes)> {
    let mut bytes = row.iter().copied();
    let kind = bytes.next()?;
    let mut length = 0usize;
    for place in 0..4 {
        let byte = bytes.next()?;
        length |= usize::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            let start = 2 + place;
            let payload =
                (row.len() >= start + length).then(|| row.slice(start..start + length))?;
            *row = row.slice(start + length..);
            return Some((kind, payload));
        }
    }
    None
}

fn push_entries(position: Position, mut row: Bytes, to: &mut Vec<LogEntry>) -> Result<()> {
    while !row.is_empty() {
        let malformed = || Error::Corrupt {
            table: ROWS.name(),
            reason: format!("entry at {}", position.0),
        };
        let (kind, payload) = decode_entry(&mut row).ok_or_else(malformed)?;
        to.push(LogEntry {
            position,
            kind,
            payload,
        });
    }
    Ok(())
}

/// A page from the table.
pub(super) fn page(snapshot: &Snapshot, after: Position, limit: usize) -> Result<LogPage> {
    let start = snapshot.get(&meta::FACTS, &(meta::LOG_START.into(),))?;
    let start = start.map_or(Ok(Position(0)), |Raw(bytes)| Position::decode(&bytes));
    let start = start.map_err(|reason| Error::Corrupt {
        table: meta::FACTS.name(),
        reason,
    })?;
    let mut page = LogPage {
        entries: Vec::new(),
        upto: snapshot.position(),
        has_gap: after < start,
    };
    for row in snapshot.scan(ROWS.after(&(after,), &()), Order::Forward) {
        let ((position,), Raw(row)) = row?;
        push_entries(position, row, &mut page.entries)?;
        if page.entries.len() >= limit {
            page.upto = position;
            break;
        }
    }
    Ok(page)
}

/// The newest rows.
pub(super) struct Ring(Mutex<Rows>);

struct Rows {
    rows: VecDeque<(Position, Bytes)>,
    bytes: usize,
    /// Every row after this one is here.
    start: Position,
}

impl Ring {
    /// Knows nothing up to `start`.
    pub(super) fn new(start: Position) -> Self {
        Self(Mutex::new(Rows {
            rows: VecDeque::new(),
            bytes: 0,
            start,
        }))
    }

    /// The committer calls it in the order of positions.
    pub(super) fn push(&self, position: Position, row: &[u8]) {
        let mut ring = self.lock();
        ring.bytes += row.len();
        ring.rows.push_back((position, Bytes::copy_from_slice(row)));
        while ring.rows.len() > RING_ROWS || ring.bytes > RING_BYTES {
            let Some((position, row)) = ring.rows.pop_front() else {
                break;
            };
            ring.bytes -= row.len();
            ring.start = position;
        }
    }

    /// Entries after `after` and up to the published position; `None` if they are not all here.
    pub(super) fn page(
        &self,
        after: Position,
        published: Position,
        limit: usize,
    ) -> Option<Result<LogPage>> {
        let mut page = LogPage {
            entries: Vec::new(),
            upto: published.max(after),
            has_gap: false,
        };
        let mut rows = Vec::new();
        let ring = self.lock();
        if after < ring.start {
            return None;
        }
        let first = ring
            .rows
            .partition_point(|(position, _row)| *position <= after);
        let published = |(position, _row): &&(Position, Bytes)| *position <= published;
        rows.extend(
            ring.rows
                .range(first..)
                .take_while(published)
                .take(limit.max(1))
                .cloned(),
        );
        drop(ring);
        for (position, row) in rows {
            if let Err(error) = push_entries(position, row, &mut page.entries) {
                return Some(Err(error));
            }
            if page.entries.len() >= limit {
                page.upto = position;
                break;
            }
        }
        Some(Ok(page))
    }

    fn lock(&self) -> MutexGuard<'_, Rows> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Notes where hours begin and forgets what is too old.
pub(super) struct Trimmer {
    hour: u32,
}

impl Trimmer {
    pub(super) fn new(view: &View) -> Result<Self> {
        let all = HOURS.all();
        let mut hours = view.scan(all.family, all.start, all.end, Order::Backward);
        let newest = hours.next(|key, _value| {
            key.get(1..)
                .and_then(|key| key.try_into().ok())
                .map(u32::from_be_bytes)
        })?;
        Ok(Self {
            hour: newest.flatten().unwrap_or(0),
        })
    }

    /// At the first batches of an hour. `last` is the position before them.
    pub(super) fn run(
        &mut self,
        now_ms: u64,
        last: Position,
        view: &View,
        batch: &mut Batch,
    ) -> Result<()> {
        let hour = u32::try_from(now_ms / HOUR_MS).unwrap_or(u32::MAX);
        // A clock that is set back starts its hours anew.
        if hour == self.hour {
            return Ok(());
        }
        self.hour = hour;
        batch.put(&HOURS, &(hour,), &last);
        // The position before the hour in which the oldest entry to be kept may lie.
        let old = HOURS.range(&(), &(hour.saturating_sub(KEPT_HOURS) + 1,));
        let mut hours = view.scan(
            old.family,
            old.start.clone(),
            old.end.clone(),
            Order::Backward,
        );
        let Some(start) = hours.next(|_hour, position| Position::decode(position))? else {
            return Ok(());
        };
        let start = start.map_err(|reason| Error::Corrupt {
            table: HOURS.name(),
            reason,
        })?;
        batch.delete_range(ROWS.through(&(start,), &()));
        batch.delete_range(old);
        meta::put(batch, meta::LOG_START, &start);
        Ok(())
    }
}

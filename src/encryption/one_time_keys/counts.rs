//! How many one-time keys a device has left, and which of its fallback keys nobody has got yet: in memory for the devices
//! that were asked for last, so that a sync reads nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use lru::LruCache;
use serde::{Deserialize, Serialize};

use super::Place;
use crate::{
    accounts::UserNumber,
    encryption::{Encryption, Error},
    storage::{Batch, Family, Order, Position, PositionAt, Snapshot, Stamped, Table},
};

/// By user and hash of the device ID, with the position of the last change.
static COUNTS: Table<(UserNumber, u64), Stamped<CountsRow>> =
    Table::new("one_time_key_counts", Family::Keys, b'O');

/// Devices that are remembered.
const MAX_DEVICES: usize = 50_000;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct CountsRow {
    one_time: BTreeMap<String, u64>,
    unused_fallback: BTreeSet<String>,
}

/// What is held for a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyCounts {
    /// One-time keys by algorithm.
    pub one_time: BTreeMap<String, u64>,
    /// The algorithms of the fallback keys that nobody has got yet.
    pub unused_fallback: BTreeSet<String>,
    /// When that changed last.
    pub position: Position,
}

impl KeyCounts {
    pub(super) fn take(&mut self, algorithm: &str) {
        if let Some(count) = self.one_time.get_mut(algorithm) {
            *count = count.saturating_sub(1);
        }
        self.one_time.retain(|_, count| *count > 0);
    }

    fn of(Stamped(position, row): Stamped<CountsRow>) -> Self {
        Self {
            one_time: row.one_time,
            unused_fallback: row.unused_fallback,
            position,
        }
    }

    fn row(&self) -> CountsRow {
        CountsRow {
            one_time: self.one_time.clone(),
            unused_fallback: self.unused_fallback.clone(),
        }
    }
}

/// The counts that were asked for last.
pub(in crate::encryption) struct Counts(Mutex<Known>);

struct Known {
    counts: LruCache<Place, Arc<KeyCounts>>,
    /// The position of the last change of whichever device.
    changed: Position,
}

impl Default for Counts {
    fn default() -> Self {
        Self(Mutex::new(Known {
            // Unbounded for the table, which would otherwise take all the memory at once that it may need some day.
            counts: LruCache::unbounded(),
            changed: Position::default(),
        }))
    }
}

impl Counts {
    fn lock(&self) -> MutexGuard<'_, Known> {
        // What is known is whole whatever a panicking thread was doing.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self, place: Place, position: Position) {
        let mut known = self.lock();
        known.changed = position;
        known.counts.pop(&place);
    }

    /// Keeps what a snapshot at `read_at` says, unless anything has changed since.
    fn fill(&self, place: Place, counts: &Arc<KeyCounts>, read_at: Position) {
        let mut known = self.lock();
        if read_at < known.changed {
            return;
        }
        known.counts.put(place, Arc::clone(counts));
        if known.counts.len() > MAX_DEVICES {
            known.counts.pop_lru();
        }
    }
}

impl Encryption {
    /// What is held for a device.
    ///
    /// # Errors
    /// The store failed.
    pub fn key_counts(&self, snapshot: &Snapshot, place: Place) -> Result<Arc<KeyCounts>, Error> {
        let cache = &self.inner.counts;
        // The snapshot may be older than what is known: then it is told once more, and no harm is done.
        if let Some(known) = cache.lock().counts.get(&place) {
            return Ok(Arc::clone(known));
        }
        let row = snapshot.get(&COUNTS, &place)?;
        let counts = Arc::new(row.map(KeyCounts::of).unwrap_or_default());
        cache.fill(place, &counts, snapshot.position());
        Ok(counts)
    }

    pub(super) fn put_counts(&self, batch: &mut Batch, place: Place, counts: &KeyCounts) {
        let row = Stamped(Position::default(), counts.row());
        batch.put_stamped(&COUNTS, &place, &row, PositionAt::Value(0));
        self.note_change(batch, place);
    }

    /// What is left when keys have been forgotten; the row goes with the last of them.
    pub(super) fn put_left(
        &self,
        snapshot: &Snapshot,
        batch: &mut Batch,
        place: Place,
        left: &KeyCounts,
    ) -> Result<(), Error> {
        let Some(Stamped(_, known)) = snapshot.get(&COUNTS, &place)? else {
            return Ok(());
        };
        if left.one_time.is_empty() && left.unused_fallback.is_empty() {
            batch.delete(&COUNTS, &place);
            self.note_change(batch, place);
        } else if known != left.row() {
            self.put_counts(batch, place, left);
        }
        Ok(())
    }

    fn note_change(&self, batch: &mut Batch, place: Place) {
        let this = self.clone();
        batch.before_publish(move |position| this.inner.counts.changed(place, position));
    }
}

/// What is counted, for each device.
pub(super) fn all(snapshot: &Snapshot) -> Result<Vec<(Place, KeyCounts)>, Error> {
    let rows = snapshot.scan(COUNTS.all(), Order::Forward);
    rows.map(|row| Ok(row.map(|(place, row)| (place, KeyCounts::of(row)))?))
        .collect()
}

/// The hashes of the devices of a user for which anything has been held.
pub(super) fn devices(snapshot: &Snapshot, user: UserNumber) -> Result<Vec<u64>, Error> {
    let rows = snapshot.scan(COUNTS.prefix(&(user,)), Order::Forward);
    rows.map(|row| Ok(row?.0.1)).collect()
}

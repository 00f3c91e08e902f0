//! Bounded caches of rows, split into shards so that no request waits for another.
//!
//! A change forgets its key at its [`Position`], before those who wait for the change wake. A row read from a snapshot that
//! is older than the last change of its shard is not kept, so a slow reader cannot bring an old row back.

use std::{
    borrow::Borrow,
    hash::{BuildHasher, Hash, RandomState},
    sync::{Mutex, MutexGuard, PoisonError},
};

use lru::LruCache;

use crate::storage::Position;

/// Power of two.
const SHARDS: usize = 16;

pub(super) struct Cache<K, V> {
    shards: [Mutex<Shard<K, V>>; SHARDS],
    hasher: RandomState,
    rows_per_shard: usize,
}

struct Shard<K, V> {
    rows: LruCache<K, V>,
    changed: Position,
}

impl<K: Hash + Eq, V: Clone> Cache<K, V> {
    /// Keeps about `capacity` rows, those used last.
    pub(super) fn new(capacity: usize) -> Self {
        // Unbounded for the table, which would otherwise take all the memory at once that it may need some day.
        let shard = |_| {
            Mutex::new(Shard {
                rows: LruCache::unbounded(),
                changed: Position::default(),
            })
        };
        Self {
            shards: std::array::from_fn(shard),
            hasher: RandomState::new(),
            rows_per_shard: capacity.div_ceil(SHARDS),
        }
    }

    pub(super) fn get<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.shard(key).rows.get(key).cloned()
    }

    /// Keeps what a snapshot at `read_at` says, unless something in the shard changed since.
    pub(super) fn fill(&self, key: K, value: V, read_at: Position) {
        let mut shard = self.shard(&key);
        if read_at >= shard.changed {
            shard.rows.put(key, value);
            if shard.rows.len() > self.rows_per_shard {
                shard.rows.pop_lru();
            }
        }
    }

    pub(super) fn forget<Q>(&self, key: &Q, changed_at: Position)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let mut shard = self.shard(key);
        shard.rows.pop(key);
        shard.changed = shard.changed.max(changed_at);
    }

    fn shard<Q: Hash + ?Sized>(&self, key: &Q) -> MutexGuard<'_, Shard<K, V>> {
        let hash = self.hasher.hash_one(key);
        let index = usize::try_from(hash % SHARDS as u64).expect("a remainder of SHARDS fits");
        // A row is whole or absent whatever a panicking thread was doing.
        self.shards
            .get(index)
            .expect("a remainder of SHARDS is an index")
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;

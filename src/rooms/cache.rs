//! What is kept in memory of rows that never change: event bodies, state trie nodes, roots and state keys.
//!
//! Keyed by room and number, bounded by bytes, least recently used out first. A redaction replaces its entry.

use std::{
    hash::{BuildHasher, Hash, RandomState},
    sync::{Mutex, PoisonError},
};

use lru::LruCache;

const SHARDS: usize = 16;

/// A cache bounded by the weight of its entries, in bytes.
pub(super) struct Cache<K, V> {
    shards: Vec<Mutex<Shard<K, V>>>,
    hasher: RandomState,
    limit_per_shard: usize,
}

struct Shard<K, V> {
    entries: LruCache<K, (V, usize)>,
    weight: usize,
}

impl<K: Hash + Eq, V: Clone> Cache<K, V> {
    /// A cache of at most `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        let shard = || {
            Mutex::new(Shard {
                entries: LruCache::unbounded(),
                weight: 0,
            })
        };
        Self {
            shards: std::iter::repeat_with(shard).take(SHARDS).collect(),
            hasher: RandomState::new(),
            limit_per_shard: limit / SHARDS,
        }
    }

    fn shard(&self, key: &K) -> std::sync::MutexGuard<'_, Shard<K, V>> {
        let hash = self.hasher.hash_one(key).to_le_bytes();
        let at = usize::from(hash[0]) % SHARDS;
        let shard = self
            .shards
            .get(at)
            .expect("a remainder is below the number of shards");
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, key: &K) -> Option<V> {
        self.shard(key)
            .entries
            .get(key)
            .map(|(value, _)| value.clone())
    }

    /// Adds or replaces an entry of `weight` bytes, and drops the least recently used above the limit.
    pub(super) fn put(&self, key: K, value: V, weight: usize) {
        let mut shard = self.shard(&key);
        Self::put_in(&mut shard, self.limit_per_shard, key, (value, weight));
    }

    fn put_in(shard: &mut Shard<K, V>, limit: usize, key: K, entry: (V, usize)) {
        let weight = entry.1;
        if let Some((_, old)) = shard.entries.put(key, entry) {
            shard.weight -= old;
        }
        shard.weight += weight;
        while shard.weight > limit {
            let Some((_, (_, old))) = shard.entries.pop_lru() else {
                break;
            };
            shard.weight -= old;
        }
    }

    /// As [`Self::put`], if `still_true` holds once no one else can change the entry.
    pub(super) fn put_if(
        &self,
        key: K,
        value: V,
        weight: usize,
        still_true: impl FnOnce() -> bool,
    ) {
        let mut shard = self.shard(&key);
        if still_true() {
            Self::put_in(&mut shard, self.limit_per_shard, key, (value, weight));
        }
    }

    pub(super) fn remove(&self, key: &K) {
        self.take(key);
    }

    /// Removes an entry and answers it.
    pub(super) fn take(&self, key: &K) -> Option<V> {
        let mut shard = self.shard(key);
        let (value, weight) = shard.entries.pop(key)?;
        shard.weight -= weight;
        Some(value)
    }
}

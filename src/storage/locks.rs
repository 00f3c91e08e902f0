//! Async locks by key: one holder at a time for a room or an account.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::OwnedMutexGuard;

#[cfg(test)]
mod tests;

type Entries<K> = Arc<Mutex<HashMap<K, Arc<tokio::sync::Mutex<()>>>>>;

/// Locks by key; entries vanish when nobody holds or waits. Clones share the locks.
#[derive(Clone)]
pub struct Locks<K> {
    entries: Entries<K>,
}

/// Held while alive.
pub struct Guard<K: Eq + Hash + Clone> {
    turn: Turn<K>,
    held: Option<OwnedMutexGuard<()>>,
}

/// A place in the queue of a key. Entries are cloned and removed only under the lock of the map, so an entry that
/// only the map holds is nobody's.
struct Turn<K: Eq + Hash + Clone> {
    entries: Entries<K>,
    key: K,
    entry: Option<Arc<tokio::sync::Mutex<()>>>,
}

impl<K: Eq + Hash + Clone> Default for Locks<K> {
    fn default() -> Self {
        Self {
            entries: Arc::default(),
        }
    }
}

impl<K: Eq + Hash + Clone> Locks<K> {
    pub fn new() -> Self {
        Self::default()
    }

    /// Waits for the turn of `key`; first come, first served. Dropping the future gives the turn up.
    pub async fn lock(&self, key: K) -> Guard<K> {
        let (turn, entry) = self.turn(key);
        let held = entry.lock_owned().await;
        Guard {
            turn,
            held: Some(held),
        }
    }

    /// The lock of `key`, if nobody holds it.
    pub fn try_lock(&self, key: K) -> Option<Guard<K>> {
        let (turn, entry) = self.turn(key);
        let held = entry.try_lock_owned().ok()?;
        Some(Guard {
            turn,
            held: Some(held),
        })
    }

    /// How many keys are held or waited for.
    pub fn len(&self) -> usize {
        lock(&self.entries).len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn turn(&self, key: K) -> (Turn<K>, Arc<tokio::sync::Mutex<()>>) {
        let entry = Arc::clone(lock(&self.entries).entry(key.clone()).or_default());
        let turn = Turn {
            entries: Arc::clone(&self.entries),
            key,
            entry: Some(Arc::clone(&entry)),
        };
        (turn, entry)
    }
}

impl<K: Eq + Hash + Clone> Guard<K> {
    pub fn key(&self) -> &K {
        &self.turn.key
    }
}

impl<K: Eq + Hash + Clone> Drop for Guard<K> {
    fn drop(&mut self) {
        // Before the turn, which looks whether anybody else has the entry.
        self.held = None;
    }
}

impl<K: Eq + Hash + Clone> Drop for Turn<K> {
    fn drop(&mut self) {
        let mut entries = lock(&self.entries);
        self.entry = None;
        if entries
            .get(&self.key)
            .is_some_and(|entry| Arc::strong_count(entry) == 1)
        {
            entries.remove(&self.key);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

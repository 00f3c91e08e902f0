//! Async locks by key: one holder at a time for a room or an account.

use std::{hash::Hash, marker::PhantomData};

/// Locks by key; entries vanish when nobody holds or waits.
pub struct Locks<K> {
    marker: PhantomData<K>,
}

/// Held while alive.
pub struct Guard<K> {
    marker: PhantomData<K>,
}

impl<K: Eq + Hash + Clone> Locks<K> {
    pub fn new() -> Self {
        todo!()
    }
    /// Waits for the turn of `key`; first come, first served.
    pub async fn lock(&self, key: K) -> Guard<K> {
        todo!()
    }
}

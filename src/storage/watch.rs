//! Who waits for what.
//!
//! Each change of a topic gets a [`Tick`]. A topic remembers its last tick, so a waiter that names the tick at which
//! it began to read is told at once of what changed since: there is no gap between reading and waiting.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;

use super::Tick;

#[cfg(test)]
mod tests;

/// What a change can wake. Numbers are those of `accounts` and `rooms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// Events, receipts, typing of a room.
    Room(u32),
    /// Account data, memberships, presence seen by a user.
    User(u32),
    /// To-device messages and key counts of a device: user number and a hash of the device ID.
    Device(u32, u64),
    /// Devices that have come, changed or gone.
    Devices,
    /// Something to send to a server.
    Destination(u32),
    /// Any published batch: for followers.
    Log,
}

const SHARDS: usize = 16;
/// A shard with more topics than this forgets those that nobody waits for.
const TOPICS_PER_SHARD: usize = 8_192;

pub(super) struct Watch {
    now: AtomicU64,
    hasher: RandomState,
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Default)]
struct Shard {
    topics: HashMap<Topic, Entry>,
    /// Topics that are not here may have changed up to this tick.
    forgotten: u64,
    /// The number of topics at which to forget again.
    limit: usize,
}

#[derive(Default)]
struct Entry {
    last: u64,
    /// With those that have gone away: they are swept when the list has doubled.
    waiting: Vec<Weak<Notify>>,
    sweep_at: usize,
}

impl Watch {
    pub(super) fn new() -> Self {
        Self {
            now: AtomicU64::new(1),
            hasher: RandomState::new(),
            shards: Default::default(),
        }
    }

    pub(super) fn tick(&self) -> Tick {
        Tick(self.now.load(Ordering::SeqCst))
    }

    /// What has changed must be visible before: who takes its tick after this one reads it.
    pub(super) fn touch(&self, topics: &[Topic]) {
        let tick = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        for topic in topics {
            let woken = self.shard(topic).touch(*topic, tick);
            for waiter in woken.iter().filter_map(Weak::upgrade) {
                waiter.notify_one();
            }
        }
    }

    pub(super) async fn wait(&self, topics: &[Topic], since: Tick, timeout: Duration) -> bool {
        let waiter = Arc::new(Notify::new());
        for topic in topics {
            if self.shard(topic).register(*topic, since.0, &waiter) {
                return true;
            }
        }
        tokio::time::timeout(timeout, waiter.notified())
            .await
            .is_ok()
    }

    fn shard(&self, topic: &Topic) -> MutexGuard<'_, Shard> {
        let hash = self.hasher.hash_one(topic);
        let index = usize::try_from(hash % SHARDS as u64).expect("a remainder of 16 is a usize");
        let shard = self
            .shards
            .get(index)
            .expect("a remainder of the number of shards");
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shard {
    fn touch(&mut self, topic: Topic, tick: u64) -> Vec<Weak<Notify>> {
        if self.topics.len() > self.limit.max(TOPICS_PER_SHARD) {
            self.forget();
        }
        let entry = self.topics.entry(topic).or_default();
        entry.last = entry.last.max(tick);
        entry.sweep_at = 0;
        std::mem::take(&mut entry.waiting)
    }

    /// True if the topic has changed after `since`; else the waiter is told when it does.
    fn register(&mut self, topic: Topic, since: u64, waiter: &Arc<Notify>) -> bool {
        let forgotten = self.forgotten;
        let entry = self.topics.entry(topic).or_insert_with(|| Entry {
            last: forgotten,
            ..Entry::default()
        });
        if entry.last > since {
            return true;
        }
        if entry.waiting.len() >= entry.sweep_at.max(8) {
            entry.waiting.retain(|waiter| waiter.strong_count() > 0);
            entry.sweep_at = entry.waiting.len() * 2;
        }
        entry.waiting.push(Arc::downgrade(waiter));
        false
    }

    /// Drops topics that nobody waits for. Who asks for one of them later is told that it may have changed.
    fn forget(&mut self) {
        let mut forgotten = self.forgotten;
        self.topics.retain(|_topic, entry| {
            entry.waiting.retain(|waiter| waiter.strong_count() > 0);
            let keep = !entry.waiting.is_empty();
            if !keep {
                forgotten = forgotten.max(entry.last);
            }
            keep
        });
        self.forgotten = forgotten;
        self.limit = self.topics.len() * 2;
    }
}

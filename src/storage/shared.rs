//! What the store, its snapshots and the committer share.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::clock::Clock;

use super::{Error, Position, commit::Queue, engine::View, log::Ring, watch::Watch};

/// What readers see: replaced as a whole, so that a position and its view always belong together.
pub(super) struct Published {
    pub(super) position: Position,
    pub(super) view: View,
    pub(super) counters: Arc<Counters>,
}

pub(super) struct Shared {
    pub(super) clock: Clock,
    pub(super) queue: Queue,
    pub(super) published: ArcSwap<Published>,
    pub(super) ring: Ring,
    pub(super) watch: Watch,
    pub(super) counters: Arc<Counters>,
    pub(super) on_failure: OnFailure,
}

/// What to do when a write fails. Tests go on after it; a server does not.
pub(super) type OnFailure = Arc<dyn Fn(&Error) + Send + Sync>;

/// Upper bounds of the buckets of the times of syncs, in microseconds.
pub const SYNC_BUCKETS_US: [u64; 12] = [
    50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 200_000, 1_000_000,
];

/// Numbers since the start.
#[derive(Default)]
pub(super) struct Counters {
    commits: AtomicU64,
    conflicts: AtomicU64,
    groups: AtomicU64,
    reads: AtomicU64,
    sync_buckets: [AtomicU64; SYNC_BUCKETS_US.len() + 1],
    sync_us: AtomicU64,
}

/// How often a span fell into each bucket, and the sum of all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SyncTimes {
    /// One more than [`SYNC_BUCKETS_US`]: the last is for what is longer. Not cumulative.
    pub counts: [u64; SYNC_BUCKETS_US.len() + 1],
    pub sum_us: u64,
}

impl Counters {
    pub(super) fn committed(&self, accepted: usize, refused: usize) {
        self.commits.fetch_add(accepted as u64, Ordering::Relaxed);
        self.conflicts.fetch_add(refused as u64, Ordering::Relaxed);
        self.groups.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn synced(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = SYNC_BUCKETS_US.partition_point(|bound| *bound < us);
        if let Some(count) = self.sync_buckets.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.sync_us.fetch_add(us, Ordering::Relaxed);
    }

    pub(super) fn read(&self) {
        self.reads.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    pub(super) fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    pub(super) fn conflicts(&self) -> u64 {
        self.conflicts.load(Ordering::Relaxed)
    }

    pub(super) fn groups(&self) -> u64 {
        self.groups.load(Ordering::Relaxed)
    }

    pub(super) fn sync_times(&self) -> SyncTimes {
        let counts = self
            .sync_buckets
            .each_ref()
            .map(|count| count.load(Ordering::Relaxed));
        SyncTimes {
            counts,
            sum_us: self.sync_us.load(Ordering::Relaxed),
        }
    }
}

//! Numbers about the store, for the metrics page.

use super::{Position, SyncTimes};

/// Numbers at one moment; counts are since the start.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    pub position: Position,
    /// Batches that wait for the committer.
    pub queue_batches: usize,
    /// Their bytes and those being committed.
    pub queue_bytes: usize,
    /// Batches committed.
    pub commits: u64,
    /// Batches refused because a precondition did not hold.
    pub conflicts: u64,
    /// Writes of one or more batches.
    pub groups: u64,
    /// Calls of snapshots: each look-up, each look-up of many and each scan is one.
    pub reads: u64,
    pub syncs: SyncTimes,
    pub engine: EngineStats,
}

/// Numbers of the engine; all 0 in memory.
#[derive(Clone, Debug, Default)]
pub struct EngineStats {
    /// With the share of the write buffers.
    pub cache_bytes: u64,
    /// What is written and not yet in files.
    pub write_buffer_bytes: u64,
    pub families: Vec<FamilyStats>,
    pub pending_compaction_bytes: u64,
    /// Writes wait until compactions have caught up.
    pub is_stalled: bool,
    /// Bytes per second to which writes are slowed down; 0: they are not.
    pub delayed_write_rate: u64,
}

#[derive(Clone, Debug)]
pub struct FamilyStats {
    /// The name on disk.
    pub family: &'static str,
    pub disk_bytes: u64,
    pub memory_bytes: u64,
    /// An estimate.
    pub rows: u64,
}

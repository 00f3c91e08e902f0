//! The section `[database]`.

use std::fs;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::ByteSize;

const MIN_CACHE_BYTES: u64 = 128 << 20;
const MAX_CACHE_BYTES: u64 = 4 << 30;

/// The embedded database, in the folder `database` of the data directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Config {
    /// What an answer means: `"full"`, what was acknowledged is on disk; `"relaxed"`, it is within 100 ms, so a crash
    /// of the machine may lose that much. Default `"full"`. Change only if the disk is slow and the loss does not matter.
    pub durability: Durability,
    /// How much memory may hold parts of the database that were read, such as `"512MiB"`; used as needed. Default a
    /// quarter of the machine's memory, at least 128 MiB and at most 4 GiB.
    pub cache: Option<ByteSize>,
}

/// When a commit is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// When it is on disk.
    #[default]
    Full,
    /// When it is written; it is on disk within 100 ms.
    Relaxed,
}

impl Config {
    pub(super) fn cache_bytes(&self) -> u64 {
        match self.cache {
            Some(ByteSize(bytes)) => bytes,
            None => (memory_bytes().unwrap_or(0) / 4).clamp(MIN_CACHE_BYTES, MAX_CACHE_BYTES),
        }
    }
}

/// The memory of the machine, or of the container if that is less.
fn memory_bytes() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:"))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib * 1024)
    });
    let container = fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let container = container.and_then(|text| text.trim().parse().ok());
    machine.into_iter().chain(container).min()
}

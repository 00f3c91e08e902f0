//! The seam: what an engine does, in bytes.

use std::path::Path;

use super::{Batch, Error, Family, Order, Result, memory, rocks, stats::EngineStats};

/// A closed enum: no trait objects in hot paths.
pub(super) enum Engine {
    Memory(memory::Memory),
    Rocks(Box<rocks::Rocks>),
}

/// A view of an engine that does not change.
pub(super) enum View {
    Memory(memory::View),
    Rocks(rocks::View),
}

/// Rows of a view, one after the other.
pub(super) enum Scan<'a> {
    Memory(memory::Scan<'a>),
    Rocks(rocks::Scan<'a>),
}

impl Engine {
    /// Writes the batches, already checked and stamped, in order and all or none. With `sync` they, and everything
    /// written before, are on disk when this returns.
    pub(super) fn write(
        &self,
        batches: &mut dyn Iterator<Item = &Batch>,
        sync: bool,
    ) -> Result<()> {
        match self {
            Self::Memory(engine) => {
                let _no_disk = sync;
                engine.write(batches);
                Ok(())
            }
            Self::Rocks(engine) => engine.write(batches, sync),
        }
    }

    /// Everything written before is on disk when this returns.
    pub(super) fn sync(&self) -> Result<()> {
        match self {
            Self::Memory(_) => Ok(()),
            Self::Rocks(engine) => engine.sync(),
        }
    }

    /// Makes the next start quick.
    pub(super) fn flush(&self) -> Result<()> {
        match self {
            Self::Memory(_) => Ok(()),
            Self::Rocks(engine) => engine.flush(),
        }
    }

    /// Makes a copy of what is written in the folder `to`, which must not exist.
    pub(super) fn checkpoint(&self, to: &Path) -> Result<()> {
        match self {
            Self::Memory(_) => Err(Error::Engine(
                "a database in memory has no files to copy".to_owned(),
            )),
            Self::Rocks(engine) => engine.checkpoint(to),
        }
    }

    /// Reads everything and verifies it. Returns how many rows there are, as far as the engine counts them.
    pub(super) fn check_integrity(&self) -> Result<u64> {
        match self {
            Self::Memory(_) => Ok(0),
            Self::Rocks(engine) => engine.check_integrity(),
        }
    }

    pub(super) fn compact(&self) {
        match self {
            Self::Memory(_) => {}
            Self::Rocks(engine) => engine.compact(),
        }
    }

    pub(super) fn disk_bytes(&self) -> u64 {
        match self {
            Self::Memory(_) => 0,
            Self::Rocks(engine) => engine.disk_bytes(),
        }
    }

    pub(super) fn stats(&self) -> EngineStats {
        match self {
            Self::Memory(_) => EngineStats::default(),
            Self::Rocks(engine) => engine.stats(),
        }
    }

    pub(super) fn view(&self) -> View {
        match self {
            Self::Memory(engine) => View::Memory(engine.view()),
            Self::Rocks(engine) => View::Rocks(engine.view()),
        }
    }
}

impl View {
    /// What `read` makes of the row's value.
    pub(super) fn get<R>(
        &self,
        family: Family,
        key: &[u8],
        read: impl FnOnce(&[u8]) -> R,
    ) -> Result<Option<R>> {
        match self {
            Self::Memory(view) => Ok(view.get(family, key, read)),
            Self::Rocks(view) => view.get(family, key, read),
        }
    }

    /// Of each key in turn.
    pub(super) fn get_many<R>(
        &self,
        family: Family,
        keys: &[&[u8]],
        mut read: impl FnMut(&[u8]) -> R,
    ) -> Result<Vec<Option<R>>> {
        match self {
            Self::Memory(view) => Ok(keys
                .iter()
                .map(|key| view.get(family, key, &mut read))
                .collect()),
            Self::Rocks(view) => view.get_many(family, keys, read),
        }
    }

    /// Rows from `start` (inclusive) to `end` (exclusive).
    pub(super) fn scan(
        &self,
        family: Family,
        start: Vec<u8>,
        end: Vec<u8>,
        order: Order,
    ) -> Scan<'_> {
        match self {
            Self::Memory(view) => Scan::Memory(view.scan(family, start, end, order)),
            Self::Rocks(view) => Scan::Rocks(view.scan(family, start, end, order)),
        }
    }
}

impl Scan<'_> {
    /// What `read` makes of the next row's key and value; `None` after the last.
    pub(super) fn next<R>(&mut self, read: impl FnOnce(&[u8], &[u8]) -> R) -> Result<Option<R>> {
        match self {
            Self::Memory(scan) => Ok(scan.next(read)),
            Self::Rocks(scan) => scan.next(read),
        }
    }
}

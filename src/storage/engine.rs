//! The seam: what an engine does, in bytes.

use super::{Batch, Family, Order, Result, memory};

/// A closed enum: no trait objects in hot paths.
pub(super) enum Engine {
    Memory(memory::Memory),
}

/// A view of an engine that does not change.
pub(super) enum View {
    Memory(memory::View),
}

/// Rows of a view, one after the other.
pub(super) enum Scan<'a> {
    Memory(memory::Scan<'a>),
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
        }
    }

    /// Everything written before is on disk when this returns.
    pub(super) fn sync(&self) -> Result<()> {
        match self {
            Self::Memory(_) => Ok(()),
        }
    }

    pub(super) fn view(&self) -> View {
        match self {
            Self::Memory(engine) => View::Memory(engine.view()),
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
        }
    }
}

impl Scan<'_> {
    /// What `read` makes of the next row's key and value; `None` after the last.
    pub(super) fn next<R>(&mut self, read: impl FnOnce(&[u8], &[u8]) -> R) -> Result<Option<R>> {
        match self {
            Self::Memory(scan) => Ok(scan.next(read)),
        }
    }
}

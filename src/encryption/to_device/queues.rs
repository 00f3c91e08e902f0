//! What is known of the queues of devices, so that a sync without messages reads nothing.

use std::sync::{Mutex, MutexGuard, PoisonError};

use lru::LruCache;

use crate::{accounts::UserNumber, storage::Position};

/// Queues that are remembered.
const MAX_QUEUES: usize = 50_000;

type Device = (UserNumber, u64);

/// What is known of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// At this position and before it there is nothing any more.
    pub(super) deleted_to: Position,
    /// There is nothing after this position.
    pub(super) last: Position,
}

impl Known {
    pub(super) fn is_empty(&self) -> bool {
        self.last <= self.deleted_to
    }
}

/// The queues that were asked for last.
pub(super) struct Queues(Mutex<State>);

struct State {
    known: LruCache<Device, Known>,
    /// The position of the last message for whomever.
    changed: Position,
}

impl Default for Queues {
    fn default() -> Self {
        Self(Mutex::new(State {
            // Unbounded for the table, which would otherwise take all the memory at once that it may need some day.
            known: LruCache::unbounded(),
            changed: Position::default(),
        }))
    }
}

impl Queues {
    pub(super) fn get(&self, device: Device) -> Option<Known> {
        self.lock().known.get(&device).copied()
    }

    /// A message was added; to be called before a snapshot shows it.
    pub(super) fn added(&self, device: Device, position: Position) {
        let mut state = self.lock();
        state.changed = position;
        if let Some(known) = state.known.peek_mut(&device) {
            known.last = position;
        }
    }

    /// Keeps what a snapshot at `read_at` says, unless there was a message since.
    pub(super) fn fill(&self, device: Device, known: Known, read_at: Position) {
        let mut state = self.lock();
        if read_at < state.changed {
            return;
        }
        state.known.put(device, known);
        if state.known.len() > MAX_QUEUES {
            state.known.pop_lru();
        }
    }

    /// As after a restart.
    #[cfg(test)]
    pub(super) fn clear(&self) {
        self.lock().known.clear();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What is known is whole whatever a panicking thread was doing.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

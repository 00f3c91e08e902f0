//! Parts of answers that are the same for many readers of a room.
//!
//! When an event wakes a thousand clients, most of them have seen all that came before it and ask with the same filter. The
//! first of them writes the part of the room that does not depend on who reads, the others copy it. Fragments are kept for a
//! moment only, so nothing needs to be told of changes.

use std::sync::{Arc, Mutex, PoisonError};

use lru::LruCache;
use smallvec::SmallVec;

use super::StatePlace;
use crate::{accounts::UserNumber, rooms::RoomNumber};

/// What a fragment says, and in which form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) room: RoomNumber,
    /// Index of the first and the last event.
    pub(super) first: i64,
    pub(super) last: i64,
    pub(super) filter: u64,
    pub(super) state_place: StatePlace,
}

/// The written timeline and state of a room.
#[derive(Debug)]
pub(super) struct Fragment {
    pub(super) json: Vec<u8>,
    /// Who sent the events: they are shown transaction IDs, so that they cannot use this.
    pub(super) senders: SmallVec<[UserNumber; 4]>,
    /// In milliseconds since the Unix epoch.
    written_ms: u64,
}

/// How long a fragment is used, in milliseconds: the age of its events is off by as much.
const FRESH_MS: u64 = 500;
const MAX_FRAGMENTS: usize = 256;
/// Larger ones are not kept, in bytes.
const MAX_FRAGMENT_BYTES: usize = 64 * 1024;

/// The fragments written lately.
#[derive(Default)]
pub(super) struct Fragments {
    recent: Mutex<Option<LruCache<Key, Arc<Fragment>>>>,
}

impl Fragments {
    /// A fragment that was written for others, if `reader` may use it.
    pub(super) fn get(&self, key: &Key, reader: UserNumber, now_ms: u64) -> Option<Arc<Fragment>> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let found = recent.as_mut()?.get(key)?;
        let is_fresh = now_ms.saturating_sub(found.written_ms) <= FRESH_MS;
        (is_fresh && !found.senders.contains(&reader)).then(|| Arc::clone(found))
    }

    /// Keeps a fragment for others.
    pub(super) fn put(
        &self,
        key: Key,
        json: &[u8],
        senders: impl Iterator<Item = UserNumber>,
        now_ms: u64,
    ) {
        if json.len() > MAX_FRAGMENT_BYTES {
            return;
        }
        let fragment = Fragment {
            json: json.to_vec(),
            senders: senders.collect(),
            written_ms: now_ms,
        };
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = recent.get_or_insert_with(LruCache::unbounded);
        recent.put(key, Arc::new(fragment));
        while recent.len() > MAX_FRAGMENTS {
            recent.pop_lru();
        }
    }
}

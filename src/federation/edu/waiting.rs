//! Receipts of other servers that have come before their events: the events are in the inbox, or are being fetched.
//!
//! In memory and bounded: what is lost is a receipt, and the next one makes it good.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use ruma::{EventId, OwnedEventId};

use crate::{ephemeral::RemoteReceipt, rooms::RoomNumber};

/// Receipts that wait.
const MAX_WAITING: usize = 10_000;
/// When there are too many, those that have waited longer go first.
const MAX_AGE_MS: u64 = 10 * 60_000;

#[derive(Default)]
pub(in crate::federation) struct WaitingReceipts {
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    by_event: HashMap<OwnedEventId, Vec<Entry>>,
    count: usize,
}

struct Entry {
    room: RoomNumber,
    receipt: RemoteReceipt,
    added_ms: u64,
}

impl WaitingReceipts {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, room: RoomNumber, receipts: Vec<RemoteReceipt>, now_ms: u64) {
        let mut waiting = self.lock();
        if waiting.count + receipts.len() > MAX_WAITING {
            waiting.forget(now_ms.saturating_sub(MAX_AGE_MS));
        }
        let room_left = MAX_WAITING.saturating_sub(waiting.count);
        for receipt in receipts.into_iter().take(room_left) {
            let of_event = waiting
                .by_event
                .entry(receipt.new.event.clone())
                .or_default();
            of_event.push(Entry {
                room,
                receipt,
                added_ms: now_ms,
            });
            waiting.count += 1;
        }
    }

    pub(in crate::federation) fn is_empty(&self) -> bool {
        self.lock().count == 0
    }

    /// Takes the receipts that name `event`.
    pub(in crate::federation) fn take(&self, event: &EventId) -> Vec<(RoomNumber, RemoteReceipt)> {
        let mut waiting = self.lock();
        if waiting.count == 0 {
            return Vec::new();
        }
        let found = waiting.by_event.remove(event).unwrap_or_default();
        waiting.count -= found.len();
        found
            .into_iter()
            .map(|entry| (entry.room, entry.receipt))
            .collect()
    }
}

impl Waiting {
    /// Forgets what was added before a moment.
    fn forget(&mut self, before_ms: u64) {
        self.by_event.retain(|_, entries| {
            entries.retain(|entry| entry.added_ms >= before_ms);
            !entries.is_empty()
        });
        self.count = self.by_event.values().map(Vec::len).sum();
    }
}

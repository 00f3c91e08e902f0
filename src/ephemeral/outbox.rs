//! What users of this server do at the moment, for other servers: kept until somebody takes it.
//!
//! Bounded: typing beyond the bound is dropped, of presence the newest of each user is kept. Nothing is kept while nobody
//! takes it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use ruma::OwnedUserId;
use tokio::sync::Notify;

use super::Ephemeral;
use crate::{accounts::UserNumber, rooms::RoomNumber};

/// Changes that wait to be taken; they are taken within milliseconds.
const MAX_TYPING: usize = 10_000;

/// A user of this server has begun or ended to type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalTyping {
    pub room: RoomNumber,
    pub user: OwnedUserId,
    pub is_typing: bool,
}

/// The presence of a user of this server, as other servers are told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPresence {
    pub number: UserNumber,
    pub user: OwnedUserId,
    /// A state of the specification.
    pub state: &'static str,
    pub status: Option<String>,
    /// Milliseconds.
    pub active_ago_ms: u64,
    pub is_active: bool,
}

/// What has changed since it was taken last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalChanges {
    pub typing: Vec<LocalTyping>,
    pub presence: Vec<Arc<LocalPresence>>,
}

#[derive(Default)]
pub(super) struct State {
    is_watched: AtomicBool,
    waiting: Mutex<Waiting>,
    news: Notify,
}

#[derive(Default)]
struct Waiting {
    typing: Vec<LocalTyping>,
    presence: BTreeMap<UserNumber, Arc<LocalPresence>>,
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_watched(&self) -> bool {
        self.is_watched.load(Ordering::Acquire)
    }
}

impl Ephemeral {
    /// From now on what users of this server do is kept for [`Self::take_local`]. There is one who takes it.
    pub fn watch_local(&self) {
        self.inner.outbox.is_watched.store(true, Ordering::Release);
    }

    /// Takes what users of this server have done since the last call.
    pub fn take_local(&self) -> LocalChanges {
        let waiting = std::mem::take(&mut *self.inner.outbox.lock());
        LocalChanges {
            typing: waiting.typing,
            presence: waiting.presence.into_values().collect(),
        }
    }

    /// Whether [`Self::take_local`] would give nothing.
    pub fn has_nothing_local(&self) -> bool {
        let waiting = self.inner.outbox.lock();
        waiting.typing.is_empty() && waiting.presence.is_empty()
    }

    /// Resolves when there is something to take; one at a time waits here. May resolve though it was taken meanwhile.
    pub async fn local_news(&self) {
        self.inner.outbox.news.notified().await;
    }

    pub(super) fn tell_typing(&self, changes: impl IntoIterator<Item = LocalTyping>) {
        let outbox = &self.inner.outbox;
        if !outbox.is_watched() {
            return;
        }
        let mut waiting = outbox.lock();
        let before = waiting.typing.len();
        let room = MAX_TYPING.saturating_sub(before);
        waiting.typing.extend(changes.into_iter().take(room));
        let has_news = waiting.typing.len() > before;
        drop(waiting);
        if has_news {
            outbox.news.notify_one();
        }
    }

    pub(super) fn tell_presence_out(&self, changes: Vec<LocalPresence>) {
        let outbox = &self.inner.outbox;
        if changes.is_empty() || !outbox.is_watched() {
            return;
        }
        let mut waiting = outbox.lock();
        for change in changes {
            waiting.presence.insert(change.number, Arc::new(change));
        }
        drop(waiting);
        outbox.news.notify_one();
    }
}

//! What is about the moment: receipts, typing and presence.
//!
//! Receipts are stored, but their commits do not wait for the disk. Typing and presence live in memory only; their changes
//! are counted by one counter of this process, which stands beside the position in sync tokens ([`Volatile`]).
//!
//! What users of this server do is also kept for other servers, if somebody takes it ([`Ephemeral::watch_local`]); what
//! other servers tell of theirs comes in by functions named `remote_…`, whose callers have checked who says it.

mod outbox;
mod presence;
mod receipts;
mod typing;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ruma::{OwnedUserId, RoomId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

pub use self::{
    outbox::{LocalChanges, LocalPresence, LocalTyping},
    presence::{PresenceContent, PresenceEvent, RemotePresence, Syncing},
    receipts::{
        LOG_RECEIPT, LocalReceipt, NewReceipt, OpaqueReceipt, ReceiptContent, ReceiptKind,
        ReceiptPlace, ReceiptThread, Receipts, RemoteReceipt,
    },
};
use crate::{
    accounts::{self, Accounts, UserNumber},
    clock::Clock,
    rooms::{self, Class, RoomNumber, Rooms},
    storage::{self, Snapshot, Store},
    tasks::Stop,
    units::Period,
};

/// Who is online.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Config {
    /// Whether users see who of those they share a room with is online. Costs an answer to each of them whenever somebody
    /// comes or goes. Default true.
    pub enabled: bool,
    /// Without a request of any client for so long, a user counts as idle. Default `"5m"`.
    pub idle_after: Period,
    /// So long after the last sync has ended, a user counts as offline. Default `"60s"`.
    pub offline_after: Period,
    /// Whether other servers may tell who of their users is online. Default false.
    pub federate_in: bool,
    /// Whether other servers are told who is online, of users who share a room with theirs. Costs a request to each of
    /// those servers whenever somebody comes or goes. Default false.
    pub federate_out: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: true,
            idle_after: Period::from_secs(300),
            offline_after: Period::from_secs(60),
            federate_in: false,
            federate_out: false,
        }
    }
}

/// Changes of presence are told at most so often.
const PACE: Duration = Duration::from_secs(1);
/// The wait when nothing is due.
const IDLE: Duration = Duration::from_secs(3_600);
/// The shortest wait for what is due.
const TICK: Duration = Duration::from_millis(20);

async fn pause(stop: &Stop, time: Duration) {
    tokio::select! {
        () = stop.requested() => {}
        () = tokio::time::sleep(time) => {}
    }
}

/// What went wrong here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("you are not in this room")]
    NotJoined,
    #[error("you share no room with this user")]
    NotShared,
    #[error("there is no such event in this room")]
    UnknownEvent,
    #[error("the event does not belong to this thread")]
    WrongThread,
    #[error("there is no such presence state")]
    UnknownState,
    #[error("the status message is too long")]
    StatusTooLong,
    #[error(transparent)]
    Rooms(#[from] rooms::Error),
    #[error(transparent)]
    Accounts(#[from] accounts::Error),
    #[error(transparent)]
    Storage(#[from] storage::Error),
}

/// A moment of what is never stored: the second half of a sync token.
///
/// The counts of another process (another `start`) mean nothing to this one: everything current is new to their holder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Volatile {
    /// Drawn at random when the process started.
    pub start: u64,
    /// Changes since then.
    pub count: u64,
}

/// Counts the changes of what is never stored.
struct Counter {
    start: u64,
    count: AtomicU64,
}

impl Counter {
    /// The number of a new change. Taken while what changes is locked, so that who reads the counter before the data
    /// misses nothing.
    fn next(&self) -> u64 {
        self.count.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// The count that `since` stands for here; `None` if it is of another process.
    fn known(&self, since: Volatile) -> Option<u64> {
        (since.start == self.start).then_some(since.count)
    }
}

/// Receipts, typing and presence of this server. Cheap to clone.
#[derive(Clone)]
pub struct Ephemeral {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    clock: Clock,
    accounts: Accounts,
    rooms: Rooms,
    config: Config,
    counter: Counter,
    receipts: receipts::State,
    typing: typing::State,
    presence: presence::State,
    outbox: outbox::State,
    /// Something was put on the clock: typing that will end, presence to be told.
    pending: Notify,
}

impl Ephemeral {
    pub fn new(
        store: Store,
        clock: Clock,
        accounts: Accounts,
        rooms: Rooms,
        config: Config,
    ) -> Self {
        let counter = Counter {
            // Tokens hold it, so it is kept short.
            start: clock.random_below(1 << 32),
            count: AtomicU64::new(0),
        };
        let inner = Inner {
            receipts: receipts::State::new(store.position()),
            typing: typing::State::default(),
            presence: presence::State::default(),
            outbox: outbox::State::default(),
            pending: Notify::new(),
            store,
            clock,
            accounts,
            rooms,
            config,
            counter,
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Now, for a sync token. Take it before reading what it stands for.
    pub fn volatile(&self) -> Volatile {
        Volatile {
            start: self.inner.counter.start,
            count: self.inner.counter.count.load(Ordering::SeqCst),
        }
    }

    /// Ends typing whose time is over, and tells of presence that has changed. Runs until `stop`.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn run(&self, stop: Stop) -> Result<(), Error> {
        while !stop.is_requested() {
            if self.tell_presence().await? {
                // What changes meanwhile is told at once afterwards.
                pause(&stop, PACE).await;
            }
            let due = [self.end_typing(), self.end_presence()];
            let due = due.into_iter().flatten().min().unwrap_or(IDLE).max(TICK);
            tokio::select! {
                () = stop.requested() => {}
                () = self.inner.pending.notified() => {}
                () = tokio::time::sleep(due) => {}
            }
        }
        Ok(())
    }

    /// The room, if `user` is joined to it.
    fn joined_room(
        &self,
        snapshot: &Snapshot,
        user: UserNumber,
        room_id: &RoomId,
    ) -> Result<RoomNumber, Error> {
        let room = self.inner.rooms.number(room_id).ok_or(Error::NotJoined)?;
        match self.inner.rooms.user_room(snapshot, user, room)? {
            Some(found) if found.class == Class::Join => Ok(room),
            _ => Err(Error::NotJoined),
        }
    }

    /// Whether both are joined to some room. Both are users of this server.
    fn share_room(
        &self,
        snapshot: &Snapshot,
        one: UserNumber,
        other: UserNumber,
    ) -> Result<bool, Error> {
        if one == other {
            return Ok(true);
        }
        let (one, other) = (
            self.inner.rooms.rooms_of(snapshot, one)?,
            self.inner.rooms.rooms_of(snapshot, other)?,
        );
        // Both are sorted by class and room.
        let joined = |rooms: &[rooms::UserRoom]| {
            rooms
                .iter()
                .take_while(|room| room.class == Class::Join)
                .count()
        };
        let mut one = one.iter().take(joined(&one)).peekable();
        let mut other = other.iter().take(joined(&other)).peekable();
        while let (Some(left), Some(right)) = (one.peek(), other.peek()) {
            match left.room.cmp(&right.room) {
                std::cmp::Ordering::Less => one.next(),
                std::cmp::Ordering::Greater => other.next(),
                std::cmp::Ordering::Equal => return Ok(true),
            };
        }
        Ok(false)
    }
}

/// A user as both forms are needed: the number in keys and the ID in answers.
#[derive(Clone, Debug)]
pub struct Who {
    pub number: UserNumber,
    pub id: OwnedUserId,
}

#[cfg(test)]
mod tests;

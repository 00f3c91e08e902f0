//! What is to be sent to each server, as a state machine: no store, no network, and the time comes from the caller.
//!
//! A destination is in one of three conditions. It *keeps up*: events wait in its queue. It is *behind*: of what it has
//! missed only the first position is kept, and a walk through the rooms finds it again. It is *waiting*: the last attempt
//! failed, and until the next one nothing is kept of it but some numbers. Who has nothing to get is not here at all.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use super::volatile::Volatile;
use crate::{
    events::EventNumber,
    rooms::{RoomNumber, ServerNumber},
    storage::Position,
};

/// Events that wait for one server; with more it is behind.
pub(super) const MAX_QUEUED: usize = 1_000;
/// Events that wait for all servers together.
const MAX_QUEUED_IN_ALL: usize = 500_000;
/// PDUs in a transaction.
///
/// Spec: s2s, "Transactions".
pub(super) const MAX_PDUS: usize = 50;
/// The wait after the first failure, doubled with each further one.
const FIRST_BACKOFF_MS: u64 = 1_000;
/// After a failed attempt that traffic of the server has caused, traffic causes none for so long; doubled each time.
const FIRST_DEAFNESS_MS: u64 = 1_000;
const MAX_DOUBLINGS: u32 = 32;

/// An event that a server is to get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Queued {
    pub(super) position: Position,
    pub(super) room: RoomNumber,
    pub(super) event: EventNumber,
    /// It moves a user of the server out: when nobody else of it is left, a walk through the server's rooms does not find it.
    pub(super) is_parting: bool,
}

impl Queued {
    /// What is behind who misses this and all later events.
    fn missing_since(&self, since_ms: u64) -> Behind {
        Behind {
            after: Position(self.position.0.saturating_sub(1)),
            since_ms,
        }
    }
}

/// Failed attempts in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Failure {
    pub(super) since_ms: u64,
    pub(super) tried_ms: u64,
    pub(super) retry_ms: u64,
    pub(super) attempts: u32,
    /// Of these, in a row, by traffic of the server.
    pub(super) woken: u32,
}

/// Everything after a position is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Behind {
    pub(super) after: Position,
    /// In milliseconds since the Unix epoch; 0: for too long to send it all.
    pub(super) since_ms: u64,
}

impl Behind {
    /// Who misses both. What was on its way when a destination fell behind lies before what it is behind by.
    fn earlier(this: Option<Self>, other: Option<Self>) -> Option<Self> {
        match (this, other) {
            (Some(this), Some(other)) => Some(Self {
                after: this.after.min(other.after),
                ..this
            }),
            (this, other) => this.or(other),
        }
    }
}

/// What is stored of a destination that has not got everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DestinationRow {
    pub(super) behind: Option<Behind>,
    pub(super) failure: Option<Failure>,
}

#[derive(Default)]
struct Destination {
    queue: VecDeque<Queued>,
    /// The first so many of the queue are on their way.
    taken: usize,
    behind: Option<Behind>,
    /// A walk looks for what is missing up to here; later events wait in the queue.
    walking: Option<Position>,
    failure: Option<Failure>,
    volatile: Option<Box<Volatile>>,
    /// There may be EDUs in the store.
    has_stored: bool,
    /// A task sends.
    is_running: bool,
    /// Traffic of the server has caused the attempt that runs.
    is_woken: bool,
    /// PDUs in the next transaction, if fewer than allowed: a larger one was refused.
    narrow: Option<usize>,
    /// EDUs from the store in the next transaction, if fewer than allowed.
    narrow_edus: Option<usize>,
    is_changed: bool,
    is_on_disk: bool,
}

/// What a task is to do next.
#[derive(Debug)]
pub(super) enum Work {
    Send {
        pdus: Vec<Queued>,
        volatile: Option<Box<Volatile>>,
        has_stored: bool,
    },
    /// Find what is missing after `behind.after` and up to `upto`.
    Walk { behind: Behind, upto: Position },
}

/// How a server shows in the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) server: ServerNumber,
    pub(super) queued: usize,
    pub(super) is_behind: bool,
    pub(super) is_running: bool,
    /// Since when it has failed and when it is tried again, in milliseconds since the Unix epoch.
    pub(super) failing: Option<(u64, u64)>,
    pub(super) attempts: u32,
}

/// All servers that have something to get.
#[derive(Default)]
pub(super) struct Destinations {
    all: BTreeMap<ServerNumber, Destination>,
    /// By the moment of the next attempt.
    retries: BTreeSet<(u64, ServerNumber)>,
    /// To be started.
    ready: BTreeSet<ServerNumber>,
    queued: usize,
    running: usize,
    /// The log has been dealt out up to here.
    distributed: Position,
    /// Partings that no queue holds and no row yet.
    partings: Vec<(ServerNumber, Queued)>,
    is_changed: bool,
}

/// What is to be written so that a restart goes on from here.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) distributed: Position,
    pub(super) put: Vec<(ServerNumber, DestinationRow)>,
    pub(super) delete: Vec<ServerNumber>,
    pub(super) partings: Vec<(ServerNumber, Queued)>,
}

impl Destination {
    fn is_idle(&self) -> bool {
        self.failure.is_none() && !self.has_work() && !self.is_running
    }

    /// What a restart has to know.
    fn row(&self, now_ms: u64) -> Option<DestinationRow> {
        let queued = self.queue.front();
        let behind = Behind::earlier(self.behind, queued.map(|first| first.missing_since(now_ms)));
        (behind.is_some() || self.failure.is_some()).then_some(DestinationRow {
            behind,
            failure: self.failure,
        })
    }

    fn has_work(&self) -> bool {
        !self.queue.is_empty()
            || self.behind.is_some()
            || self.has_stored
            || self.volatile.is_some()
    }
}

impl Destinations {
    /// Begins after `distributed`, with what was stored.
    pub(super) fn load(
        distributed: Position,
        rows: impl IntoIterator<Item = (ServerNumber, DestinationRow)>,
        with_edus: impl IntoIterator<Item = ServerNumber>,
    ) -> Self {
        let mut this = Self {
            distributed,
            ..Self::default()
        };
        for (server, row) in rows {
            let destination = Destination {
                behind: row.behind,
                failure: row.failure,
                is_on_disk: true,
                ..Destination::default()
            };
            this.all.insert(server, destination);
            match row.failure {
                Some(failure) => {
                    this.retries.insert((failure.retry_ms, server));
                }
                None => {
                    this.ready.insert(server);
                }
            }
        }
        for server in with_edus {
            this.note_stored(server);
        }
        this
    }

    pub(super) fn distributed(&self) -> Position {
        self.distributed
    }

    /// All of the log up to `upto` has been dealt out.
    pub(super) fn distributed_to(&mut self, upto: Position) {
        self.distributed = self.distributed.max(upto);
    }

    /// Queues an event. Call it in the order of positions.
    pub(super) fn push(&mut self, server: ServerNumber, event: Queued, now_ms: u64) {
        self.is_changed = true;
        let destination = self.all.entry(server).or_default();
        if destination.failure.is_some() && !destination.is_running {
            // Nothing of it is in the queue: it was emptied by the failure.
            let behind = &mut destination.behind;
            behind.get_or_insert(event.missing_since(now_ms));
            destination.is_changed = true;
        }
        if destination.behind.is_some() && destination.walking.is_none() {
            if event.is_parting {
                self.partings.push((server, event));
            }
            return;
        }
        destination.is_changed = true;
        destination.queue.push_back(event);
        self.queued += 1;
        if destination.queue.len() > MAX_QUEUED || self.queued > MAX_QUEUED_IN_ALL {
            self.overflow(server);
        }
        self.start(server);
    }

    /// Keeps of the queue what is on its way.
    fn overflow(&mut self, server: ServerNumber) {
        let Some(destination) = self.all.get_mut(&server) else {
            return;
        };
        let dropped = destination.queue.split_off(destination.taken);
        self.queued -= dropped.len();
        if let (None, Some(first)) = (destination.behind, dropped.front()) {
            destination.behind = Some(first.missing_since(0));
        }
        destination.walking = None;
        let partings = dropped.into_iter().filter(|event| event.is_parting);
        self.partings.extend(partings.map(|event| (server, event)));
    }

    /// Adds what is worth something only now; dropped if the server does not answer.
    pub(super) fn push_volatile(&mut self, server: ServerNumber, add: impl FnOnce(&mut Volatile)) {
        let destination = self.all.entry(server).or_default();
        if destination.failure.is_some() {
            return;
        }
        add(destination.volatile.get_or_insert_default());
        self.start(server);
    }

    /// There are EDUs in the store.
    pub(super) fn note_stored(&mut self, server: ServerNumber) {
        self.all.entry(server).or_default().has_stored = true;
        self.start(server);
    }

    /// All of the server's rooms are to be looked through.
    pub(super) fn fall_behind(&mut self, server: ServerNumber, after: Position, now_ms: u64) {
        let destination = self.all.entry(server).or_default();
        destination.is_changed = true;
        self.is_changed = true;
        destination.behind.get_or_insert(Behind {
            after,
            since_ms: now_ms,
        });
        self.start(server);
    }

    fn start(&mut self, server: ServerNumber) {
        let Some(destination) = self.all.get(&server) else {
            return;
        };
        if !destination.is_running && destination.failure.is_none() {
            self.ready.insert(server);
        }
    }

    /// The server is there: it has sent something. True if it is tried again at once.
    pub(super) fn heard_from(&mut self, server: ServerNumber, now_ms: u64) -> bool {
        let Some(destination) = self.all.get_mut(&server) else {
            return false;
        };
        let Some(failure) = &destination.failure else {
            return false;
        };
        let deaf_ms = match failure.woken {
            0 => 0,
            woken => FIRST_DEAFNESS_MS << (woken - 1).min(MAX_DOUBLINGS),
        };
        if destination.is_running || now_ms < failure.tried_ms.saturating_add(deaf_ms) {
            return false;
        }
        destination.is_woken = true;
        self.retries.remove(&(failure.retry_ms, server));
        self.ready.insert(server)
    }

    /// Tries a server again now, whatever it did before. False if it does not wait.
    pub(super) fn retry(&mut self, server: ServerNumber) -> bool {
        let Some(destination) = self.all.get_mut(&server) else {
            return false;
        };
        let Some(failure) = &mut destination.failure else {
            return false;
        };
        failure.woken = 0;
        destination.is_woken = true;
        self.retries.remove(&(failure.retry_ms, server));
        if !destination.is_running {
            self.ready.insert(server);
        }
        true
    }

    /// The servers to which a task is to be started now, and whether it is doubtful that they are there: the last attempt
    /// failed, and nothing was heard of them since.
    pub(super) fn take_ready(&mut self, now_ms: u64) -> Vec<(ServerNumber, bool)> {
        while let Some((retry_ms, server)) = self.retries.first().copied() {
            if retry_ms > now_ms {
                break;
            }
            self.retries.pop_first();
            self.ready.insert(server);
        }
        let mut started = Vec::new();
        for server in std::mem::take(&mut self.ready) {
            let Some(destination) = self.all.get_mut(&server) else {
                continue;
            };
            if destination.is_running {
                continue;
            }
            destination.is_running = true;
            self.running += 1;
            let is_doubtful = destination.failure.is_some() && !destination.is_woken;
            started.push((server, is_doubtful));
        }
        started
    }

    /// When the next server is to be tried again, in milliseconds since the Unix epoch.
    pub(super) fn next_retry(&self) -> Option<u64> {
        self.retries.first().map(|(retry_ms, _)| *retry_ms)
    }

    /// What the task of `server` does next. `None`: nothing, and the task ends.
    pub(super) fn work(&mut self, server: ServerNumber) -> Option<Work> {
        let distributed = self.distributed;
        let destination = self.all.get_mut(&server)?;
        if !destination.has_work() {
            self.ended(server);
            return None;
        }
        // What was on its way when the destination fell behind comes before what the walk finds.
        if let (true, Some(behind)) = (destination.queue.is_empty(), destination.behind)
            && destination.walking.is_none()
        {
            destination.walking = Some(distributed);
            let upto = distributed;
            return Some(Work::Walk { behind, upto });
        }
        let limit = destination.narrow.unwrap_or(MAX_PDUS);
        let pdus: Vec<Queued> = destination.queue.iter().take(limit).copied().collect();
        destination.taken = pdus.len();
        if destination.narrow.is_some() && !pdus.is_empty() {
            // It may be an EDU that the server does not like.
            return Some(Work::Send {
                pdus,
                volatile: None,
                has_stored: false,
            });
        }
        Some(Work::Send {
            pdus,
            volatile: destination.volatile.take(),
            has_stored: std::mem::take(&mut destination.has_stored),
        })
    }

    fn ended(&mut self, server: ServerNumber) {
        let Some(destination) = self.all.get_mut(&server) else {
            return;
        };
        if std::mem::take(&mut destination.is_running) {
            self.running -= 1;
        }
        // An attempt that had nothing to send says nothing about the server: it counts as gone well.
        destination.failure = None;
        if destination.is_idle() && !destination.is_on_disk {
            self.all.remove(&server);
        } else {
            destination.is_changed = true;
            self.is_changed = true;
        }
    }

    /// Only the first so many events of [`Work::Send`] fit the transaction.
    pub(super) fn take_only(&mut self, server: ServerNumber, events: usize) {
        if let Some(destination) = self.all.get_mut(&server) {
            destination.taken = destination.taken.min(events);
        }
    }

    /// EDUs that did not fit the transaction.
    pub(super) fn put_back(&mut self, server: ServerNumber, mut volatile: Box<Volatile>) {
        let Some(destination) = self.all.get_mut(&server) else {
            return;
        };
        if let Some(newer) = destination.volatile.take() {
            volatile.extend(*newer);
        }
        destination.volatile = Some(volatile);
    }

    /// The server has taken what [`Work::Send`] held.
    pub(super) fn sent(&mut self, server: ServerNumber) {
        let Some(destination) = self.all.get_mut(&server) else {
            return;
        };
        let taken = std::mem::take(&mut destination.taken).min(destination.queue.len());
        destination.queue.drain(..taken);
        self.queued -= taken;
        self.answered(server);
    }

    /// The server has taken what the walk has found up to `position`.
    pub(super) fn walked_to(&mut self, server: ServerNumber, position: Position) {
        if let Some(destination) = self.all.get_mut(&server)
            && let Some(behind) = &mut destination.behind
        {
            behind.after = behind.after.max(position);
        }
        self.answered(server);
    }

    /// All that the walk has found is sent.
    pub(super) fn walk_ended(&mut self, server: ServerNumber, upto: Position) {
        let Some(destination) = self.all.get_mut(&server) else {
            return;
        };
        destination.is_changed = true;
        self.is_changed = true;
        match (destination.walking.take(), &mut destination.behind) {
            (Some(_), behind) => *behind = None,
            // The queue has overflown meanwhile.
            (None, Some(behind)) => behind.after = behind.after.max(upto),
            (None, None) => {}
        }
    }

    fn answered(&mut self, server: ServerNumber) {
        let Some(destination) = self.all.get_mut(&server) else {
            return;
        };
        destination.failure = None;
        destination.narrow = None;
        destination.narrow_edus = None;
        destination.is_woken = false;
        destination.is_changed = true;
        self.is_changed = true;
    }

    /// EDUs are left in the store.
    pub(super) fn has_more_stored(&mut self, server: ServerNumber) {
        if let Some(destination) = self.all.get_mut(&server) {
            destination.has_stored = true;
        }
    }

    /// The server is there and does not want a transaction of so many PDUs and EDUs: the next one is smaller. False if it
    /// cannot be: then the server does not get what it held.
    pub(super) fn refused(&mut self, server: ServerNumber, pdus: usize, edus: usize) -> bool {
        let Some(destination) = self.all.get_mut(&server) else {
            return false;
        };
        if let (0, 2..) = (pdus, edus) {
            destination.narrow_edus = Some(edus / 2);
            return true;
        }
        let next = match (pdus, edus) {
            (0, _) | (1, 0) => return false,
            (_, 0) => pdus / 2,
            (_, _) => pdus,
        };
        destination.narrow = Some(next);
        destination.taken = 0;
        true
    }

    /// How many PDUs the next transaction of a walk may have, and whether EDUs may go with them.
    pub(super) fn limits(&self, server: ServerNumber) -> (usize, bool) {
        let destination = self.all.get(&server);
        match destination.and_then(|destination| destination.narrow) {
            Some(narrow) => (narrow, false),
            None => (MAX_PDUS, true),
        }
    }

    /// How many EDUs from the store the next transaction may have.
    pub(super) fn edu_limit(&self, server: ServerNumber) -> usize {
        let destination = self.all.get(&server);
        let narrow = destination.and_then(|destination| destination.narrow_edus);
        narrow.unwrap_or(usize::MAX)
    }

    /// Whether there are EDUs in the store; the caller sends them.
    pub(super) fn take_stored(&mut self, server: ServerNumber) -> bool {
        let destination = self.all.get_mut(&server);
        destination.is_some_and(|destination| std::mem::take(&mut destination.has_stored))
    }

    /// The attempt failed: the task ends, and the server is tried again in `backoff_ms` of the number of failures in a row.
    /// True if it is the first of them.
    pub(super) fn failed(
        &mut self,
        server: ServerNumber,
        now_ms: u64,
        backoff_ms: impl FnOnce(u32) -> u64,
    ) -> bool {
        let Some(destination) = self.all.get_mut(&server) else {
            return false;
        };
        if std::mem::take(&mut destination.is_running) {
            self.running -= 1;
        }
        let before = destination.failure;
        let attempts = before
            .map_or(0, |failure| failure.attempts)
            .saturating_add(1);
        let woken = match std::mem::take(&mut destination.is_woken) {
            true => before.map_or(0, |failure| failure.woken).saturating_add(1),
            false => 0,
        };
        let retry_ms = now_ms.saturating_add(backoff_ms(attempts));
        destination.failure = Some(Failure {
            since_ms: before.map_or(now_ms, |failure| failure.since_ms),
            tried_ms: now_ms,
            retry_ms,
            attempts,
            woken,
        });
        destination.taken = 0;
        destination.narrow = None;
        destination.volatile = None;
        let dropped = std::mem::take(&mut destination.queue);
        self.queued -= dropped.len();
        let first = dropped.front().map(|first| first.missing_since(now_ms));
        destination.behind = Behind::earlier(destination.behind, first);
        destination.walking = None;
        destination.is_changed = true;
        self.is_changed = true;
        let partings = dropped.into_iter().filter(|event| event.is_parting);
        self.partings.extend(partings.map(|event| (server, event)));
        self.retries.insert((retry_ms, server));
        self.ready.remove(&server);
        before.is_none()
    }

    /// The task was told to stop, and the server may not have got what it was sending.
    pub(super) fn interrupted(&mut self, server: ServerNumber) {
        let Some(destination) = self.all.get_mut(&server) else {
            return;
        };
        destination.taken = 0;
        destination.is_changed = true;
        self.is_changed = true;
        if std::mem::take(&mut destination.is_running) {
            self.running -= 1;
        }
        if destination.walking.is_some() {
            self.overflow(server);
        }
    }

    /// Whether [`Self::changes`] has something new.
    pub(super) fn is_changed(&self) -> bool {
        self.is_changed
    }

    /// Whether partings wait to be written: a walk reads them from the store.
    pub(super) fn has_unsaved_partings(&self) -> bool {
        !self.partings.is_empty()
    }

    /// What is to be written, once; servers that have everything are forgotten.
    pub(super) fn changes(&mut self, now_ms: u64) -> Changes {
        self.is_changed = false;
        let mut changes = Changes {
            distributed: self.distributed,
            partings: std::mem::take(&mut self.partings),
            ..Changes::default()
        };
        let queues = self.all.iter();
        for (server, destination) in queues.filter(|(_, destination)| destination.is_changed) {
            let partings = destination.queue.iter().filter(|event| event.is_parting);
            let partings = partings.map(|event| (*server, *event));
            changes.partings.extend(partings);
        }
        self.all.retain(|server, destination| {
            if std::mem::take(&mut destination.is_changed) {
                match destination.row(now_ms) {
                    Some(row) => {
                        destination.is_on_disk = true;
                        changes.put.push((*server, row));
                    }
                    None if std::mem::take(&mut destination.is_on_disk) => {
                        changes.delete.push(*server);
                    }
                    None => {}
                }
            }
            !destination.is_idle() || destination.is_on_disk
        });
        changes
    }

    /// Servers with a task, and servers that wait for their next attempt.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.running, self.retries.len())
    }

    /// Whether any server is waited for.
    pub(super) fn has_waiting(&self) -> bool {
        !self.retries.is_empty()
    }

    pub(super) fn has_running(&self) -> bool {
        self.running > 0
    }

    /// Whether no task runs and none is to be started now.
    pub(super) fn is_quiet(&self, now_ms: u64) -> bool {
        let is_due = self.next_retry().is_some_and(|retry_ms| retry_ms <= now_ms);
        self.running == 0 && self.ready.is_empty() && !is_due
    }

    pub(super) fn queued(&self) -> usize {
        self.queued
    }

    /// How each server stands.
    pub(super) fn standings(&self) -> Vec<Standing> {
        let all = self.all.iter();
        let busy = all.filter(|(_, destination)| !destination.is_idle());
        busy.map(|(server, destination)| Standing {
            server: *server,
            queued: destination.queue.len(),
            is_behind: destination.behind.is_some(),
            is_running: destination.is_running,
            failing: destination
                .failure
                .map(|failure| (failure.since_ms, failure.retry_ms)),
            attempts: destination.failure.map_or(0, |failure| failure.attempts),
        })
        .collect()
    }
}

/// The wait before the next attempt after so many failed ones, before chance is added.
pub(super) fn backoff_ms(attempts: u32, max_ms: u64) -> u64 {
    let doublings = attempts.saturating_sub(1).min(MAX_DOUBLINGS);
    (FIRST_BACKOFF_MS << doublings).min(max_ms)
}

#[cfg(test)]
mod tests;

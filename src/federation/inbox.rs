//! PDUs that other servers have sent, verified and durable, on their way into their rooms.
//!
//! A row goes with the batch that settles its event, so after a crash every event is either still here or settled. Each
//! room is drained by a worker of its own, in order; what one server sent incompletely is fetched beside, so that neither
//! other rooms nor the events of other servers wait for it. engine.md section 6.2.

mod drain;

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use prometheus_client::metrics::{counter::Counter, family::Family as Labeled, gauge::Gauge};
use ruma::{OwnedEventId, OwnedServerName, ServerName};
use tokio::sync::Notify;

pub(super) use self::drain::label;
use super::Federation;
use crate::{
    events::{Pdu, Verified},
    rooms::RoomNumber,
    storage::{Batch, Cbor, Commit, Family, Order, Store, Table},
    tasks::{Stage, Tasks},
    telemetry::Metrics,
};

/// Events that wait in all rooms; when there are more, servers are told to come again later.
const MAX_EVENTS: usize = 50_000;
/// Events that wait in one room; more are refused one by one. They can be fetched later, as events that are missing.
pub(super) const MAX_ROOM_EVENTS: usize = 5_000;
/// Events that wait are also kept in memory up to this much; the others are read again.
const MAX_BYTES_IN_MEMORY: usize = 32 << 20;
/// Rows are written in batches of about this size.
const BATCH_BYTES: usize = 512 << 10;
/// Rooms that are drained at the same time.
const MAX_WORKERS: usize = 256;

static INBOX: Table<(RoomNumber, u64), Cbor<InboxRow>> =
    Table::new("inbox", Family::Federation, b'x');

/// A received PDU.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct InboxRow {
    /// Who sent it to us.
    origin: OwnedServerName,
    event_id: OwnedEventId,
    /// As it is stored: canonical, without `unsigned`; redacted if its hash was wrong.
    json: String,
    /// Too long in an identifier: to be stored as rejected.
    rejected: bool,
}

/// The inbox.
pub(super) struct Inbox {
    store: Store,
    /// Received events by what became of them.
    outcomes: Labeled<[(&'static str, &'static str); 1], Counter>,
    waiting: Gauge,
    next: AtomicU64,
    queues: Mutex<Queues>,
    tasks: OnceLock<Tasks>,
}

#[derive(Default)]
struct Queues {
    rooms: HashMap<RoomNumber, Queue>,
    events: usize,
    bytes: usize,
    workers: usize,
    /// Rooms with events that have no worker yet.
    idle: VecDeque<RoomNumber>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Entry>,
    /// Events of the room that are not settled, with those that the worker holds.
    unsettled: usize,
    /// A worker has the room, or it is in line for one.
    is_taken: bool,
    arrived: Arc<Notify>,
}

/// One event that waits.
pub(super) struct Entry {
    pub(super) sequence: u64,
    pub(super) origin: OwnedServerName,
    /// `None`: to be read from its row.
    event: Option<Verified>,
    bytes: usize,
}

impl Inbox {
    /// Loads what an earlier process left. Blocks.
    ///
    /// # Errors
    /// The store cannot be read.
    pub(super) fn open(store: Store, metrics: &Metrics) -> crate::storage::Result<Self> {
        let (outcomes, waiting) = (Labeled::default(), Gauge::default());
        metrics.register(
            "federation_in_pdus",
            "Events received from other servers, by what became of them.",
            outcomes.clone(),
        );
        metrics.register(
            "federation_in_waiting",
            "Events received from other servers that are not yet in their rooms.",
            waiting.clone(),
        );
        let mut queues = Queues::default();
        let mut next = 1;
        let snapshot = store.snapshot()?;
        for row in snapshot.scan(INBOX.all(), Order::Forward) {
            let ((room, sequence), Cbor(row)) = row?;
            next = next.max(sequence + 1);
            queues.push(room, Entry::new(sequence, row.origin, None));
        }
        drop(snapshot);
        waiting.set(gauge(queues.events));
        Ok(Self {
            store,
            outcomes,
            waiting,
            next: AtomicU64::new(next),
            queues: Mutex::new(queues),
            tasks: OnceLock::new(),
        })
    }

    /// Whether so much waits that no more should come.
    pub(super) fn is_full(&self) -> bool {
        self.queues().events >= MAX_EVENTS
    }

    /// How many events of a room wait.
    pub(super) fn waiting(&self, room: RoomNumber) -> usize {
        let queues = self.queues();
        queues.rooms.get(&room).map_or(0, |queue| queue.unsettled)
    }

    /// Queues the rows of `events` and then `last`, and hands the rooms their events: what is made of them is written
    /// after their rows. All is durable when the commits have resolved; the last of them is that of `last`.
    pub(super) fn put(
        &self,
        federation: &Federation,
        origin: &ServerName,
        events: Vec<(RoomNumber, Verified)>,
        last: Batch,
    ) -> Vec<Commit> {
        let first = self.next.fetch_add(events.len() as u64, Ordering::SeqCst);
        let mut batches = Vec::new();
        let mut batch = Batch::new();
        for (sequence, (room, event)) in (first..).zip(&events) {
            if batch.bytes() > BATCH_BYTES {
                batches.push(std::mem::take(&mut batch));
            }
            batch.put(
                &INBOX,
                &(*room, sequence),
                &Cbor(InboxRow::new(origin, event)),
            );
        }
        batch.append(last);
        batches.push(batch);
        let commits = self.store.submit_all(batches);
        let mut rooms = Vec::new();
        let mut queues = self.queues();
        for (sequence, (room, event)) in (first..).zip(events) {
            queues.push(room, Entry::new(sequence, origin.to_owned(), Some(event)));
            if !rooms.contains(&room) {
                rooms.push(room);
            }
        }
        self.waiting.set(gauge(queues.events));
        drop(queues);
        for room in rooms {
            self.wake(federation, room);
        }
        commits
    }

    /// A batch that takes the event out.
    pub(super) fn removal(room: RoomNumber, entry: &Entry) -> Batch {
        let mut batch = Batch::new();
        batch.delete(&INBOX, &(room, entry.sequence));
        batch
    }

    /// The event of an entry; `None` if its row is gone.
    async fn event(
        &self,
        room: RoomNumber,
        entry: &mut Entry,
    ) -> Result<Option<Verified>, super::Error> {
        if let Some(event) = entry.event.take() {
            return Ok(Some(event));
        }
        let key = (room, entry.sequence);
        let row = self
            .store
            .read(move |snapshot| snapshot.get(&INBOX, &key))
            .await?;
        Ok(row.and_then(|Cbor(row)| row.event()))
    }

    fn pop(&self, room: RoomNumber) -> Option<Entry> {
        self.queues().rooms.get_mut(&room)?.waiting.pop_front()
    }

    fn arrived(&self, room: RoomNumber) -> Arc<Notify> {
        let mut queues = self.queues();
        Arc::clone(&queues.rooms.entry(room).or_default().arrived)
    }

    /// An event is in its room, or dropped.
    fn settled(&self, room: RoomNumber, entry: &Entry) {
        let mut queues = self.queues();
        queues.events = queues.events.saturating_sub(1);
        queues.bytes = queues.bytes.saturating_sub(entry.bytes);
        self.waiting.set(gauge(queues.events));
        if let Some(queue) = queues.rooms.get_mut(&room) {
            queue.unsettled = queue.unsettled.saturating_sub(1);
        }
    }

    /// Counts an event.
    pub(super) fn count(&self, outcome: &'static str) {
        self.outcomes.get_or_create(&[("result", outcome)]).inc();
    }

    /// Ends the work on a room, unless something has come meanwhile.
    fn leave(&self, room: RoomNumber) -> bool {
        let mut queues = self.queues();
        match queues.rooms.get(&room) {
            Some(queue) if !queue.waiting.is_empty() => false,
            _ => {
                queues.rooms.remove(&room);
                true
            }
        }
    }

    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn gauge(events: usize) -> i64 {
    i64::try_from(events).unwrap_or(i64::MAX)
}

impl Queues {
    fn push(&mut self, room: RoomNumber, mut entry: Entry) {
        if self.bytes + entry.bytes > MAX_BYTES_IN_MEMORY {
            entry.event = None;
            entry.bytes = 0;
        }
        self.events += 1;
        self.bytes += entry.bytes;
        let queue = self.rooms.entry(room).or_default();
        queue.unsettled += 1;
        queue.waiting.push_back(entry);
        queue.arrived.notify_one();
    }
}

impl Entry {
    fn new(sequence: u64, origin: OwnedServerName, event: Option<Verified>) -> Self {
        // The JSON, and about as much again for its parts.
        let bytes = event.as_ref().map_or(0, |event| event.json.len() * 2);
        Self {
            sequence,
            origin,
            event,
            bytes,
        }
    }
}

impl InboxRow {
    fn new(origin: &ServerName, event: &Verified) -> Self {
        Self {
            origin: origin.to_owned(),
            event_id: event.event_id.clone(),
            json: String::from_utf8_lossy(&event.json).into_owned(),
            rejected: event.rejected,
        }
    }

    /// The event as it was verified; `None` if the row is damaged.
    fn event(self) -> Option<Verified> {
        let pdu = Pdu::from_stored(self.event_id, self.json.into(), self.rejected);
        match pdu {
            Ok(pdu) => Some(Verified::from_stored(pdu)),
            Err(error) => {
                tracing::error!(%error, "a row of the inbox is damaged");
                None
            }
        }
    }
}

/// Who drains which room.
impl Inbox {
    /// Begins to drain, first of all what an earlier process left.
    fn start(&self, federation: &Federation, tasks: &Tasks) {
        if self.tasks.set(tasks.clone()).is_err() {
            return;
        }
        let rooms: Vec<_> = self.queues().rooms.keys().copied().collect();
        for room in rooms {
            self.wake(federation, room);
        }
    }

    /// Sees to it that somebody drains the room.
    fn wake(&self, federation: &Federation, room: RoomNumber) {
        if self.tasks.get().is_none() {
            return;
        }
        let mut queues = self.queues();
        let Some(queue) = queues.rooms.get_mut(&room) else {
            return;
        };
        if std::mem::replace(&mut queue.is_taken, true) {
            return;
        }
        queues.idle.push_back(room);
        drop(queues);
        self.employ(federation);
    }

    /// Starts workers for rooms in line, while there may be more.
    fn employ(&self, federation: &Federation) {
        let Some(tasks) = self.tasks.get() else {
            return;
        };
        let stop = tasks.stop_signal(Stage::Followers);
        loop {
            let mut queues = self.queues();
            if queues.workers >= MAX_WORKERS || stop.is_requested() {
                return;
            }
            let Some(room) = queues.idle.pop_front() else {
                return;
            };
            queues.workers += 1;
            drop(queues);
            let work = federation.clone().drain(room, stop.clone());
            tasks.spawn("inbox", Stage::Followers, work);
        }
    }

    /// A worker goes on that had waited for other servers. For a moment there may be more than the most.
    fn resume(&self) {
        self.queues().workers += 1;
    }

    /// A worker has ended, or waits for other servers.
    fn dismiss(&self, federation: &Federation) {
        let mut queues = self.queues();
        queues.workers = queues.workers.saturating_sub(1);
        drop(queues);
        self.employ(federation);
    }
}

impl Federation {
    /// Begins to put what has been received into its rooms.
    pub fn start_inbox(&self, tasks: &Tasks) {
        self.start_signing(tasks);
        self.inner.inbox.start(self, tasks);
    }
}

#[cfg(test)]
mod tests;

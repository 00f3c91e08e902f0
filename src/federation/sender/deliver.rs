//! One task for each server that has something to get: it sends one transaction after the other and ends when nothing is left.
//!
//! Its turn to use the network it takes for each transaction anew, so that a server with much to get does not hold up those
//! with little. Servers of which it is doubtful that they are there have turns of their own: they may take long to fail again.

use std::{collections::BTreeMap, time::Duration};

use ruma::OwnedServerName;
use tokio::sync::Semaphore;

use super::{
    destinations::{Behind, Queued, Work, backoff_ms},
    rows::{self, EduKey},
    transaction::{Contents, Outcome},
    volatile::Volatile,
};
use crate::{
    events::EventNumber,
    federation::{Error, Federation, Limits},
    rooms::{RoomNumber, ServerNumber},
    storage::{Batch, Position, Snapshot},
    tasks::Stop,
};

/// EDUs in a transaction.
///
/// Spec: s2s, "Transactions".
const MAX_EDUS: usize = 100;
/// How long a server may take to answer a transaction.
const TIMEOUT: Duration = Duration::from_secs(60);
const MAX_ANSWER_BYTES: usize = 1 << 20;
/// Those that wait in the store make a transaction larger by no more than this.
const MAX_EDU_BYTES: usize = 1 << 20;
/// An EDU that a server could not be given for so long is dropped.
const MAX_EDU_AGE_MS: u64 = 30 * 24 * 60 * 60 * 1_000;

/// Who takes turns at the network.
pub(super) struct Lanes {
    /// Servers that answered last time, or were heard of since.
    main: Semaphore,
    /// The others.
    doubtful: Semaphore,
}

impl Default for Lanes {
    fn default() -> Self {
        Self {
            main: Semaphore::new(128),
            doubtful: Semaphore::new(16),
        }
    }
}

/// A task's view of its server.
struct Delivery<'a> {
    federation: &'a Federation,
    server: ServerNumber,
    name: OwnedServerName,
    is_doubtful: bool,
    /// Everything is noted: the task may end.
    is_over: bool,
}

impl Drop for Delivery<'_> {
    fn drop(&mut self) {
        let sender = &self.federation.inner.sender;
        if !self.is_over {
            sender.lock().interrupted(self.server);
        }
        sender.ended.notify_one();
    }
}

/// What was read for one transaction.
#[derive(Default)]
struct Loaded {
    contents: Contents,
    /// The first so many of the events asked for are in it, or are no more.
    events: usize,
    stored: Vec<EduKey>,
    has_more_stored: bool,
}

impl Federation {
    /// Sends `server` all that it is to get.
    pub(super) async fn deliver(self, server: ServerNumber, is_doubtful: bool, stop: Stop) {
        let Some(name) = self.inner.rooms.server_name(server) else {
            self.inner.sender.lock().interrupted(server);
            return;
        };
        let mut delivery = Delivery {
            federation: &self,
            server,
            name,
            is_doubtful,
            is_over: false,
        };
        tokio::select! {
            () = delivery.run() => delivery.is_over = true,
            () = stop.requested() => {}
        }
    }
}

impl Delivery<'_> {
    async fn run(&mut self) {
        loop {
            let work = self.federation.inner.sender.lock().work(self.server);
            let done = match work {
                None => return,
                Some(Work::Send {
                    pdus,
                    volatile,
                    has_stored,
                }) => self.send_queued(&pdus, volatile, has_stored).await,
                Some(Work::Walk { behind, upto }) => self.catch_up(behind, upto).await,
            };
            if let Err(error) = done {
                self.note_failure(&error).await;
                return;
            }
        }
    }

    async fn send_queued(
        &mut self,
        pdus: &[Queued],
        volatile: Option<Box<Volatile>>,
        has_stored: bool,
    ) -> Result<(), Error> {
        let loaded = match self.load(pdus, has_stored).await {
            Ok(loaded) => loaded,
            Err(error) => {
                self.keep_stored(has_stored);
                return Err(error);
            }
        };
        let mut loaded = loaded;
        let sender = &self.federation.inner.sender;
        if loaded.events < pdus.len() {
            sender.lock().take_only(self.server, loaded.events);
        }
        if let Some(mut volatile) = volatile {
            let room = MAX_EDUS.saturating_sub(loaded.contents.edus.len());
            loaded.contents.edus.extend(volatile.take_edus(room));
            if !volatile.is_empty() {
                sender.lock().put_back(self.server, volatile);
            }
        }
        let sent = pdus.get(..loaded.events).unwrap_or(pdus);
        let is_taken = self.transmit(&loaded, has_stored).await?;
        if is_taken {
            self.settle(sent, &loaded).await?;
            sender.lock().sent(self.server);
        }
        if loaded.has_more_stored || (has_stored && !is_taken) {
            sender.lock().has_more_stored(self.server);
        }
        Ok(())
    }

    /// Sends what a server that was away has missed.
    async fn catch_up(&mut self, behind: Behind, upto: Position) -> Result<(), Error> {
        let sender = &self.federation.inner.sender;
        if sender.lock().has_unsaved_partings() {
            self.federation.save_sender().await?;
        }
        let (federation, server) = (self.federation.clone(), self.server);
        let read = move |snapshot: &Snapshot| federation.missed(snapshot, server, behind, upto);
        let missed = self.federation.inner.store.read(read).await?;
        let mut rest = missed.as_slice();
        while !rest.is_empty() {
            let (limit, with_edus) = sender.lock().limits(server);
            let has_stored = with_edus && sender.lock().take_stored(server);
            let chunk = rest.get(..limit).unwrap_or(rest);
            let loaded = match self.load(chunk, has_stored).await {
                Ok(loaded) => loaded,
                Err(error) => {
                    self.keep_stored(has_stored);
                    return Err(error);
                }
            };
            let (chunk, after) = rest.split_at(loaded.events.min(rest.len()));
            let is_taken = self.transmit(&loaded, has_stored).await?;
            if loaded.has_more_stored || (has_stored && !is_taken) {
                sender.lock().has_more_stored(server);
            }
            if !is_taken {
                continue;
            }
            self.settle(chunk, &loaded).await?;
            // Two events of one position may be in two transactions.
            let next = after.first().map(|next| Position(next.position.0 - 1));
            if let Some(last) = chunk.last() {
                let last = next.map_or(last.position, |next| next.min(last.position));
                sender.lock().walked_to(server, last);
            }
            rest = after;
        }
        sender.lock().walk_ended(server, upto);
        Ok(())
    }

    /// Reads the events and the EDUs that wait in the store, as far as they fit one transaction.
    async fn load(&self, events: &[Queued], has_stored: bool) -> Result<Loaded, Error> {
        if events.is_empty() && !has_stored {
            return Ok(Loaded::default());
        }
        let federation = self.federation.clone();
        let (server, events) = (self.server, events.to_vec());
        let limit = federation.inner.sender.lock().edu_limit(server);
        let limits = (limit.min(MAX_EDUS), MAX_EDU_BYTES);
        let read = move |snapshot: &Snapshot| -> Result<Loaded, Error> {
            let mut loaded = Loaded::default();
            federation.load_events(snapshot, &events, &mut loaded)?;
            if has_stored {
                let (edus, has_more) = rows::edus(snapshot, server, limits)?;
                loaded.has_more_stored = has_more;
                for (key, row) in edus {
                    loaded.stored.push(key);
                    loaded.contents.edus.push(row.json);
                }
            }
            Ok(loaded)
        };
        self.federation.inner.store.read(read).await
    }

    /// Sends one transaction when it is its turn. False if the server wants a smaller one.
    async fn transmit(&mut self, loaded: &Loaded, has_stored: bool) -> Result<bool, Error> {
        let inner = &self.federation.inner;
        let contents = &loaded.contents;
        if contents.is_empty() {
            return Ok(true);
        }
        let lane = match self.is_doubtful {
            true => &inner.sender.lanes.doubtful,
            false => &inner.sender.lanes.main,
        };
        let turn = lane.acquire().await;
        let now_ms = inner.clock.now_ms();
        let body = contents.body(inner.rooms.own_name(), now_ms);
        let path = format!(
            "/_matrix/federation/v1/send/{}",
            inner.sender.transaction_id()
        );
        let limits = Limits {
            timeout: TIMEOUT,
            max_bytes: MAX_ANSWER_BYTES,
        };
        let started = inner.clock.instant();
        let answer = inner
            .client
            .put_canonical(&self.name, &path, body, limits)
            .await;
        drop(turn);
        let outcome = Outcome::of(answer, &self.name);
        let seconds = (inner.clock.instant() - started).as_secs_f64();
        inner.sender.metrics.sent(&outcome, contents, seconds);
        match outcome {
            Outcome::Taken => {
                self.is_doubtful = false;
                Ok(true)
            }
            Outcome::Refused(error) => {
                let (pdus, edus) = (contents.pdus.len(), contents.edus.len());
                let is_smaller = inner.sender.lock().refused(self.server, pdus, edus);
                if !is_smaller {
                    tracing::warn!(server = %self.name, %error, pdus, edus,
                        "the server does not take this transaction; it is dropped");
                }
                Ok(!is_smaller)
            }
            Outcome::Failed(error) => {
                self.keep_stored(has_stored);
                Err(error)
            }
        }
    }

    /// Forgets what the server has now.
    async fn settle(&self, sent: &[Queued], loaded: &Loaded) -> Result<(), Error> {
        let mut batch = Batch::new();
        for parting in sent.iter().filter(|event| event.is_parting) {
            rows::delete_parting(&mut batch, self.server, parting);
        }
        for key in &loaded.stored {
            rows::delete_edu(&mut batch, key);
        }
        if !batch.is_empty() {
            // Lost in a crash, the server gets them twice.
            batch.relaxed();
            self.federation.inner.store.submit(batch).await?;
        }
        Ok(())
    }

    fn keep_stored(&self, has_stored: bool) {
        if has_stored {
            let sender = &self.federation.inner.sender;
            sender.lock().has_more_stored(self.server);
        }
    }

    async fn note_failure(&self, error: &Error) {
        let inner = &self.federation.inner;
        let max_ms = u64::try_from(inner.config.backoff_max.0.as_millis()).unwrap_or(u64::MAX);
        let asked_ms = match error {
            Error::Remote { retry_after, .. } => retry_after.map_or(0, |time| {
                u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
            }),
            _ => 0,
        };
        // A fifth more or less, so that servers that failed together do not come together.
        let chance = 80 + inner.clock.random_below(41);
        let wait_ms = |attempts| {
            let wait_ms = backoff_ms(attempts, max_ms).saturating_mul(chance) / 100;
            wait_ms.max(asked_ms.min(max_ms))
        };
        let is_first = {
            let mut destinations = inner.sender.lock();
            destinations.failed(self.server, inner.clock.now_ms(), wait_ms)
        };
        match is_first {
            true => {
                tracing::info!(server = %self.name, %error, "a server does not take what is sent; it is tried again later")
            }
            false => {
                tracing::debug!(server = %self.name, %error, "a server still does not take what is sent")
            }
        }
        if let Err(error) = self.drop_old_edus().await {
            tracing::warn!(server = %self.name, %error, "old EDUs could not be dropped");
        }
        inner.sender.news.notify_one();
    }

    /// Drops EDUs that have waited too long, some at each failure.
    async fn drop_old_edus(&self) -> Result<(), Error> {
        let inner = &self.federation.inner;
        let old = inner.clock.now_ms().saturating_sub(MAX_EDU_AGE_MS);
        let server = self.server;
        let read =
            move |snapshot: &Snapshot| rows::edus(snapshot, server, (MAX_EDUS * 10, usize::MAX));
        let (edus, _) = inner.store.read(read).await?;
        let mut batch = Batch::new();
        for (key, _) in edus.iter().filter(|(_, row)| row.queued_ms < old) {
            rows::delete_edu(&mut batch, key);
        }
        if !batch.is_empty() {
            inner.store.submit(batch).await?;
        }
        Ok(())
    }
}

impl Federation {
    /// The JSON of `events` in their order, as many as fit one body. Those that are no more are passed over.
    fn load_events(
        &self,
        snapshot: &Snapshot,
        events: &[Queued],
        to: &mut Loaded,
    ) -> Result<(), Error> {
        let mut by_room: BTreeMap<RoomNumber, Vec<EventNumber>> = BTreeMap::new();
        for event in events {
            by_room.entry(event.room).or_default().push(event.event);
        }
        let mut found = BTreeMap::new();
        for (room, numbers) in by_room {
            let stored = self.inner.rooms.events(snapshot, room, &numbers)?;
            for event in stored.into_iter().flatten() {
                found.insert((room, event.number), event.pdu.json.clone());
            }
        }
        let key = |event: &Queued| (event.room, event.event);
        let size = |event: &Queued| found.get(&key(event)).map_or(0, bytes::Bytes::len);
        to.events = Contents::fitting(events.iter().map(size)).min(events.len());
        let taken = events.iter().take(to.events);
        to.contents.pdus = taken
            .filter_map(|event| found.remove(&key(event)))
            .collect();
        Ok(())
    }
}

//! Ordered typed tables, snapshots, atomic batches, positions, the log and waking. Knows no Matrix.
//!
//! [`Store`] is the typed face; `Engine` (in `engine.rs`) is the seam, in bytes. Design: engine.md sections 4, 5, 9, 14, 16.

mod batch;
mod commit;
mod config;
mod engine;
mod jobs;
mod key;
mod locks;
mod log;
mod memory;
mod meta;
mod metrics;
mod migrate;
mod record;
mod rocks;
mod shared;
mod snapshot;
mod stats;
mod table;
mod watch;

#[cfg(test)]
mod engine_suite;
#[cfg(test)]
mod faults;

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;

use crate::clock::Clock;

pub use self::{
    batch::{Batch, PositionAt},
    commit::{Commit, QUEUE_LIMIT_BYTES},
    config::{Config, Durability},
    jobs::{Job, JobProgress, JobState},
    key::{Descending, Index, KeyError, KeyPart, Millis48, TableKey, Text},
    locks::{Guard, Locks},
    log::{LogEntry, LogPage},
    record::{Cbor, Counter, Expiring, Json, Raw, Record, Stamped},
    shared::{SYNC_BUCKETS_US, SyncTimes},
    snapshot::Snapshot,
    stats::{EngineStats, FamilyStats, Stats},
    table::{Family, Order, Table, TableRange},
    watch::Topic,
};
use self::{
    commit::Committer,
    engine::Engine,
    log::{Ring, Trimmer},
    meta::Writer,
    record::number,
    rocks::Rocks,
    shared::{Counters, OnFailure, Published, Shared},
    watch::Watch,
};

/// Read closures that run at the same time.
const READERS: usize = 16;
/// What any engine can carry; see engine.md section 4.
const MAX_KEY_BYTES: usize = 512;
const MAX_VALUE_BYTES: usize = 90_000;
const MAX_BATCH_BYTES: usize = 1 << 20;
/// What a process returns whose database failed (`EX_IOERR`).
const FAILURE_EXIT_CODE: i32 = 74;

/// What went wrong in the store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A precondition of the batch did not hold; read again and retry.
    #[error("a precondition of the batch does not hold")]
    Conflict,
    /// A stored row cannot be decoded: the database is damaged or from another version.
    #[error("a row of table {table} cannot be decoded: {reason}")]
    Corrupt { table: &'static str, reason: String },
    /// The engine failed. Writes that fail end the process before this is seen.
    #[error("the database failed: {0}")]
    Engine(String),
    /// The store is closing.
    #[error("the store is closed")]
    Closed,
    /// The database cannot be opened: locked, of a newer schema, of another server name.
    #[error("the database cannot be opened: {0}")]
    Open(String),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The moment at which a batch became visible: writer number in the top 16 bits, sequence in the 48 below.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(transparent)]
pub struct Position(pub u64);

impl Position {
    const SEQUENCE_BITS: u32 = 48;

    pub const fn new(writer: u16, sequence: u64) -> Self {
        Self(
            ((writer as u64) << Self::SEQUENCE_BITS)
                | (sequence & ((1 << Self::SEQUENCE_BITS) - 1)),
        )
    }

    pub const fn writer(self) -> u16 {
        let [high, low, ..] = self.0.to_be_bytes();
        u16::from_be_bytes([high, low])
    }

    pub const fn sequence(self) -> u64 {
        self.0 & ((1 << Self::SEQUENCE_BITS) - 1)
    }
}

/// A moment of this process, later than all changes that had woken waiters when it was taken. See [`Store::tick`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tick(u64);

/// The typed face of the database. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    engine: Arc<Engine>,
    readers: Semaphore,
    committer: Mutex<Option<JoinHandle<()>>>,
    /// The committer of a store without a thread.
    stepped: Option<Mutex<Committer>>,
    earlier: Vec<Position>,
    database_key: [u8; 32],
    was_clean: bool,
}

/// How a store runs.
struct Setup {
    clock: Clock,
    is_relaxed: bool,
    on_failure: OnFailure,
}

impl Setup {
    fn new(clock: Clock, is_relaxed: bool) -> Self {
        Self {
            clock,
            is_relaxed,
            on_failure: Arc::new(end_process),
        }
    }
}

impl Store {
    /// A store in memory, for tests.
    pub fn memory() -> Self {
        Self::memory_with(Clock::system())
    }

    /// A store in memory whose log is kept by `clock`.
    pub fn memory_with(clock: Clock) -> Self {
        let engine = Engine::Memory(memory::Memory::default());
        Self::start(engine, Writer::Same, Setup::new(clock, false))
            .expect("an empty database in memory can be read")
    }

    /// Opens the database in the folder `path`, or makes one. Blocks; longer after a crash.
    ///
    /// # Errors
    /// [`Error::Open`] if another process has it open, or a newer version has written it.
    pub fn open(config: &Config, path: &Path, clock: Clock) -> Result<Self> {
        Self::open_as(config, path, clock, Writer::Same)
    }

    /// As [`Store::open`], the first time after a copy was put back: the positions that the lost database may have
    /// given out after the copy are told apart from those that come now. See [`Store::has_published`].
    pub fn open_restored(config: &Config, path: &Path, clock: Clock) -> Result<Self> {
        Self::open_as(config, path, clock, Writer::Next)
    }

    fn open_as(config: &Config, path: &Path, clock: Clock, writer: Writer) -> Result<Self> {
        let engine = Engine::Rocks(Box::new(Rocks::open(config, path, &clock)?));
        Self::start(
            engine,
            writer,
            Setup::new(clock, config.durability == Durability::Relaxed),
        )
    }

    /// A store in memory that does nothing beside its caller, for simulations, which shall not depend on when threads run:
    /// reading happens where it is asked for, and what is submitted waits for [`Store::step`].
    pub fn stepped(clock: Clock) -> Self {
        let engine = Engine::Memory(memory::Memory::default());
        Self::start_stepped(engine, clock).expect("an empty database in memory can be read")
    }

    fn start_stepped(engine: Engine, clock: Clock) -> Result<Self> {
        let (mut inner, committer) = Self::prepare(engine, Writer::Same, Setup::new(clock, false))?;
        inner.stepped = Some(Mutex::new(committer));
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Commits what is queued in a store without a thread. False if there was nothing.
    pub fn step(&self) -> bool {
        let stepped = self.inner.stepped.as_ref();
        stepped.is_some_and(|committer| {
            let mut committer = committer.lock().unwrap_or_else(PoisonError::into_inner);
            committer.step()
        })
    }

    /// Ends a store without a thread as a kill of its process does, and answers what the next process finds. What is
    /// queued is lost; nothing can be written here any more.
    ///
    /// # Errors
    /// The store has a thread, or files.
    pub fn kill(&self) -> Result<Self> {
        let Engine::Memory(engine) = &*self.inner.engine else {
            return Err(Error::Open("it has files".to_owned()));
        };
        if self.inner.stepped.is_none() {
            return Err(Error::Open("it has a thread".to_owned()));
        }
        self.inner.shared.queue.close();
        self.inner.shared.queue.clear();
        Self::start_stepped(
            Engine::Memory(engine.same()),
            self.inner.shared.clock.clone(),
        )
    }

    fn start(engine: Engine, writer: Writer, setup: Setup) -> Result<Self> {
        let (inner, committer) = Self::prepare(engine, writer, setup)?;
        let thread = std::thread::Builder::new()
            .name("committer".to_owned())
            .spawn(move || committer.run());
        let thread =
            thread.map_err(|error| Error::Open(format!("no thread for the committer: {error}")))?;
        *inner
            .committer
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    fn prepare(engine: Engine, writer: Writer, setup: Setup) -> Result<(Inner, Committer)> {
        let Setup {
            clock,
            is_relaxed,
            on_failure,
        } = setup;
        let facts = meta::open(&engine, &clock, writer)?;
        let engine = Arc::new(engine);
        let view = engine.view();
        let trimmer = Trimmer::new(&view)?;
        let counters = Arc::new(Counters::default());
        let shared = Arc::new(Shared {
            clock,
            queue: commit::Queue::default(),
            published: ArcSwap::from_pointee(Published {
                position: facts.last,
                view,
                counters: Arc::clone(&counters),
            }),
            ring: Ring::new(facts.last),
            watch: Watch::new(),
            counters,
            on_failure,
        });
        let committer = Committer {
            shared: Arc::clone(&shared),
            engine: Arc::clone(&engine),
            trimmer,
            timer: Clock::system(),
            is_relaxed,
            sync_at: None,
        };
        let inner = Inner {
            shared,
            engine,
            readers: Semaphore::new(READERS),
            committer: Mutex::default(),
            stepped: None,
            earlier: facts.earlier,
            database_key: facts.database_key,
            was_clean: facts.was_clean,
        };
        Ok((inner, committer))
    }

    /// A consistent view of everything published so far. Blocking calls: use inside [`Store::read`].
    #[allow(
        clippy::unnecessary_wraps,
        reason = "a remote engine can fail to give one"
    )]
    pub fn snapshot(&self) -> Result<Snapshot> {
        Ok(Snapshot::new(self.inner.shared.published.load_full()))
    }

    /// Runs `closure` on one snapshot on the blocking pool, holding one of a bounded number of permits.
    pub async fn read<T, E>(
        &self,
        closure: impl FnOnce(&Snapshot) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        if self.inner.stepped.is_some() {
            return closure(&self.snapshot()?);
        }
        let _permit = self
            .inner
            .readers
            .acquire()
            .await
            .map_err(|_closed| Error::Closed)?;
        let store = self.clone();
        let reading = tokio::task::spawn_blocking(move || closure(&store.snapshot()?));
        match reading.await {
            Ok(outcome) => outcome,
            Err(failed) => match failed.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_cancelled) => Err(Error::Closed.into()),
            },
        }
    }

    /// Queues `batch`. The order of calls is the order of the log. Never blocks.
    pub fn submit(&self, batch: Batch) -> Commit {
        warn_of_size(&batch);
        self.inner.shared.queue.push(batch)
    }

    /// Queues `batches`, each with a position of its own, to be written at once: a crash leaves all of them or none.
    pub fn submit_all(&self, batches: Vec<Batch>) -> Vec<Commit> {
        batches.iter().for_each(warn_of_size);
        self.inner.shared.queue.push_all(batches)
    }

    /// Bytes queued and not yet committed; above `QUEUE_LIMIT_BYTES` callers wait in `Store::has_room`.
    pub async fn has_room(&self) {
        self.inner.shared.queue.has_room().await;
    }

    /// The last published position.
    pub fn position(&self) -> Position {
        self.inner.shared.published.load().position
    }

    /// Whether `position` has been published here. If not, it is from a lost future: a backup has been put back.
    pub fn has_published(&self, position: Position) -> bool {
        let last = self.position();
        if position.writer() == last.writer() {
            return position <= last;
        }
        let last_of = |writer| {
            self.inner
                .earlier
                .iter()
                .find(|last| last.writer() == writer)
        };
        last_of(position.writer()).is_some_and(|last| position <= *last)
    }

    /// Now, in ticks of waking. Take it before the snapshot whose data it shall guard.
    pub fn tick(&self) -> Tick {
        self.inner.shared.watch.tick()
    }

    /// Resolves when one of `topics` changed after `since` (at once if it already has) or after `timeout`.
    /// True if something changed.
    pub async fn wait(&self, topics: &[Topic], since: Tick, timeout: Duration) -> bool {
        self.inner.shared.watch.wait(topics, since, timeout).await
    }

    /// Wakes `topics` without a write: for what is never stored (typing, presence).
    pub fn touch(&self, topics: &[Topic]) {
        self.inner.shared.watch.touch(topics);
    }

    /// At least `limit` entries of the log after `after`, if there are so many: a batch's are never torn apart.
    /// The newest come from memory. To wait for more: [`Topic::Log`].
    pub async fn log(&self, after: Position, limit: usize) -> Result<LogPage> {
        match self.inner.shared.ring.page(after, self.position(), limit) {
            Some(page) => page,
            None => self.read(move |snapshot| snapshot.log(after, limit)).await,
        }
    }

    /// The key of fingerprints that never leave this database: 32 random bytes, made with it.
    pub fn database_key(&self) -> [u8; 32] {
        self.inner.database_key
    }

    /// Whether the database had been closed in good order, or is new.
    pub fn was_clean(&self) -> bool {
        self.inner.was_clean
    }

    /// Binds a new database to `name`.
    ///
    /// # Errors
    /// [`Error::Open`] if it belongs to a server of another name.
    pub async fn claim_server_name(&self, name: &str) -> Result<()> {
        let name = name.to_owned();
        let key = (Text::from(meta::SERVER_NAME),);
        let owner = self
            .read(move |snapshot| snapshot.get(&meta::FACTS, &key))
            .await?;
        match owner {
            Some(Raw(owner)) if owner == name.as_bytes() => Ok(()),
            Some(Raw(owner)) => {
                let owner = String::from_utf8_lossy(&owner);
                Err(Error::Open(format!(
                    "it belongs to the server name {owner}, not to {name}"
                )))
            }
            None => {
                let mut batch = Batch::new();
                meta::put(&mut batch, meta::SERVER_NAME, &name);
                self.submit(batch).await.map(|_position| ())
            }
        }
    }

    /// Commits what is queued, takes no more, and marks the database as closed in good order. Blocks.
    /// Snapshots can still be taken.
    pub fn close(&self) -> Result<()> {
        let mut last = Batch::new();
        meta::put(&mut last, meta::CLEAN, &1u8);
        let commit = self.submit(last);
        self.inner.stop();
        commit.outcome_of_ended()?;
        self.inner.engine.flush()
    }

    /// Numbers for the metrics page. Takes some microseconds.
    pub fn stats(&self) -> Stats {
        let shared = &self.inner.shared;
        let (queue_batches, queue_bytes) = shared.queue.length();
        Stats {
            position: self.position(),
            queue_batches,
            queue_bytes,
            commits: shared.counters.commits(),
            conflicts: shared.counters.conflicts(),
            groups: shared.counters.groups(),
            reads: shared.counters.reads(),
            syncs: shared.counters.sync_times(),
            engine: self.inner.engine.stats(),
        }
    }

    /// Reads every row and verifies its checksum. Blocks, for minutes if the database is large. Returns how many rows
    /// there are.
    pub fn check_integrity(&self) -> Result<u64> {
        self.inner.engine.check_integrity()
    }

    /// Rewrites all files without what is deleted. Blocks, for minutes if the database is large.
    pub fn compact(&self) {
        self.inner.engine.compact();
    }

    /// What the database takes on disk.
    pub fn disk_bytes(&self) -> u64 {
        self.inner.engine.disk_bytes()
    }

    /// Copies the database, as it is now, into the folder `to`, which must not exist: by hard links if it is on the
    /// same disk. [`Store::open`] opens the copy. Blocks.
    pub fn checkpoint(&self, to: &Path) -> Result<()> {
        self.inner.engine.checkpoint(to)
    }
}

impl Inner {
    fn stop(&self) {
        self.shared.queue.close();
        let thread = self
            .committer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        // A hook may hold the last store: the committer does not wait for itself.
        if let Some(thread) =
            thread.filter(|thread| thread.thread().id() != std::thread::current().id())
            && thread.join().is_err()
        {
            tracing::error!("the committer has panicked");
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What was acknowledged may not be on disk, and what is on disk is not known: nothing can be answered any more.
fn end_process(_error: &Error) {
    std::process::exit(FAILURE_EXIT_CODE);
}

/// Not every engine can carry what is larger.
fn warn_of_size(batch: &Batch) {
    let (key, value) = batch.longest();
    if key > MAX_KEY_BYTES || value > MAX_VALUE_BYTES || batch.bytes() > MAX_BATCH_BYTES {
        tracing::warn!(
            key,
            value,
            batch = batch.bytes(),
            "a batch is above the limits that every engine can carry"
        );
        debug_assert!(key <= MAX_KEY_BYTES, "a key of {key} bytes");
    }
}

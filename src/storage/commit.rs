//! The committer: one thread that makes batches durable, in order, and then visible.
//!
//! It takes all batches that wait, checks their preconditions, gives each a position, writes them with one sync, and
//! publishes them; meanwhile the next group gathers. An idle committer starts as soon as a batch arrives.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::{Notify, oneshot};

use crate::clock::Clock;

use super::{
    Batch, Error, Family, Position, Raw, Result, Topic,
    batch::{Expectation, Hook, Write},
    engine::{Engine, View},
    log::{self, Trimmer},
    meta, number,
    shared::{Published, Shared},
};

/// A group is closed at this many batches, or bytes.
const GROUP_BATCHES: usize = 256;
const GROUP_BYTES: usize = 1 << 20;
/// Above this many bytes queued and not yet committed, callers wait in `Store::has_room`.
pub const QUEUE_LIMIT_BYTES: usize = 64 << 20;
/// How long a batch that need not wait for the disk may be lost.
const RELAXED_SYNC: Duration = Duration::from_millis(100);

/// Resolves when the batch is durable and published, or was refused ([`super::Error::Conflict`]).
/// Dropping it cancels nothing.
pub struct Commit {
    outcome: oneshot::Receiver<Result<Position>>,
}

impl Future for Commit {
    type Output = Result<Position>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.outcome)
            .poll(cx)
            .map(|outcome| outcome.unwrap_or(Err(Error::Closed)))
    }
}

impl Commit {
    /// Of a committer that has ended: it has answered, or never will.
    pub(super) fn outcome_of_ended(mut self) -> Result<Position> {
        self.outcome.try_recv().unwrap_or(Err(Error::Closed))
    }

    /// Waits on a thread of its own, such as those of the blocking pool; an async task would panic.
    pub fn wait_blocking(self) -> Result<Position> {
        self.outcome.blocking_recv().unwrap_or(Err(Error::Closed))
    }
}

struct Queued {
    batch: Batch,
    bytes: usize,
    /// The batch after this one is of the same write.
    is_continued: bool,
    outcome: oneshot::Sender<Result<Position>>,
}

impl Queued {
    fn resolve(self, outcome: Result<Position>) {
        // Who does not listen does not care.
        let _unheard = self.outcome.send(outcome);
    }
}

/// Batches that wait for the committer.
#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
    room: Notify,
}

#[derive(Default)]
struct Waiting {
    batches: VecDeque<Queued>,
    /// Queued or being committed.
    bytes: usize,
    is_idle: bool,
    is_closed: bool,
}

impl Waiting {
    fn push(&mut self, batch: Batch, is_continued: bool) -> Commit {
        let (sender, outcome) = oneshot::channel();
        // When closed the sender is dropped, which tells the receiver.
        if !self.is_closed {
            let bytes = batch.bytes();
            self.bytes += bytes;
            self.batches.push_back(Queued {
                batch,
                bytes,
                is_continued,
                outcome: sender,
            });
        }
        Commit { outcome }
    }
}

impl Queue {
    pub(super) fn push(&self, batch: Batch) -> Commit {
        let mut waiting = self.lock();
        let commit = waiting.push(batch, false);
        self.wake(waiting);
        commit
    }

    /// Batches of one write.
    pub(super) fn push_all(&self, batches: Vec<Batch>) -> Vec<Commit> {
        let last = batches.len().saturating_sub(1);
        let mut waiting = self.lock();
        let numbered = batches.into_iter().enumerate();
        let commits = numbered.map(|(at, batch)| waiting.push(batch, at < last));
        let commits = commits.collect();
        self.wake(waiting);
        commits
    }

    fn wake(&self, mut waiting: MutexGuard<'_, Waiting>) {
        if !waiting.batches.is_empty() && std::mem::take(&mut waiting.is_idle) {
            drop(waiting);
            self.arrived.notify_one();
        }
    }

    /// Nothing more is taken; what is queued is still committed.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.arrived.notify_one();
        self.room.notify_waiters();
    }

    /// Drops what is queued.
    pub(super) fn clear(&self) {
        self.lock().batches.clear();
    }

    pub(super) async fn has_room(&self) {
        loop {
            let room = self.room.notified();
            if self.is_below_limit() {
                return;
            }
            room.await;
        }
    }

    /// Batches and bytes.
    pub(super) fn length(&self) -> (usize, usize) {
        let waiting = self.lock();
        (waiting.batches.len(), waiting.bytes)
    }

    fn is_below_limit(&self) -> bool {
        let waiting = self.lock();
        waiting.bytes < QUEUE_LIMIT_BYTES || waiting.is_closed
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for batches, at most until `deadline`.
    fn next(&self, deadline: Option<Instant>, now: impl Fn() -> Instant) -> Next {
        let mut waiting = self.lock();
        while waiting.batches.is_empty() {
            if waiting.is_closed {
                return Next::Closed;
            }
            waiting.is_idle = true;
            waiting = match deadline {
                None => self
                    .arrived
                    .wait(waiting)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(now());
                    if left.is_zero() {
                        return Next::Deadline;
                    }
                    self.arrived
                        .wait_timeout(waiting, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
        waiting.is_idle = false;
        let mut bytes = 0;
        let fits = |queued: &&Queued| {
            bytes += queued.bytes;
            bytes <= GROUP_BYTES
        };
        let count = waiting
            .batches
            .iter()
            .take(GROUP_BATCHES)
            .take_while(fits)
            .count()
            .max(1);
        let is_continued = |queued: &&Queued| queued.is_continued;
        let rest = waiting.batches.iter().skip(count - 1);
        let count = count + rest.take_while(is_continued).count();
        Next::Group(waiting.batches.drain(..count).collect())
    }

    fn settle(&self, bytes: usize) {
        let mut waiting = self.lock();
        let was_full = waiting.bytes >= QUEUE_LIMIT_BYTES;
        waiting.bytes -= bytes;
        let has_room = waiting.bytes < QUEUE_LIMIT_BYTES;
        drop(waiting);
        if was_full && has_room {
            self.room.notify_waiters();
        }
    }
}

enum Next {
    Group(Vec<Queued>),
    Deadline,
    Closed,
}

/// The state of the thread.
pub(super) struct Committer {
    pub(super) shared: Arc<Shared>,
    pub(super) engine: Arc<Engine>,
    pub(super) trimmer: Trimmer,
    /// The clock of the machine, also when the store has a manual one.
    pub(super) timer: Clock,
    /// `database.durability = "relaxed"`: no group is synced before it is answered.
    pub(super) is_relaxed: bool,
    /// When to sync what was written without.
    pub(super) sync_at: Option<Instant>,
}

impl Committer {
    /// Until the queue is closed and empty, or a write fails.
    pub(super) fn run(mut self) {
        let ended = loop {
            match self
                .shared
                .queue
                .next(self.sync_at, || self.timer.instant())
            {
                Next::Closed => break self.sync(),
                Next::Deadline => {
                    if let Err(error) = self.sync() {
                        break Err(error);
                    }
                }
                Next::Group(group) => {
                    let bytes = group.iter().map(|queued| queued.bytes).sum();
                    if let Err(error) = self.commit(group) {
                        break Err(error);
                    }
                    self.shared.queue.settle(bytes);
                }
            }
        };
        if let Err(error) = ended {
            self.fail(&error);
        }
    }

    /// Commits what is queued, here and now. False if there was nothing.
    pub(super) fn step(&mut self) -> bool {
        let now = self.timer.instant();
        let mut has_committed = false;
        while let Next::Group(group) = self.shared.queue.next(Some(now), || now) {
            has_committed = true;
            let bytes = group.iter().map(|queued| queued.bytes).sum();
            if let Err(error) = self.commit(group) {
                self.fail(&error);
                break;
            }
            self.shared.queue.settle(bytes);
        }
        has_committed
    }

    /// What was acknowledged cannot be known any more: the process ends.
    fn fail(&self, error: &Error) {
        tracing::error!(%error, "the database cannot be written; ending the process");
        self.shared.queue.close();
        (self.shared.on_failure)(error);
        // Only tests get here.
        self.shared.queue.clear();
    }

    fn sync(&mut self) -> Result<()> {
        if self.sync_at.take().is_some() {
            let start = self.timer.instant();
            self.engine.sync()?;
            self.shared.counters.synced(self.timer.instant() - start);
        }
        Ok(())
    }

    fn commit(&mut self, group: Vec<Queued>) -> Result<()> {
        let before = self.shared.published.load_full();
        let mut accepted: Vec<(Position, Queued)> = Vec::with_capacity(group.len());
        let mut refused = Vec::new();
        let mut last = before.position;
        for mut queued in group {
            if holds(&queued.batch, &before.view, &accepted)? {
                last = Position(last.0 + 1);
                queued.batch.stamp(last);
                accepted.push((last, queued));
            } else {
                refused.push(queued);
            }
        }
        if !accepted.is_empty() {
            self.write(&before, &accepted, last)?;
            self.publish(&mut accepted, last)?;
        }
        self.shared
            .counters
            .committed(accepted.len(), refused.len());
        for (position, queued) in accepted {
            queued.resolve(Ok(position));
        }
        // After publishing: who is refused because of a batch of this group reads it now.
        for queued in refused {
            queued.resolve(Err(Error::Conflict));
        }
        Ok(())
    }

    fn write(
        &mut self,
        before: &Published,
        accepted: &[(Position, Queued)],
        last: Position,
    ) -> Result<()> {
        let mut own = Batch::new();
        for (position, queued) in accepted {
            if !queued.batch.log_row().is_empty() {
                own.put(
                    &log::ROWS,
                    &(*position,),
                    &Raw(Bytes::copy_from_slice(queued.batch.log_row())),
                );
            }
        }
        meta::put(&mut own, meta::LAST, &last);
        self.trimmer.run(
            self.shared.clock.now_ms(),
            before.position,
            &before.view,
            &mut own,
        )?;
        let start = self.timer.instant();
        // Where batches never cease to come, nobody waits for the deadline.
        let is_due = self.sync_at.is_some_and(|at| at <= start);
        let sync = is_due
            || !self.is_relaxed
                && accepted
                    .iter()
                    .any(|(_position, queued)| !queued.batch.is_relaxed());
        let mut batches = accepted
            .iter()
            .map(|(_position, queued)| &queued.batch)
            .chain(std::iter::once(&own));
        self.engine.write(&mut batches, sync)?;
        let end = self.timer.instant();
        if sync {
            self.sync_at = None;
            self.shared.counters.synced(end - start);
        } else if self.sync_at.is_none() {
            self.sync_at = Some(end + RELAXED_SYNC);
        }
        Ok(())
    }

    /// Around the moment in which snapshots begin to show the group stand the hooks: see [`Batch::before_publish`].
    fn publish(&self, accepted: &mut [(Position, Queued)], last: Position) -> Result<()> {
        let mut topics = vec![Topic::Log];
        for (position, queued) in accepted.iter_mut() {
            topics.extend_from_slice(queued.batch.topics());
            if !queued.batch.log_row().is_empty() {
                self.shared.ring.push(*position, queued.batch.log_row());
            }
            run_hooks(queued.batch.take_hooks_before(), *position)?;
        }
        self.shared.published.store(Arc::new(Published {
            position: last,
            view: self.engine.view(),
            counters: Arc::clone(&self.shared.counters),
        }));
        for (position, queued) in accepted {
            run_hooks(queued.batch.take_hooks(), *position)?;
        }
        topics.sort_unstable();
        topics.dedup();
        self.shared.watch.touch(&topics);
        Ok(())
    }
}

/// A hook that panics has left memory and disk in disagreement: as bad as a failed write.
fn run_hooks(hooks: Vec<Hook>, position: Position) -> Result<()> {
    for hook in hooks {
        catch_unwind(AssertUnwindSafe(|| hook(position)))
            .map_err(|_panic| Error::Engine("what follows a commit has panicked".to_owned()))?;
    }
    Ok(())
}

/// Whether all that `batch` expects is so after the batches `earlier` in its group.
fn holds(batch: &Batch, view: &View, earlier: &[(Position, Queued)]) -> Result<bool> {
    if !batch.has_expectations() {
        return Ok(true);
    }
    for expectation in batch.expectations() {
        if !is_met(&expectation, view, earlier)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Walks back from the newest write to the row; counters add up on the way.
fn is_met(expected: &Expectation<'_>, view: &View, earlier: &[(Position, Queued)]) -> Result<bool> {
    let mut added: Option<i64> = None;
    let writes = earlier
        .iter()
        .rev()
        .flat_map(|(_position, queued)| queued.batch.writes().rev());
    for (family, write) in writes {
        match effect(expected, family, write) {
            Effect::None => {}
            Effect::Added(delta) => added = Some(added.unwrap_or(0).wrapping_add(delta)),
            Effect::Set(value) => return Ok(is_equal(expected, value, added)),
        }
    }
    let stored = view.get(expected.family, expected.key, |value| {
        is_equal(expected, Some(value), added)
    })?;
    Ok(stored.unwrap_or_else(|| is_equal(expected, None, added)))
}

enum Effect<'a> {
    None,
    Added(i64),
    Set(Option<&'a [u8]>),
}

/// What `write` does to the row that is expected.
fn effect<'a>(expected: &Expectation<'_>, family: Family, write: Write<'a>) -> Effect<'a> {
    if family != expected.family {
        return Effect::None;
    }
    match write {
        Write::Put { key, value } if key == expected.key => Effect::Set(Some(value)),
        Write::Delete { key } if key == expected.key => Effect::Set(None),
        Write::DeleteRange { start, end } if start <= expected.key && expected.key < end => {
            Effect::Set(None)
        }
        Write::Add { key, delta } if key == expected.key => Effect::Added(number(delta)),
        Write::Put { .. }
        | Write::Delete { .. }
        | Write::DeleteRange { .. }
        | Write::Add { .. } => Effect::None,
    }
}

fn is_equal(expected: &Expectation<'_>, value: Option<&[u8]>, added: Option<i64>) -> bool {
    match added {
        None => value == expected.value,
        Some(added) => {
            let sum = value.map_or(0, number).wrapping_add(added);
            expected.value == Some(sum.to_le_bytes().as_slice())
        }
    }
}

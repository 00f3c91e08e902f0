//! The worker that drains one room.

use std::{
    collections::{HashMap, VecDeque},
    panic::AssertUnwindSafe,
};

use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use ruma::OwnedServerName;

use super::{Entry, Inbox};
use crate::{
    events::Verified,
    federation::{Error, Federation, policy},
    rooms::{self, Intake, Outcome, Received, RoomNumber, RoomWriter},
    tasks::Stop,
};

/// Events that a worker appends before others get their turn in the room.
const RUN: usize = 32;
/// Servers whose missing events are fetched for one room at the same time.
const MAX_SESSIONS: usize = 8;

/// What is to be done for an event.
enum Next {
    /// It is in its room, or dropped.
    Settled,
    /// It needs what is not here: other events, or a policy server's signature.
    Fetch(Box<Verified>),
}

/// The events of a room on their way.
struct Work<'a> {
    federation: &'a Federation,
    room: RoomNumber,
    /// Events of servers for which something is being fetched: they come after it.
    parked: HashMap<OwnedServerName, VecDeque<Entry>>,
    /// Events that had been parked.
    ready: VecDeque<Entry>,
    writer: Option<RoomWriter>,
    run: usize,
}

impl Federation {
    /// Puts the events of a room into it, until none is left.
    pub(super) async fn drain(self, room: RoomNumber, stop: Stop) {
        let inbox = &self.inner.inbox;
        let arrived = inbox.arrived(room);
        let mut work = Work::new(&self, room);
        let mut sessions = FuturesUnordered::new();
        while !stop.is_requested() {
            while let Some(Some(origin)) = sessions.next().now_or_never() {
                work.unpark(&origin);
            }
            let next = match sessions.len() < MAX_SESSIONS {
                true => work.next(),
                false => None,
            };
            if let Some(entry) = next {
                // A session may have the room's turn, or be the next to get it: it has to go on for this to get a turn.
                let (taken, ended) = beside(work.take(entry), &mut sessions).await;
                for origin in ended {
                    work.unpark(&origin);
                }
                if let Some((entry, event)) = taken {
                    sessions.push(self.session(room, entry, event));
                }
                continue;
            }
            work.writer = None;
            if sessions.is_empty() {
                if inbox.leave(room) {
                    break;
                }
                continue;
            }
            let is_busy = sessions.len() >= MAX_SESSIONS;
            // Who only waits for other servers does not keep a place from other rooms.
            inbox.dismiss(&self);
            tokio::select! {
                Some(origin) = sessions.next() => work.unpark(&origin),
                () = arrived.notified(), if !is_busy => {}
                () = stop.requested() => {}
            }
            inbox.resume();
        }
        drop(sessions);
        drop(work);
        inbox.dismiss(&self);
    }

    /// Gets what the event lacks and puts it into its room, or gives it up. Returns whose events may go on.
    async fn session(&self, room: RoomNumber, entry: Entry, event: Verified) -> OwnedServerName {
        let event_id = event.event_id.clone();
        let work = AssertUnwindSafe(self.fetch_for(room, &entry, event)).catch_unwind();
        let reason = match work.await {
            Ok(Ok(true)) => None,
            Ok(Ok(false)) => Some("what it cites cannot be had".to_owned()),
            Ok(Err(error)) => Some(error.to_string()),
            Err(_panic) => Some("panicked".to_owned()),
        };
        if let Some(reason) = reason {
            tracing::info!(%event_id, origin = %entry.origin, reason, "dropped a received event");
            self.drop_entry(room, &entry);
        }
        self.inner.inbox.settled(room, &entry);
        entry.origin
    }

    /// Takes an event out of the inbox that will not be in its room.
    fn drop_entry(&self, room: RoomNumber, entry: &Entry) {
        self.inner.inbox.count("dropped");
        // Whether it is durable matters to nobody: after a crash the event is dropped again.
        drop(self.inner.store.submit(Inbox::removal(room, entry)));
    }
}

/// Does the work while the others go on; what those have come to that ended meanwhile.
async fn beside<T, O: Future>(
    work: impl Future<Output = T>,
    others: &mut FuturesUnordered<O>,
) -> (T, Vec<O::Output>) {
    let mut work = std::pin::pin!(work);
    let mut ended = Vec::new();
    loop {
        tokio::select! {
            biased;
            done = &mut work => return (done, ended),
            Some(other) = others.next() => ended.push(other),
        }
    }
}

impl<'a> Work<'a> {
    fn new(federation: &'a Federation, room: RoomNumber) -> Self {
        Self {
            federation,
            room,
            parked: HashMap::new(),
            ready: VecDeque::new(),
            writer: None,
            run: 0,
        }
    }

    /// The next event that need not wait for another one of its server.
    fn next(&mut self) -> Option<Entry> {
        loop {
            let inbox = &self.federation.inner.inbox;
            let entry = self.ready.pop_front().or_else(|| inbox.pop(self.room))?;
            match self.parked.get_mut(&entry.origin) {
                Some(queue) => queue.push_back(entry),
                None => return Some(entry),
            }
        }
    }

    fn unpark(&mut self, origin: &OwnedServerName) {
        let queue = self.parked.remove(origin).unwrap_or_default();
        // They came before what is ready now of this server; the order between servers does not matter.
        self.ready.extend(queue);
    }

    /// Puts an event into the room, or answers it if something has to be fetched; then its server is parked.
    async fn take(&mut self, mut entry: Entry) -> Option<(Entry, Verified)> {
        let work = AssertUnwindSafe(self.attempt(&mut entry)).catch_unwind();
        let next = match work.await {
            Ok(Ok(next)) => next,
            Ok(Err(error)) => {
                tracing::warn!(origin = %entry.origin, %error, "dropped a received event");
                self.give_up(&entry)
            }
            Err(_panic) => {
                tracing::error!(origin = %entry.origin, "panicked on a received event; dropped it");
                self.give_up(&entry)
            }
        };
        match next {
            Next::Settled => {
                self.federation.inner.inbox.settled(self.room, &entry);
                None
            }
            Next::Fetch(event) => {
                self.writer = None;
                self.parked.insert(entry.origin.clone(), VecDeque::new());
                Some((entry, *event))
            }
        }
    }

    /// What failed once would fail again.
    fn give_up(&mut self, entry: &Entry) -> Next {
        self.writer = None;
        self.federation.drop_entry(self.room, entry);
        Next::Settled
    }

    async fn attempt(&mut self, entry: &mut Entry) -> Result<Next, Error> {
        let inner = &self.federation.inner;
        let Some(event) = inner.inbox.event(self.room, entry).await? else {
            return Ok(self.give_up(entry));
        };
        let batch = Inbox::removal(self.room, entry);
        let writer = self.writer().await?;
        if let Some(policy) = writer.policy_server().await?
            && !policy::is_recommended(&policy, &event, writer.rules())
        {
            return Ok(Next::Fetch(Box::new(event)));
        }
        match writer.receive(event.clone(), Intake::Live, batch).await? {
            Received::Settled {
                outcome, commit, ..
            } => {
                inner.inbox.count(label(outcome));
                if commit.is_none() {
                    drop(inner.store.submit(Inbox::removal(self.room, entry)));
                }
                Ok(Next::Settled)
            }
            Received::MissingAuth(_) | Received::MissingPrev(_) => Ok(Next::Fetch(Box::new(event))),
        }
    }

    /// The writer of the room. After a run of events others get their turn.
    async fn writer(&mut self) -> Result<&mut RoomWriter, rooms::Error> {
        self.run += 1;
        if self.run > RUN {
            self.run = 0;
            self.writer = None;
        }
        let writer = match self.writer.take() {
            Some(writer) => writer,
            None => self.federation.inner.rooms.write(self.room).await?,
        };
        Ok(self.writer.insert(writer))
    }
}

/// An outcome as metrics name it.
pub(in crate::federation) fn label(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Known => "known",
        Outcome::Accepted => "accepted",
        Outcome::SoftFailed => "soft_failed",
        Outcome::Rejected => "rejected",
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Mutex;

    use super::*;

    #[tokio::test]
    async fn who_goes_on_beside_may_hold_what_the_work_waits_for() {
        let turn = Mutex::new(());
        let mut others = FuturesUnordered::new();
        others.push(async {
            let _turn = turn.lock().await;
            tokio::task::yield_now().await;
            "session"
        });
        assert!(others.next().now_or_never().is_none());

        let work = async {
            let _turn = turn.lock().await;
            "work"
        };
        assert_eq!(beside(work, &mut others).await, ("work", vec!["session"]));
    }
}

//! Sync: what is new for a client since it asked last, from positions alone. Nothing is written here.
//!
//! An answer is what one snapshot shows; its token is that snapshot's position, so two syncs in a row see what one would have
//! seen. A client without news waits: the tick is taken before the snapshot, so nothing falls between reading and waiting.
//! What is the same for many readers of a room is written once (`fragment`). engine.md section 10.
//!
//! Spec: c2s, "Syncing".

mod devices_section;
mod ephemeral_section;
pub mod filter;
mod fragment;
mod room_section;
mod state;
mod summary;
mod timeline;
pub mod token;
mod v3;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use prometheus_client::metrics::gauge::Gauge;
use ruma::OwnedUserId;
use tokio::time::Instant;

pub use self::filter::Filter;
use self::{fragment::Fragments, summary::Heroes, token::Token, v3::Answer};
use crate::{
    accounts::{self, Accounts},
    clock::Clock,
    encryption::{self, Encryption},
    ephemeral::{self, Ephemeral},
    rooms::{self, Class, Rooms, client_event::Viewer},
    storage::{self, Snapshot, Store, Topic},
    tasks::Stop,
    telemetry::Metrics,
};

/// What went wrong while syncing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Token(#[from] token::Malformed),
    #[error(transparent)]
    Ephemeral(#[from] ephemeral::Error),
    #[error(transparent)]
    Encryption(#[from] encryption::Error),
    #[error(transparent)]
    Rooms(#[from] rooms::Error),
    #[error(transparent)]
    Accounts(#[from] accounts::Error),
    #[error(transparent)]
    Storage(#[from] storage::Error),
}

/// What a client asks for.
#[derive(Clone, Debug)]
pub struct Request {
    pub user: OwnedUserId,
    pub viewer: Viewer,
    /// The token of the answer before, as the client sent it.
    pub since: Option<String>,
    pub filter: Arc<Filter>,
    pub is_full_state: bool,
    pub state_place: StatePlace,
    /// How long to wait for news.
    pub timeout: Duration,
}

/// At which end of the timeline the state that is told stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum StatePlace {
    /// `state`: at its start.
    #[default]
    Start,
    /// `state_after`: at its end.
    End,
    /// As [`Self::End`], under the name that the proposal had (MSC4222).
    UnstableEnd,
}

/// The longest wait for news.
const MAX_WAIT: Duration = Duration::from_secs(300);
/// With more changed rooms than this an answer is made on the blocking pool. Up to there it needs little more than what is in
/// memory, and moving to another thread would cost more than the work.
const LIGHT_ROOMS: usize = 8;

/// The parts of the server that sync reads.
pub struct Parts {
    pub accounts: Accounts,
    pub rooms: Rooms,
    pub ephemeral: Ephemeral,
    pub encryption: Encryption,
}

/// Answers syncs. Cheap to clone.
#[derive(Clone)]
pub struct Sync {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    clock: Clock,
    accounts: Accounts,
    rooms: Rooms,
    ephemeral: Ephemeral,
    encryption: Encryption,
    fragments: Fragments,
    heroes: Heroes,
    closing: Stop,
    /// Requests that wait for news.
    waiting: Gauge,
}

/// Counts a request among those that wait, until it is dropped.
struct Waiting<'a>(&'a Gauge);

impl<'a> Waiting<'a> {
    fn new(gauge: &'a Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Sync {
    /// `closing` ends waiting.
    pub fn new(store: Store, clock: Clock, parts: Parts, closing: Stop, metrics: &Metrics) -> Self {
        let Parts {
            accounts,
            rooms,
            ephemeral,
            encryption,
        } = parts;
        let waiting = Gauge::default();
        metrics.register("sync_waiting", "Syncs that wait for news.", waiting.clone());
        let inner = Inner {
            store,
            clock,
            accounts,
            rooms,
            ephemeral,
            encryption,
            fragments: Fragments::default(),
            heroes: Heroes::default(),
            closing,
            waiting,
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Answers with what is new, as soon as anything is, and after the request's timeout in any case.
    ///
    /// # Errors
    /// [`Error::Token`] if the token is not one of ours; else if the store cannot be read.
    pub async fn sync(&self, request: Request) -> Result<Bytes, Error> {
        let mut since = self.since(&request)?;
        let deadline = Instant::now() + request.timeout.min(MAX_WAIT);
        let request = Arc::new(request);
        loop {
            let tick = self.inner.store.tick();
            let answer = self.answer(&request, since).await?;
            let wait = deadline.saturating_duration_since(Instant::now());
            let may_wait = since.is_some() && !request.is_full_state && !wait.is_zero();
            if answer.is_news || !may_wait || self.inner.closing.is_requested() {
                return Ok(answer.body);
            }
            // What was nothing to this client needs not be looked at again.
            since = Some(answer.token);
            let topics = self.topics(&request)?;
            let _waiting = Waiting::new(&self.inner.waiting);
            tokio::select! {
                _woken = self.inner.store.wait(&topics, tick, wait) => {}
                () = self.inner.closing.requested() => {}
            }
        }
    }

    /// The moment that the client names; `None` for all there is. A token from a future that was lost with a backup put back
    /// means nothing any more, and is answered with everything.
    fn since(&self, request: &Request) -> Result<Option<Token>, Error> {
        let Some(since) = &request.since else {
            return Ok(None);
        };
        let token: Token = since.parse()?;
        Ok(Some(token).filter(|token| self.inner.store.has_published(token.position)))
    }

    async fn answer(&self, request: &Arc<Request>, since: Option<Token>) -> Result<Answer, Error> {
        let snapshot = self.inner.store.snapshot()?;
        if self.is_light(&snapshot, request, since)? {
            return self.build(&snapshot, request, since);
        }
        drop(snapshot);
        let (this, request) = (self.clone(), Arc::clone(request));
        let read = move |snapshot: &Snapshot| this.build(snapshot, &request, since);
        self.inner.store.read(read).await
    }

    /// Whether few rooms have changed.
    fn is_light(
        &self,
        snapshot: &Snapshot,
        request: &Request,
        since: Option<Token>,
    ) -> Result<bool, Error> {
        let Some(since) = since.filter(|_| !request.is_full_state) else {
            return Ok(false);
        };
        let rooms = self.inner.rooms.rooms_of(snapshot, request.viewer.user)?;
        // Who comes or goes is told of all members.
        if rooms.iter().any(|entry| entry.position > since.position) {
            return Ok(false);
        }
        let changed = rooms.iter().filter(|entry| {
            self.inner
                .rooms
                .published(entry.room)
                .is_some_and(|room| room.position > since.position)
                || self
                    .inner
                    .ephemeral
                    .may_have_receipts_since(entry.room, since.position)
        });
        Ok(changed.take(LIGHT_ROOMS + 1).count() <= LIGHT_ROOMS)
    }

    /// What may bring news to a client.
    fn topics(&self, request: &Request) -> Result<Vec<Topic>, Error> {
        let viewer = request.viewer;
        let snapshot = self.inner.store.snapshot()?;
        let rooms = self.inner.rooms.rooms_of(&snapshot, viewer.user)?;
        let joined = rooms.iter().filter(|entry| entry.class == Class::Join);
        let joined = joined.map(|entry| Topic::Room(entry.room.0));
        let own = [
            Topic::User(viewer.user.0),
            Topic::Device(viewer.user.0, viewer.device),
        ];
        Ok(own.into_iter().chain(joined).collect())
    }
}

#[cfg(test)]
mod tests;

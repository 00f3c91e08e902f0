//! The keys of servers: ours, published; others', fetched, kept, and used to check what they signed.
//!
//! A key counts for what is signed up to its `valid_until_ts`, or seven days after it was fetched if that is sooner; one
//! that its server has given up counts for events up to its end, and for requests not at all. What was fetched is kept for
//! ever, so that old events can be checked when their server is gone. A server is asked by one task at a time, and not
//! again soon after it was asked, whatever anybody sends us.
//!
//! Spec: s2s, "Retrieving server keys".

mod document;
mod known;
mod notary;
mod own;
mod request;
mod verify;

use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream};
use lru::LruCache;
use ruma::{
    OwnedServerName, ServerName,
    api::federation::discovery::{get_remote_server_keys_batch, get_server_keys},
};
use tokio::sync::Semaphore;

use self::known::KnownKeys;
pub(super) use self::verify::on_blocking_pool;
pub use self::{
    document::{BadDocument, KeyDocument, read as read_document},
    request::RequestError,
};
use super::{
    Error,
    client::{Client, Limits},
};
use crate::{
    clock::Clock,
    events::Signer,
    rooms::identity,
    storage::{Locks, Store},
};

/// How long a server has to tell its keys.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest answer with the keys of one server.
const MAX_DOCUMENT_BYTES: usize = 16 << 10;
/// The largest answer of a notary.
const MAX_NOTARY_BYTES: usize = 4 << 20;
/// Servers that a notary is asked about in one request.
const MAX_ASKED_OF_NOTARY: usize = 100;
/// Servers asked at the same time, for all that goes on together, by the reason. Anybody can make requests in the name of
/// servers that answer slowly: that must not hold up what is received from others.
const MAX_FETCHES: usize = 64;
const MAX_FETCHES_FOR_CALLERS: usize = 256;
const MAX_FETCHES_AS_NOTARY: usize = 16;
/// How long one call waits for keys of all servers together. What did not come by then counts as unknown.
const GATHER_DEADLINE: Duration = Duration::from_secs(60);
/// The least time between two questions to a server that answered.
const REFRESH_INTERVAL: Duration = Duration::from_secs(20);
/// The wait after a first failure, doubled with each that follows.
const FIRST_BACKOFF: Duration = Duration::from_secs(5);
const MAX_BACKOFF: Duration = Duration::from_secs(3_600);
/// The longest wait where the server itself speaks to us: it is there.
const MAX_BACKOFF_OF_CALLER: Duration = Duration::from_secs(10);
/// Servers whose keys are in memory: a kilobyte each, or whatever [`MAX_DOCUMENT_BYTES`] lets them have.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(4_000).expect("four thousand is not zero");
/// Servers of which is remembered when they were asked.
const REMEMBERED_ATTEMPTS: NonZeroUsize =
    NonZeroUsize::new(10_000).expect("ten thousand is not zero");

/// Keys that are needed: by server and key ID, the latest moment at which they must be valid, in milliseconds.
pub(super) type Wanted = BTreeMap<OwnedServerName, BTreeMap<String, u64>>;

/// The keys of this server and of others. Cheap to clone.
#[derive(Clone)]
pub struct ServerKeys {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    clock: Clock,
    signer: Arc<Signer>,
    old: Vec<identity::OldKey>,
    client: Client,
    notaries: Vec<OwnedServerName>,
    /// What was read from or written to the store lately.
    known: Mutex<LruCache<OwnedServerName, Remembered>>,
    attempts: Mutex<LruCache<OwnedServerName, Attempt>>,
    /// One question to a server at a time.
    turns: Locks<OwnedServerName>,
    fetches: Fetches,
}

/// Who may ask at the same time.
struct Fetches {
    callers: Semaphore,
    events: Semaphore,
    notary: Semaphore,
}

/// The keys of a server in memory. Those that have only checked requests are not in the store: anybody can make as many
/// servers as they like.
#[derive(Clone)]
struct Remembered {
    known: Arc<KnownKeys>,
    is_stored: bool,
}

/// What came of asking for keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Enough,
    /// The server was asked now, in vain.
    NotEnough,
    /// It was asked a short time ago.
    NotNow,
}

/// How the last question to a server went.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    at: Instant,
    /// In a row.
    failures: u32,
}

/// Why a key is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    /// To check a request that the server makes now.
    Caller,
    /// To check what it signed.
    Events,
    /// Another server wants to know.
    Notary,
}

/// What the keys are made of.
pub struct Parts {
    pub store: Store,
    pub clock: Clock,
    pub signer: Arc<Signer>,
    pub client: Client,
    /// Servers whose word on the keys of others is taken.
    pub notaries: Vec<OwnedServerName>,
}

impl ServerKeys {
    /// Reads the keys of earlier times. Blocks.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn new(parts: Parts) -> Result<Self, Error> {
        let Parts {
            store,
            clock,
            signer,
            client,
            notaries,
        } = parts;
        let old = identity::old_keys(&store.snapshot()?)?;
        let inner = Inner {
            store,
            clock,
            signer,
            old,
            client,
            notaries,
            known: Mutex::new(LruCache::new(REMEMBERED)),
            attempts: Mutex::new(LruCache::new(REMEMBERED_ATTEMPTS)),
            turns: Locks::new(),
            fetches: Fetches {
                callers: Semaphore::new(MAX_FETCHES_FOR_CALLERS),
                events: Semaphore::new(MAX_FETCHES),
                notary: Semaphore::new(MAX_FETCHES_AS_NOTARY),
            },
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// What is known of the keys of the servers of `wanted`, after asking those of which it is not enough: the servers
    /// themselves, then the notaries. Servers of which nothing is known are left out.
    async fn gather(
        &self,
        wanted: Wanted,
        reason: Reason,
    ) -> BTreeMap<OwnedServerName, Arc<KnownKeys>> {
        // Boxed, as it holds the requests to many servers.
        let fetched = Box::pin(self.fetch_missing(&wanted, reason));
        if self
            .inner
            .clock
            .within(GATHER_DEADLINE, fetched)
            .await
            .is_none()
        {
            tracing::debug!("not all server keys came in time");
        }
        let mut found = BTreeMap::new();
        for server in wanted.into_keys() {
            if let Some(known) = self.known(&server).await {
                if reason == Reason::Events {
                    self.store(&server);
                }
                found.insert(server, known);
            }
        }
        found
    }

    async fn fetch_missing(&self, wanted: &Wanted, reason: Reason) {
        let mut questions = Vec::with_capacity(wanted.len());
        for (server, keys) in wanted {
            questions.push(self.ask_for(server, keys, reason));
        }
        let answers: Vec<_> = stream::iter(questions)
            .buffer_unordered(MAX_FETCHES)
            .collect()
            .await;
        let missing: Vec<OwnedServerName> = answers.into_iter().flatten().collect();
        if !missing.is_empty() {
            self.ask_notaries(&missing, wanted).await;
        }
    }

    /// The server, if its keys are not known even after asking it, which happened now.
    async fn ask_for(
        &self,
        server: &OwnedServerName,
        keys: &BTreeMap<String, u64>,
        reason: Reason,
    ) -> Option<OwnedServerName> {
        match self.ask(server, keys, reason).await {
            Asked::NotEnough => Some(server.clone()),
            Asked::Enough | Asked::NotNow => None,
        }
    }

    /// Asks a server for its keys if they are not known.
    async fn ask(
        &self,
        server: &OwnedServerName,
        keys: &BTreeMap<String, u64>,
        reason: Reason,
    ) -> Asked {
        if self.has(server, keys).await {
            return Asked::Enough;
        }
        let _turn = self.inner.turns.lock(server.clone()).await;
        // Who had the turn before may have asked for the same.
        if self.has(server, keys).await {
            return Asked::Enough;
        }
        if !self.may_ask(server, reason) {
            return Asked::NotNow;
        }
        if let Err(error) = self.fetch(server, reason).await {
            tracing::debug!(%server, %error, "the server does not tell its keys");
        }
        match self.has(server, keys).await {
            true => Asked::Enough,
            false => Asked::NotEnough,
        }
    }

    async fn has(&self, server: &ServerName, keys: &BTreeMap<String, u64>) -> bool {
        let known = self.known(server).await;
        known.is_some_and(|known| known.covers(keys))
    }

    /// Asks a server for its keys. Its turn is held.
    async fn fetch(&self, server: &ServerName, reason: Reason) -> Result<(), Error> {
        let fetches = match reason {
            Reason::Caller => &self.inner.fetches.callers,
            Reason::Events => &self.inner.fetches.events,
            Reason::Notary => &self.inner.fetches.notary,
        };
        let _permit = fetches.acquire().await;
        let limits = Limits {
            timeout: FETCH_TIMEOUT,
            max_bytes: MAX_DOCUMENT_BYTES,
        };
        let request = get_server_keys::v2::Request::new();
        let fetched = match self.inner.client.send_within(server, request, limits).await {
            Ok(response) => document::read(server, response.server_key.json().get().as_bytes())
                .map_err(|error| Error::Malformed {
                    server: server.to_owned(),
                    source: error.into(),
                }),
            Err(error) => Err(error),
        };
        self.note_attempt(server, fetched.is_ok());
        self.keep(fetched?).await;
        Ok(())
    }

    /// Asks the notaries, in turn, about servers that do not answer.
    async fn ask_notaries(&self, missing: &[OwnedServerName], wanted: &Wanted) {
        for notary in &self.inner.notaries {
            for servers in missing.chunks(MAX_ASKED_OF_NOTARY) {
                if let Err(error) = self.ask_notary(notary, servers, wanted).await {
                    tracing::debug!(%notary, %error, "the notary does not answer");
                }
            }
        }
    }

    async fn ask_notary(
        &self,
        notary: &OwnedServerName,
        servers: &[OwnedServerName],
        wanted: &Wanted,
    ) -> Result<(), Error> {
        let limits = Limits {
            timeout: FETCH_TIMEOUT,
            max_bytes: MAX_NOTARY_BYTES,
        };
        let request =
            get_remote_server_keys_batch::v2::Request::new(document::criteria(servers, wanted));
        let response = self
            .inner
            .client
            .send_within(notary, request, limits)
            .await?;
        let now_ms = self.inner.clock.now_ms();
        for answer in response.server_keys {
            let text = answer.json().get().as_bytes();
            let Some(document) = servers
                .iter()
                .find_map(|server| document::read(server, text).ok())
            else {
                continue;
            };
            // The notary's own key comes from the notary itself, as anybody's.
            let ids = document.signed_by(notary);
            let needed = ids.into_iter().map(|id| (id, now_ms)).collect();
            if self.ask(notary, &needed, Reason::Events).await != Asked::Enough {
                continue;
            }
            let keys = self.known(notary).await;
            if keys.is_some_and(|keys| keys.vouch_for(&document, notary, now_ms)) {
                self.keep(document).await;
            }
        }
        Ok(())
    }

    /// Whether it is time to ask a server.
    fn may_ask(&self, server: &ServerName, reason: Reason) -> bool {
        let mut attempts = lock(&self.inner.attempts);
        let Some(last) = attempts.get(server) else {
            return true;
        };
        self.inner.clock.instant() >= last.at + last.wait(reason)
    }

    fn note_attempt(&self, server: &ServerName, is_ok: bool) {
        let mut attempts = lock(&self.inner.attempts);
        let failures = match (is_ok, attempts.get(server)) {
            (true, _) => 0,
            (false, last) => last.map_or(0, |last| last.failures).saturating_add(1),
        };
        let at = self.inner.clock.instant();
        attempts.put(server.to_owned(), Attempt { at, failures });
    }
}

impl Attempt {
    /// How long the server is left alone.
    fn wait(self, reason: Reason) -> Duration {
        let longest = match reason {
            Reason::Caller => MAX_BACKOFF_OF_CALLER,
            Reason::Events | Reason::Notary => MAX_BACKOFF,
        };
        match self.failures {
            0 => REFRESH_INTERVAL.min(longest),
            failures => FIRST_BACKOFF
                .saturating_mul(2_u32.saturating_pow(failures - 1))
                .min(longest),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;

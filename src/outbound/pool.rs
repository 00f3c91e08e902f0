//! Connections that stand, by target, and how many requests each target may have at the same time.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::{http1, http2};
use tokio::{sync::Semaphore, time::Instant};

use super::{Target, connect::Connection};

/// Requests to one target at the same time; more wait for their turn within their own time.
const MAX_REQUESTS: usize = 32;
/// Connections of HTTP/1 that are kept for one target.
const MAX_IDLE: usize = 8;
/// How long one waits for a connection that another request is making.
const SHARING_PATIENCE: Duration = Duration::from_secs(1);
/// How long a connection is kept that nobody uses. Servers close theirs after a minute or so.
const MAX_IDLE_TIME: Duration = Duration::from_secs(45);

/// All targets that were asked for something lately.
#[derive(Default)]
pub(super) struct Pool {
    hosts: Mutex<BTreeMap<Target, Arc<Host>>>,
}

/// One target.
pub(super) struct Host {
    /// One permit for each request that may be under way.
    pub(super) free: Semaphore,
    /// Held while a connection is made that others may want to share.
    connecting: tokio::sync::Mutex<()>,
    /// The target's connections are not for sharing.
    speaks_http1: AtomicBool,
    idle: Mutex<Idle>,
}

struct Idle {
    /// The one that was used last is last.
    http1: Vec<(http1::SendRequest<Full<Bytes>>, Instant)>,
    http2: Option<http2::SendRequest<Full<Bytes>>>,
    used: Instant,
}

impl Pool {
    pub(super) fn host(&self, target: &Target) -> Arc<Host> {
        let mut hosts = self.lock();
        if let Some(host) = hosts.get(target) {
            return Arc::clone(host);
        }
        let host = Arc::new(Host::new());
        hosts.insert(target.clone(), Arc::clone(&host));
        host
    }

    /// Closes what nobody has used for a while, and forgets targets without connections and requests.
    pub(super) fn sweep(&self) {
        let now = Instant::now();
        self.lock().retain(|_target, host| {
            let is_asked = Arc::strong_count(host) > 1;
            let mut idle = host.idle();
            idle.http1.retain(|(_, since)| now - *since < MAX_IDLE_TIME);
            if !is_asked && now - idle.used >= MAX_IDLE_TIME {
                idle.http2 = None;
            }
            is_asked || !idle.http1.is_empty() || idle.http2.is_some()
        });
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Target, Arc<Host>>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Host {
    fn new() -> Self {
        let idle = Idle {
            http1: Vec::new(),
            http2: None,
            used: Instant::now(),
        };
        Self {
            free: Semaphore::new(MAX_REQUESTS),
            connecting: tokio::sync::Mutex::default(),
            speaks_http1: AtomicBool::new(false),
            idle: Mutex::new(idle),
        }
    }

    /// A connection that is there already. It may be broken all the same.
    pub(super) fn take(&self) -> Option<Connection> {
        let mut idle = self.idle();
        idle.used = Instant::now();
        if idle
            .http2
            .as_ref()
            .is_some_and(http2::SendRequest::is_closed)
        {
            idle.http2 = None;
        }
        if let Some(sender) = &idle.http2 {
            return Some(Connection::Http2(sender.clone()));
        }
        while let Some((sender, since)) = idle.http1.pop() {
            if !sender.is_closed() && since.elapsed() < MAX_IDLE_TIME {
                return Some(Connection::Http1(sender));
            }
        }
        None
    }

    /// The turn to make a connection. Where one connection serves all, others wait for it instead of making their own; not
    /// for long, since a server may be dead.
    pub(super) async fn turn_to_connect(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        if self.speaks_http1.load(Ordering::Relaxed) {
            return None;
        }
        tokio::time::timeout(SHARING_PATIENCE, self.connecting.lock())
            .await
            .ok()
    }

    /// What a new connection has shown of the target.
    pub(super) fn connected(&self, connection: &Connection) {
        match connection {
            Connection::Http1(_) => self.speaks_http1.store(true, Ordering::Relaxed),
            Connection::Http2(sender) => {
                self.speaks_http1.store(false, Ordering::Relaxed);
                self.keep(Connection::Http2(sender.clone()));
            }
        }
    }

    /// Keeps `connection` for the next request.
    pub(super) fn keep(&self, connection: Connection) {
        let mut idle = self.idle();
        let now = Instant::now();
        idle.used = now;
        match connection {
            Connection::Http2(sender) => idle.http2 = Some(sender),
            Connection::Http1(sender) if idle.http1.len() < MAX_IDLE && !sender.is_closed() => {
                idle.http1.push((sender, now));
            }
            Connection::Http1(_) => {}
        }
    }

    /// Gives up a shared connection that has turned out to be broken.
    pub(super) fn discard(&self) {
        self.idle().http2 = None;
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

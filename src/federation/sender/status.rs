//! How sending stands: for operators, for tests, and for whom it concerns that a server is there again.

use std::sync::atomic::Ordering;

use ruma::{OwnedServerName, ServerName};
use serde::Serialize;

use super::destinations::Standing;
use crate::federation::{Federation, Mode};

/// What is the matter with a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DestinationState {
    /// It is being sent something.
    Sending,
    /// It did not take what was sent; it is tried again later.
    Waiting,
    /// There is something for it, and nothing hinders.
    Queued,
}

/// A server that has not got everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DestinationStatus {
    pub server: OwnedServerName,
    pub state: DestinationState,
    /// Events that wait in memory.
    pub queued: usize,
    /// There is more than waits in memory: it will be looked for in the rooms.
    pub is_behind: bool,
    /// Failed attempts in a row.
    pub attempts: u32,
    /// The first and the next attempt, in milliseconds since the Unix epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failing_since_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_ms: Option<u64>,
}

impl Federation {
    /// A request of `server` has come: it is there. What waits for it goes out at once.
    pub fn heard_from(&self, server: &ServerName) {
        let sender = &self.inner.sender;
        if !sender.lock().has_waiting() {
            return;
        }
        let Some(server) = self.inner.rooms.known_server(server) else {
            return;
        };
        let now_ms = self.inner.clock.now_ms();
        if sender.lock().heard_from(server, now_ms) {
            sender.news.notify_one();
        }
    }

    /// Tries a server again now that is waited for. False if it is not.
    pub fn retry(&self, server: &ServerName) -> bool {
        let sender = &self.inner.sender;
        let number = self.inner.rooms.known_server(server);
        let is_waiting = number.is_some_and(|number| sender.lock().retry(number));
        sender.news.notify_one();
        is_waiting
    }

    /// Whether everything that has happened is dealt out, and nobody is being sent anything: all that is left waits for its
    /// time, see [`crate::clock::Clock::next_wait`].
    pub fn is_sender_idle(&self) -> bool {
        if self.inner.config.mode == Mode::Off {
            return true;
        }
        let clock = &self.inner.clock;
        let now_ms = clock.now_ms();
        if clock.next_wait().is_some_and(|at_ms| at_ms <= now_ms) {
            // Somebody whose time has come has not got round to it.
            return false;
        }
        let position = self.inner.store.position();
        let destinations = self.inner.sender.lock();
        self.inner.sender.is_at_rest.load(Ordering::SeqCst)
            && destinations.is_quiet(now_ms)
            && destinations.distributed() >= position
            && self.inner.ephemeral.has_nothing_local()
    }

    /// The servers that have not got everything, by name.
    pub fn destinations(&self) -> Vec<DestinationStatus> {
        let standings = self.inner.sender.lock().standings();
        let mut found: Vec<_> = standings
            .into_iter()
            .filter_map(|standing| self.status_of(standing))
            .collect();
        found.sort_by(|one, other| one.server.cmp(&other.server));
        found
    }

    fn status_of(&self, standing: Standing) -> Option<DestinationStatus> {
        let state = match (standing.is_running, standing.failing) {
            (true, _) => DestinationState::Sending,
            (false, Some(_)) => DestinationState::Waiting,
            (false, None) => DestinationState::Queued,
        };
        Some(DestinationStatus {
            server: self.inner.rooms.server_name(standing.server)?,
            state,
            queued: standing.queued,
            is_behind: standing.is_behind,
            attempts: standing.attempts,
            failing_since_ms: standing.failing.map(|(since_ms, _)| since_ms),
            retry_ms: standing.failing.map(|(_, retry_ms)| retry_ms),
        })
    }
}

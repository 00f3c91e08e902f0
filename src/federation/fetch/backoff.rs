//! Events that could not be had, and when to ask again.
//!
//! In memory only: anybody can name events that do not exist, and after a restart it does no harm to ask once more.

use std::{
    num::NonZeroUsize,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use lru::LruCache;
use ruma::{EventId, OwnedEventId};

use crate::clock::Clock;

/// Events that are remembered.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(10_000).expect("ten thousand is not zero");
/// The wait after a first failure, doubled with each that follows.
const FIRST_WAIT: Duration = Duration::from_secs(10);
const MAX_WAIT: Duration = Duration::from_secs(3_600);

pub(super) struct Backoff {
    clock: Clock,
    failures: Mutex<LruCache<OwnedEventId, Failure>>,
}

#[derive(Clone, Copy)]
struct Failure {
    /// The wait that follows the next failure.
    wait: Duration,
    until: Instant,
}

impl Backoff {
    pub(super) fn new(clock: Clock) -> Self {
        Self {
            clock,
            failures: Mutex::new(LruCache::new(REMEMBERED)),
        }
    }

    /// Whether it is time to ask for the event.
    pub(super) fn may_try(&self, event_id: &EventId) -> bool {
        let now = self.clock.instant();
        match self.failures().peek(event_id) {
            Some(failure) => failure.until <= now,
            None => true,
        }
    }

    pub(super) fn succeeded(&self, event_id: &EventId) {
        self.failures().pop(event_id);
    }

    pub(super) fn failed(&self, event_id: &EventId) {
        let now = self.clock.instant();
        let mut failures = self.failures();
        let wait = match failures.get(event_id) {
            // It has not been tried again: it was given up at once.
            Some(failure) if failure.until > now => return,
            Some(failure) => failure.wait,
            None => FIRST_WAIT,
        };
        let failure = Failure {
            wait: (wait * 2).min(MAX_WAIT),
            until: now + wait,
        };
        failures.put(event_id.to_owned(), failure);
    }

    fn failures(&self) -> MutexGuard<'_, LruCache<OwnedEventId, Failure>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use ruma::event_id;

    use super::*;

    #[test]
    fn an_event_that_cannot_be_had_is_asked_for_less_and_less_often() {
        let clock = Clock::manual(0);
        let backoff = Backoff::new(clock.clone());
        let event = event_id!("$a");
        for seconds in [10, 20, 40] {
            assert!(backoff.may_try(event));
            backoff.failed(event);
            clock.advance(Duration::from_secs(seconds - 1));
            assert!(!backoff.may_try(event));
            clock.advance(Duration::from_secs(1));
        }
        backoff.failed(event);
        backoff.succeeded(event);
        assert!(backoff.may_try(event));
    }
}

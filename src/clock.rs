//! Time and randomness as values: the only place that asks the system for either.
//!
//! A [`Clock`] is handed to whatever needs the time or a random number, so that a test can hold both still. Who waits for a
//! moment waits here too ([`Clock::sleep`]): then a test moves the moment near.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::sync::Notify;

const ALPHANUMERIC: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

/// Where time and randomness come from. Cheap to clone; clones share one source.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    manual: Option<Arc<Manual>>,
}

/// A time that moves when it is told to.
#[derive(Debug)]
struct Manual {
    now_ms: AtomicU64,
    start_ms: u64,
    start: Instant,
    random: Option<Mutex<StdRng>>,
    /// How many wait for each moment.
    waits: Mutex<BTreeMap<u64, usize>>,
    moved: Notify,
}

/// Somebody waits for a moment of a manual clock, as long as this is held.
struct Wait<'a> {
    manual: &'a Manual,
    until_ms: u64,
}

impl Manual {
    fn waits(&self) -> MutexGuard<'_, BTreeMap<u64, usize>> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves when the clock stands at `until_ms` or later.
    async fn reach(&self, until_ms: u64) {
        let _wait = Wait::new(self, until_ms);
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            // From here on no move is missed.
            moved.as_mut().enable();
            if self.now_ms.load(Ordering::SeqCst) >= until_ms {
                return;
            }
            moved.await;
        }
    }
}

impl<'a> Wait<'a> {
    fn new(manual: &'a Manual, until_ms: u64) -> Self {
        *manual.waits().entry(until_ms).or_default() += 1;
        Self { manual, until_ms }
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let mut waits = self.manual.waits();
        if let Some(count) = waits.get_mut(&self.until_ms) {
            *count -= 1;
            if *count == 0 {
                waits.remove(&self.until_ms);
            }
        }
    }
}

impl Clock {
    /// The clock of the machine, and secure randomness.
    pub fn system() -> Self {
        Self::default()
    }

    /// Stands at `now_ms` until it is moved with [`Clock::advance`]. Randomness is secure.
    pub fn manual(now_ms: u64) -> Self {
        Self::standing(now_ms, None)
    }

    /// As [`Clock::manual`], and every random value follows from `seed`. For tests only.
    pub fn seeded(now_ms: u64, seed: u64) -> Self {
        Self::standing(now_ms, Some(Mutex::new(StdRng::seed_from_u64(seed))))
    }

    #[allow(
        clippy::disallowed_methods,
        reason = "this is the place the lint points to"
    )]
    fn standing(now_ms: u64, random: Option<Mutex<StdRng>>) -> Self {
        let manual = Manual {
            now_ms: AtomicU64::new(now_ms),
            start_ms: now_ms,
            start: Instant::now(),
            random,
            waits: Mutex::default(),
            moved: Notify::new(),
        };
        Self {
            manual: Some(Arc::new(manual)),
        }
    }

    /// Milliseconds since the Unix epoch. May go back when the machine's clock is set.
    #[allow(
        clippy::disallowed_methods,
        reason = "this is the place the lint points to"
    )]
    pub fn now_ms(&self) -> u64 {
        match &self.manual {
            Some(manual) => manual.now_ms.load(Ordering::SeqCst),
            None => {
                let since = SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or_default();
                u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
            }
        }
    }

    /// A moment that never goes back, for measuring spans. Moves with a manual clock.
    #[allow(
        clippy::disallowed_methods,
        reason = "this is the place the lint points to"
    )]
    pub fn instant(&self) -> Instant {
        match &self.manual {
            Some(manual) => {
                manual.start + Duration::from_millis(self.now_ms().saturating_sub(manual.start_ms))
            }
            None => Instant::now(),
        }
    }

    /// Moves a manual clock forward; does nothing to the clock of the machine.
    pub fn advance(&self, by: Duration) {
        if let Some(manual) = &self.manual {
            manual.now_ms.fetch_add(
                u64::try_from(by.as_millis()).unwrap_or(u64::MAX),
                Ordering::SeqCst,
            );
            manual.moved.notify_waiters();
        }
    }

    /// Resolves when so much time has passed. With a manual clock that is when the clock has been moved so far, and at once
    /// for no time at all.
    pub async fn sleep(&self, time: Duration) {
        match &self.manual {
            Some(manual) => {
                let time_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
                manual.reach(self.now_ms().saturating_add(time_ms)).await;
            }
            None => tokio::time::sleep(time).await,
        }
    }

    /// Resolves when it is `until_ms`, in milliseconds since the Unix epoch; at once if that is past. The span is taken
    /// at the start: setting the machine's clock meanwhile changes nothing.
    pub async fn sleep_until(&self, until_ms: u64) {
        let left_ms = until_ms.saturating_sub(self.now_ms());
        self.sleep(Duration::from_millis(left_ms)).await;
    }

    /// What `work` comes to; `None` if so much time has passed before.
    pub async fn within<T>(&self, limit: Duration, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            done = work => Some(done),
            () = self.sleep(limit) => None,
        }
    }

    /// The first moment that anybody waits for, in milliseconds since the Unix epoch: where a test moves a manual clock to
    /// when all is quiet. `None` if nobody waits, and with the clock of the machine.
    pub fn next_wait(&self) -> Option<u64> {
        let manual = self.manual.as_ref()?;
        manual.waits().keys().next().copied()
    }

    /// Fills `bytes` with randomness fit for keys.
    pub fn fill_random(&self, bytes: &mut [u8]) {
        match self
            .manual
            .as_ref()
            .and_then(|manual| manual.random.as_ref())
        {
            Some(random) => random
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .fill_bytes(bytes),
            None => rand::rng().fill_bytes(bytes),
        }
    }

    /// `N` random bytes fit for keys.
    pub fn random_bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.fill_random(&mut bytes);
        bytes
    }

    pub fn random_u64(&self) -> u64 {
        u64::from_le_bytes(self.random_bytes())
    }

    /// A random number below `limit` (0 if `limit` is 0); the bias is below `limit / 2^64`.
    pub fn random_below(&self, limit: u64) -> u64 {
        let wide = u128::from(self.random_u64()) * u128::from(limit);
        u64::try_from(wide >> 64).expect("the upper half of a product of two u64 is a u64")
    }

    /// `length` random letters and digits (ASCII), fit for secrets: 5.95 bits each.
    pub fn random_string(&self, length: usize) -> String {
        let mut text = String::with_capacity(length);
        let mut bytes = [0; 64];
        while text.len() < length {
            self.fill_random(&mut bytes);
            // The two lower bits would make an uneven choice of 62; values above are drawn again.
            let drawn = bytes
                .iter()
                .filter_map(|byte| ALPHANUMERIC.get(usize::from(byte >> 2)));
            text.extend(
                drawn
                    .take(length - text.len())
                    .map(|letter| char::from(*letter)),
            );
        }
        text
    }
}

#[cfg(test)]
mod tests;

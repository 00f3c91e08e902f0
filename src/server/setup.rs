//! The token of the page on which the first administrator is made.
//!
//! It opens once, for a server without accounts. Whoever guesses wrong too often closes it.

use std::sync::atomic::{AtomicU32, Ordering};

use subtle::ConstantTimeEq as _;

use crate::clock::Clock;

/// Wrong tokens before the page is closed until the next start.
const MAX_WRONG: u32 = 10;
/// Letters and digits of the token: 130 bits.
const TOKEN_CHARS: usize = 22;

/// Whether and with which token the first administrator can be made.
#[derive(Debug)]
pub struct Setup {
    token: String,
    /// Tries left; 0 while the page is closed.
    tries: AtomicU32,
    turn: tokio::sync::Mutex<()>,
}

impl Setup {
    /// Closed, with a token for when it opens.
    pub fn new(clock: &Clock) -> Self {
        Self {
            token: clock.random_string(TOKEN_CHARS),
            tries: AtomicU32::new(0),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// Lets the holder of the token in. Only for a server without accounts.
    pub fn open(&self) -> &str {
        self.tries.store(MAX_WRONG, Ordering::SeqCst);
        &self.token
    }

    /// Lets nobody in any more.
    pub fn close(&self) {
        self.tries.store(0, Ordering::SeqCst);
    }

    /// Whether `token` is the right one. A wrong one uses up a try.
    pub fn admits(&self, token: &str) -> bool {
        if self.tries.load(Ordering::SeqCst) == 0 {
            return false;
        }
        let is_right = bool::from(token.as_bytes().ct_eq(self.token.as_bytes()));
        if !is_right {
            let take = |tries: u32| tries.checked_sub(1);
            // Without one left it was closed meanwhile.
            let _left = self
                .tries
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, take)
                .is_ok();
        }
        is_right
    }

    /// The right to make the first account.
    pub async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }
}

#[cfg(test)]
mod tests;

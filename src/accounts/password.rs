//! Passwords: Argon2id on a bounded number of threads, stored as PHC strings; strength by zxcvbn.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use argon2::{Algorithm, Argon2, Block, Params, Version};
use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;

use super::Error;

/// Longer passwords are refused before anything is computed.
const MAX_PASSWORD_BYTES: usize = 512;
/// zxcvbn takes time with the square of the length, and what is that long is strong enough by its start.
const JUDGED_CHARS: usize = 72;
const SALT_BYTES: usize = 16;
const HASH_BYTES: usize = 32;

/// How passwords are judged and kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Config {
    /// The least strength of a new password as zxcvbn estimates it: 0 (anything) to 4 (very hard to guess). Default 3.
    /// Lower it for test servers only.
    #[schemars(range(max = 4))]
    pub min_score: u8,
    /// The least length of a new password in characters. Default 8.
    pub min_length: usize,
    /// Memory of one computation in KiB. Default 19456. Raise it if the machine has memory to spare at sign-in.
    pub m_cost: u32,
    /// Passes over that memory. Default 2.
    pub t_cost: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            min_score: 3,
            min_length: 8,
            m_cost: 19_456,
            t_cost: 2,
        }
    }
}

/// Hashes passwords, at most as many at once as there are cores.
#[derive(Debug)]
pub(super) struct Passwords {
    config: Config,
    turns: Arc<Semaphore>,
    /// Memory of earlier computations: to get it anew from the system takes a tenth of the time that one takes.
    memory: Memory,
}

/// What a computation costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Costs {
    m_cost: u32,
    t_cost: u32,
    p_cost: u32,
}

/// The blocks of computations that have ended.
#[derive(Clone, Debug, Default)]
struct Memory(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    blocks: Vec<Vec<Block>>,
    is_used: bool,
}

impl Memory {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, count: usize) -> Vec<Block> {
        let mut kept = self.lock();
        kept.is_used = true;
        let mut blocks = kept.blocks.pop().unwrap_or_default();
        drop(kept);
        blocks.resize(count, Block::default());
        blocks
    }

    fn give_back(&self, blocks: Vec<Block>) {
        self.lock().blocks.push(blocks);
    }
}

impl Passwords {
    pub(super) fn new(config: Config) -> Self {
        let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self {
            config,
            turns: Arc::new(Semaphore::new(cores)),
            memory: Memory::default(),
        }
    }

    /// Refuses a new password that is too short, too long or easily guessed by one who knows `known` about its owner.
    ///
    /// # Errors
    /// [`Error::WeakPassword`].
    pub(super) async fn judge(&self, password: &str, known: &str) -> Result<(), Error> {
        if password.len() > MAX_PASSWORD_BYTES {
            return Err(Error::WeakPassword(format!(
                "The password is longer than {MAX_PASSWORD_BYTES} bytes"
            )));
        }
        if password.chars().count() < self.config.min_length {
            let least = self.config.min_length;
            return Err(Error::WeakPassword(format!(
                "The password must have at least {least} characters"
            )));
        }
        if self.config.min_score == 0 {
            return Ok(());
        }
        let start: String = password.chars().take(JUDGED_CHARS).collect();
        let (known, least) = (known.to_owned(), self.config.min_score);
        self.compute(move || judge_strength(&start, &known, least))
            .await?
    }

    /// The PHC string of `password`, made with `salt`.
    pub(super) async fn hash(
        &self,
        password: &str,
        salt: [u8; SALT_BYTES],
    ) -> Result<String, Error> {
        let password = password.to_owned();
        let (costs, memory) = (self.costs(), self.memory.clone());
        self.compute(move || {
            let hash = argon2(&password, &salt, costs, &memory)?;
            let (salt, hash) = (STANDARD_NO_PAD.encode(salt), STANDARD_NO_PAD.encode(hash));
            let Costs { m_cost, t_cost, .. } = costs;
            Ok(format!(
                "$argon2id$v=19$m={m_cost},t={t_cost},p=1${salt}${hash}"
            ))
        })
        .await?
    }

    /// Whether `password` is the one of `stored`. Without `stored` the answer is no, and takes as long.
    pub(super) async fn is_correct(
        &self,
        password: &str,
        stored: Option<String>,
    ) -> Result<bool, Error> {
        if password.len() > MAX_PASSWORD_BYTES {
            return Ok(false);
        }
        let password = password.to_owned();
        let (costs, memory) = (self.costs(), self.memory.clone());
        self.compute(move || match stored.as_deref().and_then(Phc::parse) {
            Some(phc) => {
                let hash = argon2(&password, &phc.salt, phc.costs, &memory)?;
                Ok(hash.ct_eq(&phc.hash).into())
            }
            None => {
                argon2(&password, &[0; SALT_BYTES], costs, &memory)?;
                Ok(false)
            }
        })
        .await?
    }

    /// Gives memory back to the system that was not used since the last call.
    pub(super) fn trim(&self) {
        let mut kept = self.memory.lock();
        if !std::mem::take(&mut kept.is_used) {
            kept.blocks.clear();
        }
    }

    fn costs(&self) -> Costs {
        Costs {
            m_cost: self.config.m_cost,
            t_cost: self.config.t_cost,
            p_cost: 1,
        }
    }

    /// Whether `stored` was made with other costs than those of today.
    pub(super) fn is_outdated(&self, stored: &str) -> bool {
        Phc::parse(stored).is_none_or(|phc| phc.costs != self.costs())
    }

    async fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let turn = Arc::clone(&self.turns)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        let work = move || {
            // The work goes on when nobody waits for it any more, and so must its turn.
            let _turn = turn;
            work()
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|_panicked| Error::Aborted)
    }
}

/// The parts of `$argon2id$v=19$m=…,t=…,p=…$salt$hash`.
struct Phc {
    costs: Costs,
    salt: Vec<u8>,
    hash: [u8; HASH_BYTES],
}

impl Phc {
    fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split('$').collect();
        let ["", "argon2id", "v=19", costs, salt, hash] = parts.as_slice() else {
            return None;
        };
        let costs: Vec<&str> = costs.split(',').collect();
        let [m_cost, t_cost, p_cost] = costs.as_slice() else {
            return None;
        };
        let costs = Costs {
            m_cost: m_cost.strip_prefix("m=")?.parse().ok()?,
            t_cost: t_cost.strip_prefix("t=")?.parse().ok()?,
            p_cost: p_cost.strip_prefix("p=")?.parse().ok()?,
        };
        Some(Self {
            costs,
            salt: STANDARD_NO_PAD.decode(salt).ok()?,
            hash: STANDARD_NO_PAD.decode(hash).ok()?.try_into().ok()?,
        })
    }
}

fn argon2(
    password: &str,
    salt: &[u8],
    costs: Costs,
    memory: &Memory,
) -> Result<[u8; HASH_BYTES], Error> {
    let bad_costs = |error: argon2::Error| Error::PasswordCosts(error.to_string());
    let params = Params::new(costs.m_cost, costs.t_cost, costs.p_cost, Some(HASH_BYTES))
        .map_err(bad_costs)?;
    let mut blocks = memory.take(params.block_count());
    let mut hash = [0; HASH_BYTES];
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into_with_memory(password.as_bytes(), salt, &mut hash, &mut blocks)
        .map_err(bad_costs)?;
    memory.give_back(blocks);
    Ok(hash)
}

fn judge_strength(password: &str, known: &str, least: u8) -> Result<(), Error> {
    let judged = zxcvbn::zxcvbn(password, &[known]);
    if u8::from(judged.score()) >= least {
        return Ok(());
    }
    let warning = judged
        .feedback()
        .and_then(zxcvbn::feedback::Feedback::warning);
    Err(Error::WeakPassword(match warning {
        Some(warning) => format!("The password is too easy to guess: {warning}"),
        None => "The password is too easy to guess: add words or characters".to_owned(),
    }))
}

#[cfg(test)]
mod tests;

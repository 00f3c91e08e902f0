//! Who may register, and the tokens that allow it.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Accounts, Error, Issued, LocalUser, NewDevice, NewUser, Passed,
    rows::{REGISTRATION_TOKENS, RegistrationToken},
    uia::SESSION_LIFETIME_MS,
};
use crate::{
    storage::{Batch, Cbor, Order, Snapshot, Text},
    units::Secret,
};

const MAX_TOKEN_CHARS: usize = 64;
const GENERATED_TOKEN_CHARS: usize = 16;

/// Who may make an account by registering.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Config {
    /// `closed`: nobody, accounts come from administrators. `token`: who has a registration token. `open`: everybody.
    /// Default `closed`.
    pub mode: Mode,
    /// Must be true for `mode = "open"`: a server that anybody may join is found and used by spammers. Default false.
    pub i_accept_open_registration: bool,
    /// User names that nobody can register. Default none.
    pub reserved_names: Vec<String>,
    /// Whoever has this secret can make accounts, also administrators, through `/_synapse/admin/v1/register`.
    /// Default none: that endpoint is off.
    pub shared_secret: Option<Secret>,
}

/// Who may register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    #[default]
    Closed,
    Token,
    Open,
}

/// A registration token as administrators see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TokenInfo {
    pub token: String,
    /// Absent: any number.
    pub uses_allowed: Option<u64>,
    /// Registrations that have begun with it.
    pub pending: u64,
    pub completed: u64,
    /// Milliseconds since the Unix epoch.
    pub expiry_time: Option<u64>,
}

impl Accounts {
    /// Makes the account of one who passed, signs it in if a device is given, and uses up what was passed with.
    ///
    /// # Errors
    /// As [`Accounts::create_user`].
    pub async fn register(
        &self,
        new: NewUser,
        device: Option<NewDevice>,
        passed: Passed,
    ) -> Result<(LocalUser, Option<Issued>), Error> {
        let mut batch = Batch::new();
        passed.spend_in(&mut batch);
        let Some(token) = passed.registration_token else {
            return self.create_user(new, device, batch).await;
        };
        let turn = Arc::clone(&self.inner.token_turns).lock_owned().await;
        let row = self.registration_token_row(&token).await?;
        batch.hold(turn);
        if let Some(mut row) = row {
            row.completed += 1;
            // One of those that began is this one; which of them does not matter.
            row.pending_until_ms.pop();
            batch.put(&REGISTRATION_TOKENS, &key(&token), &Cbor(row));
        }
        self.create_user(new, device, batch).await
    }

    /// Whether a registration with `token` could begin now.
    pub async fn is_registration_token(&self, token: &str) -> Result<bool, Error> {
        let row = self.registration_token_row(token).await?;
        Ok(row.is_some_and(|row| row.is_usable(self.inner.clock.now_ms())))
    }

    /// Keeps a use of `token` for a registration that has begun; false if there is none left.
    pub(super) async fn reserve_registration_token(&self, token: &str) -> Result<bool, Error> {
        let turn = Arc::clone(&self.inner.token_turns).lock_owned().await;
        let now_ms = self.inner.clock.now_ms();
        let Some(mut row) = self
            .registration_token_row(token)
            .await?
            .filter(|row| row.is_usable(now_ms))
        else {
            return Ok(false);
        };
        row.pending_until_ms.retain(|until_ms| *until_ms > now_ms);
        row.pending_until_ms.push(now_ms + SESSION_LIFETIME_MS);
        let mut batch = Batch::new();
        batch.put(&REGISTRATION_TOKENS, &key(token), &Cbor(row));
        batch.hold(turn);
        self.inner.store.submit(batch).await?;
        Ok(true)
    }

    /// Makes a registration token; a random one if `token` is absent.
    ///
    /// # Errors
    /// [`Error::InvalidRegistrationToken`] if the text cannot be one, [`Error::RegistrationTokenInUse`] if there is one.
    pub async fn create_registration_token(
        &self,
        token: Option<String>,
        uses_allowed: Option<u64>,
        expiry_time: Option<u64>,
    ) -> Result<TokenInfo, Error> {
        let token = token.unwrap_or_else(|| self.inner.clock.random_string(GENERATED_TOKEN_CHARS));
        let is_allowed =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'~' | b'-');
        if token.is_empty() || token.len() > MAX_TOKEN_CHARS || !token.bytes().all(is_allowed) {
            return Err(Error::InvalidRegistrationToken);
        }
        let turn = Arc::clone(&self.inner.token_turns).lock_owned().await;
        if self.registration_token_row(&token).await?.is_some() {
            return Err(Error::RegistrationTokenInUse);
        }
        let row = RegistrationToken {
            uses_allowed,
            expires_ms: expiry_time,
            ..RegistrationToken::default()
        };
        let mut batch = Batch::new();
        batch.put(&REGISTRATION_TOKENS, &key(&token), &Cbor(row.clone()));
        batch.hold(turn);
        self.inner.store.submit(batch).await?;
        Ok(row.info(token, self.inner.clock.now_ms()))
    }

    /// All registration tokens, also those used up.
    pub fn registration_tokens(&self, snapshot: &Snapshot) -> Result<Vec<TokenInfo>, Error> {
        let now_ms = self.inner.clock.now_ms();
        let mut tokens = Vec::new();
        for row in snapshot.scan(REGISTRATION_TOKENS.all(), Order::Forward) {
            let ((Text(token),), Cbor(row)) = row?;
            tokens.push(row.info(token.into(), now_ms));
        }
        Ok(tokens)
    }

    /// Takes a registration token away; false if there was none.
    pub async fn delete_registration_token(&self, token: &str) -> Result<bool, Error> {
        let turn = Arc::clone(&self.inner.token_turns).lock_owned().await;
        if self.registration_token_row(token).await?.is_none() {
            return Ok(false);
        }
        let mut batch = Batch::new();
        batch.delete(&REGISTRATION_TOKENS, &key(token));
        batch.hold(turn);
        self.inner.store.submit(batch).await?;
        Ok(true)
    }

    async fn registration_token_row(
        &self,
        token: &str,
    ) -> Result<Option<RegistrationToken>, Error> {
        if token.len() > MAX_TOKEN_CHARS {
            return Ok(None);
        }
        let key = key(token);
        let row = self
            .inner
            .store
            .read(move |snapshot| Ok::<_, Error>(snapshot.get(&REGISTRATION_TOKENS, &key)?));
        Ok(row.await?.map(|Cbor(row)| row))
    }
}

impl RegistrationToken {
    fn is_usable(&self, now_ms: u64) -> bool {
        let is_expired = self
            .expires_ms
            .is_some_and(|expires_ms| expires_ms <= now_ms);
        let is_used_up = self
            .uses_allowed
            .is_some_and(|allowed| self.completed + self.pending(now_ms) >= allowed);
        !is_expired && !is_used_up
    }

    fn pending(&self, now_ms: u64) -> u64 {
        let pending = self
            .pending_until_ms
            .iter()
            .filter(|until_ms| **until_ms > now_ms)
            .count();
        u64::try_from(pending).unwrap_or(u64::MAX)
    }

    fn info(self, token: String, now_ms: u64) -> TokenInfo {
        TokenInfo {
            pending: self.pending(now_ms),
            token,
            uses_allowed: self.uses_allowed,
            completed: self.completed,
            expiry_time: self.expires_ms,
        }
    }
}

fn key(token: &str) -> (Text,) {
    (Text(token.into()),)
}

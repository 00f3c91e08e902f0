//! Access tokens and refresh tokens.
//!
//! Only their SHA-256 is stored. A refresh token is exchanged for a pair that is computed from the token itself and a stored
//! nonce: so a client that lost the answer gets the same pair again, though the server does not know the pair, and whoever
//! steals an old token but not the database cannot compute what followed.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use ruma::{DeviceId, OwnedDeviceId};
use sha2::Sha256;

use super::{
    Access, Accounts, Error, Session, UserNumber, device_hash,
    rows::{
        ACCOUNTS, Account, DEVICES, Device, LOGIN_TOKENS, OPENID_TOKENS, TOKENS, Token, TokenHash,
        TokenKind,
    },
};
use crate::storage::{Batch, Cbor, Expiring, Millis48, Snapshot, Text};

/// Lifetime of a token from `POST /login/get_token`.
///
/// Spec: c2s, "Login": two minutes are recommended.
const LOGIN_TOKEN_LIFETIME_MS: u64 = 120_000;
const OPENID_TOKEN_LIFETIME_MS: u64 = 3_600_000;
/// A session is noted as seen again after this time.
const SEEN_INTERVAL_MS: u64 = 60_000;

/// What a client gets after signing in.
#[derive(Clone, PartialEq, Eq)]
pub struct Issued {
    pub access_token: String,
    pub refresh_token: Option<String>,
    pub expires_in: Option<Duration>,
    pub device: OwnedDeviceId,
}

/// A cached answer for a token.
#[derive(Clone)]
pub(super) struct Known {
    session: Arc<Session>,
    locked: bool,
}

impl Accounts {
    /// What `token` gives access to. Memory only, except for the first request with a token in a while.
    pub async fn session(&self, token: &str) -> Result<Access, Error> {
        let hash = TokenHash::of(token);
        let known = match self.inner.sessions.get(&hash) {
            Some(known) => known,
            None => match self.load_session(hash).await? {
                Some(known) => known,
                None => return Ok(Access::Unknown),
            },
        };
        let now_ms = self.inner.clock.now_ms();
        if known
            .session
            .expires_ms
            .is_some_and(|expires_ms| expires_ms <= now_ms)
        {
            return Ok(Access::SoftLoggedOut);
        }
        Ok(match known.locked {
            true => Access::Locked(known.session),
            false => Access::Granted(known.session),
        })
    }

    async fn load_session(&self, hash: TokenHash) -> Result<Option<Known>, Error> {
        let this = self.clone();
        let loaded = self
            .inner
            .store
            .read(move |snapshot| {
                let Some(Cbor(token)) = snapshot.get(&TOKENS, &(hash,))? else {
                    return Ok(None);
                };
                let TokenKind::Access { replaces } = token.kind else {
                    return Ok(None);
                };
                let Some(known) = this.build_session(snapshot, hash, &token)? else {
                    return Ok::<_, Error>(None);
                };
                if replaces.is_none() {
                    this.inner
                        .sessions
                        .fill(hash, known.clone(), snapshot.position());
                }
                Ok(Some((known, replaces.is_some())))
            })
            .await?;
        let Some((known, replaces)) = loaded else {
            return Ok(None);
        };
        if replaces {
            self.confirm_exchange(known.session.user_number, hash)
                .await?;
        }
        Ok(Some(known))
    }

    fn build_session(
        &self,
        snapshot: &Snapshot,
        hash: TokenHash,
        token: &Token,
    ) -> Result<Option<Known>, Error> {
        let Some(Cbor(account)) = snapshot.get(&ACCOUNTS, &(token.user,))? else {
            return Ok(None);
        };
        let device = OwnedDeviceId::from(token.device.as_str());
        let session = Session {
            user: self.user_id(snapshot, token.user)?,
            user_number: token.user,
            device_hash: device_hash(&device),
            device: Some(device),
            is_guest: false,
            is_admin: account.admin,
            is_suspended: account.suspended,
            token_hash: hash.0,
            expires_ms: token.expires_ms,
            seen_ms: 0.into(),
        };
        Ok(Some(Known {
            session: Arc::new(session),
            locked: account.locked,
        }))
    }

    /// The new pair is in use: the access token that it replaced ends.
    async fn confirm_exchange(&self, user: UserNumber, hash: TokenHash) -> Result<(), Error> {
        let turn = self.inner.turns.lock(user).await;
        let row = self
            .inner
            .store
            .read(move |snapshot| Ok::<_, Error>(snapshot.get(&TOKENS, &(hash,))?))
            .await?;
        let Some(Cbor(mut token)) = row else {
            return Ok(());
        };
        let TokenKind::Access {
            replaces: Some(replaced),
        } = token.kind
        else {
            return Ok(());
        };
        let mut batch = Batch::new();
        token.kind = TokenKind::Access { replaces: None };
        batch.put(&TOKENS, &(hash,), &Cbor(token));
        self.end_tokens(&mut batch, &[replaced]);
        batch.hold(turn);
        self.inner.store.submit(batch).await?;
        Ok(())
    }

    /// Notes that `session` was used, at most once a minute; true if it has to be written down (see `devices`).
    pub(super) fn is_seen_again(&self, session: &Session) -> bool {
        let now_ms = self.inner.clock.now_ms();
        let before = session.seen_ms.load(Ordering::Relaxed);
        now_ms >= before.saturating_add(SEEN_INTERVAL_MS)
            && session
                .seen_ms
                .compare_exchange(before, now_ms, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// Exchanges a refresh token for a new pair.
    ///
    /// The same token gives the same pair for a grace period, and for as long as the pair was not used. A later replay means
    /// that somebody else has the token: the session ends.
    ///
    /// # Errors
    /// [`Error::UnknownToken`]; [`Error::Locked`].
    ///
    /// Spec: c2s, "Refreshing access tokens".
    pub async fn refresh(&self, token: &str) -> Result<Issued, Error> {
        let hash = TokenHash::of(token);
        let unknown = || Error::UnknownToken { soft_logout: false };
        let row = self
            .inner
            .store
            .read(move |snapshot| Ok::<_, Error>(snapshot.get(&TOKENS, &(hash,))?))
            .await?;
        let Cbor(Token { user, .. }) = row.ok_or_else(unknown)?;
        let turn = self.inner.turns.lock(user).await;
        let found = self
            .inner
            .store
            .read(move |snapshot| exchange_view(snapshot, user, hash))
            .await?;
        let (account, row, device, next_is_used) = found.ok_or_else(unknown)?;
        if account.locked {
            return Err(Error::Locked);
        }
        let device_id = row.device.clone();
        match row.kind {
            TokenKind::Access { .. } => Err(unknown()),
            TokenKind::Refresh { access } => {
                let nonce = TokenHash(self.inner.clock.random_bytes());
                let mut batch = Batch::new();
                batch.hold(turn);
                let view = (row, device, access);
                self.exchange(batch, (token, nonce), view).await
            }
            TokenKind::Exchanged { at_ms, nonce, .. } => {
                let grace_ms = millis(self.inner.config.refresh_grace.0);
                if next_is_used && at_ms.saturating_add(grace_ms) <= self.inner.clock.now_ms() {
                    self.end_device(turn, user, &device_id).await?;
                    return Err(unknown());
                }
                Ok(self.issued(pair(token, nonce), device_id.into()))
            }
        }
    }

    /// Exchanges `token`, whose row this is, for the pair made with the nonce beside it.
    async fn exchange(
        &self,
        mut batch: Batch,
        (token, nonce): (&str, TokenHash),
        (mut row, mut device, access): (Token, Device, TokenHash),
    ) -> Result<Issued, Error> {
        let hash = TokenHash::of(token);
        let (user, device_id) = (row.user, row.device.clone());
        let pair = pair(token, nonce);
        let ended: Vec<_> = device
            .tokens
            .iter()
            .copied()
            .filter(|old| ![hash, access].contains(old))
            .collect();
        self.end_tokens(&mut batch, &ended);
        let new = self.put_pair(&mut batch, (user, &device_id), &pair, Some(access));
        row.kind = TokenKind::Exchanged {
            at_ms: self.inner.clock.now_ms(),
            nonce,
            access: TokenHash::of(&pair.0),
        };
        batch.put(&TOKENS, &(hash,), &Cbor(row));
        device.tokens = vec![access, hash];
        device.tokens.extend(new);
        batch.put(&DEVICES, &(user, device_key(&device_id)), &Cbor(device));
        self.inner.store.submit(batch).await?;
        Ok(self.issued(pair, device_id.into()))
    }

    fn put_pair(
        &self,
        batch: &mut Batch,
        (user, device): (UserNumber, &str),
        pair: &(String, String),
        replaces: Option<TokenHash>,
    ) -> [TokenHash; 2] {
        let (access, refresh) = (TokenHash::of(&pair.0), TokenHash::of(&pair.1));
        let expires_ms = self
            .inner
            .clock
            .now_ms()
            .saturating_add(millis(self.inner.config.access_token_ttl.0));
        let row = |kind, expires_ms| {
            Cbor(Token {
                user,
                device: device.to_owned(),
                kind,
                expires_ms,
            })
        };
        batch.put(
            &TOKENS,
            &(access,),
            &row(TokenKind::Access { replaces }, Some(expires_ms)),
        );
        batch.put(
            &TOKENS,
            &(refresh,),
            &row(TokenKind::Refresh { access }, None),
        );
        [access, refresh]
    }

    fn issued(
        &self,
        (access_token, refresh_token): (String, String),
        device: OwnedDeviceId,
    ) -> Issued {
        let expires_in = Some(self.inner.config.access_token_ttl.0);
        Issued {
            access_token,
            refresh_token: Some(refresh_token),
            expires_in,
            device,
        }
    }

    /// New tokens for a device, in `batch`: an access token for good, or a pair that is refreshed.
    pub(super) fn issue(
        &self,
        batch: &mut Batch,
        user: UserNumber,
        device: &DeviceId,
        refreshable: Refreshable,
    ) -> (Issued, Vec<TokenHash>) {
        match refreshable {
            Refreshable::Yes => {
                let pair = (self.random_token("hat_"), self.random_token("hrt_"));
                let tokens = self.put_pair(batch, (user, device.as_str()), &pair, None);
                (self.issued(pair, device.to_owned()), tokens.to_vec())
            }
            Refreshable::No => {
                let access_token = self.random_token("hat_");
                let hash = TokenHash::of(&access_token);
                let kind = TokenKind::Access { replaces: None };
                let row = Token {
                    user,
                    device: device.to_string(),
                    kind,
                    expires_ms: None,
                };
                batch.put(&TOKENS, &(hash,), &Cbor(row));
                let device = device.to_owned();
                (
                    Issued {
                        access_token,
                        refresh_token: None,
                        expires_in: None,
                        device,
                    },
                    vec![hash],
                )
            }
        }
    }

    /// Removes token rows, and the sessions in memory once that is published.
    pub(super) fn end_tokens(&self, batch: &mut Batch, tokens: &[TokenHash]) {
        for token in tokens {
            batch.delete(&TOKENS, &(*token,));
        }
        self.forget_sessions(batch, tokens.to_vec());
    }

    /// The sessions of `tokens` are read again once `batch` is published.
    pub(super) fn forget_sessions(&self, batch: &mut Batch, tokens: Vec<TokenHash>) {
        let this = self.clone();
        batch.before_publish(move |position| {
            for token in &tokens {
                this.inner.sessions.forget(token, position);
            }
        });
    }

    /// A token by which `user` can sign in once on another device, and how long it lives.
    pub async fn create_login_token(&self, user: UserNumber) -> Result<(String, Duration), Error> {
        let token = self.random_token("hlt_");
        let expires_ms = self.inner.clock.now_ms() + LOGIN_TOKEN_LIFETIME_MS;
        let mut batch = Batch::new();
        batch.put(
            &LOGIN_TOKENS,
            &(TokenHash::of(&token),),
            &Expiring(Millis48(expires_ms), user),
        );
        self.inner.store.submit(batch).await?;
        Ok((token, Duration::from_millis(LOGIN_TOKEN_LIFETIME_MS)))
    }

    /// Whom a login token signs in; it is used up.
    ///
    /// # Errors
    /// [`Error::InvalidLoginToken`].
    pub async fn redeem_login_token(&self, token: &str) -> Result<UserNumber, Error> {
        let hash = TokenHash::of(token);
        let read =
            move |snapshot: &Snapshot| Ok::<_, Error>(snapshot.get(&LOGIN_TOKENS, &(hash,))?);
        let Expiring(_, user) = self
            .inner
            .store
            .read(read)
            .await?
            .ok_or(Error::InvalidLoginToken)?;
        // Once only: the second of two requests finds the row gone when its turn comes.
        let turn = self.inner.turns.lock(user).await;
        let Expiring(expires, _) = self
            .inner
            .store
            .read(read)
            .await?
            .ok_or(Error::InvalidLoginToken)?;
        let mut batch = Batch::new();
        batch.delete(&LOGIN_TOKENS, &(hash,));
        batch.hold(turn);
        self.inner.store.submit(batch).await?;
        match expires.0 > self.inner.clock.now_ms() {
            true => Ok(user),
            false => Err(Error::InvalidLoginToken),
        }
    }

    /// A token with which another service can ask us who its holder is, and how long it lives.
    ///
    /// Spec: c2s, "OpenID".
    pub async fn create_openid_token(&self, user: UserNumber) -> Result<(String, Duration), Error> {
        let token = self.random_token("hot_");
        let expires_ms = self.inner.clock.now_ms() + OPENID_TOKEN_LIFETIME_MS;
        let mut batch = Batch::new();
        batch.put(
            &OPENID_TOKENS,
            &(TokenHash::of(&token),),
            &Expiring(Millis48(expires_ms), user),
        );
        self.inner.store.submit(batch).await?;
        Ok((token, Duration::from_millis(OPENID_TOKEN_LIFETIME_MS)))
    }

    /// Whose OpenID token this is.
    pub fn openid_user(
        &self,
        snapshot: &Snapshot,
        token: &str,
    ) -> Result<Option<UserNumber>, Error> {
        let row = snapshot.get(&OPENID_TOKENS, &(TokenHash::of(token),))?;
        Ok(row
            .filter(|Expiring(expires, _)| expires.0 > self.inner.clock.now_ms())
            .map(|Expiring(_, user)| user))
    }

    pub(super) fn random_token(&self, prefix: &str) -> String {
        let random: [u8; 32] = self.inner.clock.random_bytes();
        format!("{prefix}{}", URL_SAFE_NO_PAD.encode(random))
    }
}

/// Whether a client said that it refreshes its access tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refreshable {
    Yes,
    No,
}

impl From<bool> for Refreshable {
    fn from(wanted: bool) -> Self {
        match wanted {
            true => Self::Yes,
            false => Self::No,
        }
    }
}

/// What an exchange depends on: account, the token's row, its device, and whether the pair it was exchanged for is in use.
fn exchange_view(
    snapshot: &Snapshot,
    user: UserNumber,
    hash: TokenHash,
) -> Result<Option<(Account, Token, Device, bool)>, Error> {
    let Some(Cbor(token)) = snapshot.get(&TOKENS, &(hash,))? else {
        return Ok(None);
    };
    let Some(Cbor(account)) = snapshot.get(&ACCOUNTS, &(user,))? else {
        return Ok(None);
    };
    let Some(Cbor(device)) = snapshot.get(&DEVICES, &(user, device_key(&token.device)))? else {
        return Ok(None);
    };
    let next_is_used = match &token.kind {
        TokenKind::Exchanged { access, .. } => {
            let next = snapshot.get(&TOKENS, &(*access,))?;
            !matches!(
                next,
                Some(Cbor(Token {
                    kind: TokenKind::Access { replaces: Some(_) },
                    ..
                }))
            )
        }
        _ => false,
    };
    Ok(Some((account, token, device, next_is_used)))
}

/// The pair that `token` is exchanged for.
fn pair(token: &str, nonce: TokenHash) -> (String, String) {
    let derive = |prefix: &str| {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(token.as_bytes()).expect("any length is a key");
        mac.update(&nonce.0);
        mac.update(prefix.as_bytes());
        format!(
            "{prefix}{}",
            URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes())
        )
    };
    (derive("hat_"), derive("hrt_"))
}

pub(super) fn device_key(device: &str) -> Text {
    Text(device.into())
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

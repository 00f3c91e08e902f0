//! Users, devices, tokens, registration, user-interactive authentication, profiles, account data, push rules, filters.
//!
//! Every change of an account happens under that account's lock, as one batch: read, decide, commit, publish to the caches.
//! What is on the path of every request (tokens, user numbers, push rules, ignored users) is answered from bounded caches,
//! which forget a row when its change is published, before anybody who waits for the change wakes.

mod account_data;
mod cache;
mod devices;
mod directory;
mod filters;
mod numbers;
mod own_rules;
mod password;
mod profile;
mod push_rules;
mod registration;
mod rows;
mod succession;
mod tokens;
mod uia;
mod users;

use std::sync::{Arc, Mutex, atomic::AtomicU64};

use prometheus_client::metrics::counter::Counter;
use ruma::{
    OwnedDeviceId, OwnedServerName, OwnedUserId,
    api::client::{filter::FilterDefinition, uiaa::UiaaInfo},
    push::Ruleset,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::{
    account_data::{AccountData, FULLY_READ, GLOBAL, IGNORED_USERS, Ignored, PUSH_RULES, TAGS},
    devices::{DeviceChange, DeviceFate, DeviceInfo, NewDevice},
    directory::Found,
    own_rules::OwnRules,
    password::Config as PasswordConfig,
    profile::{AVATAR_URL, DISPLAYNAME, Profile},
    push_rules::{PushRuleChange, PushRuleError},
    registration::{Config as RegistrationConfig, Mode as RegistrationMode, TokenInfo},
    rows::LocalUser,
    succession::RoomName,
    tokens::{Issued, Refreshable},
    uia::{Operation, Passed},
    users::{AccountChange, AccountInfo, Erase, NewUser},
};
use self::{
    cache::Cache, devices::Sightings, directory::Directory, password::Passwords, rows::TokenHash,
    tokens::Known,
};
use crate::{
    clock::Clock,
    storage::{self, KeyError, KeyPart, Locks, Position, Store},
    telemetry::Metrics,
    units::Period,
};

/// Rows of each kind that are kept in memory.
const CACHED_SESSIONS: usize = 50_000;
const CACHED_USERS: usize = 200_000;
const CACHED_PUSH_RULES: usize = 10_000;
const CACHED_IGNORED: usize = 50_000;
const CACHED_FILTERS: usize = 10_000;

/// Accounts and signing in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Config {
    /// How passwords are judged and kept.
    pub password: PasswordConfig,
    /// How long an access token lives whose client refreshes it. Default `"5m"`.
    pub access_token_ttl: Period,
    /// How long an exchanged refresh token gives the same pair again, for clients that lost the answer. Default `"60s"`.
    pub refresh_grace: Period,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            password: PasswordConfig::default(),
            access_token_ttl: Period::from_secs(300),
            refresh_grace: Period::from_secs(60),
        }
    }
}

/// All accounts of this server. Cheap to clone.
#[derive(Clone)]
pub struct Accounts {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    clock: Clock,
    server_name: OwnedServerName,
    config: Config,
    registration: RegistrationConfig,
    passwords: Passwords,
    counters: Counters,
    /// One change of an account at a time.
    turns: Locks<UserNumber>,
    /// Held while numbers of users are given out, until they are durable.
    giving_out: Arc<tokio::sync::Mutex<()>>,
    /// Held while a registration token changes.
    token_turns: Arc<tokio::sync::Mutex<()>>,
    numbers: Cache<OwnedUserId, UserNumber>,
    ids: Cache<UserNumber, OwnedUserId>,
    sessions: Cache<TokenHash, Known>,
    push_rules: Cache<UserNumber, Arc<Ruleset>>,
    ignored: Cache<UserNumber, Ignored>,
    /// No account data of the user has changed after this.
    data_changed: Cache<UserNumber, Position>,
    own_rules: Mutex<own_rules::Known>,
    filters: Cache<(UserNumber, u64), Arc<FilterDefinition>>,
    sightings: Mutex<Sightings>,
    directory: Mutex<Directory>,
}

/// What this module is configured by: two sections.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    pub accounts: Config,
    pub registration: RegistrationConfig,
}

/// What is counted here.
struct Counters {
    logins: Counter,
    registrations: Counter,
}

impl Counters {
    fn new(metrics: &Metrics) -> Self {
        let counters = Self {
            logins: Counter::default(),
            registrations: Counter::default(),
        };
        metrics.register(
            "logins",
            "Devices signed in, by password or by token.",
            counters.logins.clone(),
        );
        metrics.register(
            "registrations",
            "Accounts made.",
            counters.registrations.clone(),
        );
        counters
    }
}

impl Accounts {
    pub fn new(
        store: Store,
        clock: Clock,
        server_name: OwnedServerName,
        settings: Settings,
        metrics: &Metrics,
    ) -> Self {
        let Settings {
            accounts: config,
            registration,
        } = settings;
        let counters = Counters::new(metrics);
        let inner = Inner {
            passwords: Passwords::new(config.password.clone()),
            store,
            clock,
            server_name,
            config,
            registration,
            turns: Locks::new(),
            counters,
            giving_out: Arc::default(),
            token_turns: Arc::default(),
            numbers: Cache::new(CACHED_USERS),
            ids: Cache::new(CACHED_USERS),
            sessions: Cache::new(CACHED_SESSIONS),
            push_rules: Cache::new(CACHED_PUSH_RULES),
            ignored: Cache::new(CACHED_IGNORED),
            data_changed: Cache::new(CACHED_USERS),
            own_rules: Mutex::default(),
            filters: Cache::new(CACHED_FILTERS),
            sightings: Mutex::default(),
            directory: Mutex::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Who may register.
    pub fn registration_mode(&self) -> RegistrationMode {
        self.inner.registration.mode
    }
}

/// Kind of the log entry of changed account data: user u32, room u32 (0: no room).
const ACCOUNT_DATA_CHANGED: u8 = 4;
/// Kind of the log entry of a changed profile or an ended account: user u32. The user's rooms must follow.
pub const PROFILE_CHANGED: u8 = 12;
/// Kind of the log entry of a device that has come, changed or gone: [`DeviceChange`].
const DEVICE_CHANGED: u8 = 13;

/// The number of a user, local or remote, in keys. Given out once, never reused.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(transparent)]
pub struct UserNumber(pub u32);

impl KeyPart for UserNumber {
    fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.0.to_be_bytes());
    }
    fn decode(from: &mut &[u8]) -> Result<Self, KeyError> {
        let (number, rest) = from.split_first_chunk::<4>().ok_or(KeyError)?;
        *from = rest;
        Ok(Self(u32::from_be_bytes(*number)))
    }
}

/// Who makes a request: what an access token stands for.
#[derive(Debug)]
pub struct Session {
    pub user: OwnedUserId,
    pub user_number: UserNumber,
    /// Absent for tokens without a device (admin and application service tokens).
    pub device: Option<OwnedDeviceId>,
    /// [`device_hash`] of `device`, 0 without one.
    pub device_hash: u64,
    pub is_guest: bool,
    pub is_admin: bool,
    /// May read and leave, but not write. Spec: c2s, "Account suspension".
    pub is_suspended: bool,
    /// SHA-256 of the access token.
    pub token_hash: [u8; 32],
    /// Milliseconds since the Unix epoch.
    pub expires_ms: Option<u64>,
    /// When this session was last noted as seen, in milliseconds since the Unix epoch.
    seen_ms: AtomicU64,
}

/// What a token gives access to.
#[derive(Clone, Debug)]
pub enum Access {
    Granted(Arc<Session>),
    /// Nobody's token: 401 `M_UNKNOWN_TOKEN`.
    Unknown,
    /// The token has expired or was taken back, the device lives on: 401 `M_UNKNOWN_TOKEN` with `soft_logout`.
    SoftLoggedOut,
    /// The account is locked: only logging out is allowed, all else is 401 `M_USER_LOCKED` with `soft_logout`.
    Locked(Arc<Session>),
}

/// The number of a device in topics and keys: the first 8 bytes of the BLAKE3 of its ID.
pub fn device_hash(device: &ruma::DeviceId) -> u64 {
    let hash = blake3::hash(device.as_bytes());
    let (head, _) = hash
        .as_bytes()
        .split_first_chunk::<8>()
        .expect("a hash has 32 bytes");
    u64::from_be_bytes(*head)
}

/// What went wrong with an account.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Storage(#[from] storage::Error),
    #[error("the user name is taken")]
    UserInUse,
    #[error("{0}")]
    InvalidUsername(&'static str),
    #[error("the user name is reserved")]
    Reserved,
    #[error("{0}")]
    WeakPassword(String),
    /// Wrong name or password; not said which.
    #[error("invalid user name or password")]
    BadCredentials,
    #[error("the account has been deactivated")]
    Deactivated,
    #[error("the account is locked")]
    Locked,
    #[error("the token is not known")]
    UnknownToken { soft_logout: bool },
    #[error("the login token is not valid")]
    InvalidLoginToken,
    /// What the client must do to be allowed.
    #[error("interactive authentication is not complete")]
    Interactive(Box<UiaaInfo>),
    #[error("there is no such user")]
    UnknownUser,
    #[error("there is no such device")]
    UnknownDevice,
    #[error("{0}")]
    InvalidDevice(&'static str),
    #[error("{0}")]
    InvalidProfile(&'static str),
    #[error("the profile would be larger than 64 KiB")]
    ProfileTooLarge,
    #[error("the name of a profile field has at most 255 bytes")]
    KeyTooLarge,
    #[error("the account data is too large")]
    AccountDataTooLarge,
    #[error("{0}")]
    InvalidFilter(&'static str),
    #[error(transparent)]
    PushRule(PushRuleError),
    #[error("a registration token has 1 to 64 letters, digits, '.', '_', '~' or '-'")]
    InvalidRegistrationToken,
    #[error("there is such a registration token already")]
    RegistrationTokenInUse,
    #[error("user number {} was never given out", .0.0)]
    UnknownNumber(UserNumber),
    #[error("stored account data is not JSON")]
    DamagedAccountData,
    #[error("the costs of passwords are out of range: {0}")]
    PasswordCosts(String),
    #[error("the computation was aborted")]
    Aborted,
}

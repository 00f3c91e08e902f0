//! Other servers: finding them, asking them, hearing from them, and sending them what happens here.
//!
//! What another server answers is data, never our error: [`Error::Remote`] is mapped to an answer for a client on purpose. Rooms know
//! nothing of the network; this part fetches what they say they lack.

mod backfill;
pub mod client;
mod config;
mod device_keys;
mod device_lists;
pub mod discovery;
mod edu;
mod fetch;
pub mod fuzzing;
mod inbox;
mod invite;
mod join;
mod knock;
mod leave;
mod membership;
mod policy;
mod query;
mod receive;
mod resident;
mod resync;
mod sender;
pub mod server_keys;
mod space;
mod third_party;
mod to_device;

use std::{sync::Arc, time::Duration};

use ruma::{OwnedRoomId, OwnedServerName, OwnedUserId, ServerName, api::error::ErrorKind};
use tokio::sync::Semaphore;

use self::{backfill::Backfilling, fetch::Fetching, inbox::Inbox, resync::Resyncing};

pub use self::{
    client::{Client, Limits, Simulated, Transport},
    config::{Config, Mode, ServerPattern},
    device_keys::{ClaimedKeys, FoundKeys, KeyQuery},
    invite::Invitation,
    membership::MembershipError,
    receive::{Answer, MAX_EDUS, MAX_PDUS, Refused, Transaction},
    resident::{Asked, Joined, Template},
    sender::{DestinationState, DestinationStatus},
    server_keys::ServerKeys,
    third_party::BoundInvite,
};
use crate::{
    accounts::{self, Accounts},
    clock::Clock,
    encryption::{self, Encryption},
    ephemeral::{self, Ephemeral},
    events::Signer,
    rooms::{self, Rooms},
    storage::{self, Locks, Store},
    telemetry::Metrics,
};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What went wrong between another server and us.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server answered with an error.
    #[error("{server} answered {status} {}: {message}", .kind.errcode())]
    Remote {
        server: OwnedServerName,
        status: u16,
        /// `ErrorKind::Unknown` where the answer is none of Matrix.
        kind: Box<ErrorKind>,
        message: Box<str>,
        /// How long to wait before asking again, where the server says so.
        retry_after: Option<Duration>,
    },
    /// There is no connection to the server, or it broke.
    #[error("{server} cannot be reached: {source}")]
    Unreachable {
        server: OwnedServerName,
        source: BoxError,
    },
    /// Our own lists, or the mode of the federation, forbid to talk to the server; or it is ourselves.
    #[error("this server does not talk to {0}")]
    Denied(OwnedServerName),
    #[error("the answer of {server} is larger than {limit} bytes")]
    TooLarge {
        server: OwnedServerName,
        limit: usize,
    },
    #[error("{0} did not answer in time")]
    TimedOut(OwnedServerName),
    /// The server answered, and not what the specification says.
    #[error("{server} answered nonsense: {source}")]
    Malformed {
        server: OwnedServerName,
        source: BoxError,
    },
    /// A request of ours cannot be written: it is not JSON as the specification wants it to be signed.
    #[error("the request cannot be written: {0}")]
    Request(BoxError),
    #[error(transparent)]
    Rooms(#[from] rooms::Error),
    #[error(transparent)]
    Accounts(#[from] accounts::Error),
    #[error(transparent)]
    Storage(#[from] storage::Error),
    #[error(transparent)]
    Ephemeral(#[from] ephemeral::Error),
    #[error(transparent)]
    Encryption(#[from] encryption::Error),
}

impl Error {
    /// The server answered, and with this status.
    pub fn is_status(&self, wanted: u16) -> bool {
        matches!(self, Self::Remote { status, .. } if *status == wanted)
    }

    /// The endpoint is not there: 404 or 405 with `M_UNRECOGNIZED`, or without a code at all. What is older is tried next.
    pub fn is_unrecognized(&self) -> bool {
        match self {
            Self::Remote {
                status: 404 | 405,
                kind,
                ..
            } => matches!(**kind, ErrorKind::Unrecognized | ErrorKind::Unknown),
            _ => false,
        }
    }

    /// Whether the same request may succeed later: the server is away, overloaded or broken.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Remote { status, .. } => *status == 429 || *status >= 500,
            Self::Unreachable { .. } | Self::TimedOut(_) => true,
            _ => false,
        }
    }
}

/// What federation is built from.
pub struct Parts<'a> {
    pub store: Store,
    pub clock: Clock,
    pub signer: Arc<Signer>,
    pub accounts: Accounts,
    pub rooms: Rooms,
    pub ephemeral: Ephemeral,
    pub encryption: Encryption,
    pub metrics: &'a Metrics,
}

/// The part of the server that talks to other servers. Cheap to clone; clones share all state.
#[derive(Clone)]
pub struct Federation {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    clock: Clock,
    signer: Arc<Signer>,
    accounts: Accounts,
    rooms: Rooms,
    ephemeral: Ephemeral,
    encryption: Encryption,
    client: Client,
    config: Config,
    keys: ServerKeys,
    answers: query::Answers,
    sender: sender::Sender,
    /// One remote join of a room at a time.
    joins: Locks<OwnedRoomId>,
    joining: Semaphore,
    /// The turns of servers that send transactions.
    origins: Locks<OwnedServerName>,
    inbox: Inbox,
    fetching: Fetching,
    backfilling: Backfilling,
    resyncing: Resyncing,
    /// One fetch of a user's device list at a time.
    key_lists: Locks<OwnedUserId>,
    late_lists: device_lists::LateLists,
}

impl Federation {
    /// Federation on `transport`: the network, or a simulation of it.
    ///
    /// # Errors
    /// The store fails.
    pub fn new(
        parts: Parts<'_>,
        transport: impl Into<Transport>,
        config: Config,
    ) -> Result<Self, Error> {
        let client = Client::new(
            transport.into(),
            Arc::clone(&parts.signer),
            parts.clock.clone(),
            &config,
        );
        let keys = ServerKeys::new(server_keys::Parts {
            store: parts.store.clone(),
            clock: parts.clock.clone(),
            signer: Arc::clone(&parts.signer),
            client: client.clone(),
            notaries: config
                .trusted_key_servers
                .iter()
                .map(|server| server.0.clone())
                .collect(),
        })?;
        let sender = sender::Sender::new(&parts.store, &parts.clock, parts.metrics)?;
        let inbox = Inbox::open(parts.store.clone(), parts.metrics)?;
        let fetching = Fetching::new(parts.clock.clone());
        Ok(Self {
            inner: Arc::new(Inner {
                store: parts.store,
                clock: parts.clock,
                signer: parts.signer,
                accounts: parts.accounts,
                rooms: parts.rooms,
                ephemeral: parts.ephemeral,
                encryption: parts.encryption,
                client,
                config,
                keys,
                answers: query::Answers::default(),
                sender,
                joins: Locks::new(),
                joining: Semaphore::new(join::MAX_JOINING),
                origins: Locks::new(),
                inbox,
                fetching,
                backfilling: Backfilling::default(),
                resyncing: Resyncing::default(),
                key_lists: Locks::new(),
                late_lists: device_lists::LateLists::default(),
            }),
        })
    }

    /// What asks other servers.
    pub fn client(&self) -> &Client {
        &self.inner.client
    }

    /// The keys of this server and of others.
    pub fn keys(&self) -> &ServerKeys {
        &self.inner.keys
    }

    /// Whether we talk to `server`, in both directions: the mode and the lists of the configuration.
    pub fn is_allowed(&self, server: &ServerName) -> bool {
        self.inner.config.allows(server)
    }
}

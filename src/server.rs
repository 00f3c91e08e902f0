//! The server: owns every part and builds them from the foundation up.

mod notices;
mod setup;

use std::{
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use ruma::{OwnedServerName, ServerName};

use crate::{
    accounts::{self, Accounts},
    clock::Clock,
    config::Config,
    encryption::{self, Encryption},
    ephemeral::Ephemeral,
    events::Signer,
    federation::{self, Federation, Transport},
    outbound::{self, Names, Outbound},
    push::Push,
    rooms::{self, Rooms},
    storage::{self, Store},
    sync::{self, Sync},
    tasks::{Stage, Stop, Tasks},
    telemetry::Metrics,
};

pub use self::{
    notices::{Error as NoticeError, Notice, Notices},
    setup::Setup,
};

/// Why the parts of a server could not be built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the folder {path} cannot be made: {source}")]
    Folder {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(transparent)]
    Storage(#[from] storage::Error),
    #[error(transparent)]
    Rooms(#[from] rooms::Error),
    #[error("the server name is not valid: {0}")]
    ServerName(#[from] ruma::IdParseError),
    #[error(transparent)]
    Outbound(#[from] outbound::Error),
    #[error(transparent)]
    Federation(#[from] federation::Error),
    #[error(transparent)]
    Encryption(#[from] encryption::Error),
}

/// Every part of a running server, in the order in which they are built.
pub struct Server {
    pub config: Config,
    pub clock: Clock,
    pub metrics: Metrics,
    pub tasks: Tasks,
    /// Requests that wait for news answer what they have when this is requested.
    pub closing: Stop,
    pub store: Store,
    /// The page on which the first administrator is made.
    pub setup: Setup,
    pub notices: Notices,
    pub accounts: Accounts,
    pub rooms: Rooms,
    pub push: Push,
    pub ephemeral: Ephemeral,
    pub encryption: Encryption,
    pub sync: Sync,
    pub federation: Federation,
}

/// What the parts are built on.
struct Ground {
    clock: Clock,
    metrics: Metrics,
    tasks: Tasks,
    store: Store,
}

/// One thing that a server needs to serve.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    pub name: &'static str,
    pub is_ok: bool,
}

impl Server {
    /// Opens the database of `config`, which is made if there is none, and builds all parts on it.
    ///
    /// # Errors
    /// The database cannot be opened: it is in use, of another server, or of a newer version.
    pub async fn open(config: Config, clock: Clock) -> Result<Arc<Self>, Error> {
        let folder = &config.server.data_dir;
        create_private(folder).map_err(|source| Error::Folder {
            path: folder.clone(),
            source,
        })?;
        let store = Store::open(&config.database, &folder.join("database"), clock.clone())?;
        Self::build(config, clock, store).await
    }

    /// Builds all parts on `store`, and on the network.
    ///
    /// # Errors
    /// A part cannot be built.
    pub async fn build(config: Config, clock: Clock, store: Store) -> Result<Arc<Self>, Error> {
        let metrics = Metrics::new();
        let tasks = Tasks::new(&metrics);
        let outbound = Outbound::new(
            config.net.clone(),
            clock.clone(),
            tasks.clone(),
            Names::system()?,
            &metrics,
        )?;
        let ground = Ground {
            clock,
            metrics,
            tasks,
            store,
        };
        Self::build_on(config, ground, outbound.into()).await
    }

    /// Builds all parts on `store`; what is sent to other servers goes to `simulated`, and no connection is opened.
    ///
    /// # Errors
    /// A part cannot be built.
    pub async fn build_simulated(
        config: Config,
        clock: Clock,
        store: Store,
        simulated: federation::Simulated,
    ) -> Result<Arc<Self>, Error> {
        let metrics = Metrics::new();
        let tasks = Tasks::new(&metrics);
        let ground = Ground {
            clock,
            metrics,
            tasks,
            store,
        };
        Self::build_on(config, ground, simulated.into()).await
    }

    async fn build_on(
        config: Config,
        ground: Ground,
        transport: Transport,
    ) -> Result<Arc<Self>, Error> {
        let Ground {
            clock,
            metrics,
            tasks,
            store,
        } = ground;
        store.claim_server_name(config.server_name()).await?;
        store.register_metrics(&metrics);
        let closing = tasks.stop_signal(Stage::Requests);
        let server_name = ServerName::parse(config.server_name())?;
        let signer = rooms::identity::signer(&store, &clock, server_name.clone()).await?;
        let accounts = new_accounts(&config, &store, &clock, server_name, &metrics);
        let rooms = open_rooms(&config, &store, &clock, (&signer, &accounts)).await?;
        let ephemeral = Ephemeral::new(
            store.clone(),
            clock.clone(),
            accounts.clone(),
            rooms.clone(),
            config.presence.clone(),
        );
        start_ephemeral(&tasks, &ephemeral);
        let encryption = Encryption::new(
            store.clone(),
            clock.clone(),
            accounts.clone(),
            rooms.clone(),
        )?;
        let sync = Sync::new(
            store.clone(),
            clock.clone(),
            sync::Parts {
                accounts: accounts.clone(),
                rooms: rooms.clone(),
                ephemeral: ephemeral.clone(),
                encryption: encryption.clone(),
            },
            closing.clone(),
            &metrics,
        );
        let parts = federation::Parts {
            store: store.clone(),
            clock: clock.clone(),
            signer,
            accounts: accounts.clone(),
            rooms: rooms.clone(),
            ephemeral: ephemeral.clone(),
            encryption: encryption.clone(),
            metrics: &metrics,
        };
        let federation = Federation::new(parts, transport, config.federation.clone())?;
        Ok(Arc::new(Self {
            push: Push::new(store.clone(), accounts.clone()),
            setup: Setup::new(&clock),
            notices: Notices::default(),
            config,
            clock,
            metrics,
            tasks,
            closing,
            store,
            accounts,
            rooms,
            ephemeral,
            encryption,
            sync,
            federation,
        }))
    }

    /// What the server needs to serve, each looked at now.
    pub async fn checks(&self) -> Vec<Check> {
        let can_read = self
            .store
            .read(|_snapshot| Ok::<_, storage::Error>(()))
            .await
            .is_ok();
        vec![
            Check {
                name: "database",
                is_ok: can_read,
            },
            Check {
                name: "running",
                is_ok: !self.closing.is_requested(),
            },
        ]
    }

    /// Ends what has to end last. Nothing uses the server any more.
    ///
    /// # Errors
    /// The store cannot be closed in good order; what was answered is durable all the same.
    pub async fn close(&self) -> Result<(), Error> {
        let store = self.store.clone();
        match tokio::task::spawn_blocking(move || store.close()).await {
            Ok(closed) => Ok(closed?),
            Err(_panicked) => Err(storage::Error::Closed.into()),
        }
    }
}

/// The rooms of a store, looked through if the last process did not end in good order.
async fn open_rooms(
    config: &Config,
    store: &Store,
    clock: &Clock,
    (signer, accounts): (&Arc<Signer>, &Accounts),
) -> Result<Rooms, Error> {
    let rooms = Rooms::new(
        store.clone(),
        clock.clone(),
        Arc::clone(signer),
        accounts.clone(),
        config.rooms.clone(),
    )?;
    if !store.was_clean() {
        check_recent(&rooms).await?;
    }
    Ok(rooms)
}

/// After a crash: what was written last must hang together. What does not is for people to look at.
async fn check_recent(rooms: &Rooms) -> Result<(), Error> {
    for found in rooms.verify_recent().await? {
        tracing::error!(%found, "the database contradicts itself; run `hearth db check`");
    }
    Ok(())
}

fn new_accounts(
    config: &Config,
    store: &Store,
    clock: &Clock,
    server_name: OwnedServerName,
    metrics: &Metrics,
) -> Accounts {
    let mut registration = config.registration.clone();
    registration
        .reserved_names
        .push(config.notices.from.clone());
    let settings = accounts::Settings {
        accounts: config.accounts.clone(),
        registration,
    };
    Accounts::new(store.clone(), clock.clone(), server_name, settings, metrics)
}

fn start_ephemeral(tasks: &Tasks, ephemeral: &Ephemeral) {
    let ephemeral = ephemeral.clone();
    tasks.start("ephemeral", Stage::Followers, move |stop| {
        let ephemeral = ephemeral.clone();
        async move { ephemeral.run(stop).await }
    });
}

/// A folder that only the owner of this process looks into. One that exists stays as it is.
fn create_private(folder: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
}

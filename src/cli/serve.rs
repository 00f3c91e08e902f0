//! `hearth serve`: the server itself, until somebody stops it.

use std::collections::BTreeMap;

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Exit, Global, descriptors, output::print_error};
use crate::{
    accounts::RegistrationMode,
    admin,
    clock::Clock,
    config::{Config, Loaded, Sources, sections::Resource},
    run::{self, Running},
    server::Server,
    telemetry,
};

#[derive(Debug, Default, Args)]
pub(super) struct Options {
    /// For developers: without a configuration, serves `localhost` on 127.0.0.1:8008 with open registration.
    #[arg(long)]
    dev: bool,
}

/// The first administrator of an unattended installation; looked at only while there is no account.
const ADMIN_USER: &str = "HEARTH_ADMIN_USER";
const ADMIN_PASSWORD_FILE: &str = "HEARTH_ADMIN_PASSWORD_FILE";

const NO_CONFIGURATION: &str = "\
There is no configuration. Hearth needs at least the name of the server, which cannot be changed later:

    hearth -o server.name=example.org -o server.data_dir=/var/lib/hearth

or HEARTH__SERVER__NAME and HEARTH__SERVER__DATA_DIR in the environment, or a file: `hearth config default` prints one, and
it is looked for in $HEARTH_CONFIG, /etc/hearth/hearth.toml and ./hearth.toml. To try things out: hearth serve --dev
";

/// What `--dev` sets; everything else wins over it.
const DEV: [&str; 11] = [
    "server.name=localhost",
    "server.base_url=http://127.0.0.1:8008",
    "server.data_dir=target/run",
    "listeners=[{ bind = \"127.0.0.1:8008\", resources = [\"client\", \"web\", \"health\", \"metrics\"] }]",
    "registration.mode=open",
    "registration.i_accept_open_registration=true",
    "log.format=pretty",
    "limits.shutdown_grace=2s",
    "rate_limits.login=\"off\"",
    "rate_limits.registration=\"off\"",
    "rate_limits.message=\"off\"",
];

pub(super) fn run(global: &Global, options: &Options) -> Exit {
    let mut sources = global.sources();
    if options.dev {
        sources = with_dev_defaults(sources);
    } else if sources.is_empty() {
        print_error(NO_CONFIGURATION);
        return Exit::BadConfiguration;
    }
    let config = match global.load(&sources) {
        Ok(Loaded { config, .. }) => config,
        Err(exit) => return exit,
    };
    if let Err(error) = telemetry::start_logging(&config.log) {
        print_error(&format!("log.filter: {error}\n"));
        return Exit::BadConfiguration;
    }
    if let Some(limit) = descriptors::raise_limit() {
        tracing::debug!(limit, "files that may be open");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            print_error(&format!("The runtime cannot be started: {error}\n"));
            return Exit::Failed;
        }
    };
    runtime.block_on(serve(config, &sources.environment))
}

/// Developers' settings come before those given, so that the ones given win.
fn with_dev_defaults(sources: Sources) -> Sources {
    let mut overrides: Vec<String> = DEV.map(str::to_owned).to_vec();
    overrides.extend(sources.overrides);
    Sources {
        overrides,
        ..sources
    }
}

async fn serve(config: Config, environment: &BTreeMap<String, String>) -> Exit {
    // Before anybody can know that the server runs.
    let mut signals = match Signals::catch() {
        Ok(signals) => signals,
        Err(error) => {
            print_error(&format!("Signals cannot be waited for: {error}\n"));
            return Exit::Failed;
        }
    };
    let started = async {
        let server = Server::open(config, Clock::system()).await?;
        let first_account = first_account(&server, environment).await?;
        let running = run::start(server)?;
        Ok::<_, Box<dyn std::error::Error>>((running, first_account))
    };
    let running = match started.await {
        Ok((running, first_account)) => {
            greet(&running, &first_account);
            running
        }
        Err(error) => {
            print_error(&format!("The server did not start: {error}\n"));
            return Exit::Failed;
        }
    };
    signals.next().await;
    tracing::info!("stopping");
    tokio::select! {
        () = running.stop() => Exit::Done,
        () = signals.next() => Exit::Failed,
    }
}

/// How the first administrator comes to be.
enum FirstAccount {
    /// There are accounts.
    Exists,
    /// Made now, as the environment says.
    Made(String),
    /// To be made on the setup page by whoever has this token.
    Page(String),
}

/// Makes the first administrator if the environment names one and there is no account; opens the setup page otherwise.
async fn first_account(
    server: &Server,
    environment: &BTreeMap<String, String>,
) -> Result<FirstAccount, Box<dyn std::error::Error>> {
    if !admin::is_empty(server).await? {
        return Ok(FirstAccount::Exists);
    }
    let (Some(name), Some(path)) = (
        environment.get(ADMIN_USER),
        environment.get(ADMIN_PASSWORD_FILE),
    ) else {
        return Ok(FirstAccount::Page(server.setup.open().to_owned()));
    };
    let password = std::fs::read_to_string(path)
        .map_err(|error| format!("{ADMIN_PASSWORD_FILE}: {path}: {error}"))?;
    let password = password.trim_end_matches(['\r', '\n']);
    admin::create_first_admin(server, name, password)
        .await
        .map_err(|error| format!("{ADMIN_USER}: {error}"))?;
    Ok(FirstAccount::Made(name.clone()))
}

fn greet(running: &Running, first_account: &FirstAccount) {
    let config = &running.server.config;
    for address in &running.addresses {
        tracing::info!(%address, server_name = config.server_name(), version = env!("CARGO_PKG_VERSION"), "serving");
    }
    match first_account {
        FirstAccount::Exists => {}
        FirstAccount::Made(name) => tracing::info!(name, "the first administrator was made"),
        FirstAccount::Page(token) => print_error(&format!(
            "\nThere is no account yet. Make the first administrator at\n\n    {}/setup?token={token}\n\n\
             or with: hearth user create --admin NAME\n\n",
            setup_base(running)
        )),
    }
    if config.registration.mode == RegistrationMode::Open {
        print_error(&format!(
            "Registration is open: any Matrix client can make an account on the homeserver {}\n\n",
            config.base_url()
        ));
    }
}

/// Where the setup page is reached: a plain loopback listener if there is one, the public address otherwise.
fn setup_base(running: &Running) -> String {
    let config = &running.server.config;
    let local = config
        .listeners
        .iter()
        .zip(&running.addresses)
        .find(|(listener, address)| {
            !listener.tls
                && listener.resources.contains(&Resource::Web)
                && address.ip().is_loopback()
        });
    match local {
        Some((_, address)) => format!("http://{address}"),
        None => config.base_url(),
    }
}

/// What tells the server to stop.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From here on a signal no longer ends the process by itself.
    fn catch() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _signal = self.terminate.recv() => {}
            _signal = self.interrupt.recv() => {}
        }
    }
}

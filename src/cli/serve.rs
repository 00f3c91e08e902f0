//! `hearth serve`: the server itself, until somebody stops it.

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::{Exit, Global, output::print_error};
use crate::{
    clock::Clock,
    config::{Config, Loaded, Sources},
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
    runtime.block_on(serve(config))
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

async fn serve(config: Config) -> Exit {
    let started = async {
        let server = Server::open(config, Clock::system()).await?;
        Ok::<_, Box<dyn std::error::Error>>(run::start(server).await?)
    };
    let running = match started.await {
        Ok(running) => running,
        Err(error) => {
            tracing::error!(%error, "the server did not start");
            print_error(&format!("The server did not start: {error}\n"));
            return Exit::Failed;
        }
    };
    greet(&running);
    if let Err(error) = wait_for_signal().await {
        tracing::error!(%error, "signals cannot be waited for");
        return Exit::Failed;
    }
    tracing::info!("stopping");
    tokio::select! {
        () = running.stop() => Exit::Done,
        _again = wait_for_signal() => Exit::Failed,
    }
}

fn greet(running: &Running) {
    let name = running.server.config.server_name();
    for address in &running.addresses {
        tracing::info!(%address, server_name = name, version = env!("CARGO_PKG_VERSION"), "serving");
    }
}

async fn wait_for_signal() -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _signal = terminate.recv() => {}
        _signal = interrupt.recv() => {}
    }
    Ok(())
}

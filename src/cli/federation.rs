//! `hearth federation`: other servers.

use clap::Subcommand;

use super::{Exit, Global, administer::administer};
use crate::admin::{self, FederationCommand};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Shows how a server is found: delegation, machines, the certificate it must have.
    Show {
        /// Its name.
        server: String,
    },
    /// Asks a server for its version.
    Ping {
        /// Its name.
        server: String,
    },
    /// Lists the servers that have not got everything, and when they are tried again.
    Status,
    /// Tries a server again at once that could not be reached.
    Retry {
        /// Its name; all that are waited for if absent.
        server: Option<String>,
    },
}

pub(super) fn run(global: &Global, command: Command) -> Exit {
    let command = match command {
        Command::Show { server } => FederationCommand::Show { server },
        Command::Ping { server } => FederationCommand::Ping { server },
        Command::Status => FederationCommand::Status,
        Command::Retry { server } => FederationCommand::Retry { server },
    };
    administer(global, &admin::Command::Federation(command))
}

//! `hearth db`: the database.

use clap::Subcommand;

use super::{Exit, Global, administer::administer};
use crate::admin::{self, DatabaseCommand};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Tells how large it is and what it does.
    Stats,
    /// Looks for what cannot be: broken files, and rows that contradict each other.
    Check,
    /// Rewrites the files without what was deleted. Takes minutes if the database is large.
    Compact,
}

pub(super) fn run(global: &Global, command: &Command) -> Exit {
    let command = match command {
        Command::Stats => DatabaseCommand::Stats,
        Command::Check => DatabaseCommand::Check,
        Command::Compact => DatabaseCommand::Compact,
    };
    administer(global, &admin::Command::Database(command))
}

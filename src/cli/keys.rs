//! `hearth keys`: the keys that sign what this server sends.

use clap::Subcommand;

use super::{Exit, Global, administer::administer};
use crate::admin::{self, KeysCommand};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Tells the key in use, the one that follows, and those of earlier times.
    Show,
    /// Makes a new key, which is used from the next start on. Other servers still check with the old one what it signed.
    Rotate,
}

pub(super) fn run(global: &Global, command: &Command) -> Exit {
    let command = match command {
        Command::Show => KeysCommand::Show,
        Command::Rotate => KeysCommand::Rotate,
    };
    administer(global, &admin::Command::Keys(command))
}

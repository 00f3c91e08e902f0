//! `hearth token`: registration tokens.

use clap::{Args, Subcommand};

use super::{Exit, Global, administer::administer};
use crate::{
    admin::{self, TokenCommand},
    units::Period,
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Makes a token with which people register.
    Create(Create),
    /// Lists all tokens.
    List,
    /// Takes a token away.
    Revoke {
        /// The token.
        token: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct Create {
    /// The token; a random one if absent.
    token: Option<String>,
    /// How many may register with it; any number if absent.
    #[arg(long)]
    uses: Option<u64>,
    /// How long it is good, such as `7d`; for ever if absent.
    #[arg(long)]
    expires: Option<Period>,
}

pub(super) fn run(global: &Global, command: Command) -> Exit {
    let command = match command {
        Command::Create(Create {
            token,
            uses,
            expires,
        }) => {
            let lifetime_ms = expires
                .map(|Period(lifetime)| u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX));
            TokenCommand::Create {
                token,
                uses,
                lifetime_ms,
            }
        }
        Command::List => TokenCommand::List,
        Command::Revoke { token } => TokenCommand::Revoke { token },
    };
    administer(global, &admin::Command::Token(command))
}

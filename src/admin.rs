//! What administrators do, the same from the command line, with or without a running server.
//!
//! A [`Command`] is data: the command line sends it to the admin socket, or runs it itself on a server it opened. There is
//! one function per command, in the file of its noun.

mod database;
mod federation;
mod keys;
mod tokens;
mod users;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::{
    database::DatabaseCommand,
    federation::FederationCommand,
    keys::KeysCommand,
    tokens::TokenCommand,
    users::{Change, UserCommand},
};
use crate::{accounts, rooms, server::Server, storage};

/// Something to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    User(UserCommand),
    Token(TokenCommand),
    Database(DatabaseCommand),
    Federation(FederationCommand),
    Keys(KeysCommand),
}

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there is no {0}")]
    NotFound(String),
    /// It contradicts what there is, or a rule.
    #[error("{0}")]
    Refused(String),
    /// It was looked for problems, and there are some.
    #[error("{}", .0.join("\n"))]
    Problems(Vec<String>),
    #[error(transparent)]
    Failed(Box<dyn std::error::Error + Send + Sync>),
}

impl From<storage::Error> for Error {
    fn from(error: storage::Error) -> Self {
        Self::Failed(error.into())
    }
}

impl From<rooms::Error> for Error {
    fn from(error: rooms::Error) -> Self {
        Self::Failed(error.into())
    }
}

impl From<accounts::Error> for Error {
    fn from(error: accounts::Error) -> Self {
        match error {
            accounts::Error::UnknownUser => Self::NotFound("such user".to_owned()),
            accounts::Error::Storage(error) => error.into(),
            error => Self::Refused(error.to_string()),
        }
    }
}

/// Does what `command` says. The answer is an object, or a list of objects.
///
/// # Errors
/// See [`Error`].
pub async fn run(server: &Server, command: Command) -> Result<Value, Error> {
    match command {
        Command::User(command) => users::run(server, command).await,
        Command::Token(command) => tokens::run(server, command).await,
        Command::Database(command) => database::run(server, command).await,
        Command::Federation(command) => federation::run(server, command).await,
        Command::Keys(command) => keys::run(server, command).await,
    }
}

/// Makes the first administrator, if there is no account at all.
///
/// # Errors
/// There are accounts, or the name or the password is not allowed.
pub async fn create_first_admin(
    server: &Server,
    name: &str,
    password: &str,
) -> Result<Value, Error> {
    // Two who try at the same moment: the second finds an account.
    let _turn = server.setup.turn().await;
    if !users::is_first(server).await? {
        return Err(Error::Refused("there is an account already".to_owned()));
    }
    let made = users::create(server, name, Some(password.to_owned()), users::Role::Admin).await?;
    server.setup.close();
    Ok(made)
}

/// Whether there is no account yet.
///
/// # Errors
/// The store cannot be read.
pub async fn is_empty(server: &Server) -> Result<bool, Error> {
    users::is_first(server).await
}

//! `hearth user`: accounts. Works with and without a running server, so that who is locked out gets in again.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{
    Exit, Global,
    administer::{administer, is_confirmed, read_secret},
};
use crate::admin::{self, Change, UserCommand};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Makes an account. Without a password file it gets a password, which is printed.
    Create(Create),
    /// Lists all accounts.
    List,
    /// Shows one account.
    Show(User),
    /// Sets a password and signs the user out everywhere. Without a file a password is made and printed.
    SetPassword(SetPassword),
    /// Makes the user an administrator.
    Promote(User),
    /// Takes the rights of an administrator away.
    Demote(User),
    /// Keeps the user out until unlocked.
    Lock(User),
    /// Lets a locked user in again.
    Unlock(User),
    /// Lets the user read and leave, and nothing more.
    Suspend(User),
    /// Lifts a suspension.
    Unsuspend(User),
    /// Ends the account for good: nobody can have its name again.
    Deactivate(Deactivate),
    /// Lists the devices that are signed in.
    Sessions(User),
    /// Signs the user out everywhere.
    Logout(User),
}

#[derive(Debug, Args)]
pub(super) struct User {
    /// A user ID, or its part before the colon.
    user: String,
}

#[derive(Debug, Args)]
pub(super) struct Create {
    user: String,
    /// The user administers the server.
    #[arg(long)]
    admin: bool,
    /// A file with the password; `-` for standard input.
    #[arg(long, value_name = "PATH")]
    password_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct SetPassword {
    user: String,
    /// A file with the password; `-` for standard input.
    #[arg(long, value_name = "PATH")]
    password_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Deactivate {
    user: String,
    /// Also hides what the user wrote from those who join later.
    #[arg(long)]
    erase: bool,
}

pub(super) fn run(global: &Global, command: Command) -> Exit {
    if let Command::Deactivate(Deactivate { user, .. }) = &command
        && !is_confirmed(
            global,
            &format!("{user} will be deactivated; this cannot be undone."),
        )
    {
        return Exit::Refused;
    }
    match translate(command) {
        Ok(command) => administer(global, &admin::Command::User(command)),
        Err(exit) => exit,
    }
}

fn translate(command: Command) -> Result<UserCommand, Exit> {
    let change = |User { user }, change| UserCommand::Change { user, change };
    let password = |file: Option<PathBuf>| file.as_deref().map(read_secret).transpose();
    Ok(match command {
        Command::Create(Create {
            user,
            admin,
            password_file,
        }) => UserCommand::Create {
            user,
            password: password(password_file)?,
            admin,
        },
        Command::List => UserCommand::List,
        Command::Show(User { user }) => UserCommand::Show { user },
        Command::SetPassword(SetPassword {
            user,
            password_file,
        }) => UserCommand::SetPassword {
            user,
            password: password(password_file)?,
        },
        Command::Promote(user) => change(user, Change::Promote),
        Command::Demote(user) => change(user, Change::Demote),
        Command::Lock(user) => change(user, Change::Lock),
        Command::Unlock(user) => change(user, Change::Unlock),
        Command::Suspend(user) => change(user, Change::Suspend),
        Command::Unsuspend(user) => change(user, Change::Unsuspend),
        Command::Deactivate(Deactivate { user, erase }) => UserCommand::Deactivate { user, erase },
        Command::Sessions(User { user }) => UserCommand::Sessions { user },
        Command::Logout(User { user }) => UserCommand::Logout { user },
    })
}

//! Accounts as administrators see them.

use ruma::{OwnedUserId, UserId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Error;
use crate::{
    accounts::{self, AccountChange, AccountInfo, Erase, LocalUser, NewUser, UserNumber},
    server::Server,
    storage::{Batch, Snapshot},
};

/// Letters and digits of a password that nobody chose: 95 bits.
const GENERATED_PASSWORD_CHARS: usize = 16;
/// Accounts in one answer.
const MAX_LISTED: usize = 10_000;

/// What can be done with accounts. `user` is a user ID or its part before the colon.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UserCommand {
    /// Without a password one is made and printed.
    Create {
        user: String,
        password: Option<String>,
        admin: bool,
    },
    List,
    Show {
        user: String,
    },
    SetPassword {
        user: String,
        password: Option<String>,
    },
    Change {
        user: String,
        change: Change,
    },
    Deactivate {
        user: String,
        erase: bool,
    },
    Sessions {
        user: String,
    },
    Logout {
        user: String,
    },
}

/// A change of what an account may do.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    Promote,
    Demote,
    Lock,
    Unlock,
    Suspend,
    Unsuspend,
}

/// What a new account may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Admin,
    User,
}

pub(super) async fn run(server: &Server, command: UserCommand) -> Result<Value, Error> {
    match command {
        UserCommand::Create {
            user,
            password,
            admin,
        } => {
            let role = if admin { Role::Admin } else { Role::User };
            create(server, &user, password, role).await
        }
        UserCommand::List => list(server).await,
        UserCommand::Show { user } => Ok(account_json(&find(server, &user).await?)),
        UserCommand::SetPassword { user, password } => set_password(server, &user, password).await,
        UserCommand::Change { user, change } => change_account(server, &user, change).await,
        UserCommand::Deactivate { user, erase } => {
            let account = find(server, &user).await?;
            let erase = if erase { Erase::Yes } else { Erase::No };
            server.accounts.deactivate(account.number, erase).await?;
            Ok(json!({ "user": account.user, "deactivated": true }))
        }
        UserCommand::Sessions { user } => sessions(server, &user).await,
        UserCommand::Logout { user } => {
            let account = find(server, &user).await?;
            server.accounts.log_out_all(account.number, None).await?;
            Ok(json!({ "user": account.user, "signed_out": true }))
        }
    }
}

pub(super) async fn is_first(server: &Server) -> Result<bool, Error> {
    let accounts = server.accounts.clone();
    Ok(server
        .store
        .read(move |snapshot| accounts.is_empty(snapshot))
        .await?)
}

pub(super) async fn create(
    server: &Server,
    user: &str,
    password: Option<String>,
    role: Role,
) -> Result<Value, Error> {
    let localpart = localpart(server, user)?;
    let (password, generated) = or_generated(server, password);
    let new = NewUser {
        localpart: Some(localpart),
        password: Some(password),
        is_admin: role == Role::Admin,
        ..NewUser::default()
    };
    let (made, _no_session) = server.accounts.create_user(new, None, Batch::new()).await?;
    tracing::info!(user = %made.id, admin = role == Role::Admin, "account made by an administrator");
    let mut answer = json!({ "user": made.id, "admin": role == Role::Admin });
    if let (Some(password), Value::Object(fields)) = (generated, &mut answer) {
        fields.insert("password".to_owned(), password.into());
    }
    Ok(answer)
}

async fn list(server: &Server) -> Result<Value, Error> {
    let accounts = server.accounts.clone();
    let all = server
        .store
        .read(move |snapshot| accounts.accounts(snapshot, UserNumber(0), MAX_LISTED))
        .await?;
    Ok(all.iter().map(account_json).collect())
}

async fn set_password(
    server: &Server,
    user: &str,
    password: Option<String>,
) -> Result<Value, Error> {
    let account = find(server, user).await?;
    if account.is_deactivated {
        return Err(Error::Refused(format!("{} is deactivated", account.user)));
    }
    let (password, generated) = or_generated(server, password);
    let local = LocalUser {
        id: account.user.clone(),
        number: account.number,
    };
    server.accounts.set_password(&local, &password).await?;
    let mut answer = json!({ "user": account.user, "changed": true });
    if let (Some(password), Value::Object(fields)) = (generated, &mut answer) {
        fields.insert("password".to_owned(), password.into());
    }
    Ok(answer)
}

async fn change_account(server: &Server, user: &str, change: Change) -> Result<Value, Error> {
    let account = find(server, user).await?;
    let change = match change {
        Change::Promote => AccountChange::Admin(true),
        Change::Demote => AccountChange::Admin(false),
        Change::Lock => AccountChange::Locked(true),
        Change::Unlock => AccountChange::Locked(false),
        Change::Suspend => AccountChange::Suspended(true),
        Change::Unsuspend => AccountChange::Suspended(false),
    };
    server.accounts.change(account.number, change).await?;
    Ok(account_json(&find(server, user).await?))
}

async fn sessions(server: &Server, user: &str) -> Result<Value, Error> {
    let account = find(server, user).await?;
    let accounts = server.accounts.clone();
    let devices = server
        .store
        .read(move |snapshot| accounts.devices(snapshot, account.number))
        .await?;
    let row = |device: &accounts::DeviceInfo| {
        json!({
            "device": device.id,
            "name": device.display_name,
            "last_seen_ms": device.last_seen_ms,
            "last_seen_address": device.last_seen_ip,
        })
    };
    Ok(devices.iter().map(row).collect())
}

async fn find(server: &Server, user: &str) -> Result<AccountInfo, Error> {
    let id = user_id(server, user)?;
    let (accounts, wanted) = (server.accounts.clone(), id.clone());
    let found = server
        .store
        .read(move |snapshot: &Snapshot| accounts.account_info(snapshot, &wanted))
        .await?;
    found.ok_or_else(|| Error::NotFound(format!("user {id}")))
}

fn user_id(server: &Server, user: &str) -> Result<OwnedUserId, Error> {
    let full = format!(
        "@{}:{}",
        localpart(server, user)?,
        server.config.server_name()
    );
    UserId::parse(&full).map_err(|error| Error::Refused(format!("{full}: {error}")))
}

/// `alice`, `@alice` and `@alice:example.org` are the same on example.org.
fn localpart(server: &Server, user: &str) -> Result<String, Error> {
    let name = user.strip_prefix('@').unwrap_or(user);
    match name.split_once(':') {
        None => Ok(name.to_owned()),
        Some((name, host)) if host == server.config.server_name() => Ok(name.to_owned()),
        Some((_, host)) => Err(Error::Refused(format!("{host} is not this server"))),
    }
}

fn or_generated(server: &Server, password: Option<String>) -> (String, Option<String>) {
    match password {
        Some(password) => (password, None),
        None => {
            let made = server.clock.random_string(GENERATED_PASSWORD_CHARS);
            (made.clone(), Some(made))
        }
    }
}

fn account_json(account: &AccountInfo) -> Value {
    json!({
        "user": account.user,
        "admin": account.is_admin,
        "deactivated": account.is_deactivated,
        "erased": account.is_erased,
        "locked": account.is_locked,
        "suspended": account.is_suspended,
        "has_password": account.has_password,
        "created_ms": account.created_ms,
    })
}

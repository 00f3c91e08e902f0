//! What administrators do through their client: look at accounts, lock and suspend them.
//!
//! Spec: c2s, "Server Administration".

use std::sync::Arc;

use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedUserId, UInt,
    api::client::admin::{
        get_user_info::{self, v3::ConnectionInfo, v3::DeviceInfo, v3::SessionInfo},
        is_user_locked, is_user_suspended, lock_user, suspend_user,
    },
};

use crate::{
    accounts::{AccountChange, AccountInfo, Session},
    api::{error::Error, routes::Routes},
    server::Server,
};

pub(super) fn routes() -> Routes {
    Routes::default()
        .endpoint(get_user_info)
        .endpoint(is_user_locked)
        .endpoint(lock_user)
        .endpoint(is_user_suspended)
        .endpoint(suspend_user)
}

async fn get_user_info(
    server: Arc<Server>,
    session: Arc<Session>,
    request: get_user_info::v3::Request,
) -> Result<get_user_info::v3::Response, Error> {
    if session.user != request.user_id {
        require_admin(&session)?;
    }
    let account = find(&server, request.user_id).await?;
    let (accounts, user) = (server.accounts.clone(), account.number);
    let devices = server
        .store
        .read(move |snapshot| accounts.devices(snapshot, user))
        .await?;
    let mut response = get_user_info::v3::Response::new();
    response.user_id = Some(account.user);
    for device in devices {
        let mut connection = ConnectionInfo::new();
        connection.ip = device.last_seen_ip;
        let seen = device.last_seen_ms.and_then(|ms| UInt::try_from(ms).ok());
        connection.last_seen = seen.map(MilliSecondsSinceUnixEpoch);
        let mut session = SessionInfo::new();
        session.connections.push(connection);
        let mut info = DeviceInfo::new();
        info.sessions.push(session);
        response.devices.insert(device.id.to_string(), info);
    }
    Ok(response)
}

async fn is_user_locked(
    server: Arc<Server>,
    session: Arc<Session>,
    request: is_user_locked::v1::Request,
) -> Result<is_user_locked::v1::Response, Error> {
    require_admin(&session)?;
    let account = find(&server, request.user_id).await?;
    Ok(is_user_locked::v1::Response::new(account.is_locked))
}

async fn lock_user(
    server: Arc<Server>,
    session: Arc<Session>,
    request: lock_user::v1::Request,
) -> Result<lock_user::v1::Response, Error> {
    let change = AccountChange::Locked(request.locked);
    moderate(&server, &session, request.user_id, change).await?;
    Ok(lock_user::v1::Response::new(request.locked))
}

async fn is_user_suspended(
    server: Arc<Server>,
    session: Arc<Session>,
    request: is_user_suspended::v1::Request,
) -> Result<is_user_suspended::v1::Response, Error> {
    require_admin(&session)?;
    let account = find(&server, request.user_id).await?;
    Ok(is_user_suspended::v1::Response::new(account.is_suspended))
}

async fn suspend_user(
    server: Arc<Server>,
    session: Arc<Session>,
    request: suspend_user::v1::Request,
) -> Result<suspend_user::v1::Response, Error> {
    let change = AccountChange::Suspended(request.suspended);
    moderate(&server, &session, request.user_id, change).await?;
    Ok(suspend_user::v1::Response::new(request.suspended))
}

/// Changes what an account may do; not one's own, and not that of another administrator.
async fn moderate(
    server: &Server,
    session: &Session,
    user: OwnedUserId,
    change: AccountChange,
) -> Result<(), Error> {
    require_admin(session)?;
    let account = find(server, user).await?;
    if account.is_admin || account.number == session.user_number {
        return Err(Error::forbidden(
            "Administrators cannot be locked or suspended",
        ));
    }
    Ok(server.accounts.change(account.number, change).await?)
}

fn require_admin(session: &Session) -> Result<(), Error> {
    match session.is_admin {
        true => Ok(()),
        false => Err(Error::forbidden("This is for administrators")),
    }
}

/// The account of a user of this server that has not ended.
async fn find(server: &Server, user: OwnedUserId) -> Result<AccountInfo, Error> {
    if !server.accounts.is_local(&user) {
        return Err(Error::invalid_param("This is a user of another server"));
    }
    let accounts = server.accounts.clone();
    let found = server
        .store
        .read(move |snapshot| accounts.account_info(snapshot, &user))
        .await?;
    found
        .filter(|account| !account.is_deactivated)
        .ok_or_else(|| Error::not_found("There is no such user"))
}

//! Account data.
//!
//! Spec: c2s, "Client Config".

use std::sync::Arc;

use http::StatusCode;
use ruma::api::{
    client::config::{
        get_global_account_data, get_room_account_data, set_global_account_data,
        set_room_account_data,
    },
    error::ErrorCode,
};
use serde_json::value::RawValue;

use crate::{
    accounts::{GLOBAL, PUSH_RULES, Session, UserNumber},
    api::{
        error::Error,
        routes::{RawJson, Routes},
    },
    server::Server,
};

/// What the server writes itself: it has endpoints of its own.
const FULLY_READ: &str = "m.fully_read";

pub(super) fn routes() -> Routes {
    Routes::default()
        .endpoint(get_global_account_data)
        .endpoint(set_global_account_data)
        .endpoint(get_room_account_data)
        .endpoint(set_room_account_data)
}

async fn get_global_account_data(
    server: Arc<Server>,
    session: Arc<Session>,
    request: get_global_account_data::v3::Request,
) -> Result<RawJson, Error> {
    super::require_self(&session, &request.user_id)?;
    let event_type = request.event_type.to_string();
    match event_type.as_str() {
        PUSH_RULES => {
            let (accounts, user) = (server.accounts.clone(), session.user_number);
            let content = server
                .store
                .read(move |snapshot| accounts.push_rules_content(snapshot, user))
                .await?;
            Ok(raw(&content))
        }
        _ => get(&server, session.user_number, GLOBAL, event_type).await,
    }
}

async fn set_global_account_data(
    server: Arc<Server>,
    session: Arc<Session>,
    request: set_global_account_data::v3::Request,
) -> Result<set_global_account_data::v3::Response, Error> {
    super::require_self(&session, &request.user_id)?;
    let event_type = request.event_type.to_string();
    check_writable(&event_type)?;
    let content = request.data.into_json();
    server
        .accounts
        .set_account_data(session.user_number, GLOBAL, &event_type, &content)
        .await?;
    Ok(set_global_account_data::v3::Response::new())
}

async fn get_room_account_data(
    server: Arc<Server>,
    session: Arc<Session>,
    request: get_room_account_data::v3::Request,
) -> Result<RawJson, Error> {
    super::require_self(&session, &request.user_id)?;
    let room = super::room_number(&server, &request.room_id)?;
    get(
        &server,
        session.user_number,
        room.0,
        request.event_type.to_string(),
    )
    .await
}

async fn set_room_account_data(
    server: Arc<Server>,
    session: Arc<Session>,
    request: set_room_account_data::v3::Request,
) -> Result<set_room_account_data::v3::Response, Error> {
    super::require_self(&session, &request.user_id)?;
    let event_type = request.event_type.to_string();
    check_writable(&event_type)?;
    let room = super::room_number(&server, &request.room_id)?;
    let content = request.data.into_json();
    server
        .accounts
        .set_account_data(session.user_number, room.0, &event_type, &content)
        .await?;
    Ok(set_room_account_data::v3::Response::new())
}

async fn get(
    server: &Server,
    user: UserNumber,
    room: u32,
    event_type: String,
) -> Result<RawJson, Error> {
    let accounts = server.accounts.clone();
    let read = server
        .store
        .read(move |snapshot| accounts.account_data(snapshot, user, room, &event_type));
    let content = read
        .await?
        .ok_or_else(|| Error::not_found("There is no account data of this type"))?;
    Ok(raw(&content))
}

fn raw(content: &RawValue) -> RawJson {
    RawJson(content.get().to_owned().into())
}

fn check_writable(event_type: &str) -> Result<(), Error> {
    match event_type {
        FULLY_READ | PUSH_RULES => {
            let text = format!("{event_type} is set through endpoints of its own");
            Err(Error::new(
                StatusCode::METHOD_NOT_ALLOWED,
                ErrorCode::BadJson,
                text,
            ))
        }
        _ => Ok(()),
    }
}

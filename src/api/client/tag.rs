//! Tags of rooms: account data of type `m.tag`.
//!
//! Spec: c2s, "Room Tagging".

use std::sync::Arc;

use ruma::{
    RoomId,
    api::client::tag::{create_tag, delete_tag, get_tags},
};
use serde_json::{
    Map, Value, json,
    value::{RawValue, to_raw_value},
};

use crate::{
    accounts::{Error as AccountsError, Session, TAGS},
    api::{
        error::Error,
        routes::{RawJson, Routes},
    },
    server::Server,
};

/// Spec: c2s, "Room Tagging".
const MAX_TAG_BYTES: usize = 255;

pub(super) fn routes() -> Routes {
    Routes::default()
        .endpoint(get_tags)
        .endpoint(create_tag)
        .endpoint(delete_tag)
}

async fn get_tags(
    server: Arc<Server>,
    session: Arc<Session>,
    request: get_tags::v3::Request,
) -> Result<RawJson, Error> {
    super::require_self(&session, &request.user_id)?;
    let room = super::room_number(&server, &request.room_id)?;
    let (accounts, user) = (server.accounts.clone(), session.user_number);
    let content = server
        .store
        .read(move |snapshot| accounts.account_data(snapshot, user, room.0, TAGS))
        .await?;
    let tags = json!({ "tags": tags_of(content.as_deref()) });
    Ok(RawJson(tags.to_string().into()))
}

async fn create_tag(
    server: Arc<Server>,
    session: Arc<Session>,
    request: create_tag::v3::Request,
) -> Result<create_tag::v3::Response, Error> {
    super::require_self(&session, &request.user_id)?;
    if request.tag.len() > MAX_TAG_BYTES {
        return Err(Error::invalid_param("A tag has at most 255 bytes"));
    }
    let info = serde_json::to_value(&request.tag_info).map_err(Error::internal)?;
    change(&server, &session, &request.room_id, move |tags| {
        tags.insert(request.tag, info);
    })
    .await?;
    Ok(create_tag::v3::Response::new())
}

async fn delete_tag(
    server: Arc<Server>,
    session: Arc<Session>,
    request: delete_tag::v3::Request,
) -> Result<delete_tag::v3::Response, Error> {
    super::require_self(&session, &request.user_id)?;
    change(&server, &session, &request.room_id, move |tags| {
        tags.remove(&request.tag);
    })
    .await?;
    Ok(delete_tag::v3::Response::new())
}

async fn change(
    server: &Server,
    session: &Session,
    room: &RoomId,
    edit: impl FnOnce(&mut Map<String, Value>) + Send + 'static,
) -> Result<(), Error> {
    let room = super::room_number(server, room)?;
    let edit = move |before: Option<Box<RawValue>>| {
        let before = tags_of(before.as_deref());
        let mut after = before.clone();
        edit(&mut after);
        if before == after {
            return Ok(None);
        }
        to_raw_value(&json!({ "tags": after }))
            .map(Some)
            .map_err(|_error| AccountsError::DamagedAccountData)
    };
    server
        .accounts
        .update_account_data(session.user_number, room.0, TAGS, edit)
        .await?;
    Ok(())
}

fn tags_of(content: Option<&RawValue>) -> Map<String, Value> {
    let content: Option<Value> =
        content.and_then(|content| serde_json::from_str(content.get()).ok());
    match content {
        Some(Value::Object(mut content)) => match content.remove("tags") {
            Some(Value::Object(tags)) => tags,
            _ => Map::new(),
        },
        _ => Map::new(),
    }
}

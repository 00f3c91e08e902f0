//! What other servers ask about our users and aliases.
//!
//! Spec: s2s, "Querying for information".

use std::sync::Arc;

use ruma::api::federation::query::{get_profile_information, get_room_information};
use serde_json::{Map, Value};

use crate::{
    api::{
        auth::Origin,
        client::{alias, profile},
        error::Error,
        routes::{RawJson, Routes},
    },
    server::Server,
};

pub(super) fn routes() -> Routes {
    Routes::default()
        .endpoint(get_profile_information)
        .endpoint(get_room_information)
}

/// Spec: s2s, "GET /_matrix/federation/v1/query/profile".
async fn get_profile_information(
    server: Arc<Server>,
    _origin: Origin,
    request: get_profile_information::v1::Request,
) -> Result<RawJson, Error> {
    if !server.accounts.is_local(&request.user_id) {
        return Err(Error::invalid_param("The user is not of this server"));
    }
    let profile = profile::find(&server, request.user_id).await?;
    let wanted = request.field.map(|field| field.to_string());
    let fields: Map<String, Value> = profile
        .fields
        .into_iter()
        .filter(profile::is_shown)
        .filter(|(name, _)| wanted.as_ref().is_none_or(|wanted| wanted == name))
        .collect();
    Ok(RawJson(Value::Object(fields).to_string().into()))
}

/// Spec: s2s, "GET /_matrix/federation/v1/query/directory".
async fn get_room_information(
    server: Arc<Server>,
    _origin: Origin,
    request: get_room_information::v1::Request,
) -> Result<get_room_information::v1::Response, Error> {
    let found = alias::find(&server, request.room_alias).await?;
    let (room_id, servers) =
        found.ok_or_else(|| Error::not_found("There is no such room alias"))?;
    Ok(get_room_information::v1::Response::new(room_id, servers))
}

//! Room aliases.
//!
//! Spec: c2s, "Room aliases".

use std::sync::Arc;

use http::StatusCode;
use ruma::{
    OwnedRoomAliasId, OwnedRoomId, OwnedServerName,
    api::{
        client::alias::{create_alias, delete_alias, get_alias},
        error::ErrorCode,
    },
};

use crate::{
    accounts::Session,
    api::{error::Error, limits::Bucket, routes::Routes},
    rooms,
    server::Server,
};

pub(super) fn routes() -> Routes {
    Routes::default()
        .limited(Bucket::Message, create_alias)
        .endpoint(get_alias)
        .limited(Bucket::Message, delete_alias)
}

/// Spec: c2s, "PUT /_matrix/client/v3/directory/room/{roomAlias}".
async fn create_alias(
    server: Arc<Server>,
    session: Arc<Session>,
    request: create_alias::v3::Request,
) -> Result<create_alias::v3::Response, Error> {
    super::require_active(&session)?;
    if request.room_alias.server_name() != server.rooms.own_name() {
        return Err(Error::invalid_param("The alias is of another server"));
    }
    let room = super::known_room(&server, &request.room_id)?;
    match server
        .rooms
        .add_alias(&request.room_alias, room, &session.user)
        .await
    {
        Ok(()) => Ok(create_alias::v3::Response::new()),
        Err(rooms::Error::AliasInUse) => {
            let text = "A room alias with that name already exists";
            Err(Error::new(StatusCode::CONFLICT, ErrorCode::Unknown, text))
        }
        Err(error) => Err(error.into()),
    }
}

/// Spec: c2s, "GET /_matrix/client/v3/directory/room/{roomAlias}".
async fn get_alias(
    server: Arc<Server>,
    _anyone: (),
    request: get_alias::v3::Request,
) -> Result<get_alias::v3::Response, Error> {
    let (room_id, servers) = find_anywhere(&server, request.room_alias).await?;
    Ok(get_alias::v3::Response::new(room_id, servers))
}

/// Where an alias of any server leads, and servers that know the room.
///
/// # Errors
/// 404 if there is no such alias.
pub(in crate::api) async fn find_anywhere(
    server: &Server,
    alias: OwnedRoomAliasId,
) -> Result<(OwnedRoomId, Vec<OwnedServerName>), Error> {
    let not_found = || Error::not_found("There is no such room alias");
    if alias.server_name() == server.rooms.own_name() {
        return find(server, alias).await?.ok_or_else(not_found);
    }
    match server.federation.alias(alias).await {
        Ok(found) => Ok(found),
        Err(error) if error.is_status(404) => Err(not_found()),
        Err(error) => Err(Error::of_federation(error)),
    }
}

/// Where an alias of this server leads, and the servers in the room, this one first.
pub(in crate::api) async fn find(
    server: &Server,
    alias: OwnedRoomAliasId,
) -> Result<Option<(OwnedRoomId, Vec<OwnedServerName>)>, Error> {
    let rooms = server.rooms.clone();
    let found = server
        .store
        .read(move |snapshot| -> Result<_, rooms::Error> {
            let Some(row) = rooms.alias(snapshot, &alias)? else {
                return Ok(None);
            };
            // The first is asked first: this server knows the room.
            let mut servers = vec![rooms.own_name().to_owned()];
            servers.extend(rooms.servers(snapshot, row.room)?);
            Ok(rooms.room_id(row.room).map(|room_id| (room_id, servers)))
        })
        .await?;
    Ok(found)
}

/// Spec: c2s, "DELETE /_matrix/client/v3/directory/room/{roomAlias}".
async fn delete_alias(
    server: Arc<Server>,
    session: Arc<Session>,
    request: delete_alias::v3::Request,
) -> Result<delete_alias::v3::Response, Error> {
    super::require_active(&session)?;
    match server
        .rooms
        .remove_alias(&request.room_alias, &session.user)
        .await
    {
        Ok(()) => Ok(delete_alias::v3::Response::new()),
        Err(rooms::Error::NotFound) => Err(Error::not_found("There is no such room alias")),
        Err(error) => Err(error.into()),
    }
}

//! Room aliases.
//!
//! Spec: c2s, "Room aliases".

use std::sync::Arc;

use http::StatusCode;
use ruma::api::{
    client::alias::{create_alias, delete_alias, get_alias},
    error::ErrorCode,
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
    let rooms = server.rooms.clone();
    let found = server
        .store
        .read(move |snapshot| -> Result<_, rooms::Error> {
            let Some(row) = rooms.alias(snapshot, &request.room_alias)? else {
                return Ok(None);
            };
            // The first is asked first: this server knows the room.
            let mut servers = vec![rooms.own_name().to_owned()];
            servers.extend(rooms.servers(snapshot, row.room)?);
            Ok(rooms.room_id(row.room).map(|room_id| (room_id, servers)))
        })
        .await?;
    let (room_id, servers) =
        found.ok_or_else(|| Error::not_found("There is no such room alias"))?;
    Ok(get_alias::v3::Response::new(room_id, servers))
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

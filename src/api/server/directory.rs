//! The published rooms of this server, for other servers.
//!
//! Spec: s2s, "Published Room Directory".

use std::sync::Arc;

use ruma::{
    UInt,
    api::federation::directory::{get_public_rooms, get_public_rooms_filtered},
};

use crate::{
    api::{auth::Origin, client::directory, error::Error, routes::Routes},
    rooms::{DirectoryPage, DirectoryQuery},
    server::Server,
};

pub(super) fn routes() -> Routes {
    Routes::default()
        .endpoint(get_public_rooms)
        .endpoint(get_public_rooms_filtered)
}

/// Spec: s2s, "GET /_matrix/federation/v1/publicRooms".
async fn get_public_rooms(
    server: Arc<Server>,
    _origin: Origin,
    request: get_public_rooms::v1::Request,
) -> Result<get_public_rooms::v1::Response, Error> {
    let query = DirectoryQuery::default();
    let page = page(&server, query, request.limit, request.since.as_deref()).await?;
    let mut response = get_public_rooms::v1::Response::new();
    response.chunk = page.rooms;
    response.next_batch = page.next.map(|offset| offset.to_string());
    response.prev_batch = page.previous.map(|offset| offset.to_string());
    response.total_room_count_estimate = UInt::try_from(page.total).ok();
    Ok(response)
}

/// Spec: s2s, "POST /_matrix/federation/v1/publicRooms".
async fn get_public_rooms_filtered(
    server: Arc<Server>,
    _origin: Origin,
    request: get_public_rooms_filtered::v1::Request,
) -> Result<get_public_rooms_filtered::v1::Response, Error> {
    let query = DirectoryQuery {
        term: request.filter.generic_search_term,
        types: request.filter.room_types,
        ..DirectoryQuery::default()
    };
    let page = page(&server, query, request.limit, request.since.as_deref()).await?;
    let mut response = get_public_rooms_filtered::v1::Response::new();
    response.chunk = page.rooms;
    response.next_batch = page.next.map(|offset| offset.to_string());
    response.prev_batch = page.previous.map(|offset| offset.to_string());
    response.total_room_count_estimate = UInt::try_from(page.total).ok();
    Ok(response)
}

async fn page(
    server: &Server,
    query: DirectoryQuery,
    limit: Option<UInt>,
    since: Option<&str>,
) -> Result<DirectoryPage, Error> {
    if !server.config.directory.public_rooms_federated {
        return Err(Error::forbidden(
            "This server does not show its directory to other servers",
        ));
    }
    directory::page(server, query, limit, since).await
}

//! Spaces, as far as the users of another server could get into their rooms.
//!
//! Spec: s2s, "Spaces".

use std::sync::Arc;

use ruma::api::federation::space::{SpaceHierarchyParentSummary, get_hierarchy};

use crate::{
    api::{auth::Origin, error::Error, routes::Routes},
    server::Server,
    storage::Snapshot,
};

pub(super) fn routes() -> Routes {
    Routes::default().endpoint(get_hierarchy)
}

/// Spec: s2s, "GET /_matrix/federation/v1/hierarchy/{roomId}".
async fn get_hierarchy(
    server: Arc<Server>,
    Origin(origin): Origin,
    request: get_hierarchy::v1::Request,
) -> Result<get_hierarchy::v1::Response, Error> {
    let rooms = server.rooms.clone();
    let found = server
        .store
        .read(move |snapshot: &Snapshot| {
            rooms.served_hierarchy(snapshot, &request.room_id, &origin, request.suggested_only)
        })
        .await?;
    let not_found = || Error::not_found("There is no such room, or your server may not see it");
    let found = found.ok_or_else(not_found)?;
    let room = SpaceHierarchyParentSummary::new(found.room, found.children_state);
    let mut response = get_hierarchy::v1::Response::new(room);
    response.children = found.children;
    response.inaccessible_children = found.inaccessible;
    Ok(response)
}

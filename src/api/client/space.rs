//! Rooms from outside: summaries, the rooms of a space, and what takes a room's place.
//!
//! Spec: c2s, "Spaces", "Room summary", "Room upgrades".

use std::sync::Arc;

use http::StatusCode;
use ruma::{
    OwnedRoomId, RoomAliasId, RoomId, UInt,
    api::{
        client::{
            room::{get_summary, upgrade_room},
            space::{SpaceHierarchyRoomsChunk, get_hierarchy},
        },
        error::ErrorCode,
    },
    events::room::member::MembershipState,
};

use crate::{
    accounts::Session,
    api::{error::Error, limits::Bucket, routes::Routes},
    rooms::{self, Class, HierarchyQuery, Upgrade},
    server::Server,
    storage::Snapshot,
};

pub(super) fn routes() -> Routes {
    Routes::default()
        .endpoint(get_hierarchy)
        .endpoint(get_summary)
        .limited(Bucket::Message, upgrade_room)
}

/// Rooms of a page of a space when the request does not say.
const DEFAULT_PAGE: usize = 50;

/// Spec: c2s, "GET /_matrix/client/v1/rooms/{roomId}/hierarchy".
async fn get_hierarchy(
    server: Arc<Server>,
    session: Arc<Session>,
    request: get_hierarchy::v1::Request,
) -> Result<get_hierarchy::v1::Response, Error> {
    let query = HierarchyQuery {
        limit: request.limit.map_or(DEFAULT_PAGE, size),
        max_depth: request.max_depth.map(size),
        suggested_only: request.suggested_only,
        offset: match request.from.as_deref() {
            None => 0,
            Some(token) => token
                .parse()
                .map_err(|_invalid| Error::invalid_param("from is not a token of this space"))?,
        },
    };
    let (rooms, user) = (server.rooms.clone(), session.user_number);
    let read = move |snapshot: &Snapshot| rooms.hierarchy(snapshot, &request.room_id, user, query);
    let found = server.store.read(read).await?;
    let mut response = get_hierarchy::v1::Response::new();
    response.rooms = found
        .rooms
        .into_iter()
        .map(|(summary, children)| SpaceHierarchyRoomsChunk::new(summary.shown, children))
        .collect();
    response.next_batch = found.next.map(|offset| offset.to_string());
    Ok(response)
}

fn size(number: UInt) -> usize {
    usize::try_from(u64::from(number)).unwrap_or(usize::MAX)
}

/// Spec: c2s, "GET /_matrix/client/v1/room_summary/{roomIdOrAlias}".
async fn get_summary(
    server: Arc<Server>,
    session: Option<Arc<Session>>,
    request: get_summary::v1::Request,
) -> Result<get_summary::v1::Response, Error> {
    let not_found = || Error::not_found("There is no such room, or you may not see it");
    let (rooms, user) = (
        server.rooms.clone(),
        session.map(|session| session.user_number),
    );
    let name = request.room_id_or_alias;
    let read = move |snapshot: &Snapshot| -> Result<_, rooms::Error> {
        let room_id: Option<OwnedRoomId> = match <&RoomId>::try_from(&*name) {
            Ok(room_id) => Some(room_id.to_owned()),
            Err(alias) => {
                let alias: &RoomAliasId = alias;
                rooms
                    .alias(snapshot, alias)?
                    .and_then(|row| rooms.room_id(row.room))
            }
        };
        let Some(room) = room_id.and_then(|room_id| rooms.resident(&room_id).ok()) else {
            return Ok(None);
        };
        let summary = rooms.summary(snapshot, room)?;
        if !rooms.may_see_summary(snapshot, &summary, user)? {
            return Ok(None);
        }
        let membership = match user {
            Some(user) => rooms
                .user_room(snapshot, user, room)?
                .map(|membership| membership.class),
            None => None,
        };
        Ok(Some((summary.shown, user.map(|_| membership))))
    };
    let (summary, membership) = server.store.read(read).await?.ok_or_else(not_found)?;
    let mut response = get_summary::v1::Response::new(summary);
    response.membership = membership.map(|class| match class {
        Some(Class::Join) => MembershipState::Join,
        Some(Class::Invite) => MembershipState::Invite,
        Some(Class::Knock) => MembershipState::Knock,
        Some(Class::Ban) => MembershipState::Ban,
        Some(Class::Leave) | None => MembershipState::Leave,
    });
    Ok(response)
}

/// Spec: c2s, "POST /_matrix/client/v3/rooms/{roomId}/upgrade".
async fn upgrade_room(
    server: Arc<Server>,
    session: Arc<Session>,
    request: upgrade_room::v3::Request,
) -> Result<upgrade_room::v3::Response, Error> {
    super::require_active(&session)?;
    super::known_room(&server, &request.room_id)?;
    let upgrade = Upgrade {
        user: session.user.clone(),
        version: request.new_version,
        additional_creators: request.additional_creators,
    };
    match server.rooms.upgrade(&request.room_id, upgrade).await {
        Ok(room_id) => Ok(upgrade_room::v3::Response::new(room_id)),
        Err(rooms::Error::UnsupportedVersion) => {
            let text = "This server does not make rooms of this version";
            Err(Error::new(
                StatusCode::BAD_REQUEST,
                ErrorCode::UnsupportedRoomVersion,
                text,
            ))
        }
        Err(error) => Err(error.into()),
    }
}

//! Rooms from outside: summaries, the rooms of a space, and what takes a room's place.
//!
//! Spec: c2s, "Spaces", "Room summary", "Room upgrades".

use std::sync::Arc;

use http::StatusCode;
use ruma::{
    OwnedRoomId, RoomId, UInt,
    api::{
        client::{
            room::{get_summary, upgrade_room},
            space::{SpaceHierarchyRoomsChunk, get_hierarchy},
        },
        error::ErrorCode,
    },
    events::room::member::MembershipState,
    room::RoomSummary,
};

use super::alias;
use crate::{
    accounts::{Session, UserNumber},
    api::{error::Error, limits::Bucket, routes::Routes},
    rooms::{self, Class, HierarchyQuery, Rooms, Upgrade},
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
    let user = session.user_number;
    let found = server
        .federation
        .hierarchy(&request.room_id, user, query)
        .await
        .map_err(Error::of_federation)?;
    let mut response = get_hierarchy::v1::Response::new();
    response.rooms = found
        .rooms
        .into_iter()
        .map(|(summary, children)| SpaceHierarchyRoomsChunk::new(summary, children))
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
    let mut via = request.via;
    let room_id = match OwnedRoomId::try_from(request.room_id_or_alias) {
        Ok(room_id) => room_id,
        Err(alias) => {
            let (room_id, servers) = alias::find_anywhere(&server, alias).await?;
            via.extend(servers);
            room_id
        }
    };
    let user = session.map(|session| session.user_number);
    let (rooms, wanted) = (server.rooms.clone(), room_id.clone());
    let read = move |snapshot: &Snapshot| local_summary(&rooms, snapshot, &wanted, user);
    let summary = match server.store.read(read).await? {
        Local::Shown(summary) => *summary,
        Local::Hidden => return Err(no_summary()),
        // Without an account nobody makes us ask other servers.
        Local::Unknown if user.is_none() => return Err(no_summary()),
        Local::Unknown => {
            let told = server.federation.remote_room(&room_id, &via).await;
            let summary = told.ok_or_else(no_summary)?.summary.clone();
            let (rooms, asked) = (server.rooms.clone(), summary.clone());
            let may_see = move |snapshot: &Snapshot| rooms.may_see_remote(snapshot, &asked, user);
            match server.store.read(may_see).await? {
                true => summary,
                false => return Err(no_summary()),
            }
        }
    };
    let rooms = server.rooms.clone();
    let read = move |snapshot: &Snapshot| -> Result<_, rooms::Error> {
        match (user, rooms.number(&room_id)) {
            (Some(user), Some(room)) => rooms.user_room(snapshot, user, room),
            _ => Ok(None),
        }
    };
    let membership = server.store.read(read).await?;
    let mut response = get_summary::v1::Response::new(summary);
    response.membership =
        user.map(|_user| membership_state(membership.map(|membership| membership.class)));
    Ok(response)
}

fn no_summary() -> Error {
    Error::not_found("There is no such room, or you may not see it")
}

/// What this server itself knows of a room.
enum Local {
    Shown(Box<RoomSummary>),
    Hidden,
    /// It is not here, or was when a user of this server was in it last.
    Unknown,
}

fn local_summary(
    rooms: &Rooms,
    snapshot: &Snapshot,
    room_id: &RoomId,
    user: Option<UserNumber>,
) -> Result<Local, rooms::Error> {
    let Ok(room) = rooms.resident(room_id) else {
        return Ok(Local::Unknown);
    };
    if rooms
        .head(snapshot, room)?
        .is_none_or(|head| head.local == 0)
    {
        return Ok(Local::Unknown);
    }
    let summary = rooms.summary(snapshot, room)?;
    Ok(match rooms.may_see_summary(snapshot, &summary, user)? {
        true => Local::Shown(Box::new(summary.shown)),
        false => Local::Hidden,
    })
}

fn membership_state(class: Option<Class>) -> MembershipState {
    match class {
        Some(Class::Join) => MembershipState::Join,
        Some(Class::Invite) => MembershipState::Invite,
        Some(Class::Knock) => MembershipState::Knock,
        Some(Class::Ban) => MembershipState::Ban,
        Some(Class::Leave) | None => MembershipState::Leave,
    }
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

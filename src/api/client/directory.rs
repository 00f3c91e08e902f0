//! The published room directory.
//!
//! Spec: c2s, "Published room directory".

use std::sync::Arc;

use ruma::{
    OwnedServerName, UInt,
    api::{
        client::{
            directory::{
                get_public_rooms, get_public_rooms_filtered, get_room_visibility,
                set_room_visibility,
            },
            room::Visibility,
        },
        federation::directory::get_public_rooms_filtered::v1 as remote,
    },
    directory::PublicRoomsChunk,
    room::JoinRuleKind,
};
use serde::Serialize;

use crate::{
    accounts::Session,
    api::{
        error::Error,
        routes::{RawJson, Routes},
    },
    rooms::{self, DirectoryPage, DirectoryQuery, Listed},
    server::Server,
};

pub(super) fn routes() -> Routes {
    Routes::default()
        .endpoint(get_room_visibility)
        .endpoint(set_room_visibility)
        .endpoint(get_public_rooms)
        .endpoint(get_public_rooms_filtered)
}

/// Spec: c2s, "GET /_matrix/client/v3/directory/list/room/{roomId}".
async fn get_room_visibility(
    server: Arc<Server>,
    _anyone: (),
    request: get_room_visibility::v3::Request,
) -> Result<get_room_visibility::v3::Response, Error> {
    let room = server.rooms.resident(&request.room_id)?;
    let rooms = server.rooms.clone();
    let is_listed = server
        .store
        .read(move |snapshot| rooms.is_published(snapshot, room))
        .await?;
    let visibility = if is_listed {
        Visibility::Public
    } else {
        Visibility::Private
    };
    Ok(get_room_visibility::v3::Response::new(visibility))
}

/// Spec: c2s, "PUT /_matrix/client/v3/directory/list/room/{roomId}".
async fn set_room_visibility(
    server: Arc<Server>,
    session: Arc<Session>,
    request: set_room_visibility::v3::Request,
) -> Result<set_room_visibility::v3::Response, Error> {
    super::require_active(&session)?;
    let room = server.rooms.resident(&request.room_id)?;
    let listed = match request.visibility {
        Visibility::Public => Listed::Yes,
        Visibility::Private => Listed::No,
        _ => return Err(Error::invalid_param("visibility is `public` or `private`")),
    };
    server
        .rooms
        .set_published(room, (&session.user, session.is_admin), listed)
        .await?;
    Ok(set_room_visibility::v3::Response::new())
}

/// Spec: c2s, "GET /_matrix/client/v3/publicRooms".
async fn get_public_rooms(
    server: Arc<Server>,
    _anyone: (),
    request: get_public_rooms::v3::Request,
) -> Result<RawJson, Error> {
    if let Some(other) = other_server(&server, request.server) {
        let mut question = remote::Request::new();
        question.limit = request.limit;
        question.since = request.since;
        let asked = server.federation.public_rooms(&other, question).await;
        return remote_answer(asked.map_err(Error::of_federation)?);
    }
    let query = DirectoryQuery::default();
    answer(page(&server, query, request.limit, request.since.as_deref()).await?)
}

/// Spec: c2s, "POST /_matrix/client/v3/publicRooms".
async fn get_public_rooms_filtered(
    server: Arc<Server>,
    _session: Arc<Session>,
    request: get_public_rooms_filtered::v3::Request,
) -> Result<RawJson, Error> {
    if let Some(other) = other_server(&server, request.server) {
        let mut question = remote::Request::new();
        question.limit = request.limit;
        question.since = request.since;
        question.filter = request.filter;
        question.room_network = request.room_network;
        let asked = server.federation.public_rooms(&other, question).await;
        return remote_answer(asked.map_err(Error::of_federation)?);
    }
    let query = DirectoryQuery {
        term: request.filter.generic_search_term,
        types: request.filter.room_types,
        ..DirectoryQuery::default()
    };
    answer(page(&server, query, request.limit, request.since.as_deref()).await?)
}

/// What both requests are answered with.
#[derive(Serialize)]
struct Answer {
    chunk: Vec<Room>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_batch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_batch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total_room_count_estimate: Option<UInt>,
}

/// An entry that says its join rule also where it is `public`, which ruma leaves out: not every client takes the default for granted.
#[derive(Serialize)]
struct Room {
    #[serde(flatten)]
    room: PublicRoomsChunk,
    #[serde(skip_serializing_if = "Option::is_none")]
    join_rule: Option<&'static str>,
}

impl From<PublicRoomsChunk> for Room {
    fn from(room: PublicRoomsChunk) -> Self {
        let join_rule = (room.join_rule == JoinRuleKind::Public).then_some("public");
        Self { room, join_rule }
    }
}

fn answer(page: DirectoryPage) -> Result<RawJson, Error> {
    raw(&Answer {
        chunk: page.rooms.into_iter().map(Room::from).collect(),
        next_batch: page.next.map(|offset| offset.to_string()),
        prev_batch: page.previous.map(|offset| offset.to_string()),
        total_room_count_estimate: UInt::try_from(page.total).ok(),
    })
}

fn remote_answer(found: remote::Response) -> Result<RawJson, Error> {
    raw(&Answer {
        chunk: found.chunk.into_iter().map(Room::from).collect(),
        next_batch: found.next_batch,
        prev_batch: found.prev_batch,
        total_room_count_estimate: found.total_room_count_estimate,
    })
}

fn raw(answer: &Answer) -> Result<RawJson, Error> {
    let json = serde_json::to_vec(answer).map_err(Error::internal)?;
    Ok(RawJson(json.into()))
}

/// The server whose directory is asked for, if it is not this one.
fn other_server(server: &Server, asked: Option<OwnedServerName>) -> Option<OwnedServerName> {
    asked.filter(|name| name != server.rooms.own_name())
}

/// A page of our own directory.
pub(in crate::api) async fn page(
    server: &Server,
    query: DirectoryQuery,
    limit: Option<UInt>,
    since: Option<&str>,
) -> Result<DirectoryPage, Error> {
    let offset = match since {
        None | Some("") => 0,
        Some(token) => token
            .parse()
            .map_err(|_invalid| Error::invalid_param("since is not a token of this directory"))?,
    };
    // A limit of 0 is no page at all; it means what leaving it out means.
    let limit = limit
        .and_then(|limit| usize::try_from(u64::from(limit)).ok())
        .filter(|limit| *limit > 0);
    let query = DirectoryQuery {
        limit,
        offset,
        ..query
    };
    let rooms = server.rooms.clone();
    let read = move |snapshot: &crate::storage::Snapshot| -> Result<_, rooms::Error> {
        rooms.directory(snapshot, &query)
    };
    Ok(server.store.read(read).await?)
}

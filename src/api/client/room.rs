//! Making rooms, and looking at single events of one.
//!
//! Spec: c2s, "Creation", "Getting events for a room".

use std::sync::Arc;

use http::StatusCode;
use ruma::{
    CanonicalJsonObject, OwnedRoomAliasId, RoomAliasId,
    api::{
        client::room::{
            Visibility, aliases,
            create_room::{self, v3::RoomPreset},
            get_event_by_timestamp, get_room_event,
        },
        error::ErrorCode,
    },
    events::TimelineEventType,
    serde::Raw,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::events::Reader;
use crate::{
    accounts::Session,
    api::{
        content,
        error::Error,
        limits::Bucket,
        routes::{RawJson, Routes},
    },
    rooms::{self, CreateRoom, Preset},
    server::Server,
    storage::Snapshot,
};

pub(super) fn routes() -> Routes {
    Routes::default()
        .limited(Bucket::Message, create_room)
        .endpoint(aliases)
        .endpoint(get_room_event)
        .endpoint(get_event_by_timestamp)
}

/// Spec: c2s, "POST /_matrix/client/v3/createRoom".
async fn create_room(
    server: Arc<Server>,
    session: Arc<Session>,
    request: create_room::v3::Request,
) -> Result<create_room::v3::Response, Error> {
    super::require_active(&session)?;
    let room = new_room(&server, &session, request)?;
    let (invited, is_direct) = (room.invite.clone(), room.is_direct);
    let room_id = server.rooms.create(room).await.map_err(not_created)?;
    super::membership::invite_remote(&server, &session, &room_id, (invited, is_direct)).await;
    Ok(create_room::v3::Response::new(room_id))
}

/// A state that its own events do not allow is the fault of the request as a whole.
fn not_created(error: rooms::Error) -> Error {
    match error {
        rooms::Error::NotAllowed(error) => {
            let text = format!("The initial state is not allowed: {error}");
            Error::new(StatusCode::BAD_REQUEST, ErrorCode::InvalidRoomState, text)
        }
        error => error.into(),
    }
}

fn new_room(
    server: &Server,
    session: &Session,
    request: create_room::v3::Request,
) -> Result<CreateRoom, Error> {
    if !request.invite_3pid.is_empty() {
        return Err(super::membership::no_third_party());
    }
    let is_published = request.visibility == Visibility::Public;
    let preset = match request.preset {
        Some(RoomPreset::PublicChat) => Preset::PublicChat,
        Some(RoomPreset::TrustedPrivateChat) => Preset::TrustedPrivateChat,
        Some(RoomPreset::PrivateChat) => Preset::PrivateChat,
        Some(_) => return Err(Error::invalid_param("The preset is not known")),
        None if is_published => Preset::PublicChat,
        None => Preset::PrivateChat,
    };
    let mut invite = request.invite;
    invite.sort_unstable();
    invite.dedup();
    Ok(CreateRoom {
        creator: session.user.clone(),
        preset,
        is_published,
        version: request.room_version,
        alias: request
            .room_alias_name
            .map(|name| alias(server, &name))
            .transpose()?,
        name: request.name,
        topic: request.topic,
        invite,
        is_direct: request.is_direct,
        creation_content: optional(request.creation_content.as_ref())?,
        initial_state: initial_state(server, &request.initial_state)?,
        power_levels: optional(request.power_level_content_override.as_ref())?,
    })
}

fn optional<T>(raw: Option<&Raw<T>>) -> Result<CanonicalJsonObject, Error> {
    raw.map_or_else(|| Ok(CanonicalJsonObject::new()), content::content)
}

fn alias(server: &Server, name: &str) -> Result<OwnedRoomAliasId, Error> {
    let invalid = || Error::invalid_param("The alias is not valid");
    if name.is_empty() || name.contains([':', '\0']) || name.contains(char::is_whitespace) {
        return Err(invalid());
    }
    RoomAliasId::parse(format!("#{name}:{}", server.rooms.own_name())).map_err(|_invalid| invalid())
}

/// State of a new room as a client writes it.
#[derive(Deserialize)]
struct InitialState<'a> {
    #[serde(rename = "type")]
    event_type: String,
    #[serde(default)]
    state_key: String,
    #[serde(borrow)]
    content: &'a RawValue,
}

type State = (TimelineEventType, String, CanonicalJsonObject);

fn initial_state<T>(server: &Server, events: &[Raw<T>]) -> Result<Vec<State>, Error> {
    let mut state = Vec::with_capacity(events.len());
    for event in events {
        let text = event.json().get();
        let event: InitialState<'_> = serde_json::from_str(text)
            .map_err(|error| Error::from_json(&error, text.as_bytes()))?;
        let content = content::object(event.content.get().as_bytes())?;
        let event_type = event.event_type.into();
        if super::membership::is_remote_invite(server, &event_type, &event.state_key, &content) {
            let text = "Users of other servers are invited with `invite`";
            return Err(Error::invalid_param(text));
        }
        state.push((event_type, event.state_key, content));
    }
    Ok(state)
}

/// Spec: c2s, "GET /_matrix/client/v3/rooms/{roomId}/aliases".
async fn aliases(
    server: Arc<Server>,
    session: Arc<Session>,
    request: aliases::v3::Request,
) -> Result<aliases::v3::Response, Error> {
    let reader = Reader::new(&server, session, request.room_id)?;
    let read = move |snapshot: &Snapshot| -> Result<_, Error> {
        match reader.sight(snapshot)?.may_look_now() {
            true => Ok(reader.rooms.aliases_of(snapshot, reader.room)?),
            false => Err(super::not_in_room()),
        }
    };
    Ok(aliases::v3::Response::new(server.store.read(read).await?))
}

/// Spec: c2s, "GET /_matrix/client/v3/rooms/{roomId}/event/{eventId}".
async fn get_room_event(
    server: Arc<Server>,
    session: Arc<Session>,
    request: get_room_event::v3::Request,
) -> Result<RawJson, Error> {
    let room_id = request.room_id;
    let reader = Reader::new(&server, session, room_id)
        .map_err(|_unknown| Error::not_found("There is no such event that you may see"))?;
    let read = move |snapshot: &Snapshot| -> Result<_, Error> {
        let mut sight = reader.sight(snapshot)?;
        let event = reader.event(snapshot, &mut sight, &request.event_id)?;
        Ok(RawJson(reader.single(snapshot, &mut sight, event)?.into()))
    };
    server.store.read(read).await
}

/// Spec: c2s, "GET /_matrix/client/v1/rooms/{roomId}/timestamp_to_event".
async fn get_event_by_timestamp(
    server: Arc<Server>,
    session: Arc<Session>,
    request: get_event_by_timestamp::v1::Request,
) -> Result<get_event_by_timestamp::v1::Response, Error> {
    let reader = Reader::new(&server, session, request.room_id)?;
    let (ts, order) = (u64::from(request.ts.0), super::events::order(request.dir));
    let read = move |snapshot: &Snapshot| -> Result<_, Error> {
        let mut sight = reader.sight(snapshot)?;
        sight.until().ok_or_else(super::not_in_room)?;
        let rooms = &reader.rooms;
        let found = rooms.event_at_time(snapshot, reader.room, ts, order, |event| {
            rooms.may_see(snapshot, &mut sight, event)
        })?;
        let event = found.ok_or_else(|| Error::not_found("There is no event in this direction"))?;
        Ok((event.pdu.event_id.clone(), event.pdu.origin_server_ts))
    };
    let (event_id, ts) = server.store.read(read).await?;
    Ok(get_event_by_timestamp::v1::Response::new(event_id, ts))
}

//! Making rooms, and looking at single events of one.
//!
//! Spec: c2s, "Creation", "Getting events for a room".

use std::sync::Arc;

use http::StatusCode;
use ruma::{
    CanonicalJsonObject, EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomAliasId,
    OwnedServerName, RoomAliasId,
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
    storage::{Order, Snapshot},
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

/// What is not known here is asked of other servers, where there are gaps that may hide something closer.
///
/// Spec: c2s, "GET /_matrix/client/v1/rooms/{roomId}/timestamp_to_event".
async fn get_event_by_timestamp(
    server: Arc<Server>,
    session: Arc<Session>,
    request: get_event_by_timestamp::v1::Request,
) -> Result<get_event_by_timestamp::v1::Response, Error> {
    let (room_id, ts, direction) = (request.room_id, request.ts, request.dir);
    let reader = Arc::new(Reader::new(&server, session, room_id.clone())?);
    let look = ByTime {
        reader: Arc::clone(&reader),
        ts: u64::from(ts.0),
        order: super::events::order(direction),
    };
    let local = look.clone();
    let (found, servers) = server
        .store
        .read(move |snapshot| local.find(snapshot))
        .await?;
    let distance = |at: MilliSecondsSinceUnixEpoch| u64::from(at.0).abs_diff(u64::from(ts.0));
    let elsewhere = server
        .federation
        .event_at_time(&room_id, &servers, ts, direction);
    let closer = elsewhere.await.filter(|(_, at, _)| {
        let is_closer = |(_, known): &(_, _)| distance(*at) < distance(*known);
        found.as_ref().is_none_or(is_closer)
    });
    let mut found = found;
    if let Some((event_id, at, _)) = closer {
        let wanted = event_id.clone();
        let fetched = server.federation.backfill_to(reader.room, &event_id).await;
        if fetched.map_err(Error::of_federation)?
            && server
                .store
                .read(move |snapshot| look.may_see(snapshot, &wanted))
                .await?
        {
            found = Some((event_id, at));
        }
    }
    let (event_id, at) =
        found.ok_or_else(|| Error::not_found("There is no event in this direction"))?;
    Ok(get_event_by_timestamp::v1::Response::new(event_id, at))
}

/// A look-up by time.
#[derive(Clone)]
struct ByTime {
    reader: Arc<Reader>,
    ts: u64,
    order: Order,
}

type AtTime = (OwnedEventId, MilliSecondsSinceUnixEpoch);

impl ByTime {
    /// The closest event that is here, and the servers to ask if the room's history has gaps.
    fn find(&self, snapshot: &Snapshot) -> Result<(Option<AtTime>, Vec<OwnedServerName>), Error> {
        let (reader, rooms) = (&self.reader, &self.reader.rooms);
        let mut sight = reader.sight(snapshot)?;
        sight.until().ok_or_else(super::not_in_room)?;
        let found = rooms.event_at_time(snapshot, reader.room, self.ts, self.order, |event| {
            rooms.may_see(snapshot, &mut sight, event)
        })?;
        let found = found.map(|event| (event.pdu.event_id.clone(), event.pdu.origin_server_ts));
        let servers = match rooms.gap_at_or_below(snapshot, reader.room, i64::MAX)? {
            Some(_) => rooms.servers(snapshot, reader.room)?,
            None => Vec::new(),
        };
        Ok((found, servers))
    }

    fn may_see(&self, snapshot: &Snapshot, event_id: &EventId) -> Result<bool, Error> {
        let mut sight = self.reader.sight(snapshot)?;
        Ok(self.reader.event(snapshot, &mut sight, event_id).is_ok())
    }
}

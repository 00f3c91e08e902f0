//! The state of a room.
//!
//! Spec: c2s, "Getting events for a room", "PUT /_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}".

use std::sync::Arc;

use ruma::{
    CanonicalJsonObject, RoomId, UserId,
    api::client::state::{
        get_state_event_for_key::{self, v3::StateEventFormat},
        get_state_events, send_state_event,
    },
    events::{StateEventType, TimelineEventType},
};

use super::events::Reader;
use crate::{
    accounts::Session,
    api::{
        content,
        error::Error,
        limits::Bucket,
        routes::{RawJson, Routes},
    },
    rooms::{self, NewEvent},
    server::Server,
    storage::Snapshot,
};

pub(super) fn routes() -> Routes {
    Routes::default()
        .limited(Bucket::Message, send_state_event)
        .endpoint(get_state_events)
        .endpoint(get_state_event_for_key)
}

async fn send_state_event(
    server: Arc<Server>,
    session: Arc<Session>,
    request: send_state_event::v3::Request,
) -> Result<send_state_event::v3::Response, Error> {
    super::require_active(&session)?;
    let mut content = content::content(&request.body)?;
    let event_type = TimelineEventType::from(request.event_type.to_string());
    if event_type == TimelineEventType::RoomMember {
        // Who let a user in is for servers to say, who sign for it.
        content.remove("join_authorised_via_users_server");
    }
    if super::membership::is_remote_invite(&server, &event_type, &request.state_key, &content) {
        let event = NewEvent::state(session.user.clone(), event_type, request.state_key, content);
        let sent = super::membership::send_remote_invite(&server, request.room_id, event);
        return Ok(send_state_event::v3::Response::new(sent.await?));
    }
    if event_type == TimelineEventType::RoomMember
        && <&UserId>::try_from(&*request.state_key)
            .is_ok_and(|user| !server.accounts.is_local(user))
    {
        let room = super::known_room(&server, &request.room_id)?;
        super::all_members(&server, room).await?;
    }
    if event_type == TimelineEventType::RoomCanonicalAlias && request.state_key.is_empty() {
        check_canonical_alias(&server, &request.room_id, content.clone()).await?;
    }
    let event = NewEvent::state(session.user.clone(), event_type, request.state_key, content);
    let event_id = super::send(&server, &request.room_id, event).await?;
    Ok(send_state_event::v3::Response::new(event_id))
}

/// That the aliases which a canonical alias names lead to the room; those of other servers are asked about there.
///
/// Spec: c2s, "m.room.canonical_alias".
async fn check_canonical_alias(
    server: &Server,
    room_id: &RoomId,
    content: CanonicalJsonObject,
) -> Result<(), Error> {
    let room = super::known_room(server, room_id)?;
    let rooms = server.rooms.clone();
    let check = move |snapshot: &Snapshot| rooms.check_canonical_alias(snapshot, room, &content);
    let of_others = server.store.read(check).await?;
    if of_others.len() > MAX_ALIASES_ASKED {
        return Err(rooms::Error::BadAlias.into());
    }
    for alias in of_others {
        match server.federation.alias(alias).await {
            Ok((found, _)) if found == room_id => {}
            _ => return Err(rooms::Error::BadAlias.into()),
        }
    }
    Ok(())
}

/// Aliases of other servers that one canonical alias may add.
const MAX_ALIASES_ASKED: usize = 5;

/// All state, of now or of when the reader left.
async fn get_state_events(
    server: Arc<Server>,
    session: Arc<Session>,
    request: get_state_events::v3::Request,
) -> Result<RawJson, Error> {
    let reader = Reader::new(&server, session, request.room_id)?;
    reader.all_members(&server).await?;
    let read = move |snapshot: &Snapshot| -> Result<_, Error> {
        let root = reader
            .sight(snapshot)?
            .state()
            .ok_or_else(super::not_in_room)?;
        let (rooms, room) = (&reader.rooms, reader.room);
        let mut events = rooms.core_state(snapshot, room, root)?;
        events.extend(rooms.member_state(snapshot, room, root)?);
        Ok(RawJson(reader.state_array(snapshot, &events)?.into()))
    };
    server.store.read(read).await
}

/// One state event, or its content.
async fn get_state_event_for_key(
    server: Arc<Server>,
    session: Arc<Session>,
    request: get_state_event_for_key::v3::Request,
) -> Result<RawJson, Error> {
    let reader = Reader::new(&server, session, request.room_id)?;
    let is_member = request.event_type == StateEventType::RoomMember;
    if is_member && !reader.is_user(&request.state_key) {
        reader.all_members(&server).await?;
    }
    let read = move |snapshot: &Snapshot| -> Result<_, Error> {
        let mut sight = reader.sight(snapshot)?;
        let root = sight.state().ok_or_else(super::not_in_room)?;
        let event_type = request.event_type.to_string();
        let event = reader.rooms.state_event(
            snapshot,
            (reader.room, root),
            &event_type,
            &request.state_key,
        )?;
        let event = event.ok_or_else(|| Error::not_found("The room has no such state"))?;
        match request.format {
            StateEventFormat::Event => {
                Ok(RawJson(reader.single(snapshot, &mut sight, event)?.into()))
            }
            _ => Ok(RawJson(event.pdu.content.get().to_owned().into())),
        }
    };
    server.store.read(read).await
}

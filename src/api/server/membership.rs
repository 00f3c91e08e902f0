//! What servers that are not in a room ask of this one that is: joining, leaving, knocking; and invites of our users.
//!
//! Spec: s2s, "Joining Rooms", "Knocking upon a room", "Inviting to a room", "Leaving Rooms (Rejecting Invites)".

mod v1;

use std::sync::Arc;

use http::StatusCode;
use ruma::{
    OwnedEventId, OwnedRoomId, RoomVersionId,
    api::{
        error::ErrorCode,
        federation::membership::{
            RawStrippedState, create_invite, create_join_event, create_knock_event,
            create_leave_event, prepare_join_event, prepare_knock_event, prepare_leave_event,
        },
    },
    events::room::member::MembershipState,
};
use serde_json::value::RawValue;

use super::states::{self, Part};
use crate::{
    api::{
        auth::Origin,
        error::Error,
        routes::{RawJson, Routes, StreamedJson},
    },
    federation::{Asked, Invitation, MembershipError, Template},
    rooms::{self, Omit, RoomNumber},
    server::Server,
};

pub(super) fn routes() -> Routes {
    Routes::default()
        .endpoint(make_join)
        .endpoint(send_join)
        .endpoint(send_join_v1)
        .endpoint(make_leave)
        .endpoint(send_leave)
        .endpoint(send_leave_v1)
        .endpoint(make_knock)
        .endpoint(send_knock)
        .endpoint(invite)
        .endpoint(invite_v1)
}

/// Spec: s2s, "GET /_matrix/federation/v1/make_join/{roomId}/{userId}".
async fn make_join(
    server: Arc<Server>,
    Origin(origin): Origin,
    request: prepare_join_event::v1::Request,
) -> Result<prepare_join_event::v1::Response, Error> {
    let asked = Asked {
        origin: &origin,
        room_id: &request.room_id,
    };
    let template = server
        .federation
        .template(
            asked,
            &request.user_id,
            MembershipState::Join,
            Some(&request.ver),
        )
        .await
        .map_err(refused)?;
    let mut response = prepare_join_event::v1::Response::new(raw(&template)?);
    response.room_version = Some(template.version);
    Ok(response)
}

fn raw(template: &Template) -> Result<Box<RawValue>, Error> {
    serde_json::value::to_raw_value(&template.event).map_err(Error::internal)
}

/// Spec: s2s, "PUT /_matrix/federation/v2/send_join/{roomId}/{eventId}".
async fn send_join(
    server: Arc<Server>,
    origin: Origin,
    request: create_join_event::v2::Request,
) -> Result<StreamedJson, Error> {
    let omit = match request.omit_members {
        true => Omit::Members,
        false => Omit::Nothing,
    };
    let (room_id, event_id) = (request.room_id, request.event_id);
    let joined = take_join(&server, origin, (room_id, event_id, request.pdu), omit).await?;
    let room = joined.room;
    Ok(states::answer(server, room, joined.parts))
}

/// Spec: s2s, "PUT /_matrix/federation/v1/send_join/{roomId}/{eventId}".
async fn send_join_v1(
    server: Arc<Server>,
    origin: Origin,
    v1::send_join::Request(request): v1::send_join::Request,
) -> Result<StreamedJson, Error> {
    let (room_id, event_id) = (request.room_id, request.event_id);
    let pdu = request.pdu;
    let mut joined = take_join(&server, origin, (room_id, event_id, pdu), Omit::Nothing).await?;
    v1::pair_of(&mut joined.parts);
    Ok(states::answer(server, joined.room, joined.parts))
}

/// What a server is told that has joined, as the object of the second version.
struct JoinAnswer {
    room: RoomNumber,
    parts: Vec<Part>,
}

async fn take_join(
    server: &Server,
    Origin(origin): Origin,
    (room_id, event_id, pdu): (OwnedRoomId, OwnedEventId, Box<RawValue>),
    omit: Omit,
) -> Result<JoinAnswer, Error> {
    let asked = Asked {
        origin: &origin,
        room_id: &room_id,
    };
    let joined = server
        .federation
        .take_join(asked, (&event_id, &pdu), omit)
        .await
        .map_err(refused)?;
    let own = serde_json::to_string(server.rooms.own_name()).map_err(Error::internal)?;
    let servers = serde_json::to_string(&joined.servers).map_err(Error::internal)?;
    let omitted = joined.members_omitted;
    let rest = format!(
        ",\"members_omitted\":{omitted},\"origin\":{own},\"servers_in_room\":{servers},\"state\":["
    );
    let parts = vec![
        Part::from(b"{\"auth_chain\":[".as_slice()),
        Part::States(joined.auth_chain),
        Part::from(b"],\"event\":".as_slice()),
        Part::Text(joined.event),
        Part::Text(rest.into()),
        Part::States(joined.state),
        Part::from(b"]}".as_slice()),
    ];
    Ok(JoinAnswer {
        room: joined.room,
        parts,
    })
}

/// Spec: s2s, "GET /_matrix/federation/v1/make_leave/{roomId}/{userId}".
async fn make_leave(
    server: Arc<Server>,
    Origin(origin): Origin,
    request: prepare_leave_event::v1::Request,
) -> Result<prepare_leave_event::v1::Response, Error> {
    let asked = Asked {
        origin: &origin,
        room_id: &request.room_id,
    };
    let template = server
        .federation
        .template(asked, &request.user_id, MembershipState::Leave, None)
        .await
        .map_err(refused)?;
    let event = raw(&template)?;
    Ok(prepare_leave_event::v1::Response::new(
        Some(template.version),
        event,
    ))
}

/// Spec: s2s, "PUT /_matrix/federation/v2/send_leave/{roomId}/{eventId}".
async fn send_leave(
    server: Arc<Server>,
    Origin(origin): Origin,
    request: create_leave_event::v2::Request,
) -> Result<create_leave_event::v2::Response, Error> {
    let (room_id, event_id) = (request.room_id, request.event_id);
    take_leave(&server, &origin, (room_id, event_id), &request.pdu).await?;
    Ok(create_leave_event::v2::Response::new())
}

/// Spec: s2s, "PUT /_matrix/federation/v1/send_leave/{roomId}/{eventId}".
async fn send_leave_v1(
    server: Arc<Server>,
    Origin(origin): Origin,
    v1::send_leave::Request(request): v1::send_leave::Request,
) -> Result<RawJson, Error> {
    let (room_id, event_id) = (request.room_id, request.event_id);
    take_leave(&server, &origin, (room_id, event_id), &request.pdu).await?;
    Ok(v1::pair(b"{}"))
}

async fn take_leave(
    server: &Server,
    origin: &ruma::ServerName,
    (room_id, event_id): (OwnedRoomId, OwnedEventId),
    pdu: &RawValue,
) -> Result<(), Error> {
    let asked = Asked {
        origin,
        room_id: &room_id,
    };
    server
        .federation
        .take_leave(asked, (&event_id, pdu))
        .await
        .map_err(refused)
}

/// Spec: s2s, "GET /_matrix/federation/v1/make_knock/{roomId}/{userId}".
async fn make_knock(
    server: Arc<Server>,
    Origin(origin): Origin,
    request: prepare_knock_event::v1::Request,
) -> Result<prepare_knock_event::v1::Response, Error> {
    let asked = Asked {
        origin: &origin,
        room_id: &request.room_id,
    };
    let template = server
        .federation
        .template(
            asked,
            &request.user_id,
            MembershipState::Knock,
            Some(&request.ver),
        )
        .await
        .map_err(refused)?;
    let event = raw(&template)?;
    Ok(prepare_knock_event::v1::Response::new(
        template.version,
        event,
    ))
}

/// Spec: s2s, "PUT /_matrix/federation/v1/send_knock/{roomId}/{eventId}".
async fn send_knock(
    server: Arc<Server>,
    Origin(origin): Origin,
    request: create_knock_event::v1::Request,
) -> Result<create_knock_event::v1::Response, Error> {
    let asked = Asked {
        origin: &origin,
        room_id: &request.room_id,
    };
    let shown = server
        .federation
        .take_knock(asked, (&request.event_id, &request.pdu))
        .await
        .map_err(refused)?;
    let shown = shown.into_iter().map(RawStrippedState::Pdu).collect();
    Ok(create_knock_event::v1::Response::new(shown))
}

/// Spec: s2s, "PUT /_matrix/federation/v2/invite/{roomId}/{eventId}".
async fn invite(
    server: Arc<Server>,
    Origin(origin): Origin,
    request: create_invite::v2::Request,
) -> Result<create_invite::v2::Response, Error> {
    let asked = Asked {
        origin: &origin,
        room_id: &request.room_id,
    };
    let invitation = Invitation {
        event_id: &request.event_id,
        version: &request.room_version,
        event: &request.event,
        shown: &request.invite_room_state,
    };
    let signed = server
        .federation
        .take_invite(asked, invitation)
        .await
        .map_err(refused)?;
    Ok(create_invite::v2::Response::new(signed))
}

/// Only rooms of versions 1 and 2 are invited to so, whose events are alike.
///
/// Spec: s2s, "PUT /_matrix/federation/v1/invite/{roomId}/{eventId}".
async fn invite_v1(
    server: Arc<Server>,
    Origin(origin): Origin,
    v1::invite::Request(request): v1::invite::Request,
) -> Result<RawJson, Error> {
    let asked = Asked {
        origin: &origin,
        room_id: &request.room_id,
    };
    let invitation = Invitation {
        event_id: &request.event_id,
        version: &RoomVersionId::V1,
        event: &request.pdu,
        shown: &v1::shown_state(&request.pdu),
    };
    let signed = server
        .federation
        .take_invite(asked, invitation)
        .await
        .map_err(refused)?;
    let answer = [b"{\"event\":".as_slice(), signed.get().as_bytes(), b"}"].concat();
    Ok(v1::pair(&answer))
}

/// What another server is told of why a membership does not come about.
pub(super) fn refused(error: MembershipError) -> Error {
    use MembershipError as E;
    let bad = |code, text: String| Error::new(StatusCode::BAD_REQUEST, code, text);
    match error {
        E::NotFound => Error::not_found("This server is not in the room"),
        E::Forbidden(text) => Error::forbidden(text),
        E::Invalid(text) => Error::invalid_param(text),
        E::IncompatibleVersion(version) => incompatible(&version),
        E::Rooms(error @ rooms::Error::UnableToAuthorizeJoin) => {
            bad(ErrorCode::UnableToAuthorizeJoin, error.to_string())
        }
        E::Rooms(error @ rooms::Error::UnableToGrantJoin) => {
            bad(ErrorCode::UnableToGrantJoin, error.to_string())
        }
        E::Rooms(error) => error.into(),
        E::Accounts(error) => error.into(),
        E::Storage(error) => error.into(),
        E::Federation(error) => Error::of_federation(error),
        error @ (E::NoCandidates | E::BadAnswer { .. }) => Error::new(
            StatusCode::BAD_GATEWAY,
            ErrorCode::Unknown,
            error.to_string(),
        ),
    }
}

fn incompatible(version: &RoomVersionId) -> Error {
    Error::new(
        StatusCode::BAD_REQUEST,
        ErrorCode::IncompatibleRoomVersion,
        "The room has a version that one of the servers does not support",
    )
    .with("room_version", version.as_str())
}

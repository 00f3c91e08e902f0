//! What users do with memberships, and who is in a room.
//!
//! Spec: c2s, "Room membership".

use std::sync::Arc;

use http::StatusCode;
use ruma::{
    CanonicalJsonObject, OwnedRoomId, OwnedUserId, RoomId, RoomOrAliasId, UserId,
    api::{
        client::{
            knock::knock_room,
            membership::{
                ban_user, forget_room,
                invite_user::{self, v3::InvitationRecipient},
                join_room_by_id, join_room_by_id_or_alias, joined_rooms, kick_user, leave_room,
                unban_user,
            },
        },
        error::ErrorCode,
    },
    canonical_json::CanonicalJsonValue,
    events::room::member::MembershipState,
};

use crate::{
    accounts::Session,
    api::{content::WithBody, error::Error, limits::Bucket, routes::Routes},
    rooms::{self, Class, Extra, MembershipAction},
    server::Server,
    storage::Snapshot,
};

pub(super) fn routes() -> Routes {
    Routes::default()
        .limited(Bucket::Join, join_room_by_id)
        .limited(Bucket::Join, join_room_by_id_or_alias)
        .limited(Bucket::Join, knock_room)
        .limited(Bucket::Invite, invite_user)
        .endpoint(leave_room)
        .endpoint(kick_user)
        .endpoint(ban_user)
        .endpoint(unban_user)
        .endpoint(forget_room)
        .endpoint(joined_rooms)
}

/// Fields of a join's body that the server decides about, or that are no part of the membership.
const NOT_TAKEN_OVER: &[&str] = &[
    "membership",
    "join_authorised_via_users_server",
    "third_party_signed",
];

/// Memberships that a kick ends.
const PRESENT: &[Class] = &[Class::Join, Class::Invite, Class::Knock];

async fn join_room_by_id(
    server: Arc<Server>,
    session: Arc<Session>,
    request: WithBody<join_room_by_id::v3::Request>,
) -> Result<join_room_by_id::v3::Response, Error> {
    super::require_active(&session)?;
    let extra = extra(request.object()?);
    let room_id = request.request.room_id;
    server.rooms.join(&session.user, &room_id, extra).await?;
    Ok(join_room_by_id::v3::Response::new(room_id))
}

async fn join_room_by_id_or_alias(
    server: Arc<Server>,
    session: Arc<Session>,
    request: WithBody<join_room_by_id_or_alias::v3::Request>,
) -> Result<join_room_by_id_or_alias::v3::Response, Error> {
    super::require_active(&session)?;
    let extra = extra(request.object()?);
    let room_id = named(&server, &request.request.room_id_or_alias).await?;
    server.rooms.join(&session.user, &room_id, extra).await?;
    Ok(join_room_by_id_or_alias::v3::Response::new(room_id))
}

fn extra(mut body: CanonicalJsonObject) -> Extra {
    for key in NOT_TAKEN_OVER {
        body.remove(*key);
    }
    body
}

/// The room of this ID or alias.
async fn named(server: &Server, name: &RoomOrAliasId) -> Result<OwnedRoomId, Error> {
    let alias = match <&RoomId>::try_from(name) {
        Ok(room_id) => return Ok(room_id.to_owned()),
        Err(alias) => alias.to_owned(),
    };
    let rooms = server.rooms.clone();
    let found = server
        .store
        .read(move |snapshot| rooms.alias(snapshot, &alias))
        .await?;
    found
        .and_then(|row| server.rooms.room_id(row.room))
        .ok_or_else(|| Error::not_found("There is no such room alias"))
}

async fn knock_room(
    server: Arc<Server>,
    session: Arc<Session>,
    request: knock_room::v3::Request,
) -> Result<knock_room::v3::Response, Error> {
    super::require_active(&session)?;
    let room_id = named(&server, &request.room_id_or_alias).await?;
    let change = own(&session, MembershipState::Knock, request.reason);
    server.rooms.set_membership(&room_id, change).await?;
    Ok(knock_room::v3::Response::new(room_id))
}

async fn leave_room(
    server: Arc<Server>,
    session: Arc<Session>,
    request: leave_room::v3::Request,
) -> Result<leave_room::v3::Response, Error> {
    let change = own(&session, MembershipState::Leave, request.reason);
    server
        .rooms
        .set_membership(&request.room_id, change)
        .await?;
    Ok(leave_room::v3::Response::new())
}

async fn invite_user(
    server: Arc<Server>,
    session: Arc<Session>,
    request: invite_user::v3::Request,
) -> Result<invite_user::v3::Response, Error> {
    let InvitationRecipient::UserId(recipient) = request.recipient else {
        return Err(no_third_party());
    };
    require_local(&server, &recipient.user_id)?;
    let target = (recipient.user_id, recipient.reason);
    change_other(
        &server,
        &session,
        &request.room_id,
        target,
        (MembershipState::Invite, &[]),
    )
    .await?;
    Ok(invite_user::v3::Response::new())
}

/// Inviting users of other servers needs federation.
pub(super) fn require_local(server: &Server, user: &UserId) -> Result<(), Error> {
    match server.accounts.is_local(user) {
        true => Ok(()),
        false => Err(Error::forbidden("Users of other servers cannot be invited")),
    }
}

/// Inviting by e-mail address or telephone number needs an identity server.
pub(super) fn no_third_party() -> Error {
    let text = "Invites by e-mail address or telephone number are not supported";
    Error::new(StatusCode::FORBIDDEN, ErrorCode::ThreepidDenied, text)
}

async fn kick_user(
    server: Arc<Server>,
    session: Arc<Session>,
    request: kick_user::v3::Request,
) -> Result<kick_user::v3::Response, Error> {
    let target = (request.user_id, request.reason);
    change_other(
        &server,
        &session,
        &request.room_id,
        target,
        (MembershipState::Leave, PRESENT),
    )
    .await?;
    Ok(kick_user::v3::Response::new())
}

async fn ban_user(
    server: Arc<Server>,
    session: Arc<Session>,
    request: ban_user::v3::Request,
) -> Result<ban_user::v3::Response, Error> {
    let target = (request.user_id, request.reason);
    change_other(
        &server,
        &session,
        &request.room_id,
        target,
        (MembershipState::Ban, &[]),
    )
    .await?;
    Ok(ban_user::v3::Response::new())
}

async fn unban_user(
    server: Arc<Server>,
    session: Arc<Session>,
    request: unban_user::v3::Request,
) -> Result<unban_user::v3::Response, Error> {
    let target = (request.user_id, request.reason);
    change_other(
        &server,
        &session,
        &request.room_id,
        target,
        (MembershipState::Leave, &[Class::Ban]),
    )
    .await?;
    Ok(unban_user::v3::Response::new())
}

/// Changes the membership of another, which must be one of those given before; none given: any.
async fn change_other(
    server: &Server,
    session: &Session,
    room_id: &RoomId,
    (target, reason): (OwnedUserId, Option<String>),
    (membership, before): (MembershipState, &'static [Class]),
) -> Result<(), Error> {
    super::require_active(session)?;
    super::known_room(server, room_id)?;
    let sender = session.user.clone();
    let change = MembershipAction {
        sender,
        target,
        membership,
        extra: reason_only(reason),
        before,
    };
    Ok(server.rooms.set_membership(room_id, change).await?)
}

fn own(session: &Session, membership: MembershipState, reason: Option<String>) -> MembershipAction {
    let (sender, target) = (session.user.clone(), session.user.clone());
    MembershipAction {
        sender,
        target,
        membership,
        extra: reason_only(reason),
        before: &[],
    }
}

fn reason_only(reason: Option<String>) -> Extra {
    let reason = reason.map(|reason| ("reason".to_owned(), CanonicalJsonValue::String(reason)));
    reason.into_iter().collect()
}

/// Forgetting a room that one was never in changes nothing.
async fn forget_room(
    server: Arc<Server>,
    session: Arc<Session>,
    request: forget_room::v3::Request,
) -> Result<forget_room::v3::Response, Error> {
    if let Some(room) = server.rooms.number(&request.room_id) {
        match server.rooms.forget(&session.user, room).await {
            Ok(()) | Err(rooms::Error::NotFound) => {}
            Err(rooms::Error::Forbidden(text)) => {
                return Err(Error::new(
                    StatusCode::BAD_REQUEST,
                    ErrorCode::Unknown,
                    text,
                ));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(forget_room::v3::Response::new())
}

async fn joined_rooms(
    server: Arc<Server>,
    session: Arc<Session>,
    _request: joined_rooms::v3::Request,
) -> Result<joined_rooms::v3::Response, Error> {
    let (rooms, user) = (server.rooms.clone(), session.user_number);
    let read = move |snapshot: &Snapshot| -> Result<_, rooms::Error> {
        let all = rooms.rooms_of(snapshot, user)?;
        let joined = all.iter().filter(|room| room.class == Class::Join);
        Ok(joined.filter_map(|room| rooms.room_id(room.room)).collect())
    };
    Ok(joined_rooms::v3::Response::new(
        server.store.read(read).await?,
    ))
}

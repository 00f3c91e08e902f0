//! What users do with memberships, and who is in a room.
//!
//! Spec: c2s, "Room membership".

use std::{collections::BTreeMap, sync::Arc};

use http::StatusCode;
use ruma::{
    CanonicalJsonObject, OwnedRoomId, OwnedUserId, RoomId, RoomOrAliasId, UserId,
    api::{
        client::{
            knock::knock_room,
            membership::{
                ban_user, forget_room, get_member_events,
                invite_user::{self, v3::InvitationRecipient},
                join_room_by_id, join_room_by_id_or_alias, joined_members, joined_rooms, kick_user,
                leave_room, unban_user,
            },
        },
        error::ErrorCode,
    },
    canonical_json::CanonicalJsonValue,
    events::{TimelineEventType, room::member::MembershipState},
};
use serde_json::{Value, json};

use super::events::Reader;
use crate::{
    accounts::Session,
    api::{
        content::WithBody,
        error::Error,
        limits::Bucket,
        routes::{RawJson, Routes},
    },
    events::RootNumber,
    rooms::{self, Class, Extra, MembershipAction, Sight, StoredEvent},
    server::Server,
    storage::{Order, Snapshot},
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
        .endpoint(joined_members)
        .endpoint(get_member_events)
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
    let keeps = server
        .notices
        .keeps(&server, session.user_number, &request.room_id);
    if keeps.await? {
        let text = "An invitation to notices of the server cannot be rejected";
        let code = ErrorCode::CannotLeaveServerNoticeRoom;
        return Err(Error::new(StatusCode::FORBIDDEN, code, text));
    }
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

/// That a state event is no invite which would have to be sent to another server.
pub(super) fn check_invite(
    server: &Server,
    event_type: &TimelineEventType,
    state_key: &str,
    content: &CanonicalJsonObject,
) -> Result<(), Error> {
    let membership = content
        .get("membership")
        .and_then(CanonicalJsonValue::as_str);
    match <&UserId>::try_from(state_key) {
        Ok(user)
            if *event_type == TimelineEventType::RoomMember && membership == Some("invite") =>
        {
            require_local(server, user)
        }
        _ => Ok(()),
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

/// The joined members of now, with names and avatars.
async fn joined_members(
    server: Arc<Server>,
    session: Arc<Session>,
    request: joined_members::v3::Request,
) -> Result<RawJson, Error> {
    let reader = Reader::new(&server, session, request.room_id)?;
    let read = move |snapshot: &Snapshot| -> Result<_, Error> {
        if !reader.sight(snapshot)?.is_joined() {
            return Err(super::not_in_room());
        }
        let joined: BTreeMap<_, _> = current(&reader, snapshot, Class::Join)?
            .iter()
            .filter_map(|event| Some((event.pdu.state_key.clone()?, shown(event))))
            .collect();
        Ok(RawJson(json!({ "joined": joined }).to_string().into()))
    };
    server.store.read(read).await
}

/// A member as `/joined_members` shows it: both keys are always there.
fn shown(event: &StoredEvent) -> Value {
    #[derive(Default, serde::Deserialize)]
    struct Content {
        displayname: Option<Value>,
        avatar_url: Option<Value>,
    }
    let content: Content = event.pdu.content_as().unwrap_or_default();
    let text = |value: Option<Value>| value.filter(Value::is_string);
    json!({ "display_name": text(content.displayname), "avatar_url": text(content.avatar_url) })
}

/// The membership events of a class in the current state.
fn current(
    reader: &Reader,
    snapshot: &Snapshot,
    class: Class,
) -> Result<Vec<Arc<StoredEvent>>, Error> {
    let members = reader
        .rooms
        .members(snapshot, reader.room, class, usize::MAX)?;
    let numbers: Vec<_> = members.iter().map(|(_, _, row)| row.event).collect();
    Ok(reader
        .rooms
        .events(snapshot, reader.room, &numbers)?
        .into_iter()
        .flatten()
        .collect())
}

/// Membership events: of now, of when the reader left, or of an earlier place.
async fn get_member_events(
    server: Arc<Server>,
    session: Arc<Session>,
    request: get_member_events::v3::Request,
) -> Result<RawJson, Error> {
    let reader = Reader::new(&server, session, request.room_id)?;
    let read = move |snapshot: &Snapshot| -> Result<_, Error> {
        let sight = reader.sight(snapshot)?;
        let mut root = sight.state().ok_or_else(super::not_in_room)?;
        if let Some(token) = &request.at {
            root = root_at(&reader, snapshot, &sight, token)?.unwrap_or(root);
        }
        let mut events = match request.membership {
            Some(MembershipState::Join) if request.at.is_none() && sight.is_joined() => {
                current(&reader, snapshot, Class::Join)?
            }
            _ => reader.rooms.member_state(snapshot, reader.room, root)?,
        };
        if request.membership.is_some() || request.not_membership.is_some() {
            events.retain(|event| {
                let membership = rooms::membership_of(event);
                request
                    .membership
                    .as_ref()
                    .is_none_or(|wanted| membership == *wanted)
                    && request.not_membership.as_ref() != Some(&membership)
            });
        }
        let mut json = b"{\"chunk\":".to_vec();
        json.extend(reader.state_array(snapshot, &events)?);
        json.push(b'}');
        Ok(RawJson(json.into()))
    };
    server.store.read(read).await
}

/// The state at a token, as far as the reader may see. A place before the creator's join counts as the one after it.
fn root_at(
    reader: &Reader,
    snapshot: &Snapshot,
    sight: &Sight,
    token: &str,
) -> Result<Option<RootNumber>, Error> {
    let head = reader
        .rooms
        .head(snapshot, reader.room)?
        .ok_or_else(super::not_in_room)?;
    let place = reader.place(snapshot, token)?;
    let index = place
        .0
        .max(head.low.saturating_add(1))
        .min(sight.until().unwrap_or(i64::MAX));
    let below = index.saturating_add(1);
    let found = reader
        .rooms
        .timeline(snapshot, reader.room, below, Order::Backward, 1)?;
    Ok(found.first().map(|placed| placed.event.meta.root_after))
}

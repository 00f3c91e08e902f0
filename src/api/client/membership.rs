//! What users do with memberships, and who is in a room.
//!
//! Spec: c2s, "Room membership".

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use http::StatusCode;
use ruma::{
    CanonicalJsonObject, OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomId,
    RoomOrAliasId, UserId,
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
    federation::MembershipError,
    rooms::{self, Class, Extra, MembershipAction, NewEvent, Sight, StoredEvent},
    server::Server,
    storage::{Order, Snapshot},
    tasks::Stage,
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

/// Servers that sign invites for one request at the same time.
const INVITES_AT_ONCE: usize = 8;

/// Memberships that a kick ends.
const PRESENT: &[Class] = &[Class::Join, Class::Invite, Class::Knock];

async fn join_room_by_id(
    server: Arc<Server>,
    session: Arc<Session>,
    request: WithBody<join_room_by_id::v3::Request>,
) -> Result<join_room_by_id::v3::Response, Error> {
    super::require_active(&session)?;
    let extra = extra(request.object()?);
    let place = (request.request.room_id.clone(), Vec::new());
    join(&server, &session, place, extra).await?;
    Ok(join_room_by_id::v3::Response::new(request.request.room_id))
}

async fn join_room_by_id_or_alias(
    server: Arc<Server>,
    session: Arc<Session>,
    request: WithBody<join_room_by_id_or_alias::v3::Request>,
) -> Result<join_room_by_id_or_alias::v3::Response, Error> {
    super::require_active(&session)?;
    let extra = extra(request.object()?);
    let request = request.request;
    let (room_id, via) = named(&server, &request.room_id_or_alias, request.via).await?;
    join(&server, &session, (room_id.clone(), via), extra).await?;
    Ok(join_room_by_id_or_alias::v3::Response::new(room_id))
}

async fn join(
    server: &Arc<Server>,
    session: &Session,
    (room_id, via): (OwnedRoomId, Vec<OwnedServerName>),
    extra: Extra,
) -> Result<(), Error> {
    let (federation, user) = (server.federation.clone(), session.user.clone());
    to_its_end(server, "join", async move {
        federation.join(&user, &room_id, &via, extra).await
    })
    .await
}

/// Runs what other servers take part in, also if the client does not wait for it: half of it would be worse than none.
async fn to_its_end<T: Send + 'static>(
    server: &Server,
    name: &'static str,
    work: impl Future<Output = Result<T, MembershipError>> + Send + 'static,
) -> Result<T, Error> {
    let (done, wait) = tokio::sync::oneshot::channel();
    server.tasks.spawn(name, Stage::Requests, async move {
        // Nobody may be waiting any more.
        drop(done.send(work.await));
    });
    match wait.await {
        Ok(result) => result.map_err(Error::of_membership),
        Err(_ended) => Err(Error::unavailable(Duration::from_secs(1))),
    }
}

fn extra(mut body: CanonicalJsonObject) -> Extra {
    for key in NOT_TAKEN_OVER {
        body.remove(*key);
    }
    body
}

/// The room of this ID or alias, and servers that may be in it.
async fn named(
    server: &Server,
    name: &RoomOrAliasId,
    via: Vec<OwnedServerName>,
) -> Result<(OwnedRoomId, Vec<OwnedServerName>), Error> {
    let alias = match <&RoomId>::try_from(name) {
        Ok(room_id) => return Ok((room_id.to_owned(), via)),
        Err(alias) => alias.to_owned(),
    };
    let (room_id, servers) = super::alias::find_anywhere(server, alias).await?;
    Ok((room_id, via.into_iter().chain(servers).collect()))
}

async fn knock_room(
    server: Arc<Server>,
    session: Arc<Session>,
    request: knock_room::v3::Request,
) -> Result<knock_room::v3::Response, Error> {
    super::require_active(&session)?;
    let (room_id, via) = named(&server, &request.room_id_or_alias, request.via).await?;
    let extra = reason_only(request.reason);
    let (federation, user) = (server.federation.clone(), session.user.clone());
    let place = room_id.clone();
    to_its_end(&server, "knock", async move {
        federation.knock(&user, &place, &via, extra).await
    })
    .await?;
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
    let extra = reason_only(request.reason);
    let (federation, user) = (server.federation.clone(), session.user.clone());
    to_its_end(&server, "leave", async move {
        federation.leave(&user, &request.room_id, extra).await
    })
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
    super::require_active(&session)?;
    super::known_room(&server, &request.room_id)?;
    let action = MembershipAction {
        sender: session.user.clone(),
        target: recipient.user_id,
        membership: MembershipState::Invite,
        extra: reason_only(recipient.reason),
        before: &[],
    };
    let federation = server.federation.clone();
    to_its_end(&server, "invite", async move {
        federation.invite(&request.room_id, action).await
    })
    .await?;
    Ok(invite_user::v3::Response::new())
}

/// Invites users of other servers into a new room, several at a time. The room stands, whoever cannot be invited.
pub(super) async fn invite_remote(
    server: &Arc<Server>,
    session: &Session,
    room_id: &RoomId,
    (invited, is_direct): (Vec<OwnedUserId>, bool),
) {
    let remote = invited
        .into_iter()
        .filter(|user| !server.accounts.is_local(user));
    let invites = remote.map(|target| async move {
        let event = server
            .rooms
            .invite_event(&session.user, &target, is_direct)
            .await?;
        send_remote_invite(server, room_id.to_owned(), event).await
    });
    let mut invites = stream::iter(invites).buffer_unordered(INVITES_AT_ONCE);
    while let Some(invited) = invites.next().await {
        if let Err(error) = invited {
            tracing::info!(%room_id, ?error, "somebody could not be invited into a new room");
        }
    }
}

/// Whether a state event is an invite that another server has to sign.
pub(super) fn is_remote_invite(
    server: &Server,
    event_type: &TimelineEventType,
    state_key: &str,
    content: &CanonicalJsonObject,
) -> bool {
    let membership = content
        .get("membership")
        .and_then(CanonicalJsonValue::as_str);
    *event_type == TimelineEventType::RoomMember
        && membership == Some("invite")
        && <&UserId>::try_from(state_key).is_ok_and(|user| !server.accounts.is_local(user))
}

/// Sends an invite that another server has to sign.
pub(super) async fn send_remote_invite(
    server: &Server,
    room_id: OwnedRoomId,
    event: NewEvent,
) -> Result<OwnedEventId, Error> {
    let room = super::known_room(server, &room_id)?;
    super::all_members(server, room).await?;
    let federation = server.federation.clone();
    to_its_end(server, "invite", async move {
        federation.invite_with(&room_id, event).await
    })
    .await
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
    let room = super::known_room(server, room_id)?;
    if !server.accounts.is_local(&target) {
        // What becomes of the target depends on what it is.
        super::all_members(server, room).await?;
    }
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
    reader.all_members(&server).await?;
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
    reader.all_members(&server).await?;
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

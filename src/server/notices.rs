//! Notices: what the operator tells a user, in one room for each user. The server's own voice speaks there.
//!
//! Which room that is stands in the account data of the voice, so that it is found again after the user has left.
//!
//! Spec: c2s, "Server Notices".

use ruma::{
    CanonicalJsonObject, OwnedEventId, OwnedRoomId, RoomId, UserId,
    events::{TimelineEventType, room::member::MembershipState},
};
use serde::{Deserialize, Serialize};
use serde_json::{json, value::to_raw_value};
use tokio::sync::Mutex;

use super::Server;
use crate::{
    accounts::{self, GLOBAL, LocalUser, TAGS, UserNumber},
    rooms::{self, Class, CreateRoom, MembershipAction, NewEvent, Preset, Transaction},
    storage::{self, Snapshot},
};

/// Why a notice is not sent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Storage(#[from] storage::Error),
    #[error(transparent)]
    Accounts(#[from] accounts::Error),
    #[error(transparent)]
    Rooms(#[from] rooms::Error),
}

/// What is to be said to whom.
#[derive(Clone, Debug)]
pub struct Notice {
    pub to: LocalUser,
    pub event_type: TimelineEventType,
    pub content: CanonicalJsonObject,
    /// Of the administrator who sends it.
    pub transaction: Option<Transaction>,
}

/// Sends notices, one at a time: the first to a user makes the room.
#[derive(Debug, Default)]
pub struct Notices {
    turn: Mutex<()>,
}

#[derive(Serialize, Deserialize)]
struct RoomOfUser {
    room_id: OwnedRoomId,
}

impl Notices {
    /// Sends a notice; invites the user into the room, if that is needed.
    ///
    /// # Errors
    /// The user's account has ended; the room refuses it.
    pub async fn send(&self, server: &Server, notice: Notice) -> Result<OwnedEventId, Error> {
        let _turn = self.turn.lock().await;
        let voice = server
            .accounts
            .service_user(&server.config.notices.from)
            .await?;
        let room_id = match room_of(server, &voice, notice.to.number).await? {
            Some(room_id) => room_id,
            None => make_room(server, &voice, &notice.to).await?,
        };
        invite(server, &voice, &notice.to, &room_id).await?;
        let event = NewEvent {
            sender: voice.id,
            event_type: notice.event_type,
            state_key: None,
            content: notice.content,
            redacts: None,
            transaction: notice.transaction,
            timestamp: None,
        };
        Ok(server.rooms.send(&room_id, event).await?)
    }

    /// Whether this is the user's room for notices, and the user has not joined it yet: then it cannot be left.
    ///
    /// # Errors
    /// The store failed.
    pub async fn keeps(
        &self,
        server: &Server,
        user: UserNumber,
        room_id: &RoomId,
    ) -> Result<bool, Error> {
        let Some(room) = server.rooms.number(room_id) else {
            return Ok(false);
        };
        let (accounts, rooms) = (server.accounts.clone(), server.rooms.clone());
        let voice = accounts.find_login(&server.config.notices.from);
        let read = move |snapshot: &Snapshot| {
            let entry = rooms.user_room(snapshot, user, room)?;
            if entry.is_none_or(|entry| entry.class != Class::Invite) {
                return Ok(None);
            }
            let Some(voice) = voice else { return Ok(None) };
            let Some(voice) = accounts.user_number(snapshot, &voice)? else {
                return Ok(None);
            };
            let row = accounts.account_data(snapshot, voice, GLOBAL, &key(user))?;
            Ok::<_, Error>(row.and_then(|row| serde_json::from_str::<RoomOfUser>(row.get()).ok()))
        };
        let found = server.store.read(read).await?;
        Ok(found.is_some_and(|found| found.room_id == room_id))
    }
}

fn key(user: UserNumber) -> String {
    format!("chat.hearth.notice_room.{}", user.0)
}

async fn room_of(
    server: &Server,
    voice: &LocalUser,
    user: UserNumber,
) -> Result<Option<OwnedRoomId>, Error> {
    let (accounts, voice) = (server.accounts.clone(), voice.number);
    let read =
        move |snapshot: &Snapshot| accounts.account_data(snapshot, voice, GLOBAL, &key(user));
    let row = server.store.read(read).await?;
    let found = row.and_then(|row| serde_json::from_str::<RoomOfUser>(row.get()).ok());
    Ok(found.map(|found| found.room_id))
}

async fn make_room(
    server: &Server,
    voice: &LocalUser,
    user: &LocalUser,
) -> Result<OwnedRoomId, Error> {
    let plan = CreateRoom {
        creator: voice.id.clone(),
        preset: Preset::PrivateChat,
        is_published: false,
        version: None,
        alias: None,
        name: Some(server.config.notices.room_name.clone()),
        topic: None,
        invite: Vec::new(),
        is_direct: false,
        creation_content: CanonicalJsonObject::new(),
        initial_state: Vec::new(),
        power_levels: CanonicalJsonObject::new(),
    };
    let room_id = server.rooms.create(plan).await?;
    let room = server.rooms.resident(&room_id)?;
    let tags = json!({ "tags": { "m.server_notice": {} } });
    put(server, user.number, (room.0, TAGS), &tags).await?;
    let row = RoomOfUser { room_id };
    put(server, voice.number, (GLOBAL, &key(user.number)), &row).await?;
    Ok(row.room_id)
}

async fn put(
    server: &Server,
    user: UserNumber,
    (room, event_type): (u32, &str),
    content: &impl Serialize,
) -> Result<(), Error> {
    let content = to_raw_value(content).map_err(|_error| accounts::Error::DamagedAccountData)?;
    server
        .accounts
        .set_account_data(user, room, event_type, &content)
        .await?;
    Ok(())
}

async fn invite(
    server: &Server,
    voice: &LocalUser,
    user: &LocalUser,
    room_id: &RoomId,
) -> Result<(), Error> {
    let room = server.rooms.resident(room_id)?;
    let (rooms, number) = (server.rooms.clone(), user.number);
    let read = move |snapshot: &Snapshot| rooms.class_of(snapshot, number, room);
    if matches!(
        server.store.read(read).await?,
        Some(Class::Join | Class::Invite)
    ) {
        return Ok(());
    }
    let action = MembershipAction {
        sender: voice.id.clone(),
        target: UserId::to_owned(&user.id),
        membership: MembershipState::Invite,
        extra: CanonicalJsonObject::new(),
        before: &[],
    };
    Ok(server.rooms.set_membership(room_id, action).await?)
}

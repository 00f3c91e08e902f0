//! EDUs of other servers: checked here, kept by `ephemeral`.
//!
//! A server speaks for its own users only, and for the rooms that they are in and whose access list lets it in. What is
//! malformed or said about others is passed over, one entry at a time.
//!
//! Spec: s2s, "EDUs", "Typing Notifications", "Presence", "Receipts", "Server Access Control Lists (ACLs)".

mod waiting;

use std::collections::BTreeMap;

use ruma::{
    OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, ServerName, UserId,
    api::federation::transactions::edu::Edu as AnyEdu, presence::PresenceState, serde::Raw,
};
use serde::Deserialize;
use serde_json::value::RawValue;

pub(super) use self::waiting::WaitingReceipts;
use super::{Error, Federation};
use crate::{
    accounts::UserNumber,
    ephemeral::{
        NewReceipt, OpaqueReceipt, ReceiptKind, ReceiptThread, RemotePresence, RemoteReceipt, Who,
    },
    rooms::RoomNumber,
    storage::{Position, Snapshot},
};

/// Rooms of one receipt EDU that are looked at, and users of each.
const MAX_ROOMS: usize = 100;
const MAX_USERS: usize = 1_000;
/// The longest ID of an event, in bytes.
const MAX_EVENT_ID_BYTES: usize = 255;
/// Users of one presence EDU that are looked at.
const MAX_PRESENCES: usize = 200;

#[derive(Deserialize)]
struct Edu<'a> {
    edu_type: String,
    #[serde(borrow)]
    content: &'a RawValue,
}

#[derive(Deserialize)]
struct TypingContent {
    room_id: OwnedRoomId,
    user_id: OwnedUserId,
    typing: bool,
}

#[derive(Deserialize)]
struct RoomReceipts<'a> {
    #[serde(rename = "m.read", borrow, default)]
    read: BTreeMap<String, &'a RawValue>,
}

#[derive(Deserialize)]
struct UserReceipt {
    data: ReceiptData,
    event_ids: Vec<String>,
}

#[derive(Deserialize)]
struct ReceiptData {
    #[serde(default)]
    ts: u64,
    #[serde(default)]
    thread_id: Option<String>,
}

#[derive(Deserialize)]
struct PresenceContent<'a> {
    #[serde(borrow)]
    push: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct PresenceUpdate {
    user_id: OwnedUserId,
    presence: PresenceState,
    #[serde(default)]
    status_msg: Option<String>,
    #[serde(default)]
    last_active_ago: u64,
}

/// A receipt of a user who is in the room.
enum Taken {
    Event(RemoteReceipt),
    /// What it names is no event ID. The user has read something, and clients are told what.
    Opaque(OpaqueReceipt),
}

/// Receipts of a server's users in one room.
type RoomReceiptList = (OwnedRoomId, Vec<(OwnedUserId, UserReceipt)>);

impl Federation {
    /// Takes an EDU of `origin`, whose signature has been checked. What is not right in it is passed over.
    pub async fn receive_edu(&self, origin: &ServerName, edu: Raw<AnyEdu>) {
        let Ok(edu) = serde_json::from_str::<Edu<'_>>(edu.json().get()) else {
            tracing::debug!(%origin, "an EDU is malformed");
            return;
        };
        let content = edu.content.get();
        let taken = match edu.edu_type.as_str() {
            "m.typing" => self.receive_typing(origin, content).await,
            "m.receipt" => self.receive_receipts(origin, content).await,
            "m.presence" => self.receive_presence(origin, content).await,
            "m.device_list_update" => self.receive_device_list(origin, content).await,
            "m.signing_key_update" | "org.matrix.signing_key_update" => {
                self.receive_signing_key(origin, content).await
            }
            "m.direct_to_device" => self.receive_to_device(origin, content).await,
            other => {
                tracing::trace!(%origin, edu_type = other, "an EDU of a kind that is not taken");
                Ok(())
            }
        };
        if let Err(error) = taken {
            tracing::warn!(%origin, %error, edu_type = %edu.edu_type, "an EDU was not taken");
        }
    }

    async fn receive_typing(&self, origin: &ServerName, content: &str) -> Result<(), Error> {
        let Ok(typing) = serde_json::from_str::<TypingContent>(content) else {
            return Ok(());
        };
        if typing.user_id.server_name() != origin {
            return Ok(());
        }
        let (federation, server) = (self.clone(), origin.to_owned());
        let (room_id, user) = (typing.room_id, typing.user_id.clone());
        let read = move |snapshot: &Snapshot| -> Result<Option<RoomNumber>, Error> {
            let Some(room) = federation.open_room(snapshot, &room_id, &server)? else {
                return Ok(None);
            };
            let is_member = federation.member(snapshot, room, &user)?.is_some()
                || federation.may_be_member(snapshot, room, &user)?;
            Ok(is_member.then_some(room))
        };
        if let Some(room) = self.inner.store.read(read).await? {
            let ephemeral = &self.inner.ephemeral;
            ephemeral.remote_typing(room, &typing.user_id, typing.typing);
        }
        Ok(())
    }

    async fn receive_receipts(&self, origin: &ServerName, content: &str) -> Result<(), Error> {
        let (federation, server) = (self.clone(), origin.to_owned());
        let receipts = read_receipts(origin, content);
        self.number_members(&receipts).await?;
        let read = move |snapshot: &Snapshot| -> Result<_, Error> {
            let mut checked = Vec::new();
            for (room_id, of_users) in receipts {
                let Some(room) = federation.open_room(snapshot, &room_id, &server)? else {
                    continue;
                };
                let mut of_room = Vec::with_capacity(of_users.len());
                for (user, receipt) in of_users {
                    if let Some(user) = federation.member(snapshot, room, &user)? {
                        of_room.extend(receipt.into_taken(user));
                    }
                }
                checked.push((room, of_room));
            }
            Ok(checked)
        };
        for (room, taken) in self.inner.store.read(read).await? {
            let (mut receipts, mut opaque) = (Vec::with_capacity(taken.len()), Vec::new());
            for receipt in taken {
                match receipt {
                    Taken::Event(receipt) => receipts.push(receipt),
                    Taken::Opaque(receipt) => opaque.push(receipt),
                }
            }
            self.keep_receipts(room, receipts).await?;
            self.inner
                .ephemeral
                .remote_opaque_receipts(room, opaque)
                .await?;
        }
        Ok(())
    }

    /// Gives numbers to users of partial rooms: who is a member there may never have been heard of.
    async fn number_members(&self, receipts: &[RoomReceiptList]) -> Result<(), Error> {
        let rooms = &self.inner.rooms;
        let is_partial = |room_id: &OwnedRoomId| {
            let room = rooms.number(room_id);
            room.is_some_and(|room| rooms.is_partial(room))
        };
        let of_partial = receipts.iter().filter(|(room_id, _)| is_partial(room_id));
        let users: Vec<&UserId> = of_partial
            .flat_map(|(_, of_users)| of_users.iter().map(|(user, _)| &**user))
            .collect();
        if !users.is_empty() {
            self.inner.accounts.intern(&users).await?;
        }
        Ok(())
    }

    /// Keeps receipts; those whose events are still on their way wait for them.
    async fn keep_receipts(
        &self,
        room: RoomNumber,
        receipts: Vec<RemoteReceipt>,
    ) -> Result<(), Error> {
        let unknown = self.inner.ephemeral.remote_receipts(room, receipts).await?;
        if unknown.is_empty() {
            return Ok(());
        }
        let waiting = &self.inner.sender.receipts;
        let now_ms = self.inner.clock.now_ms();
        let events: Vec<OwnedEventId> = unknown
            .iter()
            .map(|receipt| receipt.new.event.clone())
            .collect();
        waiting.add(room, unknown, now_ms);
        // An event may have come in between; from now on those that come find what waits for them.
        let rooms = self.inner.rooms.clone();
        let read = move |snapshot: &Snapshot| -> Result<Vec<OwnedEventId>, Error> {
            let mut here = Vec::new();
            for event in events {
                if rooms.event_in_room(snapshot, room, &event)?.is_some() {
                    here.push(event);
                }
            }
            Ok(here)
        };
        for event in self.inner.store.read(read).await? {
            let placed = waiting.take(&event);
            let placed = placed.into_iter().map(|(_, receipt)| receipt).collect();
            self.inner.ephemeral.remote_receipts(room, placed).await?;
        }
        Ok(())
    }

    async fn receive_presence(&self, origin: &ServerName, content: &str) -> Result<(), Error> {
        if !self.inner.ephemeral.takes_presence() {
            return Ok(());
        }
        let Ok(content) = serde_json::from_str::<PresenceContent<'_>>(content) else {
            return Ok(());
        };
        let updates = content.push.iter().take(MAX_PRESENCES);
        let updates: Vec<PresenceUpdate> = updates
            .filter_map(|update| serde_json::from_str(update.get()).ok())
            .filter(|update: &PresenceUpdate| update.user_id.server_name() == origin)
            .collect();
        let (federation, server) = (self.clone(), origin.to_owned());
        let read = move |snapshot: &Snapshot| federation.place_presence(snapshot, &server, updates);
        let told = self.inner.store.read(read).await?;
        self.inner.ephemeral.remote_presence(told);
        Ok(())
    }

    /// The users who share a room with somebody here, with these rooms.
    fn place_presence(
        &self,
        snapshot: &Snapshot,
        origin: &ServerName,
        updates: Vec<PresenceUpdate>,
    ) -> Result<Vec<RemotePresence>, Error> {
        let inner = &self.inner;
        let Some(server) = inner.rooms.known_server(origin) else {
            return Ok(Vec::new());
        };
        let rooms = inner
            .rooms
            .rooms_with_server(snapshot, server, Position::default())?;
        let mut told = Vec::with_capacity(updates.len());
        for update in updates {
            let number = inner.accounts.user_number(snapshot, &update.user_id)?;
            let Some(number) = number else { continue };
            let shared = inner.rooms.joined_among(snapshot, number, &rooms)?;
            if shared.is_empty() {
                continue;
            }
            told.push(RemotePresence {
                user: Who {
                    number,
                    id: update.user_id,
                },
                state: update.presence,
                status: update.status_msg,
                active_ago_ms: update.last_active_ago,
                rooms: shared,
            });
        }
        Ok(told)
    }

    /// A room that is here and whose access list lets `origin` in.
    fn open_room(
        &self,
        snapshot: &Snapshot,
        room_id: &RoomId,
        origin: &ServerName,
    ) -> Result<Option<RoomNumber>, Error> {
        let rooms = &self.inner.rooms;
        let Ok(room) = rooms.resident(room_id) else {
            return Ok(None);
        };
        let is_open = rooms.acl_allows(snapshot, room, origin)?;
        Ok(is_open.then_some(room))
    }

    /// The number of a user who is joined to the room; in a partial room, of any whose server may be in it.
    fn member(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        user: &UserId,
    ) -> Result<Option<UserNumber>, Error> {
        let Some(number) = self.inner.accounts.user_number(snapshot, user)? else {
            return Ok(None);
        };
        let is_member = self.inner.rooms.is_joined(snapshot, number, room)?
            || self.may_be_member(snapshot, room, user)?;
        Ok(is_member.then_some(number))
    }

    /// Whether a user may be joined to a room of which not all members are known.
    fn may_be_member(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        user: &UserId,
    ) -> Result<bool, Error> {
        let rooms = &self.inner.rooms;
        if !rooms.is_partial(room) {
            return Ok(false);
        }
        let number = self.inner.accounts.user_number(snapshot, user)?;
        let class = match number {
            Some(number) => rooms.class_of(snapshot, number, room)?,
            None => None,
        };
        Ok(class.is_none() && rooms.is_server_joined(snapshot, room, user.server_name())?)
    }
}

/// The receipts of users of `origin`, as far as they can be read.
fn read_receipts(origin: &ServerName, content: &str) -> Vec<RoomReceiptList> {
    let Ok(rooms) = serde_json::from_str::<BTreeMap<String, &RawValue>>(content) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (room, receipts) in rooms.into_iter().take(MAX_ROOMS) {
        let (Ok(room), Ok(receipts)) = (
            OwnedRoomId::try_from(room),
            serde_json::from_str::<RoomReceipts<'_>>(receipts.get()),
        ) else {
            continue;
        };
        let of_users = receipts.read.into_iter().take(MAX_USERS);
        let of_users = of_users.filter_map(|(user, receipt)| {
            let user = OwnedUserId::try_from(user).ok()?;
            let receipt = serde_json::from_str(receipt.get()).ok()?;
            (user.server_name() == origin).then_some((user, receipt))
        });
        found.push((room, of_users.collect()));
    }
    found
}

impl UserReceipt {
    /// `None` if it names nothing, or its thread is none.
    fn into_taken(self, user: UserNumber) -> Option<Taken> {
        let event = self.event_ids.into_iter().next()?;
        if event.is_empty() || event.len() > MAX_EVENT_ID_BYTES {
            return None;
        }
        let thread = match self.data.thread_id {
            None => ReceiptThread::Unthreaded,
            Some(main) if main == "main" => ReceiptThread::Main,
            Some(root) => ReceiptThread::Root(OwnedEventId::try_from(root).ok()?),
        };
        let ts = self.data.ts;
        match OwnedEventId::try_from(event.as_str()) {
            Ok(event) => {
                let kind = ReceiptKind::Public;
                let new = NewReceipt {
                    kind,
                    event,
                    thread,
                };
                Some(Taken::Event(RemoteReceipt { user, new, ts }))
            }
            Err(_) => Some(Taken::Opaque(OpaqueReceipt {
                user,
                event,
                is_of_main_thread: match thread {
                    ReceiptThread::Unthreaded => false,
                    ReceiptThread::Main => true,
                    ReceiptThread::Root(_) => return None,
                },
                ts,
            })),
        }
    }
}

#[cfg(test)]
mod tests;

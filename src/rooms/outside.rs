//! Memberships of our users in rooms that this server is not in: invites from other servers, knocks sent through them, and
//! what became of both.
//!
//! No event of such a room is stored. The user's row has event zero, beside it lie the membership event as it was signed
//! and the stripped state that the user is shown. As soon as the server is in the room the room's own events say who is
//! what, and their rows take the place of these.
//!
//! Spec: s2s, "Inviting to a room", "Knocking upon a room", "Leaving Rooms (Rejecting Invites)".

use std::sync::Arc;

use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomId,
    UserId,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    Class, Error, EventMeta, RoomNumber, Rooms, StoredEvent, TypeNumber, UserRoom, event::flag,
    membership,
};
use crate::{
    accounts::UserNumber,
    events::{EventNumber, Pdu},
    storage::{Batch, Cbor, Family, Snapshot, Table},
};

static OUTSIDE: Table<(UserNumber, RoomNumber), Cbor<Outside>> =
    Table::new("outside_memberships", Family::Membership, b'O');

/// Kind of the log entry of such a membership; engine.md section 10.
const LOG_OUTSIDE: u8 = 7;
/// Invites from rooms that this server is not in, which a user may have open at once.
pub const MAX_OUTSIDE_INVITES: usize = 1_000;
/// Entries of a stripped state; rooms have less than ten that are of use.
const MAX_STRIPPED_EVENTS: usize = 50;
/// The stripped state with the membership event, in bytes of JSON.
const MAX_STRIPPED_BYTES: usize = 80_000;
/// Servers remembered that may be asked about the room.
const MAX_SERVERS: usize = 10;

/// Where this server stands to a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residence {
    /// Users of this server are joined.
    Resident,
    /// It is here, and as far as this server knows nobody at all is joined: no other server knows better.
    Deserted,
    /// It is not here, or others went on without this server.
    Away,
}

/// What is known of a membership in a room that this server is not in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outside {
    /// The room's version.
    pub version: String,
    /// `None` if the user ended the membership and no server of the room could be told.
    pub event_id: Option<OwnedEventId>,
    /// The membership event as it was signed; empty without one.
    pub json: String,
    /// Servers that may be in the room, the best first.
    pub servers: Vec<OwnedServerName>,
}

impl Outside {
    /// A membership brought about by `event`.
    pub fn new(version: &str, event: &Pdu, servers: Vec<OwnedServerName>) -> Self {
        let mut servers = servers;
        servers.truncate(MAX_SERVERS);
        Self {
            version: version.to_owned(),
            event_id: Some(event.event_id.clone()),
            // Canonical JSON is UTF-8.
            json: String::from_utf8_lossy(&event.json).into_owned(),
            servers,
        }
    }

    /// The membership event.
    pub fn pdu(&self) -> Option<Pdu> {
        let event_id = self.event_id.clone()?;
        Pdu::from_stored(event_id, self.json.clone().into_bytes().into(), false).ok()
    }

    /// The same membership, ended by the user alone.
    #[must_use]
    pub fn without_event(self) -> Self {
        Self {
            event_id: None,
            json: String::new(),
            ..self
        }
    }
}

/// State that a user is shown of a room it is not in: a JSON array, within limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StrippedState(String);

#[derive(Deserialize)]
struct Given<'a> {
    #[serde(rename = "type")]
    event_type: String,
    state_key: String,
    sender: OwnedUserId,
    #[serde(borrow)]
    content: &'a RawValue,
    origin_server_ts: Option<MilliSecondsSinceUnixEpoch>,
}

#[derive(Serialize)]
struct Shown<'a> {
    content: &'a RawValue,
    sender: &'a UserId,
    state_key: &'a str,
    #[serde(rename = "type")]
    event_type: &'a str,
    /// Of the create event, which is shown whole (MSC4311).
    #[serde(skip_serializing_if = "Option::is_none")]
    origin_server_ts: Option<MilliSecondsSinceUnixEpoch>,
}

impl StrippedState {
    /// What another server told, events whole or stripped, and the user's own membership last. What is no state event is
    /// left out, and so is what goes beyond the limits.
    pub fn new<'a>(told: impl Iterator<Item = &'a str>, membership: &Pdu) -> Self {
        let own_key = membership.state_key.as_deref().unwrap_or_default();
        let own = Shown {
            content: &membership.content,
            sender: &membership.sender,
            state_key: own_key,
            event_type: &membership.event_type.to_string(),
            origin_server_ts: None,
        };
        let own = serde_json::to_string(&own).unwrap_or_default();
        let mut json = "[".to_owned();
        for event in told.take(MAX_STRIPPED_EVENTS) {
            let Ok(given) = serde_json::from_str::<Given<'_>>(event) else {
                continue;
            };
            if given.event_type == "m.room.member" && given.state_key == own_key {
                continue;
            }
            let shown = Shown {
                content: given.content,
                sender: &given.sender,
                state_key: &given.state_key,
                event_type: &given.event_type,
                origin_server_ts: given
                    .origin_server_ts
                    .filter(|_time| given.event_type == "m.room.create"),
            };
            let Ok(shown) = serde_json::to_string(&shown) else {
                continue;
            };
            if json.len() + shown.len() + own.len() < MAX_STRIPPED_BYTES {
                json.push_str(&shown);
                json.push(',');
            }
        }
        json.push_str(&own);
        json.push(']');
        Self(json)
    }

    /// The JSON array.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A membership outside, as it is to be from now on.
#[derive(Clone, Debug)]
pub struct OutsideChange {
    pub user: OwnedUserId,
    pub room_id: OwnedRoomId,
    pub class: Class,
    pub row: Outside,
    /// For an invite or a knock.
    pub stripped: Option<StrippedState>,
}

/// Drops what is known of a membership outside, as an event of the room takes its place.
pub(super) fn remove(batch: &mut Batch, user: UserNumber, room: RoomNumber) {
    batch.delete(&OUTSIDE, &(user, room));
}

/// Whether a row is of a membership outside.
pub(super) fn is_outside(entry: &UserRoom) -> bool {
    entry.event == EventNumber::default()
}

impl Rooms {
    /// Where this server stands to a room.
    pub fn residence(&self, room_id: &RoomId) -> Residence {
        let room = self.number(room_id);
        room.map_or(Residence::Away, |room| self.residence_of(room))
    }

    /// As [`Self::residence`].
    pub fn residence_of(&self, room: RoomNumber) -> Residence {
        match self.published(room) {
            Some(room) if room.head.local > 0 => Residence::Resident,
            Some(room) if room.head.joined == 0 && !room.head.partial => Residence::Deserted,
            _ => Residence::Away,
        }
    }

    /// The membership of a user of this server in a room that the server is not in.
    pub fn outside(
        &self,
        snapshot: &Snapshot,
        user: UserNumber,
        room: RoomNumber,
    ) -> Result<Option<(Class, Outside)>, Error> {
        let entry = self.user_room(snapshot, user, room)?;
        let Some(entry) = entry.filter(is_outside) else {
            return Ok(None);
        };
        let row = snapshot.get(&OUTSIDE, &(user, room))?;
        Ok(row.map(|Cbor(row)| (entry.class, row)))
    }

    /// Who made the membership of a user what it is.
    pub fn sender_of_membership(
        &self,
        snapshot: &Snapshot,
        user: UserNumber,
        entry: &UserRoom,
    ) -> Result<Option<OwnedUserId>, Error> {
        if is_outside(entry) {
            let row = snapshot.get(&OUTSIDE, &(user, entry.room))?;
            return Ok(row.and_then(|Cbor(row)| row.pdu()).map(|pdu| pdu.sender));
        }
        let event = self.event(snapshot, entry.room, entry.event)?;
        Ok(event.map(|event| event.pdu.sender.clone()))
    }

    /// The event that ended a membership outside, as readers take it: it has a place in no timeline.
    pub fn outside_event(
        &self,
        snapshot: &Snapshot,
        user: UserNumber,
        entry: &UserRoom,
    ) -> Result<Option<Arc<StoredEvent>>, Error> {
        if !is_outside(entry) {
            return Ok(None);
        }
        let row = snapshot.get(&OUTSIDE, &(user, entry.room))?;
        let Some(pdu) = row.and_then(|Cbor(row)| row.pdu()) else {
            return Ok(None);
        };
        let meta = EventMeta {
            position: entry.position,
            flags: flag::OUTLIER | flag::STATE,
            event_type: TypeNumber::MEMBER,
            timestamp: u64::from(pdu.origin_server_ts.0),
            received: u64::from(pdu.origin_server_ts.0),
            depth: pdu.depth,
            ..EventMeta::default()
        };
        Ok(Some(Arc::new(StoredEvent {
            number: entry.event,
            meta,
            pdu: Arc::new(pdu),
        })))
    }

    /// Makes a membership outside what `change` says, and waits until it is durable. False if it is not this server's to
    /// say: it is in the room, or the user who leaves has no such membership.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for an invite beyond [`MAX_OUTSIDE_INVITES`].
    pub async fn set_outside(&self, change: OutsideChange) -> Result<bool, Error> {
        let user = self.accounts.intern(&[&change.user]).await?;
        let user = user.first().copied().ok_or(Error::NotFound)?;
        let room = self.numbers.intern_room(&change.room_id);
        let turn = self.locks.lock(room).await;
        // What the last writer has in flight may concern this user.
        self.store.submit(Batch::new()).await?;
        let (rooms, class) = (self.clone(), change.class);
        let residence = self.residence(&change.room_id);
        let may = self
            .store
            .read(move |snapshot| rooms.may_set(snapshot, (user, room), class, residence))
            .await?;
        if !may {
            return Ok(false);
        }
        let mut batch = Batch::new();
        let stripped = change.stripped.as_ref().map(StrippedState::as_str);
        membership::insert_outside(&mut batch, (user, room), class, stripped);
        batch.put(&OUTSIDE, &(user, room), &Cbor(change.row));
        batch.log(LOG_OUTSIDE, &log_entry(user, room));
        self.invalidate_user_rooms(&mut batch, user);
        batch.hold(turn);
        self.store.submit(batch).await?;
        Ok(true)
    }

    /// Ends a membership outside without telling anybody; false if there is none.
    pub(super) async fn end_outside(&self, user: &UserId, room: RoomNumber) -> Result<bool, Error> {
        let (rooms, id) = (self.clone(), user.to_owned());
        let read = move |snapshot: &Snapshot| -> Result<_, Error> {
            match rooms.accounts.user_number(snapshot, &id)? {
                Some(number) => rooms.outside(snapshot, number, room),
                None => Ok(None),
            }
        };
        let (Some((_, row)), Some(room_id)) = (self.store.read(read).await?, self.room_id(room))
        else {
            return Ok(false);
        };
        self.set_outside(OutsideChange {
            user: user.to_owned(),
            room_id,
            class: Class::Leave,
            row: row.without_event(),
            stripped: None,
        })
        .await
    }

    fn may_set(
        &self,
        snapshot: &Snapshot,
        (user, room): (UserNumber, RoomNumber),
        class: Class,
        residence: Residence,
    ) -> Result<bool, Error> {
        let all = self.rooms_of(snapshot, user)?;
        let is_open = |entry: &&UserRoom| {
            is_outside(entry) && matches!(entry.class, Class::Invite | Class::Knock)
        };
        let has_open = all.iter().filter(is_open).any(|entry| entry.room == room);
        if !matches!(class, Class::Invite | Class::Knock) {
            // The invite may be of a time when this server was in the room.
            let is_waiting = |entry: &UserRoom| {
                entry.room == room && matches!(entry.class, Class::Invite | Class::Knock)
            };
            let was_left = residence != Residence::Resident && all.iter().any(is_waiting);
            return Ok(has_open || was_left);
        }
        if residence == Residence::Resident {
            return Ok(false);
        }
        if !has_open && all.iter().filter(is_open).count() >= MAX_OUTSIDE_INVITES {
            return Err(Error::Forbidden(
                "the user has too many open invites".into(),
            ));
        }
        Ok(true)
    }
}

/// Payload of a log entry of kind [`LOG_OUTSIDE`]: user and room.
fn log_entry(user: UserNumber, room: RoomNumber) -> [u8; 8] {
    let mut payload = [0; 8];
    payload[..4].copy_from_slice(&user.0.to_be_bytes());
    payload[4..].copy_from_slice(&room.0.to_be_bytes());
    payload
}

#[cfg(test)]
mod tests;

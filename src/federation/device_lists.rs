//! Changes of device lists, to and from other servers.
//!
//! What goes out is found in the log by the sender, which queues it in the store; a change that it finds twice, after a
//! crash, has the same number and is queued at the same place.
//!
//! Spec: s2s, "Device Management".

mod late;

use std::{collections::BTreeSet, sync::Arc};

use ruma::{
    CanonicalJsonObject, OwnedDeviceId, OwnedUserId, ServerName, UserId,
    canonical_json::CanonicalJsonValue, events::room::member::MembershipState,
};
use serde::Deserialize;
use serde_json::value::RawValue;

pub(super) use self::late::{Believed, LateLists};
use super::{Error, Federation};
use crate::{
    accounts::UserNumber,
    encryption::{DeviceWithKeys, ListChange, RemoteChange, RemoteDeviceChange},
    events::canonical,
    rooms::{Class, RoomNumber, ServerNumber, StoredEvent, TypeNumber, membership_of},
    storage::{Position, Snapshot},
};

/// Changes that one is said to come after, of those that are looked at.
const MAX_PREV_IDS: usize = 100;

/// An EDU about a list, and who gets it.
pub(super) struct ListEdu {
    pub(super) servers: Vec<ServerNumber>,
    /// Canonical JSON.
    pub(super) json: Arc<str>,
}

#[derive(Deserialize)]
struct DeviceListUpdate<'a> {
    user_id: OwnedUserId,
    stream_id: u64,
    #[serde(default)]
    prev_id: Option<Vec<u64>>,
    #[serde(default)]
    device_id: Option<OwnedDeviceId>,
    #[serde(default)]
    deleted: Option<bool>,
    #[serde(default, borrow)]
    keys: Option<&'a RawValue>,
    #[serde(default)]
    device_display_name: Option<String>,
}

impl DeviceListUpdate<'_> {
    /// What became of which device, if it is told.
    fn device(&mut self) -> Option<(OwnedDeviceId, RemoteDeviceChange)> {
        let id = self.device_id.take()?;
        if self.deleted == Some(true) {
            return Some((id, RemoteDeviceChange::Ended));
        }
        let (keys, name) = (self.keys?.get(), self.device_display_name.take());
        let device = DeviceWithKeys::of_remote((&self.user_id, &id), keys, name)?;
        Some((id, RemoteDeviceChange::Published(device)))
    }
}

#[derive(Deserialize)]
struct SigningKeyUpdate {
    user_id: OwnedUserId,
}

impl Federation {
    /// What other servers are to be told of a change: those with which the user shares a room.
    pub(super) fn list_edu(
        &self,
        snapshot: &Snapshot,
        change: &ListChange,
    ) -> Result<Option<ListEdu>, Error> {
        let servers = self.servers_of_user(snapshot, change.user, None)?;
        if servers.is_empty() {
            return Ok(None);
        }
        let device = match &change.device {
            Some(device) => Some(device.clone()),
            None => self.any_device(snapshot, change.user)?,
        };
        let Some(device) = device else {
            return Ok(None);
        };
        let user = self.inner.accounts.user_id(snapshot, change.user)?;
        let encryption = &self.inner.encryption;
        let is_told = change.device.is_some() && !change.is_deleted;
        let keys = match is_told {
            true => encryption.keys_of_device(snapshot, change.user, &device)?,
            false => None,
        };
        let row = match is_told && self.tells_device_names() {
            true => self.inner.accounts.device(snapshot, change.user, &device)?,
            false => None,
        };
        let name = row.and_then(|row| row.display_name);
        let told = (keys.as_deref(), name.as_deref());
        let json = write_update((&user, &device), change, told);
        let servers = servers.into_iter().collect();
        Ok(Some(ListEdu { servers, json }))
    }

    /// When a user of this server comes to a room, its servers that did not follow the user's devices are to look them up.
    pub(super) fn join_edu(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        event: &StoredEvent,
    ) -> Result<Option<ListEdu>, Error> {
        let inner = &self.inner;
        if event.meta.event_type != TypeNumber::MEMBER
            || membership_of(event) != MembershipState::Join
        {
            return Ok(None);
        }
        let user = event.pdu.state_key.as_deref().map(<&UserId>::try_from);
        let Some(Ok(user)) = user.filter(|user| user.is_ok()) else {
            return Ok(None);
        };
        let before = (room, event.meta.root_before);
        if !inner.accounts.is_local(user)
            || self.is_of_partial_time(snapshot, room, event)?
            || inner.rooms.membership_at(snapshot, before, user)? == MembershipState::Join
        {
            return Ok(None);
        }
        let Some(number) = inner.accounts.user_number(snapshot, user)? else {
            return Ok(None);
        };
        let followed = self.servers_of_user(snapshot, number, Some(room))?;
        let here = self.servers_of(snapshot, (room, event.meta.root_after))?;
        let new = here.iter().filter(|server| !followed.contains(server));
        let servers: Vec<ServerNumber> = new.copied().collect();
        let device = match servers.is_empty() {
            true => None,
            false => self.any_device(snapshot, number)?,
        };
        let Some(device) = device else {
            return Ok(None);
        };
        let change = ListChange {
            user: number,
            stream_id: inner.encryption.stream_id(snapshot, number)?,
            device: None,
            is_deleted: false,
        };
        let json = write_update((user, &device), &change, (None, None));
        Ok(Some(ListEdu { servers, json }))
    }

    /// Whether an event came while not all members of its room were known: who follows whose devices was not known either.
    fn is_of_partial_time(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        event: &StoredEvent,
    ) -> Result<bool, Error> {
        let rooms = &self.inner.rooms;
        Ok(rooms.is_partial(room)
            || rooms.was_completed_since(snapshot, room, event.meta.position)?)
    }

    /// What other servers of a room are to be told of that users of this one have changed since a position.
    pub(super) fn missed_edus(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        since: Position,
    ) -> Result<Vec<Arc<str>>, Error> {
        let inner = &self.inner;
        let mut edus = Vec::new();
        for change in inner.encryption.local_changes(snapshot, since)? {
            if !inner.rooms.is_joined(snapshot, change.user, room)? {
                continue;
            }
            if let Some(device) = self.any_device(snapshot, change.user)? {
                let user = inner.accounts.user_id(snapshot, change.user)?;
                edus.push(write_update((&user, &device), &change, (None, None)));
            }
        }
        Ok(edus)
    }

    /// The other servers with which a user of this one shares a room, but for one room.
    fn servers_of_user(
        &self,
        snapshot: &Snapshot,
        user: UserNumber,
        without: Option<RoomNumber>,
    ) -> Result<BTreeSet<ServerNumber>, Error> {
        let rooms = self.inner.rooms.rooms_of(snapshot, user)?;
        let joined = rooms.iter().filter(|room| room.class == Class::Join);
        let mut servers = BTreeSet::new();
        for room in joined.filter(|entry| Some(entry.room) != without) {
            servers.extend(self.servers_now(snapshot, room.room)?.iter().copied());
        }
        Ok(servers)
    }

    /// A device of the user: whichever it is, who does not know what came before looks all of them up.
    fn any_device(
        &self,
        snapshot: &Snapshot,
        user: UserNumber,
    ) -> Result<Option<OwnedDeviceId>, Error> {
        let devices = self.inner.accounts.device_ids(snapshot, user)?;
        Ok(devices.into_iter().next())
    }

    pub(super) async fn receive_device_list(
        &self,
        origin: &ServerName,
        content: &str,
    ) -> Result<(), Error> {
        let Ok(mut update) = serde_json::from_str::<DeviceListUpdate<'_>>(content) else {
            return Ok(());
        };
        let mut prev_ids = update.prev_id.take().unwrap_or_default();
        prev_ids.truncate(MAX_PREV_IDS);
        let change = RemoteChange {
            stream_id: Some(update.stream_id),
            prev_ids,
            device: update.device(),
        };
        self.take_list_change(origin, update.user_id, change).await
    }

    pub(super) async fn receive_signing_key(
        &self,
        origin: &ServerName,
        content: &str,
    ) -> Result<(), Error> {
        let Ok(update) = serde_json::from_str::<SigningKeyUpdate>(content) else {
            return Ok(());
        };
        let change = RemoteChange::default();
        self.take_list_change(origin, update.user_id, change).await
    }

    /// Notes a change of a user who shares a room with somebody here, or may do so; others are of no concern.
    async fn take_list_change(
        &self,
        origin: &ServerName,
        user: OwnedUserId,
        change: RemoteChange,
    ) -> Result<(), Error> {
        if user.server_name() != origin {
            return Ok(());
        }
        let sharing = self.sharing_or_kept(origin, &user).await?;
        let Some((user, rooms)) = sharing.known else {
            return Ok(());
        };
        let encryption = &self.inner.encryption;
        Ok(encryption.remote_change(user, &rooms, change).await?)
    }
}

/// The EDU in canonical JSON, with the keys of the device and what it is called, as far as that is told.
fn write_update(
    (user, device): (&UserId, &OwnedDeviceId),
    change: &ListChange,
    (keys, name): (Option<&str>, Option<&str>),
) -> Arc<str> {
    let number = |number: u64| {
        let number = i64::try_from(number).unwrap_or(i64::MAX);
        CanonicalJsonValue::Integer(ruma::Int::new_saturating(number))
    };
    let text = |text: &str| CanonicalJsonValue::String(text.to_owned());
    // A change of a device that is not known comes after nothing: the list is to be looked up.
    let before = change.device.as_ref().map(|_| change.stream_id - 1);
    let before = before.filter(|before| *before > 0).map(number);
    let mut content = CanonicalJsonObject::from([
        ("user_id".to_owned(), text(user.as_str())),
        ("device_id".to_owned(), text(device.as_str())),
        ("stream_id".to_owned(), number(change.stream_id)),
        (
            "prev_id".to_owned(),
            CanonicalJsonValue::Array(before.into_iter().collect()),
        ),
    ]);
    if change.is_deleted {
        content.insert("deleted".to_owned(), CanonicalJsonValue::Bool(true));
    }
    let keys = keys.and_then(|keys| canonical::parse(keys.as_bytes()).ok());
    if let Some(keys) = keys {
        content.insert("keys".to_owned(), CanonicalJsonValue::Object(keys));
    }
    if let Some(name) = name {
        content.insert("device_display_name".to_owned(), text(name));
    }
    let edu = CanonicalJsonObject::from([
        ("content".to_owned(), CanonicalJsonValue::Object(content)),
        ("edu_type".to_owned(), text("m.device_list_update")),
    ]);
    String::from_utf8_lossy(&canonical::to_vec(&edu)).into()
}

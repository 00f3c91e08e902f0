//! The device lists of users of other servers, kept as long as those servers tell us of every change.
//!
//! They do so while a user shares a room with somebody here. A list that was fetched is good while the user has been in such
//! a room without a pause since before it was fetched, and every change that was told since has come after the one before:
//! then it could be followed. Whatever breaks that is found when the list is asked for, or makes it stale; a stale list is
//! fetched anew. Of users with whom no room is shared for sure nothing is kept. engine.md section 12.
//!
//! Spec: s2s, "Device Management".

use std::collections::BTreeMap;

use ruma::{DeviceId, OwnedDeviceId, UserId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    Encryption, Error,
    device_keys::DeviceWithKeys,
    device_lists::{LastChange, last_change},
};
use crate::{
    accounts::UserNumber,
    rooms::RoomNumber,
    storage::{Batch, Cbor, Family, Order, Position, Snapshot, Table, Text, Topic},
};

/// What is known of the lists of other servers.
static REMOTE: Table<(UserNumber,), Cbor<RemoteList>> =
    Table::new("remote_device_lists", Family::Keys, b'r');
/// The devices of these lists.
static DEVICES: Table<(UserNumber, Text), Cbor<DeviceWithKeys>> =
    Table::new("remote_devices", Family::Keys, b'D');

/// The longest keys of a device, in JSON, and the longest key with which a user signs.
const MAX_DEVICE_BYTES: usize = 60_000;
const MAX_SIGNING_KEY_BYTES: usize = 16 << 10;
/// Larger lists are not kept, so that each fits a batch.
const MAX_LIST_BYTES: usize = 600_000;
/// Devices of a list that is kept.
const MAX_DEVICES: usize = 1_000;
/// As long as those of this server may be: they are parts of keys.
const MAX_DEVICE_ID_BYTES: usize = 255;
const MAX_DISPLAY_NAME_BYTES: usize = 1_000;

/// What is known of the list of a user of another server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct RemoteList {
    /// That of the last change that is known.
    stream_id: u64,
    /// Not all changes before it are known here: the list is to be fetched anew before it is used.
    is_stale: bool,
    /// The change was found in a fetched list: nobody here was told of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    is_untold: bool,
    /// The last position before the list was asked for. `None`: it never was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fetched_at: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    master_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    self_signing_key: Option<String>,
}

/// A change of the list of a user of another server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RemoteChange {
    /// `None`: not the devices have changed, but the keys with which the user signs them.
    pub stream_id: Option<u64>,
    /// The changes that this one comes after.
    pub prev_ids: Vec<u64>,
    /// `None`: it is not told, or not in a way that can be used.
    pub device: Option<(OwnedDeviceId, RemoteDeviceChange)>,
}

/// What became of a device of another server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RemoteDeviceChange {
    Published(DeviceWithKeys),
    Ended,
}

/// The devices of a user of another server, and the keys with which the user signs, all in JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceList {
    pub devices: BTreeMap<OwnedDeviceId, DeviceWithKeys>,
    pub master_key: Option<String>,
    pub self_signing_key: Option<String>,
}

/// What stands here of a user's list.
#[derive(Debug)]
pub enum RemoteKeys {
    /// It is known.
    Kept(DeviceList),
    /// It would be kept if it were fetched.
    Wanted(Ticket),
    /// No room is shared for sure, so changes would not be heard of.
    Untracked,
}

/// Says under which circumstances a list was asked for.
#[derive(Clone, Debug)]
pub struct Ticket {
    user: UserNumber,
    known: Option<RemoteList>,
    at: Position,
}

impl DeviceWithKeys {
    /// The keys of a device as another server tells them; `None` if they are too large or those of another device.
    pub fn of_remote(
        (user, device): (&UserId, &DeviceId),
        keys: &str,
        display_name: Option<String>,
    ) -> Option<Self> {
        if device.as_str().len() > MAX_DEVICE_ID_BYTES || keys.len() > MAX_DEVICE_BYTES {
            return None;
        }
        let mut keys: Map<String, Value> = serde_json::from_str(keys).ok()?;
        let is =
            |name: &str, expected: &str| keys.get(name).and_then(Value::as_str) == Some(expected);
        if !is("user_id", user.as_str()) || !is("device_id", device.as_str()) {
            return None;
        }
        let unsigned = keys.remove("unsigned");
        let named = unsigned
            .as_ref()
            .and_then(|unsigned| unsigned.get("device_display_name"))
            .and_then(Value::as_str);
        let name = display_name.or_else(|| named.map(str::to_owned));
        let json = Value::Object(keys).to_string();
        (json.len() <= MAX_DEVICE_BYTES).then(|| Self {
            json,
            display_name: name.filter(|name| name.len() <= MAX_DISPLAY_NAME_BYTES),
        })
    }
}

impl DeviceList {
    fn may_be_kept(&self) -> bool {
        let devices = self.devices.iter();
        let bytes: usize = devices
            .map(|(id, device)| id.as_str().len() + device.json.len() + MAX_DISPLAY_NAME_BYTES)
            .sum();
        let signing = [&self.master_key, &self.self_signing_key];
        let mut signing = signing.into_iter().flatten();
        self.devices.len() <= MAX_DEVICES
            && bytes <= MAX_LIST_BYTES
            && signing.all(|key| key.len() <= MAX_SIGNING_KEY_BYTES)
    }
}

impl Encryption {
    /// What is known here of a user's list; `rooms` are those where users of this server and of the user's may be together.
    ///
    /// # Errors
    /// The store failed.
    pub fn remote_keys(
        &self,
        snapshot: &Snapshot,
        user: UserNumber,
        rooms: &[RoomNumber],
    ) -> Result<RemoteKeys, Error> {
        let known = snapshot.get(&REMOTE, &(user,))?.map(|Cbor(known)| known);
        let usable = known.as_ref().filter(|known| !known.is_stale);
        let fetched_at = usable.and_then(|known| known.fetched_at).map(Position);
        let enough = fetched_at.unwrap_or(Position(u64::MAX));
        let since = self
            .inner
            .rooms
            .shared_since(snapshot, user, (rooms, enough))?;
        let Some(since) = since else {
            return Ok(RemoteKeys::Untracked);
        };
        match (known, fetched_at) {
            (Some(known), Some(fetched_at)) if since <= fetched_at => {
                Ok(RemoteKeys::Kept(kept(snapshot, user, known)?))
            }
            (known, _) => Ok(RemoteKeys::Wanted(Ticket {
                user,
                known,
                at: snapshot.position(),
            })),
        }
    }

    /// Keeps a list that was fetched, unless a change was told meanwhile: then nobody knows whether the list has it.
    ///
    /// # Errors
    /// The store failed.
    pub async fn keep_remote_list(
        &self,
        ticket: Ticket,
        stream_id: u64,
        list: &DeviceList,
    ) -> Result<(), Error> {
        if !list.may_be_kept() {
            return Ok(());
        }
        let Ticket { user, known, at } = ticket;
        let turns = self.turns([user].into_iter()).await;
        let read = move |snapshot: &Snapshot| -> Result<_, Error> {
            Ok(snapshot.get(&REMOTE, &(user,))?.map(|Cbor(known)| known))
        };
        if self.inner.store.read(read).await? != known {
            return Ok(());
        }
        let was_told = known.is_some_and(|known| known.stream_id == stream_id && !known.is_untold);
        let row = RemoteList {
            stream_id,
            is_stale: false,
            is_untold: !was_told,
            fetched_at: Some(at.0),
            master_key: list.master_key.clone(),
            self_signing_key: list.self_signing_key.clone(),
        };
        let mut batch = Batch::new();
        batch.put(&REMOTE, &(user,), &Cbor(row));
        batch.delete_range(DEVICES.prefix(&(user,)));
        for (id, device) in &list.devices {
            let key = (user, Text::from(id.as_str()));
            batch.put(&DEVICES, &key, &Cbor(device.clone()));
        }
        batch.hold(turns);
        self.inner.store.submit(batch).await?;
        Ok(())
    }

    /// Notes that the list of a user of another server has changed. `rooms` are those that the user shares with users of
    /// this one.
    ///
    /// # Errors
    /// The store failed.
    pub async fn remote_change(
        &self,
        user: UserNumber,
        rooms: &[RoomNumber],
        change: RemoteChange,
    ) -> Result<(), Error> {
        let turns = self.turns([user].into_iter()).await;
        let read = move |snapshot: &Snapshot| -> Result<_, Error> {
            let known = snapshot.get(&REMOTE, &(user,))?.map(|Cbor(known)| known);
            let (before, _) = last_change(snapshot, user)?;
            let is_full = snapshot
                .scan(DEVICES.prefix(&(user,)), Order::Forward)
                .nth(MAX_DEVICES - 1)
                .is_some();
            Ok((known, before, is_full))
        };
        let (known, before, is_full) = self.inner.store.read(read).await?;
        let mut batch = Batch::new();
        let Some(changed) = changed(&mut batch, (user, known), (change, is_full)) else {
            // Told again, as after an answer that was lost.
            return Ok(());
        };
        if let Some(list) = changed {
            batch.put(&REMOTE, &(user,), &Cbor(list));
        }
        self.put_change(&mut batch, user, before, LastChange::default());
        for room in rooms {
            batch.wake(Topic::Room(room.0));
        }
        batch.hold(turns);
        self.inner.store.submit(batch).await?;
        Ok(())
    }
}

fn kept(snapshot: &Snapshot, user: UserNumber, known: RemoteList) -> Result<DeviceList, Error> {
    let mut devices = BTreeMap::new();
    for row in snapshot.scan(DEVICES.prefix(&(user,)), Order::Forward) {
        let ((_, id), Cbor(device)) = row?;
        devices.insert(OwnedDeviceId::from(&*id), device);
    }
    Ok(DeviceList {
        devices,
        master_key: known.master_key,
        self_signing_key: known.self_signing_key,
    })
}

/// What is known of a list after a change, whose devices are changed by the batch. `None`: the change was told before.
fn changed(
    batch: &mut Batch,
    (user, known): (UserNumber, Option<RemoteList>),
    (change, is_full): (RemoteChange, bool),
) -> Option<Option<RemoteList>> {
    let Some(stream_id) = change.stream_id else {
        let stale = known.map(|known| RemoteList {
            is_stale: true,
            ..known
        });
        return Some(stale);
    };
    let was_known = known
        .as_ref()
        .is_some_and(|known| known.stream_id == stream_id);
    let mut list = known.clone().unwrap_or_default();
    if was_known {
        if !list.is_untold {
            return None;
        }
        list.is_untold = false;
        return Some(Some(list));
    }
    let mut is_stale = !follows(known.as_ref(), &change.prev_ids);
    if !is_stale && list.fetched_at.is_some() {
        match change.device {
            Some((id, RemoteDeviceChange::Published(device))) if !is_full => {
                batch.put(&DEVICES, &(user, Text::from(id.as_str())), &Cbor(device));
            }
            Some((id, RemoteDeviceChange::Ended)) => {
                batch.delete(&DEVICES, &(user, Text::from(id.as_str())));
            }
            _ => is_stale = true,
        }
    }
    list.stream_id = stream_id;
    list.is_stale = is_stale;
    list.is_untold = false;
    Some(Some(list))
}

/// Whether a change that comes after `prev_ids` leaves nothing out of what follows the known one.
fn follows(known: Option<&RemoteList>, prev_ids: &[u64]) -> bool {
    known.is_some_and(|known| {
        let last = prev_ids.iter().max();
        !known.is_stale && last.is_some_and(|last| *last == known.stream_id)
    })
}

#[cfg(test)]
mod tests;

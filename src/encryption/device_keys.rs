//! The identity keys of the devices of this server, and taking in what a device publishes.
//!
//! Keys are kept as canonical JSON without `unsigned`, which is nobody's word but the server's. All keys of a user change
//! under one lock, which is that of the user's device list: a change of device keys is a change of the list in the same batch.
//! engine.md section 12.
//!
//! Spec: c2s, "Key management API", "POST /_matrix/client/v3/keys/upload".

use std::{collections::BTreeMap, sync::Arc};

use ruma::{
    CanonicalJsonObject, DeviceId, OwnedDeviceId, UserId, canonical_json::CanonicalJsonValue,
};
use serde::{Deserialize, Serialize};

use super::{
    Encryption, Error,
    one_time_keys::{self, KeyCounts, NewKey},
};
use crate::{
    accounts::{UserNumber, device_hash},
    events::canonical,
    storage::{Batch, Family, Order, Position, PositionAt, Snapshot, Stamped, Table, Text},
};

/// The keys of each device, with the position at which they were published.
static DEVICE_KEYS: Table<(UserNumber, Text), Stamped<DeviceKeysRow>> =
    Table::new("device_keys", Family::Keys, b'd');

/// The longest keys of a device, in canonical JSON.
pub const MAX_DEVICE_KEYS_BYTES: usize = 32 << 10;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct DeviceKeysRow {
    /// Canonical JSON without `unsigned`.
    json: String,
}

/// What a device publishes.
#[derive(Debug, Default)]
pub struct Upload {
    pub device_keys: Option<CanonicalJsonObject>,
    pub one_time_keys: Vec<NewKey>,
    pub fallback_keys: Vec<NewKey>,
}

/// A device that has keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceWithKeys {
    /// A JSON object without `unsigned`.
    pub json: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
}

impl DeviceWithKeys {
    /// The keys as JSON, with what the device is called.
    pub fn with_name(&self) -> String {
        let Some(name) = &self.display_name else {
            return self.json.clone();
        };
        let open = self.json.strip_suffix('}').unwrap_or(&self.json);
        let mut json = open.as_bytes().to_vec();
        if !open.ends_with('{') {
            json.push(b',');
        }
        json.extend_from_slice(b"\"unsigned\":{\"device_display_name\":");
        canonical::write_string(name, &mut json);
        json.extend_from_slice(b"}}");
        String::from_utf8_lossy(&json).into_owned()
    }
}

/// Who publishes keys.
#[derive(Clone, Debug)]
pub struct Publisher {
    pub user: UserNumber,
    pub device: OwnedDeviceId,
}

impl Encryption {
    /// Takes in what a device publishes, all or nothing. Answers with the one-time keys that are held for it then.
    ///
    /// # Errors
    /// [`Error::UnknownDevice`]; [`Error::KeyInUse`], [`Error::TooManyKeys`].
    pub async fn upload_keys(
        &self,
        publisher: Publisher,
        upload: Upload,
    ) -> Result<Arc<KeyCounts>, Error> {
        let turns = self.turns([publisher.user].into_iter()).await;
        let this = self.clone();
        let read = move |snapshot: &Snapshot| this.uploaded(snapshot, &publisher, upload);
        let (mut batch, counts) = self.inner.store.read(read).await?;
        if !batch.is_empty() {
            batch.hold(turns);
            self.inner.store.submit(batch).await?;
        }
        Ok(counts)
    }

    fn uploaded(
        &self,
        snapshot: &Snapshot,
        publisher: &Publisher,
        upload: Upload,
    ) -> Result<(Batch, Arc<KeyCounts>), Error> {
        let Publisher { user, device } = publisher;
        if !self.inner.accounts.has_device(snapshot, *user, device)? {
            return Err(Error::UnknownDevice);
        }
        let mut batch = Batch::new();
        let mut is_other_device = false;
        if let Some(keys) = upload.device_keys {
            let row = DeviceKeysRow {
                json: text_of(keys.clone()),
            };
            let key = (*user, Text::from(device.as_str()));
            let before = snapshot.get(&DEVICE_KEYS, &key)?;
            let before = before.map(|Stamped(_, row)| row);
            if before.as_ref() != Some(&row) {
                is_other_device = before.is_some_and(|before| has_other_keys(&before, &keys));
                batch = self.renewed(snapshot, *user, device)?;
                let row = Stamped(Position::default(), row);
                batch.put_stamped(&DEVICE_KEYS, &key, &row, PositionAt::Value(0));
            }
        }
        let place = (*user, device_hash(device));
        let new = one_time_keys::NewKeys {
            one_time: upload.one_time_keys,
            fallback: upload.fallback_keys,
            // What was signed with other keys cannot be used any more.
            replaces_all: is_other_device,
        };
        let counts = self.put_one_time_keys(snapshot, &mut batch, place, new)?;
        Ok((batch, counts))
    }

    /// The devices of a user of this server that have keys: those of `wanted`, or all if it is empty.
    ///
    /// # Errors
    /// The store failed.
    pub fn devices_with_keys(
        &self,
        snapshot: &Snapshot,
        user: UserNumber,
        wanted: &[OwnedDeviceId],
    ) -> Result<BTreeMap<OwnedDeviceId, DeviceWithKeys>, Error> {
        let mut keys = BTreeMap::new();
        for row in snapshot.scan(DEVICE_KEYS.prefix(&(user,)), Order::Forward) {
            let ((_, device), Stamped(_, row)) = row?;
            keys.insert(OwnedDeviceId::from(&*device), row.json);
        }
        if !wanted.is_empty() {
            keys.retain(|device, _| wanted.contains(device));
        }
        if keys.is_empty() {
            return Ok(BTreeMap::new());
        }
        // Keys of a device that has ended are swept a moment later.
        let devices = self.inner.accounts.devices(snapshot, user)?;
        let found = devices.into_iter().filter_map(|device| {
            let json = keys.remove(&device.id)?;
            let found = DeviceWithKeys {
                json,
                display_name: device.display_name,
            };
            Some((device.id, found))
        });
        Ok(found.collect())
    }

    /// The keys of a device of this server, in canonical JSON.
    ///
    /// # Errors
    /// The store failed.
    pub fn keys_of_device(
        &self,
        snapshot: &Snapshot,
        user: UserNumber,
        device: &DeviceId,
    ) -> Result<Option<String>, Error> {
        let row = snapshot.get(&DEVICE_KEYS, &(user, Text::from(device.as_str())))?;
        Ok(row.map(|Stamped(_, row)| row.json))
    }

    /// Adds the end of all keys of a device that were published before a position: it is gone, or another one has taken its
    /// name.
    pub(super) fn forget_keys(
        &self,
        snapshot: &Snapshot,
        batch: &mut Batch,
        (user, device): (UserNumber, &DeviceId),
        before: Position,
    ) -> Result<(), Error> {
        let key = (user, Text::from(device.as_str()));
        if let Some(Stamped(position, _)) = snapshot.get(&DEVICE_KEYS, &key)?
            && position < before
        {
            batch.delete(&DEVICE_KEYS, &key);
        }
        self.forget_one_time_keys(snapshot, batch, (user, device_hash(device)), before)
    }

    /// Adds the end of all keys of devices of a user that are no more.
    pub(super) fn forget_keys_of_strangers(
        &self,
        snapshot: &Snapshot,
        batch: &mut Batch,
        user: UserNumber,
    ) -> Result<(), Error> {
        let devices = self.inner.accounts.device_ids(snapshot, user)?;
        for row in snapshot.scan(DEVICE_KEYS.prefix(&(user,)), Order::Forward) {
            let (key, _) = row?;
            if !devices.iter().any(|device| device.as_str() == &*key.1) {
                batch.delete(&DEVICE_KEYS, &key);
            }
        }
        let hashes = devices.iter().map(|device| device_hash(device)).collect();
        self.forget_one_time_keys_but(snapshot, batch, user, &hashes)
    }
}

/// Whether the keys name this user and this device, as they must.
pub fn name_device(keys: &CanonicalJsonObject, user: &UserId, device: &DeviceId) -> bool {
    let is = |name: &str, expected: &str| matches!(keys.get(name), Some(CanonicalJsonValue::String(text)) if text == expected);
    is("user_id", user.as_str()) && is("device_id", device.as_str())
}

/// Canonical JSON without `unsigned`.
fn text_of(mut keys: CanonicalJsonObject) -> String {
    keys.remove("unsigned");
    String::from_utf8_lossy(&canonical::to_vec(&keys)).into_owned()
}

/// Whether the device is another one by its keys: more than its signatures and algorithms have changed.
fn has_other_keys(before: &DeviceKeysRow, keys: &CanonicalJsonObject) -> bool {
    let before = canonical::parse(before.json.as_bytes()).unwrap_or_default();
    before.get("keys") != keys.get("keys")
}

#[cfg(test)]
mod tests;

//! What other servers answer about keys: read leniently, one entry at a time, and only what was asked.

use std::collections::BTreeMap;

use ruma::{OwnedDeviceId, ServerName, UserId};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use super::{FoundKeys, Wanted, device_of};
use crate::{
    encryption::{Claimed, Claims, DeviceList, MAX_KEY_BYTES, MAX_KEY_ID_BYTES},
    federation::Error,
};

/// The longest key with which a user signs.
const MAX_SIGNING_KEY_BYTES: usize = 16 << 10;

#[derive(Deserialize)]
struct UserDevices {
    stream_id: u64,
    #[serde(default)]
    devices: Vec<UserDevice>,
    #[serde(default)]
    master_key: Option<Box<RawValue>>,
    #[serde(default)]
    self_signing_key: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct UserDevice {
    device_id: OwnedDeviceId,
    /// Some servers also list devices without.
    #[serde(default)]
    keys: Option<Box<RawValue>>,
    #[serde(default)]
    device_display_name: Option<String>,
}

type ByUser<T> = BTreeMap<String, T>;

#[derive(Deserialize)]
struct Queried {
    #[serde(default)]
    device_keys: ByUser<BTreeMap<OwnedDeviceId, Box<RawValue>>>,
    #[serde(default)]
    master_keys: ByUser<Box<RawValue>>,
    #[serde(default)]
    self_signing_keys: ByUser<Box<RawValue>>,
}

#[derive(Deserialize)]
struct ClaimedThere {
    #[serde(default)]
    one_time_keys: ByUser<BTreeMap<OwnedDeviceId, BTreeMap<String, Box<RawValue>>>>,
}

fn parse<T: DeserializeOwned>(server: &ServerName, body: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(body).map_err(|error| Error::Malformed {
        server: server.to_owned(),
        source: error.into(),
    })
}

/// The list of a user with its number.
pub(super) fn read_list(user: &UserId, body: &[u8]) -> Result<(u64, DeviceList), Error> {
    let answer: UserDevices = parse(user.server_name(), body)?;
    let mut list = DeviceList {
        master_key: answer.master_key.and_then(|key| signing_key(user, &key)),
        self_signing_key: answer
            .self_signing_key
            .and_then(|key| signing_key(user, &key)),
        ..DeviceList::default()
    };
    for device in answer.devices {
        let UserDevice {
            device_id,
            keys,
            device_display_name,
        } = device;
        let keys = keys.and_then(|keys| device_of(user, &device_id, &keys, device_display_name));
        list.devices.extend(keys.map(|keys| (device_id, keys)));
    }
    Ok((answer.stream_id, list))
}

/// The keys of those that were asked for.
pub(super) fn read_found(
    server: &ServerName,
    wanted: &Wanted,
    body: &[u8],
) -> Result<FoundKeys, Error> {
    let mut answer: Queried = parse(server, body)?;
    let mut found = FoundKeys::default();
    for (user, devices) in wanted {
        let signing = |keys: &mut ByUser<Box<RawValue>>| {
            let key = keys.remove(user.as_str())?;
            signing_key(user, &key)
        };
        let mut list = DeviceList {
            master_key: signing(&mut answer.master_keys),
            self_signing_key: signing(&mut answer.self_signing_keys),
            ..DeviceList::default()
        };
        let told = answer.device_keys.remove(user.as_str());
        let is_told = told.is_some();
        for (id, keys) in told.into_iter().flatten() {
            let device = device_of(user, &id, &keys, None);
            list.devices.extend(device.map(|device| (id, device)));
        }
        if is_told || list.master_key.is_some() {
            found.add(user.clone(), devices, list);
        }
    }
    Ok(found)
}

/// The keys of devices that were asked for, one of each.
pub(super) fn read_claimed(
    server: &ServerName,
    claims: &Claims,
    body: &[u8],
) -> Result<Claimed, Error> {
    let mut answer: ClaimedThere = parse(server, body)?;
    let mut claimed = Claimed::new();
    for (user, devices) in claims {
        let Some(mut told) = answer.one_time_keys.remove(user.as_str()) else {
            continue;
        };
        for (device, algorithm) in devices {
            let keys = told.remove(device).unwrap_or_default();
            let is_sound = |(id, key): &(String, Box<RawValue>)| {
                id.len() <= MAX_KEY_ID_BYTES
                    && key.get().len() <= MAX_KEY_BYTES
                    && id.split_once(':').map(|(name, _)| name) == Some(algorithm.as_str())
            };
            if let Some((id, key)) = keys.into_iter().find(is_sound) {
                let of_user = claimed.entry(user.clone()).or_default();
                of_user.entry(device.clone()).or_default().insert(id, key);
            }
        }
    }
    Ok(claimed)
}

/// A key with which a user signs, if it says whose it is.
fn signing_key(user: &UserId, key: &RawValue) -> Option<String> {
    #[derive(Deserialize)]
    struct Key {
        user_id: String,
    }
    let json = key.get();
    let key: Key = serde_json::from_str(json).ok()?;
    let is_sound = key.user_id == user.as_str() && json.len() <= MAX_SIGNING_KEY_BYTES;
    is_sound.then(|| json.to_owned())
}

#[cfg(test)]
mod tests;

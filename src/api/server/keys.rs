//! Keys of the devices of our users, as other servers ask for them.
//!
//! Spec: s2s, "End-to-End Encryption".

use std::{collections::BTreeMap, sync::Arc};

use ruma::{
    OwnedDeviceId, OwnedUserId,
    api::federation::keys::{claim_keys, get_keys},
};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::{
    api::{
        auth::Origin,
        error::Error,
        routes::{RawJson, Routes},
    },
    server::Server,
    storage::Snapshot,
};

/// Users that are looked up in one read.
const USERS_AT_ONCE: usize = 500;

pub(super) fn routes() -> Routes {
    Routes::default().endpoint(get_keys).endpoint(claim_keys)
}

/// Users that there are not are left out.
///
/// Spec: s2s, "POST /_matrix/federation/v1/user/keys/query".
async fn get_keys(
    server: Arc<Server>,
    _origin: Origin,
    request: get_keys::v1::Request,
) -> Result<RawJson, Error> {
    let mut found: BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, Box<RawValue>>> = BTreeMap::new();
    let tells_names = server.federation.tells_device_names();
    let mut wanted = request.device_keys.into_iter().peekable();
    while wanted.peek().is_some() {
        let part: Vec<_> = wanted.by_ref().take(USERS_AT_ONCE).collect();
        let (accounts, encryption) = (server.accounts.clone(), server.encryption.clone());
        let read = move |snapshot: &Snapshot| -> Result<_, Error> {
            let mut found = Vec::with_capacity(part.len());
            for (user, devices) in part {
                if let Some(account) = accounts.account_info(snapshot, &user)? {
                    let number = account.number;
                    let keys = encryption.devices_with_keys(snapshot, number, &devices)?;
                    found.push((user, keys));
                }
            }
            Ok(found)
        };
        for (user, devices) in server.store.read(read).await? {
            let devices = devices.into_iter();
            let devices = devices.map(|(id, device)| {
                let json = match tells_names {
                    true => device.with_name(),
                    false => device.json,
                };
                Ok((id, raw(json)?))
            });
            found.insert(user, devices.collect::<Result<_, Error>>()?);
        }
    }
    written("device_keys", &found)
}

pub(super) fn raw(json: String) -> Result<Box<RawValue>, Error> {
    RawValue::from_string(json).map_err(Error::internal)
}

/// Devices without one-time keys are left out.
///
/// Spec: s2s, "POST /_matrix/federation/v1/user/keys/claim".
async fn claim_keys(
    server: Arc<Server>,
    _origin: Origin,
    request: claim_keys::v1::Request,
) -> Result<RawJson, Error> {
    let claimed = server.encryption.claim_keys(request.one_time_keys).await?;
    written("one_time_keys", &claimed)
}

fn written(name: &str, value: &impl Serialize) -> Result<RawJson, Error> {
    let answer = BTreeMap::from([(name, value)]);
    let json = serde_json::to_vec(&answer).map_err(Error::internal)?;
    Ok(RawJson(json.into()))
}

//! The devices of our users that have keys.
//!
//! Spec: s2s, "Device Management".

use std::sync::Arc;

use ruma::{
    UInt,
    api::federation::device::get_devices::{self, v1::UserDevice},
    serde::Raw,
};

use super::keys;
use crate::{
    api::{auth::Origin, error::Error, routes::Routes},
    server::Server,
    storage::Snapshot,
};

pub(super) fn routes() -> Routes {
    Routes::default().endpoint(get_devices)
}

/// How many changes the list has had, and the devices that have keys.
///
/// Spec: s2s, "GET /_matrix/federation/v1/user/devices/{userId}".
async fn get_devices(
    server: Arc<Server>,
    _origin: Origin,
    request: get_devices::v1::Request,
) -> Result<get_devices::v1::Response, Error> {
    let (accounts, encryption) = (server.accounts.clone(), server.encryption.clone());
    let user = request.user_id.clone();
    let read = move |snapshot: &Snapshot| -> Result<_, Error> {
        match accounts.account_info(snapshot, &user)? {
            Some(account) if !account.is_deactivated => {
                let number = account.number;
                let stream_id = encryption.stream_id(snapshot, number)?;
                let devices = encryption.devices_with_keys(snapshot, number, &[])?;
                Ok(Some((stream_id, devices)))
            }
            _ => Ok(None),
        }
    };
    let found = server.store.read(read).await?;
    let (stream_id, devices) = found.ok_or_else(|| Error::not_found("There is no such user"))?;
    let stream_id = UInt::new_saturating(stream_id);
    let mut answer = get_devices::v1::Response::new(request.user_id, stream_id);
    let tells_names = server.federation.tells_device_names();
    for (id, mut device) in devices {
        let name = device.display_name.take().filter(|_| tells_names);
        let keys = Raw::from_json(keys::raw(device.json)?);
        let mut told = UserDevice::new(id, keys);
        told.device_display_name = name;
        answer.devices.push(told);
    }
    Ok(answer)
}

//! Devices of the caller.
//!
//! Spec: c2s, "Device Management".

use std::sync::Arc;

use ruma::{
    MilliSecondsSinceUnixEpoch, UInt,
    api::client::device::{
        Device, delete_device, delete_devices, get_device, get_devices, update_device,
    },
};

use super::uiaa::{self, WithAuth};
use crate::{
    accounts::{DeviceInfo, Error as AccountsError, Session},
    api::{error::Error, limits::Bucket, routes::Routes},
    server::Server,
};

pub(super) fn routes() -> Routes {
    Routes::default()
        .endpoint(get_devices)
        .endpoint(get_device)
        .endpoint(update_device)
        .limited(Bucket::Login, delete_device)
        .limited(Bucket::Login, delete_devices)
}

async fn get_devices(
    server: Arc<Server>,
    session: Arc<Session>,
    _request: get_devices::v3::Request,
) -> Result<get_devices::v3::Response, Error> {
    let (accounts, user) = (server.accounts.clone(), session.user_number);
    let devices = server
        .store
        .read(move |snapshot| accounts.devices(snapshot, user))
        .await?;
    Ok(get_devices::v3::Response::new(
        devices.into_iter().map(device).collect(),
    ))
}

async fn get_device(
    server: Arc<Server>,
    session: Arc<Session>,
    request: get_device::v3::Request,
) -> Result<get_device::v3::Response, Error> {
    let (accounts, user) = (server.accounts.clone(), session.user_number);
    let found = server
        .store
        .read(move |snapshot| accounts.device(snapshot, user, &request.device_id))
        .await?;
    Ok(get_device::v3::Response::new(device(
        found.ok_or(AccountsError::UnknownDevice)?,
    )))
}

async fn update_device(
    server: Arc<Server>,
    session: Arc<Session>,
    request: update_device::v3::Request,
) -> Result<update_device::v3::Response, Error> {
    server
        .accounts
        .rename_device(
            session.user_number,
            &request.device_id,
            request.display_name,
        )
        .await?;
    Ok(update_device::v3::Response::new())
}

async fn delete_device(
    server: Arc<Server>,
    session: Arc<Session>,
    WithAuth(request): WithAuth<delete_device::v3::Request>,
) -> Result<delete_device::v3::Response, Error> {
    let bound = [request.device_id.as_str()];
    let passed = uiaa::confirm(
        &server,
        &session,
        request.auth.as_ref(),
        "delete_device",
        &bound,
    )
    .await?;
    server
        .accounts
        .delete_devices(
            session.user_number,
            std::slice::from_ref(&request.device_id),
        )
        .await?;
    server.accounts.spend(&passed).await?;
    Ok(delete_device::v3::Response::new())
}

async fn delete_devices(
    server: Arc<Server>,
    session: Arc<Session>,
    WithAuth(request): WithAuth<delete_devices::v3::Request>,
) -> Result<delete_devices::v3::Response, Error> {
    let bound: Vec<&str> = request
        .devices
        .iter()
        .map(|device| device.as_str())
        .collect();
    let passed = uiaa::confirm(
        &server,
        &session,
        request.auth.as_ref(),
        "delete_devices",
        &bound,
    )
    .await?;
    server
        .accounts
        .delete_devices(session.user_number, &request.devices)
        .await?;
    server.accounts.spend(&passed).await?;
    Ok(delete_devices::v3::Response::new())
}

fn device(info: DeviceInfo) -> Device {
    let mut device = Device::new(info.id);
    device.display_name = info.display_name;
    device.last_seen_ip = info.last_seen_ip;
    device.last_seen_ts = info
        .last_seen_ms
        .and_then(|ms| UInt::try_from(ms).ok())
        .map(MilliSecondsSinceUnixEpoch);
    device
}

//! The devices of our users, with their keys. No device has keys before there is end-to-end encryption.
//!
//! Spec: s2s, "Device Management".

use std::sync::Arc;

use ruma::{UInt, api::federation::device::get_devices};

use crate::{
    api::{auth::Origin, error::Error, routes::Routes},
    server::Server,
    storage::Snapshot,
};

pub(super) fn routes() -> Routes {
    Routes::default().endpoint(get_devices)
}

/// A list with the devices that have keys, of which there are none.
///
/// Spec: s2s, "GET /_matrix/federation/v1/user/devices/{userId}".
async fn get_devices(
    server: Arc<Server>,
    _origin: Origin,
    request: get_devices::v1::Request,
) -> Result<get_devices::v1::Response, Error> {
    let (accounts, user) = (server.accounts.clone(), request.user_id.clone());
    let account = server
        .store
        .read(move |snapshot: &Snapshot| accounts.account_info(snapshot, &user))
        .await?;
    match account {
        Some(account) if !account.is_deactivated => {}
        _ => return Err(Error::not_found("There is no such user")),
    }
    Ok(get_devices::v1::Response::new(
        request.user_id,
        UInt::default(),
    ))
}

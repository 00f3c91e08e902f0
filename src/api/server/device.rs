//! The devices of our users that have keys: none, before there is end-to-end encryption.
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

/// How many changes the list has had, and the devices that have keys, of which there are none.
///
/// Spec: s2s, "GET /_matrix/federation/v1/user/devices/{userId}".
async fn get_devices(
    server: Arc<Server>,
    _origin: Origin,
    request: get_devices::v1::Request,
) -> Result<get_devices::v1::Response, Error> {
    let (accounts, encryption) = (server.accounts.clone(), server.encryption.clone());
    let user = request.user_id.clone();
    let read = move |snapshot: &Snapshot| -> Result<Option<u64>, Error> {
        match accounts.account_info(snapshot, &user)? {
            Some(account) if !account.is_deactivated => {
                Ok(Some(encryption.stream_id(snapshot, account.number)?))
            }
            _ => Ok(None),
        }
    };
    let stream_id = server.store.read(read).await?;
    let stream_id = stream_id.ok_or_else(|| Error::not_found("There is no such user"))?;
    Ok(get_devices::v1::Response::new(
        request.user_id,
        UInt::new_saturating(stream_id),
    ))
}

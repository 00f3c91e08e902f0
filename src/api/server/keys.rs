//! End-to-end encryption keys of our users: none before there is end-to-end encryption.
//!
//! Spec: s2s, "End-to-End Encryption".

use std::{collections::BTreeMap, sync::Arc};

use ruma::api::federation::keys::{claim_keys, get_keys};

use crate::{
    api::{auth::Origin, error::Error, routes::Routes},
    server::Server,
};

pub(super) fn routes() -> Routes {
    Routes::default().endpoint(get_keys).endpoint(claim_keys)
}

/// Users without keys are left out.
///
/// Spec: s2s, "POST /_matrix/federation/v1/user/keys/query".
async fn get_keys(
    _server: Arc<Server>,
    _origin: Origin,
    _request: get_keys::v1::Request,
) -> Result<get_keys::v1::Response, Error> {
    Ok(get_keys::v1::Response::new(BTreeMap::new()))
}

/// Devices without one-time keys are left out.
///
/// Spec: s2s, "POST /_matrix/federation/v1/user/keys/claim".
async fn claim_keys(
    _server: Arc<Server>,
    _origin: Origin,
    _request: claim_keys::v1::Request,
) -> Result<claim_keys::v1::Response, Error> {
    Ok(claim_keys::v1::Response::new(BTreeMap::new()))
}

//! What a server asks first: our keys, the keys of others, and what we are.
//!
//! Spec: s2s, "Retrieving server keys", "Server implementation".

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use ruma::{
    CanonicalJsonObject, MilliSecondsSinceUnixEpoch, OwnedServerName,
    api::federation::discovery::{
        get_remote_server_keys, get_remote_server_keys_batch, get_server_keys, get_server_version,
    },
};

use crate::{
    api::{
        error::Error,
        routes::{RawJson, Routes},
    },
    events::canonical,
    server::Server,
};

/// Servers that one request asks about.
const MAX_SERVERS: usize = 100;
/// Servers looked up at the same time for one request.
const CONCURRENT: usize = 8;

pub(super) fn routes() -> Routes {
    Routes::default()
        .endpoint(get_server_version)
        .endpoint(get_server_keys)
        .endpoint(get_remote_server_keys)
        .endpoint(get_remote_server_keys_batch)
}

/// Spec: s2s, "GET /_matrix/federation/v1/version".
async fn get_server_version(
    _server: Arc<Server>,
    _anyone: (),
    _request: get_server_version::v1::Request,
) -> Result<get_server_version::v1::Response, Error> {
    let mut about = get_server_version::v1::Server::new();
    about.name = Some("Hearth".to_owned());
    about.version = Some(env!("CARGO_PKG_VERSION").to_owned());
    let mut response = get_server_version::v1::Response::new();
    response.server = Some(about);
    Ok(response)
}

/// Spec: s2s, "GET /_matrix/key/v2/server".
async fn get_server_keys(
    server: Arc<Server>,
    _anyone: (),
    _request: get_server_keys::v2::Request,
) -> Result<RawJson, Error> {
    let published = server.federation.keys().published();
    Ok(RawJson(canonical::to_vec(&published).into()))
}

/// Spec: s2s, "GET /_matrix/key/v2/query/{serverName}".
async fn get_remote_server_keys(
    server: Arc<Server>,
    _anyone: (),
    request: get_remote_server_keys::v2::Request,
) -> Result<RawJson, Error> {
    let until = millis(request.minimum_valid_until_ts);
    let keys = server.federation.keys();
    let found = keys.notarized(request.server_name, until).await;
    Ok(RawJson(write(found)))
}

/// Spec: s2s, "POST /_matrix/key/v2/query".
async fn get_remote_server_keys_batch(
    server: Arc<Server>,
    _anyone: (),
    request: get_remote_server_keys_batch::v2::Request,
) -> Result<RawJson, Error> {
    if request.server_keys.len() > MAX_SERVERS {
        return Err(Error::invalid_param(format!(
            "At most {MAX_SERVERS} servers can be asked about at a time"
        )));
    }
    let now_ms = server.clock.now_ms();
    let wanted: BTreeMap<OwnedServerName, u64> = request
        .server_keys
        .into_iter()
        .map(|(name, criteria)| {
            let until = criteria
                .into_values()
                .map(|key| key.minimum_valid_until_ts.map_or(now_ms, millis));
            (name, until.max().unwrap_or(now_ms))
        })
        .collect();
    let keys = server.federation.keys();
    let found: Vec<Option<CanonicalJsonObject>> = stream::iter(wanted)
        .map(|(name, until)| keys.notarized(name, until))
        .buffered(CONCURRENT)
        .collect()
        .await;
    Ok(RawJson(write(found.into_iter().flatten())))
}

fn millis(time: MilliSecondsSinceUnixEpoch) -> u64 {
    time.get().into()
}

fn write(documents: impl IntoIterator<Item = CanonicalJsonObject>) -> Bytes {
    let documents: Vec<Vec<u8>> = documents
        .into_iter()
        .map(|document| canonical::to_vec(&document))
        .collect();
    let mut json = b"{\"server_keys\":[".to_vec();
    super::write_list(&mut json, documents.iter().map(Vec::as_slice));
    json.extend_from_slice(b"]}");
    json.into()
}

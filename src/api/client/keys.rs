//! Keys of devices: published, looked up, claimed; and whose devices have changed.
//!
//! Answers always have all their objects, also empty ones: some clients insist on them.
//!
//! Spec: c2s, "Key management API", "Tracking the device list for a user".

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use ruma::{
    OwnedOneTimeKeyId, OwnedUserId,
    api::client::keys::{claim_keys, get_key_changes, get_keys, upload_keys},
    canonical_json::CanonicalJsonValue,
    encryption::{DeviceKeys, OneTimeKey, SignedKey},
    serde::Raw,
};
use serde::Serialize;
use serde_json::json;

use crate::{
    accounts::{Session, UserNumber},
    api::{
        content,
        error::Error,
        routes::{RawJson, Routes},
    },
    encryption::{
        Asker, MAX_DEVICE_KEYS_BYTES, MAX_KEY_BYTES, MAX_KEY_ID_BYTES, NewKey, Publisher, Upload,
        name_device,
    },
    events::canonical,
    federation::KeyQuery,
    server::Server,
    storage::Snapshot,
    sync::token::Token,
};

/// How long other servers have to answer. Spec: c2s, "POST /_matrix/client/v3/keys/query".
const TIMEOUT: Duration = Duration::from_secs(10);
const MAX_TIMEOUT: Duration = Duration::from_secs(60);
/// The algorithm of one-time keys that clients use.
const SIGNED_CURVE25519: &str = "signed_curve25519";

pub(super) fn routes() -> Routes {
    Routes::default()
        .endpoint(get_key_changes)
        .endpoint(upload_keys)
        .endpoint(get_keys)
        .endpoint(claim_keys)
}

/// Spec: c2s, "POST /_matrix/client/v3/keys/upload".
async fn upload_keys(
    server: Arc<Server>,
    session: Arc<Session>,
    request: upload_keys::v3::Request,
) -> Result<RawJson, Error> {
    let Some(device) = session.device.clone() else {
        return Err(Error::invalid_param("This token belongs to no device"));
    };
    let publisher = Publisher {
        user: session.user_number,
        device,
    };
    let upload = Upload {
        device_keys: match &request.device_keys {
            Some(keys) => Some(device_keys(keys, &session)?),
            None => None,
        },
        one_time_keys: new_keys(&request.one_time_keys)?,
        fallback_keys: new_keys(&request.fallback_keys)?,
    };
    let algorithms = upload.fallback_keys.iter().map(|key| &key.algorithm);
    if algorithms.collect::<BTreeSet<_>>().len() < upload.fallback_keys.len() {
        let text = "There can be one fallback key of each algorithm";
        return Err(Error::invalid_param(text));
    }
    let counts = server.encryption.upload_keys(publisher, upload).await?;
    let mut counts = counts.one_time.clone();
    counts.entry(SIGNED_CURVE25519.to_owned()).or_default();
    written(&json!({ "one_time_key_counts": counts }))
}

/// The keys of a device, which must be that of the session.
fn device_keys(
    keys: &Raw<DeviceKeys>,
    session: &Session,
) -> Result<ruma::CanonicalJsonObject, Error> {
    if let Err(error) = keys.deserialize() {
        return Err(Error::bad_json(format!(
            "The device keys are not valid: {error}"
        )));
    }
    let object = content::content(keys)?;
    let is_own = |device: &ruma::OwnedDeviceId| name_device(&object, &session.user, device);
    if !session.device.as_ref().is_some_and(is_own) {
        let text = "The device keys are those of another user or device";
        return Err(Error::invalid_param(text));
    }
    if keys.json().get().len() > MAX_DEVICE_KEYS_BYTES {
        return Err(Error::too_large("Device keys have at most 32768 bytes"));
    }
    Ok(object)
}

fn new_keys(keys: &BTreeMap<OwnedOneTimeKeyId, Raw<OneTimeKey>>) -> Result<Vec<NewKey>, Error> {
    let keys = keys.iter().map(|(id, key)| {
        let (algorithm, _) = id.as_str().split_once(':').unwrap_or_default();
        if id.as_str().len() > MAX_KEY_ID_BYTES {
            return Err(Error::invalid_param(
                "The ID of a key has at most 255 bytes",
            ));
        }
        if key.json().get().len() > MAX_KEY_BYTES {
            return Err(Error::too_large("A one-time key has at most 8192 bytes"));
        }
        let is_signed = algorithm == SIGNED_CURVE25519;
        if is_signed && key.deserialize_as_unchecked::<SignedKey>().is_err() {
            return Err(Error::bad_json("A signed key is not valid"));
        }
        Ok(NewKey {
            algorithm: algorithm.to_owned(),
            id: id.to_string(),
            json: canonical_key(key)?,
        })
    });
    keys.collect()
}

/// A key, which is an object or a text.
fn canonical_key(key: &Raw<OneTimeKey>) -> Result<String, Error> {
    let wrapped = format!("{{\"key\":{}}}", key.json().get());
    let mut json = Vec::new();
    match content::object(wrapped.as_bytes())?.remove("key") {
        Some(key @ (CanonicalJsonValue::Object(_) | CanonicalJsonValue::String(_))) => {
            canonical::write_value(&key, &mut json);
        }
        _ => return Err(Error::bad_json("A one-time key is an object or a text")),
    }
    Ok(String::from_utf8_lossy(&json).into_owned())
}

/// Spec: c2s, "POST /_matrix/client/v3/keys/query".
async fn get_keys(
    server: Arc<Server>,
    session: Arc<Session>,
    request: get_keys::v3::Request,
) -> Result<RawJson, Error> {
    let query = KeyQuery {
        asker: session.user_number,
        wanted: request.device_keys,
        timeout: request.timeout.unwrap_or(TIMEOUT).min(MAX_TIMEOUT),
    };
    let found = server.federation.query_keys(query).await;
    written(&found.map_err(Error::of_federation)?)
}

/// Spec: c2s, "POST /_matrix/client/v3/keys/claim".
async fn claim_keys(
    server: Arc<Server>,
    _session: Arc<Session>,
    request: claim_keys::v3::Request,
) -> Result<RawJson, Error> {
    let timeout = request.timeout.unwrap_or(TIMEOUT).min(MAX_TIMEOUT);
    let claimed = server.federation.claim_keys(request.one_time_keys, timeout);
    written(&claimed.await.map_err(Error::of_federation)?)
}

fn written(answer: &impl Serialize) -> Result<RawJson, Error> {
    let json = serde_json::to_vec(answer).map_err(Error::internal)?;
    Ok(RawJson(json.into()))
}

/// What has changed up to now: also what has changed after `to`, which the caller is told then once more.
///
/// Spec: c2s, "GET /_matrix/client/v3/keys/changes".
async fn get_key_changes(
    server: Arc<Server>,
    session: Arc<Session>,
    request: get_key_changes::v3::Request,
) -> Result<get_key_changes::v3::Response, Error> {
    let token = |text: &str| {
        text.parse::<Token>()
            .map_err(|error| Error::invalid_param(error.to_string()))
    };
    let (from, _to) = (token(&request.from)?, token(&request.to)?);
    // A moment that was lost with a backup put back means nothing any more.
    let known = Some(from.position).filter(|position| server.store.has_published(*position));
    let (encryption, accounts) = (server.encryption.clone(), server.accounts.clone());
    let read = move |snapshot: &Snapshot| -> Result<_, Error> {
        let asker = Asker {
            user: session.user_number,
            id: &session.user,
            since: known.unwrap_or_default(),
            // What the caller was shown is not known here.
            knows_partial_rooms: false,
        };
        let lists = encryption.all_device_lists(snapshot, asker)?;
        let ids = |users: BTreeSet<UserNumber>| {
            let users: Vec<UserNumber> = users.into_iter().collect();
            accounts.user_ids(snapshot, &users)
        };
        Ok((ids(lists.changed)?, ids(lists.left)?))
    };
    let (changed, left): (Vec<OwnedUserId>, Vec<OwnedUserId>) = server.store.read(read).await?;
    Ok(get_key_changes::v3::Response::new(changed, left))
}

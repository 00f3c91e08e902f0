//! What this server tells of its own keys.

use std::{collections::BTreeMap, sync::Arc};

use base64::Engine as _;
use ruma::{CanonicalJsonObject, canonical_json::CanonicalJsonValue};
use serde_json::json;

use super::{
    ServerKeys,
    document::BASE64,
    known::{KnownKey, KnownKeys},
};

/// How long others may take our keys as they are, in milliseconds.
const PUBLISHED_FOR_MS: u64 = 24 * 3_600 * 1_000;

impl ServerKeys {
    /// Our keys, signed, as other servers fetch them.
    ///
    /// Spec: s2s, "Publishing Keys".
    pub fn published(&self) -> CanonicalJsonObject {
        let signer = &self.inner.signer;
        let old: BTreeMap<_, _> = self
            .inner
            .old
            .iter()
            .map(|key| {
                let fields = json!({ "key": key.verify_key, "expired_ts": key.expired_ms });
                (key.key_id.as_str(), fields)
            })
            .collect();
        let document = json!({
            "server_name": signer.server_name(),
            "verify_keys": { signer.key_id().as_str(): { "key": signer.verify_key() } },
            "old_verify_keys": old,
            "valid_until_ts": self.inner.clock.now_ms().saturating_add(PUBLISHED_FOR_MS),
        });
        let mut document = match CanonicalJsonValue::try_from(document) {
            Ok(CanonicalJsonValue::Object(document)) => Some(document),
            _ => None,
        }
        .expect("texts and times in an object are canonical JSON");
        signer
            .sign_json(&mut document)
            .expect("there are no signatures that could be malformed");
        document
    }

    /// Our keys as those of any server, for what we signed and others send back.
    pub(super) fn own_keys(&self) -> Arc<KnownKeys> {
        let signer = &self.inner.signer;
        let decode = |text: &str| BASE64.decode(text).ok()?.try_into().ok();
        let current = decode(&signer.verify_key()).map(|key| {
            let key = KnownKey {
                key,
                valid_until_ms: u64::MAX,
                is_old: false,
            };
            (signer.key_id().to_string(), key)
        });
        let old = self.inner.old.iter().filter_map(|old| {
            let key = KnownKey {
                key: decode(&old.verify_key)?,
                valid_until_ms: old.expired_ms,
                is_old: true,
            };
            Some((old.key_id.clone(), key))
        });
        Arc::new(KnownKeys {
            keys: old.chain(current).collect(),
            ..KnownKeys::default()
        })
    }
}

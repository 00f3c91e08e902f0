//! The JSON in which a server tells its keys.
//!
//! Spec: s2s, "Publishing Keys".

use std::collections::BTreeMap;

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use ruma::{
    CanonicalJsonObject, MilliSecondsSinceUnixEpoch, OwnedServerName, OwnedServerSigningKeyId,
    ServerName, SigningKeyAlgorithm, UInt,
    api::federation::discovery::get_remote_server_keys_batch::v2::QueryCriteria,
    canonical_json::CanonicalJsonValue, signatures::verify_canonical_json_bytes,
};

use super::Wanted;
use crate::events::canonical;

/// Keys of one server that are read; what it names beyond them is not.
const MAX_KEYS: usize = 64;
/// The longest key ID.
const MAX_KEY_ID_BYTES: usize = 255;

/// Base64 as others write it: with or without padding.
pub(super) const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A public key.
pub(super) type PublicKey = [u8; 32];

/// An answer with the keys of a server, signed by that server.
#[derive(Clone, Debug)]
pub struct KeyDocument {
    pub server: OwnedServerName,
    /// The keys in use.
    pub(super) current: BTreeMap<String, PublicKey>,
    /// Earlier keys, with the time of their end in milliseconds.
    pub(super) old: BTreeMap<String, (PublicKey, u64)>,
    /// Milliseconds since the Unix epoch.
    pub valid_until_ms: u64,
    pub(super) object: CanonicalJsonObject,
}

/// Why an answer is not taken.
#[derive(Debug, thiserror::Error)]
pub enum BadDocument {
    #[error(transparent)]
    NotCanonical(#[from] canonical::NotCanonical),
    #[error("`{0}` is missing or not of its type")]
    Field(&'static str),
    #[error("the keys are of another server")]
    OtherServer,
    #[error("no key of the server signs its keys")]
    Unsigned,
}

/// Reads the answer of `server`, or what a notary gives as that.
///
/// # Errors
/// It lacks a field, is about another server, or is not signed with one of the keys that it names.
pub fn read(server: &ServerName, text: &[u8]) -> Result<KeyDocument, BadDocument> {
    let object = canonical::parse(text)?;
    if object
        .get("server_name")
        .and_then(CanonicalJsonValue::as_str)
        != Some(server.as_str())
    {
        return Err(BadDocument::OtherServer);
    }
    let valid_until_ms = natural(&object, "valid_until_ts")?;
    let current = entries(&object, "verify_keys")
        .filter_map(|(id, fields)| Some((id, public_key(fields)?)))
        .take(MAX_KEYS)
        .collect();
    let old = entries(&object, "old_verify_keys")
        .filter_map(|(id, fields)| {
            let expired = natural(fields, "expired_ts").ok()?;
            Some((id, (public_key(fields)?, expired)))
        })
        .take(MAX_KEYS)
        .collect();
    let document = KeyDocument {
        server: server.to_owned(),
        current,
        old,
        valid_until_ms,
        object,
    };
    match document.is_signed(server, &document.current) {
        true => Ok(document),
        false => Err(BadDocument::Unsigned),
    }
}

impl KeyDocument {
    /// The IDs of the keys with which `signer` says to have signed.
    pub(super) fn signed_by(&self, signer: &ServerName) -> Vec<String> {
        signatures(&self.object, signer)
            .map(|(id, _)| id.clone())
            .collect()
    }

    /// Whether there is a signature of `signer` with one of `keys`, and no wrong one.
    pub(super) fn is_signed(
        &self,
        signer: &ServerName,
        keys: &BTreeMap<String, PublicKey>,
    ) -> bool {
        let signed = signed_text(&self.object);
        let mut checked = signatures(&self.object, signer)
            .filter_map(|(id, signature)| Some((keys.get(id)?, signature)))
            .map(|(key, signature)| is_signature(&signed, key, signature))
            .peekable();
        checked.peek().is_some() && checked.all(|is_good| is_good)
    }

    /// As it came, in canonical form.
    pub(super) fn text(&self) -> String {
        String::from_utf8(canonical::to_vec(&self.object)).expect("canonical JSON is UTF-8")
    }
}

/// Whether `signature`, in base64, is that of the holder of `key` under `text`.
pub(super) fn is_signature(text: &[u8], key: &PublicKey, signature: &str) -> bool {
    let Ok(signature) = BASE64.decode(signature) else {
        return false;
    };
    verify_canonical_json_bytes(&SigningKeyAlgorithm::Ed25519, key, &signature, text).is_ok()
}

/// What a notary is asked for.
pub(super) fn criteria(
    servers: &[OwnedServerName],
    wanted: &Wanted,
) -> BTreeMap<OwnedServerName, BTreeMap<OwnedServerSigningKeyId, QueryCriteria>> {
    let of_server = |server: &OwnedServerName| {
        let keys = wanted.get(server).into_iter().flatten();
        let keys = keys.filter_map(|(id, valid_at_ms)| {
            let mut criteria = QueryCriteria::new();
            criteria.minimum_valid_until_ts = Some(MilliSecondsSinceUnixEpoch(
                UInt::new_saturating(*valid_at_ms),
            ));
            Some((
                OwnedServerSigningKeyId::try_from(id.as_str()).ok()?,
                criteria,
            ))
        });
        (server.clone(), keys.collect())
    };
    servers.iter().map(of_server).collect()
}

/// What is signed of an object: all but the signatures and what anybody may add.
///
/// Spec: appendices, "Signing JSON".
fn signed_text(object: &CanonicalJsonObject) -> Vec<u8> {
    let mut signed = object.clone();
    signed.remove("signatures");
    signed.remove("unsigned");
    canonical::to_vec(&signed)
}

fn signatures<'a>(
    object: &'a CanonicalJsonObject,
    signer: &ServerName,
) -> impl Iterator<Item = (&'a String, &'a str)> {
    let of_signer = match object.get("signatures") {
        Some(CanonicalJsonValue::Object(signatures)) => signatures.get(signer.as_str()),
        _ => None,
    };
    let signatures = match of_signer {
        Some(CanonicalJsonValue::Object(signatures)) => Some(signatures),
        _ => None,
    };
    let texts = signatures.into_iter().flatten();
    texts
        .filter_map(|(id, signature)| Some((id, signature.as_str()?)))
        .take(MAX_KEYS)
}

/// The Ed25519 keys of a field, with what is said of each.
fn entries<'a>(
    object: &'a CanonicalJsonObject,
    field: &str,
) -> impl Iterator<Item = (String, &'a CanonicalJsonObject)> {
    let entries = match object.get(field) {
        Some(CanonicalJsonValue::Object(entries)) => Some(entries),
        _ => None,
    };
    entries.into_iter().flatten().filter_map(|(id, fields)| {
        let is_key_id = id.len() <= MAX_KEY_ID_BYTES && id.starts_with("ed25519:");
        match fields {
            CanonicalJsonValue::Object(fields) if is_key_id => Some((id.clone(), fields)),
            _ => None,
        }
    })
}

fn public_key(fields: &CanonicalJsonObject) -> Option<PublicKey> {
    let text = fields.get("key")?.as_str()?;
    BASE64.decode(text).ok()?.try_into().ok()
}

fn natural(object: &CanonicalJsonObject, field: &'static str) -> Result<u64, BadDocument> {
    match object.get(field) {
        Some(CanonicalJsonValue::Integer(number)) => {
            u64::try_from(i64::from(*number)).map_err(|_negative| BadDocument::Field(field))
        }
        _ => Err(BadDocument::Field(field)),
    }
}

#[cfg(test)]
pub(super) mod tests;

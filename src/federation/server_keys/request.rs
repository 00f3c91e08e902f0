//! Who makes a request: the signature in its `Authorization` header.
//!
//! Spec: s2s, "Request Authentication".

use std::{borrow::Cow, collections::BTreeMap};

use base64::Engine as _;
use bytes::Bytes;
use ruma::{ServerName, api::federation::authentication::XMatrix};
use serde_json::value::RawValue;

use super::{
    Reason, ServerKeys, Wanted,
    document::{BASE64, is_signature},
};
use crate::events::canonical;

/// Bodies above this are read and checked on the blocking pool.
const MAX_INLINE_BYTES: usize = 32 << 10;

/// Why a request is not taken as coming from the server it names.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("the request is signed for another server")]
    Destination,
    #[error("the request is signed in the name of this server")]
    OwnName,
    #[error("the body of the request is not JSON")]
    Body,
    #[error("the key {0} of the server is not known")]
    UnknownKey(String),
    #[error("the signature of the request is not right")]
    Signature,
}

impl ServerKeys {
    /// Checks that the server which `authorization` names has signed `request`, for us, with a key that is in use.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn verify_request(
        &self,
        authorization: &XMatrix,
        request: &http::Request<Bytes>,
    ) -> Result<(), RequestError> {
        let own_name = self.inner.signer.server_name();
        let destination = authorization.destination.as_deref();
        if destination.is_some_and(|destination| destination != own_name) {
            return Err(RequestError::Destination);
        }
        if authorization.origin == own_name {
            return Err(RequestError::OwnName);
        }
        let (origin, key_id) = (&authorization.origin, authorization.key.as_str());
        let now_ms = self.inner.clock.now_ms();
        let key = match self.key_in_use(origin, key_id, now_ms).await {
            Some(key) => key,
            None => {
                let keys = BTreeMap::from([(key_id.to_owned(), now_ms)]);
                let wanted = Wanted::from([(origin.clone(), keys)]);
                Box::pin(self.gather(wanted, Reason::Caller)).await;
                let key = self.key_in_use(origin, key_id, now_ms).await;
                key.ok_or_else(|| RequestError::UnknownKey(key_id.to_owned()))?
            }
        };
        let signature = BASE64.encode(authorization.sig.as_bytes());
        let target = Target {
            method: request.method().as_str().to_owned(),
            uri: request
                .uri()
                .path_and_query()
                .map_or_else(String::new, ToString::to_string),
            origin: origin.to_string(),
            destination: own_name.to_string(),
            body: request.body().clone(),
        };
        let check = move || {
            let signed = target.signed_text().ok_or(RequestError::Body)?;
            match is_signature(&signed, &key, &signature) {
                true => Ok(()),
                false => Err(RequestError::Signature),
            }
        };
        match request.body().len() {
            0..=MAX_INLINE_BYTES => check(),
            _ => super::verify::on_blocking_pool(check).await,
        }
    }

    async fn key_in_use(
        &self,
        server: &ServerName,
        key_id: &str,
        now_ms: u64,
    ) -> Option<super::document::PublicKey> {
        let known = self.known(server).await?;
        known.in_use(key_id, now_ms).copied()
    }
}

/// What a request signs.
struct Target {
    method: String,
    uri: String,
    origin: String,
    destination: String,
    body: Bytes,
}

impl Target {
    /// The canonical JSON of the request; `None` if the body is not JSON.
    fn signed_text(&self) -> Option<Vec<u8>> {
        let mut text = Vec::with_capacity(self.body.len() + 512);
        text.push(b'{');
        if !self.body.is_empty() {
            text.extend_from_slice(b"\"content\":");
            match canonical::parse(&self.body) {
                Ok(content) => canonical::write_object(&content, &mut text),
                // One event that is not canonical must not cost those beside it: it is refused later, by itself.
                Err(_) => write_lenient(serde_json::from_slice(&self.body).ok()?, &mut text, 0)?,
            }
            text.push(b',');
        }
        let fields = [
            ("destination", &self.destination),
            ("method", &self.method),
            ("origin", &self.origin),
            ("uri", &self.uri),
        ];
        for (at, (name, value)) in fields.into_iter().enumerate() {
            if at > 0 {
                text.push(b',');
            }
            canonical::write_string(name, &mut text);
            text.push(b':');
            canonical::write_string(value, &mut text);
        }
        text.push(b'}');
        Some(text)
    }
}

/// Levels of a body that is not canonical. Each level is read once for every one above it.
const MAX_LENIENT_DEPTH: usize = 32;

/// Writes JSON with sorted keys and without spaces, and numbers as they came: what a server signs that does not look at
/// them.
fn write_lenient(value: &RawValue, text: &mut Vec<u8>, depth: usize) -> Option<()> {
    if depth > MAX_LENIENT_DEPTH {
        return None;
    }
    let source = value.get();
    match source.as_bytes().first()? {
        b'{' => {
            let fields: BTreeMap<Cow<'_, str>, &RawValue> = serde_json::from_str(source).ok()?;
            text.push(b'{');
            for (at, (name, value)) in fields.into_iter().enumerate() {
                if at > 0 {
                    text.push(b',');
                }
                canonical::write_string(&name, text);
                text.push(b':');
                write_lenient(value, text, depth + 1)?;
            }
            text.push(b'}');
        }
        b'[' => {
            let elements: Vec<&RawValue> = serde_json::from_str(source).ok()?;
            text.push(b'[');
            for (at, value) in elements.into_iter().enumerate() {
                if at > 0 {
                    text.push(b',');
                }
                write_lenient(value, text, depth + 1)?;
            }
            text.push(b']');
        }
        b'"' => canonical::write_string(&serde_json::from_str::<String>(source).ok()?, text),
        _ => text.extend_from_slice(source.as_bytes()),
    }
    Some(())
}

#[cfg(test)]
mod tests;

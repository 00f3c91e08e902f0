//! The keys that sign this server's events and requests: the one in use, made at the first start, those it took the place
//! of, and the one that will take its place.
//!
//! A key is changed at a start and never under a running server: what is signed with the old key then bears a time before
//! its end, so that every server that asks later finds the signature good.

use std::sync::Arc;

use ruma::OwnedServerName;

use super::Error;
use crate::{
    clock::Clock,
    events::Signer,
    storage::{Batch, Cbor, Family, Order, Snapshot, Store, Table, Text},
};

static SIGNING_KEYS: Table<(), Cbor<SigningKey>> = Table::new("signing_keys", Family::Meta, b'k');
static NEXT_SIGNING_KEY: Table<(), Cbor<SigningKey>> =
    Table::new("next_signing_key", Family::Meta, b'n');
static OLD_SIGNING_KEYS: Table<(Text,), Cbor<OldKey>> =
    Table::new("old_signing_keys", Family::Meta, b'o');

/// A stored signing key.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct SigningKey {
    document: Vec<u8>,
    version: String,
}

/// A key that this server has signed with and does not any more. The secret half is gone.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct OldKey {
    /// As in `ed25519:VERSION`.
    pub key_id: String,
    /// The public key in unpadded base64.
    pub verify_key: String,
    /// When it was last used, in milliseconds since the Unix epoch.
    pub expired_ms: u64,
}

/// The signer of this server. Its key is made and made durable if there is none; a key that was made to follow takes
/// over now.
///
/// # Errors
/// If the store fails or the key is damaged.
pub async fn signer(
    store: &Store,
    clock: &Clock,
    server_name: OwnedServerName,
) -> Result<Arc<Signer>, Error> {
    let (current, next) = store
        .read(|snapshot| -> Result<_, Error> {
            Ok((
                snapshot.get(&SIGNING_KEYS, &())?,
                snapshot.get(&NEXT_SIGNING_KEY, &())?,
            ))
        })
        .await?;
    let mut batch = Batch::new();
    let signer = match (current, next) {
        (Some(Cbor(current)), None) => read(&current, server_name)?,
        (Some(Cbor(current)), Some(Cbor(next))) => {
            retire(
                &mut batch,
                &read(&current, server_name.clone())?,
                clock.now_ms(),
            );
            batch.put(&SIGNING_KEYS, &(), &Cbor(next.clone()));
            batch.delete(&NEXT_SIGNING_KEY, &());
            read(&next, server_name)?
        }
        (None, _) => {
            let signer = Signer::generate(server_name, &clock.random_bytes());
            batch.put(&SIGNING_KEYS, &(), &Cbor(row(&signer)));
            signer
        }
    };
    if !batch.is_empty() {
        store.submit(batch).await?;
    }
    Ok(Arc::new(signer))
}

/// Makes the key that is used from the next start on, in place of one made before that has not been used.
///
/// # Errors
/// If the store fails.
pub async fn rotate(
    store: &Store,
    clock: &Clock,
    server_name: OwnedServerName,
) -> Result<Signer, Error> {
    let signer = Signer::generate(server_name, &clock.random_bytes());
    let mut batch = Batch::new();
    batch.put(&NEXT_SIGNING_KEY, &(), &Cbor(row(&signer)));
    store.submit(batch).await?;
    Ok(signer)
}

/// The keys of earlier times.
///
/// # Errors
/// If the store fails.
pub fn old_keys(snapshot: &Snapshot) -> Result<Vec<OldKey>, Error> {
    let rows = snapshot.scan(OLD_SIGNING_KEYS.all(), Order::Forward);
    rows.map(|row| Ok(row.map(|(_, Cbor(key))| key)?)).collect()
}

/// The ID of the key that is used from the next start on, if there is one.
///
/// # Errors
/// If the store fails.
pub fn next_key_id(snapshot: &Snapshot) -> Result<Option<String>, Error> {
    let next = snapshot.get(&NEXT_SIGNING_KEY, &())?;
    Ok(next.map(|Cbor(key)| format!("ed25519:{}", key.version)))
}

fn retire(batch: &mut Batch, signer: &Signer, now_ms: u64) {
    let key = OldKey {
        key_id: signer.key_id().to_string(),
        verify_key: signer.verify_key(),
        expired_ms: now_ms,
    };
    batch.put(
        &OLD_SIGNING_KEYS,
        &(Text::from(key.key_id.as_str()),),
        &Cbor(key),
    );
}

fn read(key: &SigningKey, server_name: OwnedServerName) -> Result<Signer, Error> {
    Signer::from_document(server_name, &key.document, &key.version)
        .map_err(|damaged| Error::corrupt("signing_keys", &damaged.to_string()))
}

fn row(signer: &Signer) -> SigningKey {
    SigningKey {
        document: signer.document().to_vec(),
        version: signer.version().to_owned(),
    }
}

#[cfg(test)]
mod tests;

//! The key that signs this server's events and requests, made at the first start and kept in the database.

use std::sync::Arc;

use ruma::OwnedServerName;

use super::Error;
use crate::{
    clock::Clock,
    events::Signer,
    storage::{Batch, Cbor, Family, Store, Table},
};

static SIGNING_KEYS: Table<(), Cbor<SigningKey>> = Table::new("signing_keys", Family::Meta, b'k');

/// A stored signing key.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct SigningKey {
    document: Vec<u8>,
    version: String,
}

/// The signer of this server; its key is made and made durable if there is none.
///
/// # Errors
/// If the store fails or the key is damaged.
pub async fn signer(
    store: &Store,
    clock: &Clock,
    server_name: OwnedServerName,
) -> Result<Arc<Signer>, Error> {
    let stored = store
        .read(|snapshot| -> Result<_, Error> { Ok(snapshot.get(&SIGNING_KEYS, &())?) })
        .await?;
    if let Some(Cbor(key)) = stored {
        let signer = Signer::from_document(server_name, &key.document, &key.version)
            .map_err(|damaged| Error::corrupt("signing_keys", &damaged.to_string()))?;
        return Ok(Arc::new(signer));
    }
    let signer = Signer::generate(server_name, &clock.random_bytes());
    let key = SigningKey {
        document: signer.document().to_vec(),
        version: signer.version().to_owned(),
    };
    let mut batch = Batch::new();
    batch.put(&SIGNING_KEYS, &(), &Cbor(key));
    store.submit(batch).await?;
    Ok(Arc::new(signer))
}

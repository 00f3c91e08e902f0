//! What is remembered of the keys of one server.

use std::{collections::BTreeMap, sync::Arc};

use ruma::ServerName;
use serde::{Deserialize, Serialize};

use super::{
    Remembered, ServerKeys,
    document::{KeyDocument, PublicKey},
    lock,
};
use crate::storage::{Batch, Cbor, Family, Table, Text};

static SERVER_KEYS: Table<(Text,), Cbor<KnownKeys>> =
    Table::new("server_keys", Family::Federation, b'k');

/// A key is never taken as valid for longer than this after it was fetched, in milliseconds.
///
/// Spec: s2s, "Publishing Keys".
const MAX_VALIDITY_MS: u64 = 7 * 24 * 3_600 * 1_000;
/// Keys kept of one server; of more the latest are kept.
const MAX_KEPT: usize = 256;
/// The longest server name whose keys are kept: what a key of a table can hold.
const MAX_NAME_BYTES: usize = 255;

/// The keys of one server, those of earlier answers among them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KnownKeys {
    /// By key ID.
    pub(super) keys: BTreeMap<String, KnownKey>,
    /// The newest answer, for those who ask us as a notary: canonical JSON.
    pub(super) document: String,
    /// Until when that answer says it is good, in milliseconds.
    pub(super) valid_until_ms: u64,
    /// When it came, in milliseconds.
    pub(super) fetched_ms: u64,
}

/// One key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KnownKey {
    pub(super) key: PublicKey,
    /// The last moment at which what is signed with it counts, in milliseconds.
    pub(super) valid_until_ms: u64,
    /// Given up by the server: counts for events only.
    pub(super) is_old: bool,
}

impl KnownKeys {
    /// Whether each of `keys` is known and was valid at its moment.
    pub(super) fn covers(&self, keys: &BTreeMap<String, u64>) -> bool {
        keys.iter()
            .all(|(id, at_ms)| self.valid_at(id, *at_ms).is_some())
    }

    /// The key of this ID, if it counts for events of a moment.
    pub(super) fn valid_at(&self, id: &str, at_ms: u64) -> Option<&PublicKey> {
        let key = self.keys.get(id)?;
        (key.valid_until_ms >= at_ms).then_some(&key.key)
    }

    /// The key of this ID, if it counts for requests now.
    pub(super) fn in_use(&self, id: &str, now_ms: u64) -> Option<&PublicKey> {
        let key = self.keys.get(id)?;
        (!key.is_old && key.valid_until_ms >= now_ms).then_some(&key.key)
    }

    /// Whether `notary`, whose keys these are, has signed a document with a key that is in use.
    pub(super) fn vouch_for(
        &self,
        document: &KeyDocument,
        notary: &ServerName,
        now_ms: u64,
    ) -> bool {
        let in_use = self
            .keys
            .iter()
            .filter(|(_, key)| !key.is_old && key.valid_until_ms >= now_ms)
            .map(|(id, key)| (id.clone(), key.key))
            .collect();
        document.is_signed(notary, &in_use)
    }

    /// Takes over a document. An older one than the last only adds keys that were not known.
    pub(super) fn merge(&mut self, document: &KeyDocument, now_ms: u64) {
        let is_newest = document.valid_until_ms >= self.valid_until_ms;
        if is_newest {
            // What the server does not name any more is not in use any more.
            self.keys.values_mut().for_each(|key| key.is_old = true);
            self.document = document.text();
            self.valid_until_ms = document.valid_until_ms;
            self.fetched_ms = now_ms;
        }
        let longest = now_ms.saturating_add(MAX_VALIDITY_MS);
        let current = document.current.iter().map(|(id, key)| {
            let key = KnownKey {
                key: *key,
                valid_until_ms: document.valid_until_ms.min(longest),
                is_old: !is_newest,
            };
            (id, key)
        });
        let old = document.old.iter().map(|(id, (key, expired_ms))| {
            let key = KnownKey {
                key: *key,
                valid_until_ms: *expired_ms,
                is_old: true,
            };
            (id, key)
        });
        // A key that is in both is in use.
        for (id, key) in old.chain(current) {
            if is_newest || !self.keys.contains_key(id) {
                self.keys.insert(id.clone(), key);
            }
        }
        self.trim();
    }

    fn trim(&mut self) {
        while self.keys.len() > MAX_KEPT {
            let oldest = self.keys.iter().min_by_key(|(_, key)| key.valid_until_ms);
            let Some(id) = oldest.map(|(id, _)| id.clone()) else {
                return;
            };
            self.keys.remove(&id);
        }
    }
}

impl ServerKeys {
    /// What is known of a server without asking anybody.
    pub(super) async fn known(&self, server: &ServerName) -> Option<Arc<KnownKeys>> {
        if server == self.inner.signer.server_name() {
            return Some(self.own_keys());
        }
        if let Some(remembered) = lock(&self.inner.known).get(server) {
            return Some(Arc::clone(&remembered.known));
        }
        let key = table_key(server)?;
        let row = self
            .inner
            .store
            .read(move |snapshot| snapshot.get(&SERVER_KEYS, &key))
            .await;
        match row {
            Ok(row) => row.map(|Cbor(known)| {
                let known = Arc::new(known);
                self.remember(server, Arc::clone(&known), Stored::Yes);
                known
            }),
            Err(error) => {
                tracing::error!(%error, "server keys cannot be read");
                None
            }
        }
    }

    /// Keeps what a document says, in memory. The turn of the server is held, or the document comes from a notary.
    pub(super) async fn keep(&self, document: KeyDocument) {
        let known = self.known(&document.server).await;
        let mut known = known.as_deref().cloned().unwrap_or_default();
        known.merge(&document, self.inner.clock.now_ms());
        self.remember(&document.server, Arc::new(known), Stored::No);
    }

    fn remember(&self, server: &ServerName, known: Arc<KnownKeys>, stored: Stored) {
        let remembered = Remembered {
            known,
            is_stored: stored == Stored::Yes,
        };
        lock(&self.inner.known).put(server.to_owned(), remembered);
    }

    /// Stores the keys of a server that has signed events: they are needed as long as these.
    ///
    /// Nobody waits for that: were the row lost, the events would be as well.
    pub(super) fn store(&self, server: &ServerName) {
        let Some(key) = table_key(server) else {
            return;
        };
        let mut known = lock(&self.inner.known);
        let Some(remembered) = known.get_mut(server).filter(|keys| !keys.is_stored) else {
            return;
        };
        remembered.is_stored = true;
        let mut batch = Batch::new();
        batch.put(
            &SERVER_KEYS,
            &key,
            &Cbor(KnownKeys::clone(&remembered.known)),
        );
        // Queued under the lock, so that an older state never comes after a newer one.
        drop(self.inner.store.submit(batch));
    }
}

/// Whether keys in memory are those in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stored {
    Yes,
    No,
}

fn table_key(server: &ServerName) -> Option<(Text,)> {
    (server.as_str().len() <= MAX_NAME_BYTES).then(|| (Text::from(server.as_str()),))
}

#[cfg(test)]
mod tests;

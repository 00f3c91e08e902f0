//! Filters that clients stored to name them in sync. The ID is a hash of the content, so the same filter is stored once.
//!
//! Spec: c2s, "Filtering".

use std::sync::Arc;

use ruma::api::client::filter::{EventFormat, FilterDefinition};

use super::{Accounts, Error, UserNumber};
use crate::storage::{Batch, Family, Raw, Snapshot, Table};

static FILTERS: Table<(UserNumber, u64), Raw> = Table::new("filters", Family::Users, b'f');

/// Largest filter, in bytes of JSON.
const MAX_FILTER_BYTES: usize = 64 * 1024;

impl Accounts {
    /// Stores a filter and gives its ID.
    ///
    /// # Errors
    /// [`Error::InvalidFilter`].
    pub async fn put_filter(
        &self,
        user: UserNumber,
        filter: FilterDefinition,
    ) -> Result<String, Error> {
        if !matches!(
            filter.event_format,
            EventFormat::Client | EventFormat::Federation
        ) {
            return Err(Error::InvalidFilter(
                "The event format is \"client\" or \"federation\"",
            ));
        }
        let json = serde_json::to_vec(&filter)
            .map_err(|_error| Error::InvalidFilter("The filter is not valid"))?;
        if json.len() > MAX_FILTER_BYTES {
            return Err(Error::InvalidFilter("The filter is larger than 64 KiB"));
        }
        let (head, _) = blake3::hash(&json)
            .as_bytes()
            .split_first_chunk::<8>()
            .map(|(a, b)| (*a, b.len()))
            .expect("a hash has 32 bytes");
        let number = u64::from_be_bytes(head);
        let key = (user, number);
        let is_known = self.inner.filters.get(&key).is_some();
        if !is_known {
            let mut batch = Batch::new();
            batch.put(&FILTERS, &key, &Raw(json.into()));
            let position = self.inner.store.submit(batch).await?;
            self.inner.filters.fill(key, Arc::new(filter), position);
        }
        Ok(format!("{number:x}"))
    }

    /// The filter that `user` stored under `id`.
    pub fn filter(
        &self,
        snapshot: &Snapshot,
        user: UserNumber,
        id: &str,
    ) -> Result<Option<Arc<FilterDefinition>>, Error> {
        let Ok(number) = u64::from_str_radix(id, 16) else {
            return Ok(None);
        };
        let key = (user, number);
        if let Some(filter) = self.inner.filters.get(&key) {
            return Ok(Some(filter));
        }
        let Some(Raw(json)) = snapshot.get(&FILTERS, &key)? else {
            return Ok(None);
        };
        let filter = serde_json::from_slice(&json)
            .map_err(|_error| Error::InvalidFilter("The stored filter is damaged"))?;
        let filter = Arc::new(filter);
        self.inner
            .filters
            .fill(key, Arc::clone(&filter), snapshot.position());
        Ok(Some(filter))
    }
}

//! EDUs that must not be lost: they wait in the store until the server has them.
//!
//! Spec: s2s, "Device Management", "Send-to-device messaging".

use std::sync::atomic::Ordering;

use ruma::{CanonicalJsonObject, OwnedServerName};

use super::rows::{self, EduRow};
use crate::{
    events::canonical,
    federation::{Error, Federation, device_lists::ListEdu},
    storage::{Batch, Position},
};

impl Federation {
    /// Queues an EDU for `servers`: durable with the batch that is returned, which the caller adds to its own. Servers that
    /// this one does not talk to are passed over.
    #[must_use = "the EDU is queued by the commit of the batch"]
    pub fn queue_edu(
        &self,
        servers: &[OwnedServerName],
        edu_type: &str,
        content: CanonicalJsonObject,
    ) -> Batch {
        let edu = CanonicalJsonObject::from([
            ("content".to_owned(), content.into()),
            ("edu_type".to_owned(), edu_type.to_owned().into()),
        ]);
        let json = String::from_utf8_lossy(&canonical::to_vec(&edu)).into_owned();
        self.queue_canonical(servers, &json)
    }

    /// As [`Self::queue_edu`], of a whole EDU in canonical JSON.
    pub(in crate::federation) fn queue_canonical(
        &self,
        servers: &[OwnedServerName],
        json: &str,
    ) -> Batch {
        let inner = &self.inner;
        let allowed = servers.iter().filter(|server| self.is_allowed(server));
        let servers: Vec<_> = allowed
            .filter(|server| *server != inner.rooms.own_name())
            .map(|server| inner.rooms.server_number(server))
            .collect();
        let mut batch = Batch::new();
        for server in &servers {
            let row = EduRow {
                queued_ms: inner.clock.now_ms(),
                json: json.to_owned(),
            };
            let number = inner.sender.edus.fetch_add(1, Ordering::Relaxed);
            rows::put_edu(&mut batch, *server, number, row);
        }
        let federation = self.clone();
        batch.on_publish(move |_position| {
            let sender = &federation.inner.sender;
            let mut destinations = sender.lock();
            for server in servers {
                destinations.note_stored(server);
            }
            drop(destinations);
            sender.news.notify_one();
        });
        batch
    }

    /// Queues changes of device lists, each at the position at which the log tells of it: what is dealt out twice, after a
    /// crash, is queued once if it has not been sent meanwhile.
    pub(super) async fn queue_lists(&self, lists: &[(Position, ListEdu)]) -> Result<(), Error> {
        let inner = &self.inner;
        let (mut at, mut number) = (None, FIRST_OF_LISTS);
        for part in lists.chunks(LISTS_PER_BATCH) {
            let mut batch = Batch::new();
            for (position, list) in part {
                number = match at == Some(*position) {
                    true => number.saturating_add(1),
                    false => FIRST_OF_LISTS,
                };
                at = Some(*position);
                for server in &list.servers {
                    let row = EduRow {
                        queued_ms: inner.clock.now_ms(),
                        json: list.json.to_string(),
                    };
                    rows::put_edu_at(&mut batch, (*server, *position), number, row);
                }
            }
            inner.store.submit(batch).await?;
            let mut destinations = inner.sender.lock();
            for server in part.iter().flat_map(|(_, list)| &list.servers) {
                destinations.note_stored(*server);
            }
        }
        Ok(())
    }
}

/// Changes of device lists in one batch.
const LISTS_PER_BATCH: usize = 100;
/// Tells them apart from what [`Federation::queue_edu`] has queued at the same position.
const FIRST_OF_LISTS: u32 = 1 << 31;

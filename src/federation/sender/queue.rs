//! EDUs that must not be lost: they wait in the store until the server has them.
//!
//! Spec: s2s, "Device Management", "Send-to-device messaging".

use std::sync::atomic::Ordering;

use ruma::{CanonicalJsonObject, OwnedServerName};

use super::rows::{self, EduRow};
use crate::{events::canonical, federation::Federation, storage::Batch};

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
        let inner = &self.inner;
        let edu = CanonicalJsonObject::from([
            ("content".to_owned(), content.into()),
            ("edu_type".to_owned(), edu_type.to_owned().into()),
        ]);
        let json = String::from_utf8_lossy(&canonical::to_vec(&edu)).into_owned();
        let allowed = servers.iter().filter(|server| self.is_allowed(server));
        let servers: Vec<_> = allowed
            .filter(|server| *server != inner.rooms.own_name())
            .map(|server| inner.rooms.server_number(server))
            .collect();
        let mut batch = Batch::new();
        for server in &servers {
            let row = EduRow {
                queued_ms: inner.clock.now_ms(),
                json: json.clone(),
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
}

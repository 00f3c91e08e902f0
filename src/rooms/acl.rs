//! Which servers a room lets take part.
//!
//! Spec: c2s, "Server Access Control Lists (ACLs) for rooms".

use ruma::{ServerName, events::room::server_acl::RoomServerAclEventContent};
use serde::Deserialize;
use serde_json::Value;

use super::{Error, RoomNumber, Rooms};
use crate::storage::Snapshot;

/// A list as somebody wrote it.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Given {
    allow_ip_literals: Value,
    allow: Value,
    deny: Value,
}

impl Given {
    /// The list with its defaults in the place of what is malformed, as other servers read it. So what it denies stays
    /// denied, and a list that allows nobody in words that can be read lets nobody in.
    fn read(self) -> RoomServerAclEventContent {
        let allow_ip_literals = self.allow_ip_literals.as_bool().unwrap_or(true);
        RoomServerAclEventContent::new(allow_ip_literals, texts(self.allow), texts(self.deny))
    }
}

/// The texts of a list; none of what is no list.
fn texts(list: Value) -> Vec<String> {
    let Value::Array(entries) = list else {
        return Vec::new();
    };
    let texts = entries.into_iter().filter_map(|entry| match entry {
        Value::String(text) => Some(text),
        _ => None,
    });
    texts.collect()
}

impl Rooms {
    /// Whether the current state of a room lets a server take part. A room without a list lets everybody.
    pub fn acl_allows(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        server: &ServerName,
    ) -> Result<bool, Error> {
        let head = self.head(snapshot, room)?.ok_or(Error::NotFound)?;
        let list = self.state_event(snapshot, (room, head.root), "m.room.server_acl", "")?;
        Ok(list.is_none_or(|list| {
            let given: Given = list.pdu.content_as().unwrap_or_default();
            given.read().is_allowed(server)
        }))
    }
}

#[cfg(test)]
mod tests;

//! Which servers a room lets take part.
//!
//! Spec: c2s, "Server Access Control Lists (ACLs) for rooms".

use ruma::{ServerName, events::room::server_acl::RoomServerAclEventContent};

use super::{Error, RoomNumber, Rooms};
use crate::storage::Snapshot;

impl Rooms {
    /// Whether the current state of a room lets a server take part. A room without a list, or with one that cannot be read,
    /// lets everybody.
    pub fn acl_allows(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        server: &ServerName,
    ) -> Result<bool, Error> {
        let head = self.head(snapshot, room)?.ok_or(Error::NotFound)?;
        let list = self.state_event(snapshot, (room, head.root), "m.room.server_acl", "")?;
        let list = list.and_then(|event| event.pdu.content_as::<RoomServerAclEventContent>().ok());
        Ok(list.is_none_or(|list| list.is_allowed(server)))
    }
}

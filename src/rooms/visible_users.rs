//! Which users somebody may find: those with whom a room is shared, and those in rooms that everybody can see.
//!
//! Spec: c2s, "User Directory".

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::{Class, Error, RoomNumber, Rooms, StoredEvent};
use crate::{accounts::UserNumber, storage::Snapshot};

/// Answers for one who searches; remembers what it has read of rooms.
pub struct VisibleUsers<'a> {
    rooms: &'a Rooms,
    snapshot: &'a Snapshot,
    own_rooms: BTreeSet<RoomNumber>,
    is_public: BTreeMap<RoomNumber, bool>,
}

impl<'a> VisibleUsers<'a> {
    /// What `searcher` may find in `snapshot`.
    ///
    /// # Errors
    /// The store failed.
    pub fn new(
        rooms: &'a Rooms,
        snapshot: &'a Snapshot,
        searcher: UserNumber,
    ) -> Result<Self, Error> {
        let own_rooms = rooms.rooms_of(snapshot, searcher)?;
        let joined = own_rooms.iter().filter(|entry| entry.class == Class::Join);
        let own_rooms = joined.map(|entry| entry.room).collect();
        Ok(Self {
            rooms,
            snapshot,
            own_rooms,
            is_public: BTreeMap::new(),
        })
    }

    /// Whether `user`, of this server, may be found.
    ///
    /// # Errors
    /// The store failed.
    pub fn has(&mut self, user: UserNumber) -> Result<bool, Error> {
        let rooms = self.rooms.rooms_of(self.snapshot, user)?;
        let joined: Vec<RoomNumber> = rooms
            .iter()
            .filter(|entry| entry.class == Class::Join)
            .map(|entry| entry.room)
            .collect();
        if joined.iter().any(|room| self.own_rooms.contains(room)) {
            return Ok(true);
        }
        for room in joined {
            if self.is_public(room)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn is_public(&mut self, room: RoomNumber) -> Result<bool, Error> {
        if let Some(known) = self.is_public.get(&room) {
            return Ok(*known);
        }
        let Some(head) = self.rooms.head(self.snapshot, room)? else {
            return Ok(false);
        };
        let keys = [("m.room.join_rules", ""), ("m.room.history_visibility", "")];
        let states = self
            .rooms
            .state_events(self.snapshot, (room, head.root), &keys)?;
        let is_public = states.iter().any(|state| opens(state));
        self.is_public.insert(room, is_public);
        Ok(is_public)
    }
}

/// Whether this state lets everybody see who is in the room.
fn opens(state: &StoredEvent) -> bool {
    #[derive(Deserialize)]
    struct Content {
        join_rule: Option<String>,
        history_visibility: Option<String>,
    }
    let Ok(content) = state.pdu.content_as::<Content>() else {
        return false;
    };
    content.join_rule.as_deref() == Some("public")
        || content.history_visibility.as_deref() == Some("world_readable")
}

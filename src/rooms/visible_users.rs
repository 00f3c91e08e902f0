//! Which users somebody may find: those with whom a room is shared, and of this server those in rooms that everybody can
//! see.
//!
//! Spec: c2s, "User Directory".

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ruma::UserId;
use serde::Deserialize;

use super::{Class, Error, RoomNumber, Rooms, StoredEvent};
use crate::{accounts::UserNumber, storage::Snapshot};

/// Answers for one who searches; remembers what it has read of rooms.
pub struct VisibleUsers<'a> {
    rooms: &'a Rooms,
    snapshot: &'a Snapshot,
    searcher: UserNumber,
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
            searcher,
            own_rooms,
            is_public: BTreeMap::new(),
        })
    }

    /// Whether `user`, of this server, may be found. Who searches is found as by anybody: in rooms that everybody can see.
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
        let shares = joined.iter().any(|room| self.own_rooms.contains(room));
        if shares && user != self.searcher {
            return Ok(true);
        }
        for room in joined {
            if self.is_public(room)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Users of other servers who are joined to rooms of the searcher and whose name or ID has `term` in it, as their
    /// memberships say; at most `limit`.
    ///
    /// # Errors
    /// The store failed.
    pub fn of_others(&self, term: &str, limit: usize) -> Result<Vec<Arc<StoredEvent>>, Error> {
        let term = term.trim().to_lowercase();
        let mut seen = BTreeSet::new();
        let mut found = Vec::new();
        for room in &self.own_rooms {
            if self.rooms.has_local_members_only(*room) {
                continue;
            }
            let left = MAX_MEMBERS.saturating_sub(seen.len());
            let members = self
                .rooms
                .members(self.snapshot, *room, Class::Join, left)?;
            let new = members.into_iter().filter(|(user, ..)| seen.insert(*user));
            let numbers: Vec<_> = new.map(|(_, _, row)| row.event).collect();
            let events = self.rooms.events(self.snapshot, *room, &numbers)?;
            for event in events.into_iter().flatten() {
                if found.len() == limit {
                    return Ok(found);
                }
                if self.is_of_others(&event) && is_named(&event, &term) {
                    found.push(event);
                }
            }
        }
        Ok(found)
    }

    fn is_of_others(&self, member: &StoredEvent) -> bool {
        let user = member.pdu.state_key.as_deref().map(<&UserId>::try_from);
        matches!(user, Some(Ok(user)) if !self.rooms.accounts.is_local(user))
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

/// Members of rooms that a search looks at.
const MAX_MEMBERS: usize = 5_000;

/// Whether the ID or the name of a member has `term` in it, which is in small letters.
fn is_named(member: &StoredEvent, term: &str) -> bool {
    #[derive(Deserialize)]
    struct Content {
        displayname: Option<String>,
    }
    let content = member.pdu.content_as::<Content>().ok();
    let name = content.and_then(|content| content.displayname);
    let id = member.pdu.state_key.as_deref().unwrap_or_default();
    id.to_lowercase().contains(term) || name.is_some_and(|name| name.to_lowercase().contains(term))
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

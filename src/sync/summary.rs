//! What a client needs to name a room that has no name: how many are in it, and some of them.
//!
//! Spec: c2s, "GET /_matrix/client/v3/sync" (`RoomSummary`), "Calculating the display name for a room".

use std::sync::{Arc, Mutex, PoisonError};

use lru::LruCache;
use ruma::OwnedUserId;

use super::{
    Error, Sync,
    v3::{View, write_count},
};
use crate::{
    accounts::UserNumber,
    events::{NodeNumber, RootNumber},
    rooms::{Class, RoomNumber, client_event::write_text},
    storage::Position,
};

/// Members by whom a room is named.
const MAX_HEROES: usize = 5;
/// Members among whom the first to come are looked for.
const MAX_MEMBERS_LOOKED_AT: usize = 1_000;

/// A room in short.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Summary {
    /// Empty if the room has a name or an alias.
    pub(super) heroes: Vec<OwnedUserId>,
    pub(super) joined: u64,
    pub(super) invited: u64,
}

impl Sync {
    /// The summary of the current state, `root`.
    pub(super) fn summary(
        &self,
        view: &View<'_>,
        room: RoomNumber,
        root: RootNumber,
    ) -> Result<Summary, Error> {
        let row = self.inner.rooms.root(view.snapshot, room, root)?;
        let heroes = match self.is_named(view, room, root)? {
            true => Vec::new(),
            false => self.heroes(view, room, row.members)?,
        };
        Ok(Summary {
            heroes,
            joined: row.joined,
            invited: row.invited,
        })
    }

    fn is_named(&self, view: &View<'_>, room: RoomNumber, root: RootNumber) -> Result<bool, Error> {
        #[derive(serde::Deserialize)]
        struct Content {
            #[serde(default)]
            name: String,
            #[serde(default)]
            alias: Option<String>,
        }
        let keys = [("m.room.name", ""), ("m.room.canonical_alias", "")];
        let events = self
            .inner
            .rooms
            .state_events(view.snapshot, (room, root), &keys)?;
        Ok(events.iter().any(|event| {
            event.pdu.content_as::<Content>().is_ok_and(|content| {
                !content.name.is_empty() || content.alias.is_some_and(|alias| !alias.is_empty())
            })
        }))
    }

    /// The first to have come of those who are joined or invited; if there is nobody, of those who have left or are banned.
    fn heroes(
        &self,
        view: &View<'_>,
        room: RoomNumber,
        members: NodeNumber,
    ) -> Result<Vec<OwnedUserId>, Error> {
        let reader = view.request.viewer.user;
        let present = match self.inner.heroes.get(room, members) {
            Some(present) => present,
            None => {
                let present = self.first_of(view, room, [Class::Join, Class::Invite])?;
                self.inner.heroes.put(room, members, Arc::clone(&present));
                present
            }
        };
        let mut found = without(&present, reader);
        if found.is_empty() {
            let gone = self.first_of(view, room, [Class::Leave, Class::Ban])?;
            found = without(&gone, reader);
        }
        Ok(self.inner.accounts.user_ids(view.snapshot, &found)?)
    }

    /// One more than heroes are told: the reader may be among them.
    fn first_of(
        &self,
        view: &View<'_>,
        room: RoomNumber,
        classes: [Class; 2],
    ) -> Result<Arc<[UserNumber]>, Error> {
        let mut found: Vec<(Position, UserNumber)> = Vec::new();
        for class in classes {
            let limit = MAX_MEMBERS_LOOKED_AT;
            let members = self
                .inner
                .rooms
                .members(view.snapshot, room, class, limit)?;
            let members = members.into_iter();
            found.extend(members.map(|(user, position, _)| (position, user)));
        }
        found.sort_unstable();
        found.truncate(MAX_HEROES + 1);
        Ok(found.into_iter().map(|(_, user)| user).collect())
    }
}

fn without(users: &[UserNumber], reader: UserNumber) -> Vec<UserNumber> {
    let others = users.iter().copied().filter(|user| *user != reader);
    others.take(MAX_HEROES).collect()
}

/// A room with the trie of its members.
type Membership = (RoomNumber, NodeNumber);

/// The first of the members of rooms, by the trie that holds exactly these members: to find them again would cost a look at
/// each member.
#[derive(Default)]
pub(super) struct Heroes {
    recent: Mutex<Option<LruCache<Membership, Arc<[UserNumber]>>>>,
}

/// Rooms whose first members are kept.
const MAX_ROOMS_KEPT: usize = 10_000;

impl Heroes {
    fn get(&self, room: RoomNumber, members: NodeNumber) -> Option<Arc<[UserNumber]>> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.as_mut()?.get(&(room, members)).cloned()
    }

    fn put(&self, room: RoomNumber, members: NodeNumber, heroes: Arc<[UserNumber]>) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = recent.get_or_insert_with(LruCache::unbounded);
        recent.put((room, members), heroes);
        if recent.len() > MAX_ROOMS_KEPT {
            recent.pop_lru();
        }
    }
}

/// Appends the summary as a field of a room.
pub(super) fn write_summary(to: &mut Vec<u8>, summary: Option<&Summary>) {
    to.extend_from_slice(b",\"summary\":{");
    if let Some(summary) = summary {
        to.extend_from_slice(b"\"m.heroes\":[");
        for (at, hero) in summary.heroes.iter().enumerate() {
            if at > 0 {
                to.push(b',');
            }
            write_text(to, hero.as_str());
        }
        to.push(b']');
        write_count(to, "m.joined_member_count", summary.joined);
        write_count(to, "m.invited_member_count", summary.invited);
    }
    to.push(b'}');
}

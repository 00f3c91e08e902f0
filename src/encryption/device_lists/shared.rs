//! What somebody is told of the device lists of those with whom a room is shared.
//!
//! Spec: c2s, "GET /_matrix/client/v3/sync" (extensions of end-to-end encryption), "GET /_matrix/client/v3/keys/changes".

use std::collections::BTreeSet;

use ruma::UserId;

use super::{Encryption, Error, changed_users};
use crate::{
    accounts::UserNumber,
    rooms::{Class, RoomNumber, UserRoom, membership_of},
    storage::{Position, Snapshot},
};

/// Whose devices are to be looked up anew, and whose are of no concern any more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceLists {
    pub changed: BTreeSet<UserNumber>,
    pub left: BTreeSet<UserNumber>,
}

impl DeviceLists {
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.left.is_empty()
    }
}

/// One who asks what has changed.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    pub user: UserNumber,
    pub id: &'a UserId,
    pub since: Position,
    /// The asker was shown rooms of which not all members were known, and looks them up when it needs them.
    pub knows_partial_rooms: bool,
}

impl Encryption {
    /// What has changed for somebody since a moment, where in `changed` rooms anything has happened.
    ///
    /// # Errors
    /// The store failed.
    pub fn device_lists(
        &self,
        snapshot: &Snapshot,
        asker: Asker<'_>,
        changed: &[UserRoom],
    ) -> Result<DeviceLists, Error> {
        let may_have_changed = self.inner.device_lists.may_have_since(asker.since);
        let mut lists = DeviceLists::default();
        for entry in changed {
            self.add_comings(snapshot, asker, entry, &mut lists)?;
        }
        if lists.is_empty() && !may_have_changed {
            return Ok(lists);
        }
        let rooms = self.inner.rooms.rooms_of(snapshot, asker.user)?;
        let joined = rooms.iter().filter(|entry| entry.class == Class::Join);
        let joined: Vec<RoomNumber> = joined.map(|entry| entry.room).collect();
        if may_have_changed {
            let users = changed_users(snapshot, asker.since)?;
            let mut users: BTreeSet<UserNumber> = users.into_iter().collect();
            if users.remove(&asker.user) {
                lists.changed.insert(asker.user);
            }
            let others: BTreeSet<_> = users.difference(&lists.changed).copied().collect();
            let sharing = self.sharing(snapshot, others, &joined)?;
            lists.changed.extend(sharing);
        }
        lists.left.remove(&asker.user);
        let left: BTreeSet<_> = lists.left.difference(&lists.changed).copied().collect();
        let sharing = self.sharing(snapshot, left.clone(), &joined)?;
        lists.left = left.difference(&sharing).copied().collect();
        Ok(lists)
    }

    /// What has changed for somebody since a moment.
    ///
    /// # Errors
    /// The store failed.
    pub fn all_device_lists(
        &self,
        snapshot: &Snapshot,
        asker: Asker<'_>,
    ) -> Result<DeviceLists, Error> {
        let rooms = self.inner.rooms.rooms_of(snapshot, asker.user)?;
        self.device_lists(snapshot, asker, &rooms)
    }

    /// Adds those with whom the asker has come to share this room, and those with whom it is shared no more.
    fn add_comings(
        &self,
        snapshot: &Snapshot,
        asker: Asker<'_>,
        entry: &UserRoom,
        to: &mut DeviceLists,
    ) -> Result<(), Error> {
        let rooms = &self.inner.rooms;
        let since = asker.since;
        let is_moved = entry.position > since;
        let is_changed = rooms
            .published(entry.room)
            .is_some_and(|room| room.state_position > since);
        if !(is_moved || is_changed && entry.class == Class::Join) {
            return Ok(());
        }
        let before = rooms.root_at(snapshot, entry.room, since)?;
        let was_joined = match before {
            Some(_) if !is_moved => true,
            Some(root) => self.is_joined_at(snapshot, (entry.room, root), asker.id)?,
            None => false,
        };
        let is_joined = entry.class == Class::Join;
        let was_completed = rooms.was_completed_since(snapshot, entry.room, since)?;
        let is_all_new = !was_joined
            || (is_moved && self.has_come_back(snapshot, entry, asker)?)
            // Who else is in the room has not been known before.
            || (was_completed && !asker.knows_partial_rooms);
        if is_joined && is_all_new {
            to.changed.extend(self.members(snapshot, entry.room)?);
        }
        let (Some(before), true) = (before, was_joined) else {
            return Ok(());
        };
        let Some(head) = rooms.head(snapshot, entry.room)? else {
            return Ok(());
        };
        if !is_joined {
            to.left.extend(self.members(snapshot, entry.room)?);
        }
        for coming in rooms.comings(snapshot, entry.room, (before, head.root))? {
            // That somebody has come to be known is no change. Of whom something wrong was known is told apart.
            let was_in_part = was_completed || (head.partial && !coming.is_joined);
            if was_in_part && coming.is_one_sided && coming.at <= since {
                continue;
            }
            let number = self.inner.accounts.user_number(snapshot, &coming.user)?;
            match coming.is_joined {
                true if is_joined => to.changed.extend(number),
                true => {}
                false => to.left.extend(number),
            }
        }
        Ok(())
    }

    fn members(&self, snapshot: &Snapshot, room: RoomNumber) -> Result<Vec<UserNumber>, Error> {
        let members = self
            .inner
            .rooms
            .members(snapshot, room, Class::Join, usize::MAX)?;
        Ok(members.into_iter().map(|(user, ..)| user).collect())
    }

    fn is_joined_at(
        &self,
        snapshot: &Snapshot,
        at: (RoomNumber, crate::events::RootNumber),
        user: &UserId,
    ) -> Result<bool, Error> {
        let membership = self.inner.rooms.membership_at(snapshot, at, user)?;
        Ok(Class::of(&membership) == Class::Join)
    }

    /// Whether the asker's last join is no mere change of a name.
    fn has_come_back(
        &self,
        snapshot: &Snapshot,
        entry: &UserRoom,
        asker: Asker<'_>,
    ) -> Result<bool, Error> {
        let rooms = &self.inner.rooms;
        let Some(own) = rooms.event(snapshot, entry.room, entry.event)? else {
            return Ok(true);
        };
        let is_join = Class::of(&membership_of(&own)) == Class::Join;
        let before = (entry.room, own.meta.root_before);
        Ok(is_join && !self.is_joined_at(snapshot, before, asker.id)?)
    }

    /// Those of `users` who are joined to any of `rooms`.
    fn sharing(
        &self,
        snapshot: &Snapshot,
        mut users: BTreeSet<UserNumber>,
        rooms: &[RoomNumber],
    ) -> Result<BTreeSet<UserNumber>, Error> {
        let mut sharing = BTreeSet::new();
        let joined = |room: &RoomNumber| {
            let published = self.inner.rooms.published(*room);
            published.map_or(0, |published| published.head.joined)
        };
        let members: u64 = rooms.iter().map(joined).sum();
        if (users.len() as u64).saturating_mul(rooms.len() as u64) <= members {
            for user in users {
                if !self
                    .inner
                    .rooms
                    .joined_among(snapshot, user, rooms)?
                    .is_empty()
                {
                    sharing.insert(user);
                }
            }
            return Ok(sharing);
        }
        for room in rooms {
            if users.is_empty() {
                break;
            }
            for member in self.members(snapshot, *room)? {
                if users.remove(&member) {
                    sharing.insert(member);
                }
            }
        }
        Ok(sharing)
    }
}

//! What a user may see of a room: history visibility, and the state of now or of when the user left.
//!
//! A [`Sight`] is made for one user and one room on one snapshot, and remembers what it found for each state that it was
//! asked about: the events of a page share few states.
//!
//! Spec: c2s, "Room History Visibility".

use std::collections::HashMap;

use ruma::{
    OwnedUserId, UserId,
    events::room::{history_visibility::HistoryVisibility, member::MembershipState},
};

use super::{Class, Error, RoomNumber, Rooms, StoredEvent, TypeNumber, event::flag, membership_of};
use crate::{
    accounts::{Ignored, UserNumber},
    events::RootNumber,
    storage::Snapshot,
};

/// What one user may see of one room.
pub struct Sight {
    room: RoomNumber,
    user: OwnedUserId,
    number: UserNumber,
    standing: Standing,
    /// Of a joined user: the index of the membership event; who joined stays joined, so later events are seen.
    joined_since: Option<i64>,
    /// The last index at which the user was joined.
    joined_until: Option<i64>,
    is_world_readable: bool,
    ignored: Ignored,
    states: HashMap<RootNumber, Seen>,
}

/// Where a user stands now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Sees the current state.
    Joined(RootNumber),
    /// Was joined once; sees the state at the end of that, and what came before.
    Left(RootNumber),
    /// Was never joined, or has forgotten it: sees what everybody sees.
    Outside(RootNumber),
}

/// What a state says of the visibility for the user.
#[derive(Clone, Debug)]
struct Seen {
    visibility: HistoryVisibility,
    membership: MembershipState,
}

/// Memberships of one user that are walked back to find when it was joined.
const MAX_MEMBERSHIPS_WALKED: usize = 1_000;

impl Rooms {
    /// What a user of this server may see of a room.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown room.
    pub fn sight(
        &self,
        snapshot: &Snapshot,
        user: &UserId,
        number: UserNumber,
        room: RoomNumber,
    ) -> Result<Sight, Error> {
        let head = self.head(snapshot, room)?.ok_or(Error::NotFound)?;
        let mut sight = Sight {
            room,
            user: user.to_owned(),
            number,
            standing: Standing::Outside(head.root),
            joined_since: None,
            joined_until: None,
            is_world_readable: false,
            ignored: self.accounts.ignored_users(snapshot, number)?,
            states: HashMap::new(),
        };
        let membership = self.user_room(snapshot, number, room)?;
        let event = match &membership {
            Some(membership) => self.event(snapshot, room, membership.event)?,
            None => None,
        };
        match (membership.map(|membership| membership.class), event) {
            (Some(Class::Join), Some(event)) => {
                sight.standing = Standing::Joined(head.root);
                sight.joined_since = Some(event.meta.index);
                sight.joined_until = Some(i64::MAX);
            }
            (Some(_), Some(event)) => self.look_back(snapshot, &mut sight, &event)?,
            _ => {}
        }
        if !matches!(sight.standing, Standing::Joined(_)) {
            let visibility = self.history_visibility(snapshot, room, head.root)?;
            sight.is_world_readable = visibility == HistoryVisibility::WorldReadable;
        }
        Ok(sight)
    }

    /// Finds when a user who is not joined was joined last.
    fn look_back(
        &self,
        snapshot: &Snapshot,
        sight: &mut Sight,
        last: &StoredEvent,
    ) -> Result<(), Error> {
        let mut at = (last.meta.index, last.meta.root_before, last.meta.root_after);
        for _ in 0..MAX_MEMBERSHIPS_WALKED {
            let (index, before, after) = at;
            let place = (sight.room, before);
            let Some(event) =
                self.state_event(snapshot, place, "m.room.member", sight.user.as_str())?
            else {
                return Ok(());
            };
            if membership_of(&event) == MembershipState::Join {
                sight.joined_until = Some(index);
                sight.standing = Standing::Left(after);
                return Ok(());
            }
            at = (
                event.meta.index,
                event.meta.root_before,
                event.meta.root_after,
            );
        }
        Ok(())
    }

    /// The history visibility of a state.
    ///
    /// Spec: c2s, "m.room.history_visibility": without the event it is `shared`.
    pub fn history_visibility(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        root: RootNumber,
    ) -> Result<HistoryVisibility, Error> {
        #[derive(serde::Deserialize)]
        struct Content {
            history_visibility: HistoryVisibility,
        }
        let event = self.state_event(snapshot, (room, root), "m.room.history_visibility", "")?;
        let content = event.and_then(|event| event.pdu.content_as::<Content>().ok());
        Ok(content.map_or(HistoryVisibility::Shared, |content| {
            content.history_visibility
        }))
    }

    /// Whether the user may see an event. Soft-failed and rejected events are seen by nobody.
    pub fn may_see(
        &self,
        snapshot: &Snapshot,
        sight: &mut Sight,
        event: &StoredEvent,
    ) -> Result<bool, Error> {
        if !event.meta.is_visible() || sight.ignores(event) {
            return Ok(false);
        }
        if sight
            .joined_since
            .is_some_and(|since| event.meta.index >= since)
        {
            return Ok(true);
        }
        let meta = &event.meta;
        let before = self.seen(snapshot, sight, meta.root_before)?;
        if sight.allows(&before, meta.index) {
            return Ok(true);
        }
        let is_own = event.pdu.state_key.as_deref() == Some(sight.user.as_str());
        let is_visibility =
            event.pdu.event_type == ruma::events::TimelineEventType::RoomHistoryVisibility;
        if !meta.has(flag::STATE)
            || !(is_visibility || (meta.event_type == TypeNumber::MEMBER && is_own))
        {
            return Ok(false);
        }
        let after = self.seen(snapshot, sight, meta.root_after)?;
        Ok(sight.allows(&after, meta.index))
    }

    /// The events of `events` that the user may see.
    pub fn visible<T: AsRef<StoredEvent>>(
        &self,
        snapshot: &Snapshot,
        sight: &mut Sight,
        events: Vec<T>,
    ) -> Result<Vec<T>, Error> {
        let mut seen = Vec::with_capacity(events.len());
        for event in events {
            if self.may_see(snapshot, sight, event.as_ref())? {
                seen.push(event);
            }
        }
        Ok(seen)
    }

    /// The membership of the user at an event; of its own membership event the one that it brings.
    pub fn membership_when(
        &self,
        snapshot: &Snapshot,
        sight: &mut Sight,
        event: &StoredEvent,
    ) -> Result<Class, Error> {
        if sight
            .joined_since
            .is_some_and(|since| event.meta.index >= since)
        {
            return Ok(Class::Join);
        }
        let seen = self.seen(snapshot, sight, event.meta.root_after)?;
        Ok(Class::of(&seen.membership))
    }

    fn seen(
        &self,
        snapshot: &Snapshot,
        sight: &mut Sight,
        root: RootNumber,
    ) -> Result<Seen, Error> {
        if let Some(seen) = sight.states.get(&root) {
            return Ok(seen.clone());
        }
        let seen = Seen {
            visibility: self.history_visibility(snapshot, sight.room, root)?,
            membership: self.membership_at(snapshot, (sight.room, root), &sight.user)?,
        };
        sight.states.insert(root, seen.clone());
        Ok(seen)
    }
}

impl Sight {
    /// The state that the user may see: of now, or of when it left; `None` if none.
    pub fn state(&self) -> Option<RootNumber> {
        match self.standing {
            Standing::Joined(root) | Standing::Left(root) => Some(root),
            Standing::Outside(root) => self.is_world_readable.then_some(root),
        }
    }

    /// The room that this is about.
    pub fn room(&self) -> RoomNumber {
        self.room
    }

    /// The user that this is about.
    pub fn user(&self) -> UserNumber {
        self.number
    }

    /// Whether the user is joined, or everybody may look in.
    pub fn may_look_now(&self) -> bool {
        self.is_joined() || self.is_world_readable
    }

    pub fn is_joined(&self) -> bool {
        matches!(self.standing, Standing::Joined(_))
    }

    /// The last index of the timeline that the user may see; `None` if none at all.
    pub fn until(&self) -> Option<i64> {
        match self.is_world_readable {
            true => Some(i64::MAX),
            false => self.joined_until,
        }
    }

    /// Whether the event is one that the user does not want to see: no state, of an ignored sender.
    ///
    /// Spec: c2s, "Ignoring Users".
    pub fn ignores(&self, event: &StoredEvent) -> bool {
        !self.ignored.is_empty()
            && event.pdu.state_key.is_none()
            && self.ignored.contains(&event.pdu.sender)
    }

    /// The users whose messages the user does not want to see.
    pub fn ignored(&self) -> &Ignored {
        &self.ignored
    }

    fn allows(&self, seen: &Seen, index: i64) -> bool {
        match (&seen.visibility, &seen.membership) {
            (HistoryVisibility::WorldReadable, _) | (_, MembershipState::Join) => true,
            (HistoryVisibility::Invited, MembershipState::Invite) => true,
            (HistoryVisibility::Invited | HistoryVisibility::Joined, _) => false,
            // `shared`, and what nobody knows counts as that.
            _ => self.joined_until.is_some_and(|until| until >= index),
        }
    }
}

#[cfg(test)]
mod tests;

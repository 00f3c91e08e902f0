//! Who has come to a room and who has left it between two states.

use std::{collections::BTreeMap, sync::Arc};

use ruma::{OwnedUserId, UserId, events::room::member::MembershipState};

use super::{Error, RoomNumber, Rooms, StoredEvent, membership_of};
use crate::{
    events::{RootNumber, StateNumber, trie},
    storage::{Position, Snapshot},
};

/// A user whose being joined has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coming {
    pub user: OwnedUserId,
    /// Joined afterwards; `false`: before.
    pub is_joined: bool,
    /// The user's membership is known in one of the states only. In a room that is partial, or was, that may be all that
    /// has changed.
    pub is_one_sided: bool,
    /// When the membership came that the user has afterwards; zero if as a part of a state.
    pub at: Position,
}

impl Rooms {
    /// Who is joined in one state and was not in the other. Also who has left and come back in between, as far as the last
    /// join tells.
    pub fn comings(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        (before, after): (RootNumber, RootNumber),
    ) -> Result<Vec<Coming>, Error> {
        let source = self.source(snapshot, room);
        let (before, after) = (source.root(before)?.members, source.root(after)?.members);
        if before == after {
            return Ok(Vec::new());
        }
        let changes = trie::diff(&source, before, after)?;
        let numbers = changes
            .iter()
            .flat_map(|change| [change.before, change.after])
            .flatten();
        let numbers: Vec<StateNumber> = numbers.collect();
        let events = source.events_of_states(&numbers)?;
        let events: BTreeMap<StateNumber, Arc<StoredEvent>> =
            numbers.into_iter().zip(events).collect();
        let mut comings = Vec::new();
        for change in changes {
            let event = |state: Option<StateNumber>| state.and_then(|state| events.get(&state));
            let (before, after) = (event(change.before), event(change.after));
            let (was_joined, is_joined) = (is_join(before), is_join(after));
            let Some(user) = after.or(before).and_then(|event| member(event)) else {
                continue;
            };
            let has_come = match (was_joined, after) {
                (true, Some(after)) => {
                    let root = (room, after.meta.root_before);
                    self.membership_at(snapshot, root, &user)? != MembershipState::Join
                }
                (was_joined, _) => !was_joined,
            };
            if (is_joined && has_come) || (was_joined && !is_joined) {
                comings.push(Coming {
                    user,
                    is_joined,
                    is_one_sided: change.before.is_none() || change.after.is_none(),
                    at: after.map(|event| event.meta.position).unwrap_or_default(),
                });
            }
        }
        Ok(comings)
    }
}

fn is_join(event: Option<&Arc<StoredEvent>>) -> bool {
    event.is_some_and(|event| membership_of(event) == MembershipState::Join)
}

fn member(event: &StoredEvent) -> Option<OwnedUserId> {
    UserId::parse(event.pdu.state_key.as_deref()?).ok()
}

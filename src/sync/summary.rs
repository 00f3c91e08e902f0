//! What a client needs to name a room that has no name: how many are in it, and some of them.
//!
//! Spec: c2s, "GET /_matrix/client/v3/sync" (`RoomSummary`), "Calculating the display name for a room".

use ruma::OwnedUserId;

use super::{
    Error, Sync,
    v3::{View, write_count},
};
use crate::{
    accounts::UserNumber,
    events::RootNumber,
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
            false => self.heroes(view, room)?,
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
    fn heroes(&self, view: &View<'_>, room: RoomNumber) -> Result<Vec<OwnedUserId>, Error> {
        for classes in [[Class::Join, Class::Invite], [Class::Leave, Class::Ban]] {
            let mut found: Vec<(Position, UserNumber)> = Vec::new();
            for class in classes {
                let limit = MAX_MEMBERS_LOOKED_AT;
                let members = self
                    .inner
                    .rooms
                    .members(view.snapshot, room, class, limit)?;
                found.extend(
                    members
                        .into_iter()
                        .map(|(user, position, _)| (position, user)),
                );
            }
            found.retain(|(_, user)| *user != view.request.viewer.user);
            found.sort_unstable();
            found.truncate(MAX_HEROES);
            if !found.is_empty() {
                let numbers: Vec<_> = found.into_iter().map(|(_, user)| user).collect();
                return Ok(self.inner.accounts.user_ids(view.snapshot, &numbers)?);
            }
        }
        Ok(Vec::new())
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

//! What a server that joins is handed: the state before the join and everything that it rests on.
//!
//! Spec: s2s, "PUT /_matrix/federation/v2/send_join/{roomId}/{eventId}".

use std::collections::BTreeSet;

use super::{Error, RoomNumber, Rooms, StoredEvent};
use crate::{
    events::{RootNumber, StateNumber, trie},
    storage::Snapshot,
};

/// Whether the members of the room may be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Omit {
    Nothing,
    Members,
}

/// State events by number.
#[derive(Clone, Debug)]
pub struct Handover {
    pub state: Vec<StateNumber>,
    pub auth_chain: Vec<StateNumber>,
    pub members_omitted: bool,
}

impl Rooms {
    /// The state before `join` and the auth chains of both.
    ///
    /// With [`Omit::Members`] the state has only the members that name a room without a name, and the chain has not what
    /// the state has.
    pub fn handover(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        join: &StoredEvent,
        omit: Omit,
    ) -> Result<Handover, Error> {
        let root = join.meta.root_before;
        let row = self.root(snapshot, room, root)?;
        let source = self.source(snapshot, room);
        let numbers = |node| -> Result<Vec<StateNumber>, Error> {
            let states = trie::walk(&source, node)?;
            Ok(states.into_iter().map(|(_, state)| state).collect())
        };
        let mut state = numbers(row.core)?;
        match omit {
            Omit::Nothing => state.extend(numbers(row.members)?),
            Omit::Members => state.extend(self.naming_members(snapshot, (room, root), join)?),
        }
        let mut based_on = state.clone();
        based_on.extend(join.meta.auth_states.iter().copied());
        let mut chain: BTreeSet<StateNumber> = self
            .auth_chain(snapshot, room, &based_on)?
            .into_iter()
            .collect();
        chain.extend(join.meta.auth_states.iter().copied());
        if omit == Omit::Members {
            for state in &state {
                chain.remove(state);
            }
        }
        Ok(Handover {
            state,
            auth_chain: chain.into_iter().collect(),
            members_omitted: omit == Omit::Members,
        })
    }

    /// The members by whom a room is called that has no name.
    fn naming_members(
        &self,
        snapshot: &Snapshot,
        at: (RoomNumber, RootNumber),
        join: &StoredEvent,
    ) -> Result<Vec<StateNumber>, Error> {
        let names = [("m.room.name", ""), ("m.room.canonical_alias", "")];
        if !self.state_events(snapshot, at, &names)?.is_empty() {
            return Ok(Vec::new());
        }
        let heroes = self.heroes(snapshot, at, &join.pdu.sender)?;
        // They are of the current state: those who were nobody before the join are left out.
        let keys: Vec<_> = heroes
            .iter()
            .filter_map(|hero| Some(("m.room.member", hero.pdu.state_key.as_deref()?)))
            .collect();
        let members = self.state_events(snapshot, at, &keys)?;
        Ok(members
            .into_iter()
            .filter_map(|member| member.meta.state)
            .collect())
    }
}

//! State resolution of rooms of version 1.
//!
//! What only some of the states have, and these alike, is not in conflict: the resolved state has it. Conflicts are resolved in the order
//! power levels, join rules, members, all others. Within one of these passes keys do not see each other's results, as with other servers,
//! so that their order does not matter.
//!
//! The algorithm is known to reset states. It stays as it is: servers that resolve otherwise part ways.
//!
//! Spec: rooms/v1, "State resolution".

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ruma::{
    OwnedEventId, events::StateEventType, room_version_rules::AuthorizationRules,
    state_res::StateMap,
};
use sha1::{Digest as _, Sha1};

use super::{Resolution, ResolveError};
use crate::events::{auth, pdu::Pdu};

type Key = (StateEventType, String);

/// A key, and the events that the states have there.
type Conflict<'a> = (&'a Key, Vec<&'a Arc<Pdu>>);

/// The resolved state at all keys that any of the states has and that are not in the base.
///
/// # Errors
///
/// If an event was not loaded.
pub(super) fn resolve(
    rules: &AuthorizationRules,
    resolution: &Resolution,
) -> Result<StateMap<OwnedEventId>, ResolveError> {
    let mut candidates: BTreeMap<&Key, BTreeSet<&OwnedEventId>> = BTreeMap::new();
    for (key, id) in resolution.conflicted.iter().flatten() {
        candidates.entry(key).or_default().insert(id);
    }
    let load = |id: &OwnedEventId| {
        let body = resolution.bodies.get(id);
        body.ok_or_else(|| ResolveError::NotLoaded(id.clone()))
    };
    let mut state = State::default();
    for (key, id) in &resolution.base {
        state.set(key, load(id)?);
    }
    let mut passes: BTreeMap<Pass, Vec<Conflict<'_>>> = BTreeMap::new();
    let mut resolved = StateMap::new();
    for (key, ids) in candidates {
        let events: Vec<_> = ids.into_iter().map(load).collect::<Result<_, _>>()?;
        match events.as_slice() {
            [only] => {
                state.set(key, only);
                resolved.insert(key.clone(), only.event_id.clone());
            }
            _ => passes.entry(Pass::of(key)).or_default().push((key, events)),
        }
    }
    for (pass, conflicts) in passes {
        let mut winners = Vec::with_capacity(conflicts.len());
        for (key, mut events) in conflicts {
            events.sort_by_cached_key(|event| order(event));
            let winner = match pass {
                Pass::Others => newest_allowed(rules, &state, &events),
                _ => last_of_chain(rules, &state, key, &events),
            };
            winners.extend(winner.map(|winner| (key, winner)));
        }
        for (key, winner) in winners {
            resolved.insert(key.clone(), winner.event_id.clone());
            state.set(key, winner);
        }
    }
    Ok(resolved)
}

/// In which pass a key is resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Pass {
    PowerLevels,
    JoinRules,
    Members,
    Others,
}

impl Pass {
    fn of((event_type, state_key): &Key) -> Self {
        match event_type {
            StateEventType::RoomPowerLevels if state_key.is_empty() => Self::PowerLevels,
            StateEventType::RoomJoinRules => Self::JoinRules,
            StateEventType::RoomMember => Self::Members,
            _ => Self::Others,
        }
    }
}

/// Ascending depth, then descending SHA-1 of the ID.
fn order(event: &Pdu) -> (u64, Reverse<[u8; 20]>) {
    let hash = Sha1::digest(event.event_id.as_bytes());
    (event.depth, Reverse(hash.into()))
}

/// The state as far as it is resolved.
#[derive(Clone, Default)]
struct State(BTreeMap<StateEventType, BTreeMap<String, Arc<Pdu>>>);

impl State {
    fn set(&mut self, (event_type, state_key): &Key, event: &Arc<Pdu>) {
        let of_type = self.0.entry(event_type.clone()).or_default();
        of_type.insert(state_key.clone(), Arc::clone(event));
    }

    fn get(&self, event_type: &StateEventType, state_key: &str) -> Option<&Arc<Pdu>> {
        self.0.get(event_type)?.get(state_key)
    }
}

/// Of events that may each have replaced the one before: the last up to which all were allowed to.
fn last_of_chain<'a>(
    rules: &AuthorizationRules,
    state: &State,
    key: &Key,
    events: &[&'a Arc<Pdu>],
) -> Option<&'a Arc<Pdu>> {
    let (first, rest) = events.split_first()?;
    let mut last = *first;
    for event in rest.iter().copied() {
        let fetch = |event_type: &StateEventType, state_key: &str| {
            if *event_type == key.0 && state_key == key.1 {
                return Some(Arc::clone(last));
            }
            state.get(event_type, state_key).cloned()
        };
        if auth::check(rules, event, fetch).is_err() {
            break;
        }
        last = event;
    }
    Some(last)
}

/// The last event that is allowed; the first if none is.
fn newest_allowed<'a>(
    rules: &AuthorizationRules,
    state: &State,
    events: &[&'a Arc<Pdu>],
) -> Option<&'a Arc<Pdu>> {
    let fetch =
        |event_type: &StateEventType, state_key: &str| state.get(event_type, state_key).cloned();
    let is_allowed = |event: &&&Arc<Pdu>| auth::check(rules, event, fetch).is_ok();
    let newest = events.iter().rev().find(is_allowed);
    newest.or(events.first()).copied()
}

#[cfg(test)]
mod tests;

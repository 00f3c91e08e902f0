//! A state as another server tells it: a list of events, all of them known here.

use std::{collections::BTreeMap, sync::Arc};

use ruma::OwnedEventId;

use crate::{
    events::{StateKeyNumber, StateNumber, trie},
    rooms::{
        Error, StoredEvent, TypeNumber,
        draft::{Change, Draft, Entry},
        head::Head,
        resolution::Root,
        state::{RootRow, Source},
    },
};

/// Events read at once.
const CHUNK: usize = 1_000;

type Told = BTreeMap<StateKeyNumber, (StateNumber, Arc<StoredEvent>)>;

/// A state made of these events. It shares with `like` what it has in common with it.
///
/// # Errors
/// [`Error::Invalid`] if an event is not known.
pub(in crate::rooms) fn root(
    head: &Head,
    source: &Source<'_>,
    draft: &Draft,
    (like, events): (Root, &[OwnedEventId]),
) -> Result<Root, Error> {
    let told = told(source, events)?;
    let row = draft.changed(source, like.1, &changes(source, &like.1, told)?)?;
    let is_same = |known: &&Root| known.1.fingerprint == row.fingerprint;
    let current = (head.row.root, head.root);
    match [like, current].iter().find(is_same) {
        Some(known) => Ok(*known),
        None => Ok((draft.add_root(row), row)),
    }
}

fn told(source: &Source<'_>, events: &[OwnedEventId]) -> Result<Told, Error> {
    let mut told = Told::new();
    for chunk in events.chunks(CHUNK) {
        let mut numbers = Vec::with_capacity(chunk.len());
        for id in chunk {
            let unknown = || Error::Invalid("an event of the state is not known".into());
            numbers.push(source.event_number(id)?.ok_or_else(unknown)?);
        }
        for event in source.events(&numbers)?.into_iter().flatten() {
            // What its auth events refuse has no number, and no place in a state.
            if let Some(state) = event.meta.state {
                told.insert(source.graph(state)?.key, (state, event));
            }
        }
    }
    Ok(told)
}

/// What turns a state into the one that is told.
fn changes(source: &Source<'_>, from: &RootRow, mut told: Told) -> Result<Vec<Change>, Error> {
    let entry = |event: &StoredEvent| Entry::of(source.rooms, event.meta.event_type, &event.pdu);
    let mut replaced = Vec::new();
    for (is_member, node) in [(false, from.core), (true, from.members)] {
        for (key, state) in trie::walk(source, node)? {
            match told.get(&key) {
                Some((same, _)) if *same == state => {
                    told.remove(&key);
                }
                _ => replaced.push((key, is_member, state)),
            }
        }
    }
    let states: Vec<_> = replaced.iter().map(|(.., state)| *state).collect();
    let mut changes = Vec::with_capacity(replaced.len() + told.len());
    for ((key, is_member, _), event) in replaced.iter().zip(source.events_of_states(&states)?) {
        let after = told.remove(key);
        changes.push(Change {
            key: *key,
            is_member: *is_member,
            before: Some(entry(&event)),
            after: after.map(|(state, event)| (state, entry(&event))),
        });
    }
    for (key, (state, event)) in told {
        changes.push(Change {
            key,
            is_member: event.meta.event_type == TypeNumber::MEMBER,
            before: None,
            after: Some((state, entry(&event))),
        });
    }
    Ok(changes)
}

//! Events in an order in which they can be appended.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
};

use ruma::OwnedEventId;

use crate::events::Verified;

/// `events` so that each comes after those of them that it cites as prev events; the same for any order that they had.
/// What cites itself, by whatever detour, is left out.
pub(in crate::federation) fn in_order(events: Vec<Verified>) -> Vec<Verified> {
    let places: HashMap<OwnedEventId, usize> = events
        .iter()
        .enumerate()
        .map(|(place, event)| (event.event_id.clone(), place))
        .collect();
    let mut waits_for = vec![0_usize; events.len()];
    let mut cited_by: Vec<Vec<usize>> = vec![Vec::new(); events.len()];
    for (place, event) in events.iter().enumerate() {
        for prev in event.prev_events.iter().filter_map(|id| places.get(id)) {
            if let (Some(count), Some(citing)) = (waits_for.get_mut(place), cited_by.get_mut(*prev))
            {
                *count += 1;
                citing.push(place);
            }
        }
    }
    let mut events: Vec<Option<Verified>> = events.into_iter().map(Some).collect();
    // Among those that are free the one of the least depth comes first: it is the oldest, if its server is honest.
    let key = |events: &[Option<Verified>], place: usize| {
        let event = events.get(place).and_then(Option::as_ref);
        Reverse((
            event.map(|event| (event.depth, event.event_id.clone())),
            place,
        ))
    };
    let mut free: BinaryHeap<_> = waits_for
        .iter()
        .enumerate()
        .filter(|(_, count)| **count == 0)
        .map(|(place, _)| key(&events, place))
        .collect();
    let mut ordered = Vec::with_capacity(events.len());
    while let Some(Reverse((_, place))) = free.pop() {
        ordered.extend(events.get_mut(place).and_then(Option::take));
        for citing in cited_by
            .get_mut(place)
            .map(std::mem::take)
            .unwrap_or_default()
        {
            if let Some(count) = waits_for.get_mut(citing) {
                *count -= 1;
                if *count == 0 {
                    free.push(key(&events, citing));
                }
            }
        }
    }
    ordered
}

#[cfg(test)]
mod tests;

//! Forward extremities: the events of a room that no accepted event cites yet.
//!
//! Rejected and soft-failed events are never extremities and are never cited by our events, but others cite them, so an accepted event
//! also replaces what it reaches through them.

use std::collections::BTreeSet;

use crate::events::EventNumber;

/// Most extremities that one event of ours cites.
pub const MAX_CITED: usize = 10;

/// Most rejected or soft-failed events walked through for one event. What lies behind more of them stays an extremity until an event
/// cites it directly.
pub const MAX_PASSED: usize = 1000;

/// The extremities of a room once an accepted event belongs to its graph.
///
/// `behind` answers the previous events of a rejected or soft-failed event, and `None` for an accepted one.
///
/// # Errors
///
/// Those of `behind`, which reads rows.
///
/// Spec: s2s, "PDUs".
pub fn after<E>(
    before: &BTreeSet<EventNumber>,
    event: EventNumber,
    prev_events: &[EventNumber],
    mut behind: impl FnMut(EventNumber) -> Result<Option<Vec<EventNumber>>, E>,
) -> Result<BTreeSet<EventNumber>, E> {
    let mut after = before.clone();
    let mut seen = BTreeSet::new();
    let mut reached = prev_events.to_vec();
    let mut passed = 0;
    while let Some(number) = reached.pop() {
        // An extremity is accepted, so nothing lies behind it.
        if !seen.insert(number) || after.remove(&number) || passed >= MAX_PASSED {
            continue;
        }
        if let Some(prev_events) = behind(number)? {
            passed += 1;
            reached.extend(prev_events);
        }
    }
    after.insert(event);
    Ok(after)
}

/// The extremities that a new event of ours cites, at most [`MAX_CITED`]: the newest half by `newest_first`, and of the others as many
/// as fit, chosen by `pick`, so that each is cited sooner or later.
///
/// `pick` answers a random number below its argument.
pub fn to_cite<T>(mut newest_first: Vec<T>, mut pick: impl FnMut(usize) -> usize) -> Vec<T> {
    if newest_first.len() <= MAX_CITED {
        return newest_first;
    }
    let mut others = newest_first.split_off(MAX_CITED / 2);
    while newest_first.len() < MAX_CITED && !others.is_empty() {
        let picked = pick(others.len()).min(others.len() - 1);
        newest_first.push(others.swap_remove(picked));
    }
    newest_first
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, convert::Infallible};

    use super::*;

    fn check(before: &[u32], prev_events: &[u32], passed: &[(u32, &[u32])], expected: &[u32]) {
        let numbers =
            |numbers: &[u32]| numbers.iter().copied().map(EventNumber).collect::<Vec<_>>();
        let passed: BTreeMap<_, _> = passed
            .iter()
            .map(|(number, prevs)| (EventNumber(*number), numbers(prevs)))
            .collect();
        let before = numbers(before).into_iter().collect();
        let behind = |number| Ok::<_, Infallible>(passed.get(&number).cloned());

        let after = after(&before, EventNumber(99), &numbers(prev_events), behind);

        assert_eq!(after, Ok(numbers(expected).into_iter().collect()));
    }

    #[test]
    fn an_event_replaces_what_it_cites() {
        check(&[], &[], &[], &[99]);
        check(&[1, 2, 3], &[1, 2], &[], &[3, 99]);
        check(&[1], &[7], &[], &[1, 99]);
    }

    #[test]
    fn an_event_replaces_what_it_reaches_through_soft_failed_events() {
        check(&[1, 2], &[5], &[(5, &[4]), (4, &[1])], &[2, 99]);
    }

    #[test]
    fn an_accepted_event_hides_what_lies_behind_it() {
        check(&[1, 2], &[5], &[(4, &[1])], &[1, 2, 99]);
    }

    #[test]
    fn a_long_run_of_rejected_events_is_walked_only_so_far() {
        let rejected: Vec<(u32, [u32; 1])> =
            (100..10_000).map(|number| (number, [number + 1])).collect();
        let rejected: Vec<(u32, &[u32])> = rejected
            .iter()
            .map(|(number, prevs)| (*number, &prevs[..]))
            .collect();
        check(&[10_000], &[100], &rejected, &[99, 10_000]);
    }

    #[test]
    fn few_extremities_are_all_cited_and_of_many_the_newest_and_some() {
        assert_eq!(
            to_cite((0..10).collect(), |_| 0),
            (0..10).collect::<Vec<_>>()
        );

        let cited = to_cite((0..100).collect(), |below| below - 1);
        assert_eq!(cited, [0, 1, 2, 3, 4, 99, 98, 97, 96, 95]);
    }
}

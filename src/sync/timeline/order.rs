//! The order of a timeline that a client is given without knowing an earlier part of the room.
//!
//! Events stand in the order in which they came. A state event that came late, as its place in the graph is before others
//! that are here already, would push out newer ones and stand where clients take it for news. So it goes to that place, and
//! into the state if the timeline begins after it. Messages stay where they came: they are for reading.

use std::sync::Arc;

use crate::rooms::{Class, StoredEvent};

/// Late events that go to their place; more stay where they came.
const MAX_LATE: usize = 20;

/// An event of a timeline.
pub(super) struct Found {
    pub(super) index: i64,
    /// The index of the event that it comes right after.
    pub(super) follows: i64,
    pub(super) event: Arc<StoredEvent>,
    /// The membership of the reader at it.
    pub(super) class: Class,
}

impl Found {
    fn is_late(&self) -> bool {
        self.follows < self.index.saturating_sub(1)
    }
}

/// The newest events that are shown, newest first while they are gathered.
pub(super) struct Finds {
    limit: usize,
    late: usize,
    found: Vec<Found>,
}

/// What is shown of the finds, oldest first.
pub(super) struct Ordered {
    pub(super) found: Vec<Found>,
    /// What lies before this index comes next when paging back; `None` if nothing was found. Where a late event was left
    /// out, what came before it and is shown comes again then: better twice than never.
    pub(super) start: Option<i64>,
    /// Some late ones were left out.
    pub(super) is_cut: bool,
    /// The order is not that of the indexes, or not all of them are here.
    pub(super) is_changed: bool,
}

impl Finds {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            late: 0,
            found: Vec::new(),
        }
    }

    /// Whether there are as many as are shown, whatever becomes of the late ones.
    pub(super) fn is_full(&self) -> bool {
        self.missing() == 0
    }

    pub(super) fn missing(&self) -> usize {
        (self.limit + self.late).saturating_sub(self.found.len())
    }

    pub(super) fn push(&mut self, mut found: Found) {
        if found.is_late() {
            match self.late < MAX_LATE {
                true => self.late += 1,
                false => found.follows = found.index.saturating_sub(1),
            }
        }
        self.found.push(found);
    }

    /// Each event that is not here precedes all those that are not late. So the last ones of this order are the last ones of
    /// all.
    pub(super) fn ordered(self) -> Ordered {
        let mut found = self.found;
        found.reverse();
        if self.late == 0 {
            return Ordered {
                start: found.first().map(|first| first.index),
                found,
                is_cut: false,
                is_changed: false,
            };
        }
        found.sort_by_key(|found| (found.follows, found.index));
        let kept = found.split_off(found.len().saturating_sub(self.limit));
        let cut = found.iter().map(|cut| cut.index.saturating_add(1)).max();
        Ordered {
            start: kept.iter().map(|kept| kept.index).min().max(cut),
            is_cut: cut.is_some(),
            found: kept,
            is_changed: true,
        }
    }
}

#[cfg(test)]
mod tests;

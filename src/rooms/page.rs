//! Pages of a timeline as one user sees it, and the tokens that name places in it.
//!
//! A place is a gap: the one right after an index. So one token serves both directions and no event comes twice.
//! engine.md section 2.

use std::{fmt, str::FromStr};

use super::{Error, Placed, RoomNumber, Rooms, Sight, StoredEvent, gaps, timeline};
use crate::storage::{Order, Position, Snapshot};

/// A place in a timeline, right after the event of this index; printed as `t` and the index in base 36.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(pub i64);

/// Text that is no place of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the token is not valid")]
pub struct NoPlace;

impl Place {
    /// The place right before the event of an index.
    pub fn before(index: i64) -> Self {
        Self(index.saturating_sub(1))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        const RADIX: u64 = 36;
        let mut digits = Vec::with_capacity(14);
        let mut rest = self.0.unsigned_abs();
        while rest > 0 || digits.is_empty() {
            let digit = u32::try_from(rest % RADIX).unwrap_or_default();
            digits.push(char::from_digit(digit, 36).unwrap_or('0'));
            rest /= RADIX;
        }
        let sign = if self.0 < 0 { "-" } else { "" };
        let digits: String = digits.into_iter().rev().collect();
        write!(to, "t{sign}{digits}")
    }
}

impl FromStr for Place {
    type Err = NoPlace;

    fn from_str(text: &str) -> Result<Self, NoPlace> {
        let digits = text.strip_prefix('t').ok_or(NoPlace)?;
        if digits.starts_with('+') {
            return Err(NoPlace);
        }
        i64::from_str_radix(digits, 36)
            .map(Self)
            .map_err(|_malformed| NoPlace)
    }
}

/// What is asked of a timeline.
#[derive(Clone, Copy, Debug)]
pub struct PageQuery {
    pub order: Order,
    pub from: Place,
    pub to: Option<Place>,
    /// Events at most.
    pub limit: usize,
}

/// Events in the order asked for.
#[derive(Debug, Default)]
pub struct Page {
    pub events: Vec<Placed>,
    /// Where to go on; `None` at the end.
    pub end: Option<Place>,
}

/// Events that one page looks at, wanted or not.
const MAX_LOOKED_AT: usize = 5_000;
/// Events read at once while most are not wanted.
const MIN_READ: usize = 20;

impl Rooms {
    /// The place in a room's timeline that a sync token means: after all that was visible at its position.
    pub fn place_at(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        position: Position,
    ) -> Result<Place, Error> {
        let index = match self.index_at(snapshot, room, position)? {
            // Before the room was here there is its history.
            i64::MIN => timeline::below_live(snapshot, room)?,
            index => index,
        };
        Ok(Place(index))
    }

    /// A page of what the user sees of a timeline, with the events that `is_wanted`.
    pub fn page(
        &self,
        snapshot: &Snapshot,
        sight: &mut Sight,
        query: PageQuery,
        is_wanted: impl Fn(&StoredEvent) -> bool,
    ) -> Result<Page, Error> {
        let room = sight.room();
        let head = self.head(snapshot, room)?.ok_or(Error::NotFound)?;
        let bounds = Bounds::new(&query, sight, head.high);
        let mut page = Page::default();
        let mut at = bounds.start;
        let mut looked_at = 0;
        while page.events.len() < query.limit && looked_at < MAX_LOOKED_AT {
            let wanted = query.limit - page.events.len();
            let read = if looked_at == 0 {
                wanted
            } else {
                wanted.max(MIN_READ)
            };
            let events = self.timeline(snapshot, room, at, query.order, read)?;
            let is_last = events.len() < read;
            looked_at += read;
            for placed in events {
                if bounds.ends_before(placed.index) {
                    return Ok(page);
                }
                let is_next = at == bounds.start || placed.index.abs_diff(at) == 1;
                let later = placed.index.max(at);
                if !is_next && gaps::is_before(snapshot, room, later)? {
                    // Who asks on from here may have had the missing events fetched.
                    page.end = Some(query.place_beyond(at));
                    return Ok(page);
                }
                at = placed.index;
                if is_wanted(&placed.event) && self.may_see(snapshot, sight, &placed.event)? {
                    page.events.push(placed);
                }
                if page.events.len() == query.limit {
                    break;
                }
            }
            if is_last && page.events.len() < query.limit {
                let may_go_on = query.order == Order::Backward
                    && at != bounds.start
                    && gaps::is_before(snapshot, room, at)?;
                page.end = may_go_on.then(|| query.place_beyond(at));
                return Ok(page);
            }
        }
        let is_end = match query.order {
            Order::Backward => at <= head.low,
            Order::Forward => at >= bounds.last,
        };
        page.end = (!is_end).then(|| query.place_beyond(at));
        Ok(page)
    }
}

impl PageQuery {
    /// Where to go on after the event of an index.
    fn place_beyond(&self, index: i64) -> Place {
        match self.order {
            Order::Backward => Place::before(index),
            Order::Forward => Place(index),
        }
    }
}

/// Where a page starts and ends.
struct Bounds {
    /// The index from which on events are read, itself excluded.
    start: i64,
    to: Option<Place>,
    order: Order,
    /// The highest index that may be seen.
    last: i64,
}

impl Bounds {
    fn new(query: &PageQuery, sight: &Sight, high: i64) -> Self {
        let last = sight.until().unwrap_or(i64::MIN).min(high);
        let start = match query.order {
            // Beginning below what is newer than anything that the user may see.
            Order::Backward => query.from.0.min(last).saturating_add(1),
            Order::Forward => query.from.0,
        };
        Self {
            start,
            to: query.to,
            order: query.order,
            last,
        }
    }

    fn ends_before(&self, index: i64) -> bool {
        let is_behind_end = match self.order {
            Order::Backward => self.to.is_some_and(|to| index <= to.0),
            Order::Forward => self.to.is_some_and(|to| index > to.0),
        };
        is_behind_end || index > self.last
    }
}

#[cfg(test)]
mod tests;

//! The newest events of a room that a client wants and may see.

mod order;

use std::sync::Arc;

use self::order::{Finds, Found, Ordered};
use super::{
    Error, Sync,
    v3::{Scope, View},
};
use crate::{
    accounts::Ignored,
    events::RootNumber,
    rooms::{
        Class, Placed, Rendering, RoomNumber, Sight, StoredEvent, client_event::Unsigned, flag,
    },
    storage::Position,
};

/// Events looked at for one room, whatever the filter leaves of them.
const MAX_EVENTS_LOOKED_AT: usize = 1_000;
/// Events that a page has beyond those wanted, when some will be left out.
const SPARE_EVENTS: usize = 20;

/// A part of a room's timeline.
#[derive(Debug)]
pub(super) struct Timeline {
    /// Oldest first.
    pub(super) events: Vec<Arc<StoredEvent>>,
    /// The membership of the reader at each.
    pub(super) memberships: Vec<Class>,
    /// There are older events in the range.
    pub(super) is_limited: bool,
    /// Some events between the first and the last were left out.
    pub(super) has_gaps: bool,
    /// Index of the first event: what lies before it comes next when paging back.
    pub(super) start: i64,
    /// Index of the oldest and the newest event that were looked at.
    pub(super) first: i64,
    pub(super) last: i64,
    /// The state before the first event; that at the end if there is none.
    pub(super) before: RootNumber,
    /// The state at the end.
    pub(super) after: RootNumber,
    /// The state at the start of the range, unless the timeline is limited.
    pub(super) range_start: RootNumber,
}

impl Timeline {
    /// A single event that has no place among others.
    pub(super) fn of(event: Arc<StoredEvent>, membership: Class) -> Self {
        let index = event.meta.index;
        Self {
            events: vec![event],
            memberships: vec![membership],
            is_limited: false,
            has_gaps: false,
            start: index,
            first: index,
            last: index,
            before: RootNumber::default(),
            after: RootNumber::default(),
            range_start: RootNumber::default(),
        }
    }

    /// Whether others may relate to the events. A timeline reaches to the end of what the reader may see, and what relates to
    /// an event comes after it.
    pub(super) fn may_have_relations(&self) -> bool {
        self.has_gaps
            || self.events.iter().any(|event| {
                event.meta.relation.is_some_and(|(_, parent)| {
                    self.events.iter().any(|event| event.number == parent)
                })
            })
    }
}

/// Which events of a room are meant.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    pub(super) room: RoomNumber,
    /// The last position that is not meant.
    pub(super) since: Position,
    /// The first index that is not meant.
    pub(super) until: i64,
}

/// How it is found out what the reader may see.
enum Eyes {
    /// The reader is joined since this index, and sees all from there on.
    Joined(i64),
    Sight(Box<Sight>),
}

impl Sync {
    /// The newest events of a range; `None` if there are none at all.
    pub(super) fn timeline(
        &self,
        view: &View<'_>,
        scope: &Scope<'_>,
        range: Range,
    ) -> Result<Option<Timeline>, Error> {
        let filter = &view.request.filter;
        let limit = match filter.timeline.accepts_room(scope.room_id) {
            true => filter.timeline_limit,
            false => 0,
        };
        let accepts_all = filter.timeline.accepts_all();
        let spare = if accepts_all && limit > 0 {
            0
        } else {
            SPARE_EVENTS
        };
        let mut eyes = Eyes::Joined(scope.joined_since.unwrap_or(i64::MAX));
        let mut finds = Finds::new(limit);
        let mut outline: Option<Outline> = None;
        let mut until = range.until;
        loop {
            let wanted = finds.missing() + spare;
            let (page, has_more) = self.inner.rooms.timeline_since(
                view.snapshot,
                range.room,
                range.since,
                until,
                wanted,
            )?;
            let Some(oldest) = page.last() else {
                // What is missing in a gap counts too.
                if let Some(outline) = &mut outline {
                    outline.is_limited |= has_more;
                }
                break;
            };
            until = oldest.index;
            let newest = page.first().unwrap_or(oldest);
            let outline = outline.get_or_insert_with(|| Outline::new(newest));
            for (at, placed) in page.iter().enumerate() {
                if finds.is_full() {
                    outline.is_limited = true;
                    break;
                }
                outline.looked_at += 1;
                outline.range_start = placed.event.meta.root_before;
                let is_wanted = accepts_all || filter.timeline.accepts(&placed.event);
                let class =
                    self.seen_now(view, scope, (&mut eyes, outline.after), &placed.event)?;
                match class.filter(|_| is_wanted) {
                    Some(class) => {
                        let older = page.get(at + 1);
                        finds.push(self.placed(view, range, (placed, older), class)?);
                    }
                    None => outline.has_gaps = true,
                }
            }
            if outline.is_limited || !has_more {
                break;
            }
            if finds.is_full() || outline.looked_at >= MAX_EVENTS_LOOKED_AT {
                outline.is_limited = true;
                break;
            }
        }
        Ok(outline.map(|outline| outline.with(finds.ordered(), until)))
    }

    /// An event with its place in the order of the timeline; `older` is the one before it by index.
    fn placed(
        &self,
        view: &View<'_>,
        range: Range,
        (placed, older): (&Placed, Option<&Placed>),
        class: Class,
    ) -> Result<Found, Error> {
        let event = &placed.event;
        let mut follows = placed.index.saturating_sub(1);
        let is_next = || {
            let older = older.map(|older| older.event.number);
            older.as_ref().map(std::slice::from_ref) == Some(event.meta.prev_events.as_slice())
        };
        // Who knows a part of the room is told what came since.
        if event.meta.has(flag::STATE) && range.since == Position::default() && !is_next() {
            let rooms = &self.inner.rooms;
            let after = rooms.follows(view.snapshot, range.room, event)?;
            follows = after.map_or(follows, |after| after.min(follows));
        }
        Ok(Found {
            index: placed.index,
            follows,
            event: Arc::clone(event),
            class,
        })
    }

    /// As [`Self::seen`], or if the event is a part of the state that the reader sees now.
    fn seen_now(
        &self,
        view: &View<'_>,
        scope: &Scope<'_>,
        (eyes, after): (&mut Eyes, RootNumber),
        event: &Arc<StoredEvent>,
    ) -> Result<Option<Class>, Error> {
        let membership = self.seen(view, scope, eyes, event)?;
        if membership.is_none()
            && self.is_current(view, scope, after, event)?
            && let Eyes::Sight(sight) = eyes
        {
            let rooms = &self.inner.rooms;
            return Ok(Some(rooms.membership_when(view.snapshot, sight, event)?));
        }
        Ok(membership)
    }

    /// The membership of the reader at an event that the reader may see.
    fn seen(
        &self,
        view: &View<'_>,
        scope: &Scope<'_>,
        eyes: &mut Eyes,
        event: &Arc<StoredEvent>,
    ) -> Result<Option<Class>, Error> {
        let rooms = &self.inner.rooms;
        if let Eyes::Joined(since) = eyes
            && event.meta.index < *since
        {
            let user = (&*view.request.user, view.request.viewer.user);
            let sight = rooms.sight(view.snapshot, user.0, user.1, scope.room)?;
            *eyes = Eyes::Sight(Box::new(sight));
        }
        match eyes {
            Eyes::Joined(_) if is_ignored(&view.ignored, event) => Ok(None),
            Eyes::Joined(_) => Ok(Some(Class::Join)),
            Eyes::Sight(sight) => {
                // Else a client would not see a room vanish whose invite was rejected.
                let is_own = event.pdu.state_key.as_deref() == Some(view.request.user.as_str())
                    && event.meta.event_type == crate::rooms::TypeNumber::MEMBER;
                if !is_own && !rooms.may_see(view.snapshot, sight, event)? {
                    return Ok(None);
                }
                Ok(Some(rooms.membership_when(view.snapshot, sight, event)?))
            }
        }
    }

    /// Whether an event that the reader could not see then is a part of the state that it sees now. Such an event stays in the
    /// timeline: clients take the last event of a key in the timeline for the state.
    fn is_current(
        &self,
        view: &View<'_>,
        scope: &Scope<'_>,
        root: RootNumber,
        event: &StoredEvent,
    ) -> Result<bool, Error> {
        let Some(key) = event
            .pdu
            .state_key
            .as_deref()
            .filter(|_| scope.joined_since.is_some())
        else {
            return Ok(false);
        };
        let event_type = event.pdu.event_type.to_string();
        let at = (scope.room, root);
        let current = self
            .inner
            .rooms
            .state_event(view.snapshot, at, &event_type, key)?;
        Ok(current.is_some_and(|current| current.number == event.number))
    }

    /// What is told beside each event.
    pub(super) fn timeline_unsigned(
        &self,
        view: &View<'_>,
        room: RoomNumber,
        timeline: &Timeline,
    ) -> Result<Vec<Unsigned>, Error> {
        let rooms = &self.inner.rooms;
        let mut unsigned = rooms.unsigned(view.snapshot, room, &timeline.events)?;
        let viewer = view.request.viewer;
        rooms.transaction_ids(view.snapshot, room, viewer, &timeline.events, &mut unsigned)?;
        for (unsigned, class) in unsigned.iter_mut().zip(&timeline.memberships) {
            unsigned.membership = Some(*class);
        }
        if timeline.may_have_relations() {
            let rendering = Rendering {
                form: view.request.filter.form(),
                now_ms: view.now_ms,
            };
            let mut sight = rooms.sight(view.snapshot, &view.request.user, viewer.user, room)?;
            let events = &timeline.events;
            rooms.bundle(view.snapshot, &mut sight, rendering, events, &mut unsigned)?;
        }
        Ok(unsigned)
    }
}

/// Whether the reader does not want to see an event. State is for all.
///
/// Spec: c2s, "Ignoring Users".
fn is_ignored(ignored: &Ignored, event: &StoredEvent) -> bool {
    !ignored.is_empty() && event.pdu.state_key.is_none() && ignored.contains(&event.pdu.sender)
}

/// What is known of a timeline while it is read, newest first.
struct Outline {
    last: i64,
    after: RootNumber,
    range_start: RootNumber,
    is_limited: bool,
    has_gaps: bool,
    looked_at: usize,
}

impl Outline {
    fn new(newest: &Placed) -> Self {
        Self {
            last: newest.index,
            after: newest.event.meta.root_after,
            range_start: newest.event.meta.root_after,
            is_limited: false,
            has_gaps: false,
            looked_at: 0,
        }
    }

    fn with(self, ordered: Ordered, until: i64) -> Timeline {
        let found = ordered.found;
        let start = match ordered.start {
            Some(index) => index,
            None if self.looked_at == 0 => self.last.saturating_add(1),
            None => until,
        };
        let before = found.first().map(|first| first.event.meta.root_before);
        Timeline {
            memberships: found.iter().map(|found| found.class).collect(),
            events: found.into_iter().map(|found| found.event).collect(),
            is_limited: self.is_limited || ordered.is_cut,
            has_gaps: self.has_gaps || ordered.is_changed,
            start,
            first: until,
            last: self.last,
            before: before.unwrap_or(self.after),
            range_start: self.range_start,
            after: self.after,
        }
    }
}

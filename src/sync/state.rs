//! The state of a room that a client lacks: from the difference of two states, not from single events.
//!
//! Spec: c2s, "GET /_matrix/client/v3/sync" (`state`, `state_after`), "Lazy-loading room members".

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ruma::{OwnedUserId, UserId};

use super::{
    Error, StatePlace, Sync,
    timeline::Timeline,
    v3::{Scope, View},
};
use crate::{
    events::{EventNumber, RootNumber},
    rooms::{Members, RoomNumber, StoredEvent, client_event::Unsigned},
    storage::Position,
};

/// Which state is told.
#[derive(Clone, Copy, Debug)]
pub(super) struct StateRange {
    /// The state that the client knows; `None`: none.
    pub(super) known: Option<RootNumber>,
    /// The states at the start and at the end of the timeline.
    pub(super) start: RootNumber,
    pub(super) end: RootNumber,
    /// There is a gap between what the client knows and the timeline.
    pub(super) has_gap: bool,
    /// The states of the timeline do not follow from each other by its events.
    pub(super) has_forks: bool,
}

impl Sync {
    /// The current state of a room at a position.
    pub(super) fn root_at(
        &self,
        view: &View<'_>,
        room: RoomNumber,
        position: Position,
    ) -> Result<Option<RootNumber>, Error> {
        Ok(self.inner.rooms.root_at(view.snapshot, room, position)?)
    }

    /// The state events to be told, in the order of the timeline, with `members` among them even if members are loaded lazily.
    pub(super) fn state(
        &self,
        view: &View<'_>,
        scope: &Scope<'_>,
        range: StateRange,
        timeline: Option<&Timeline>,
        members: BTreeSet<OwnedUserId>,
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        let filter = &view.request.filter;
        if !filter.state.accepts_room(scope.room_id) {
            return Ok(Vec::new());
        }
        let at_end = view.request.state_place != StatePlace::Start;
        let target = match at_end || range.has_forks {
            true => range.end,
            false => range.start,
        };
        // What happened to members where the client cannot take it from the timeline is told even if members are loaded
        // lazily: it has no other way to learn it.
        let is_hidden =
            at_end || range.has_gap || timeline.is_some_and(|timeline| timeline.has_gaps);
        let all_members = !filter.has_lazy_members || (range.known.is_some() && is_hidden);
        let mut found = match range.known {
            Some(known) => self.changes(view, scope.room, (known, target), all_members)?,
            None => self.whole(view, scope.room, target, all_members)?,
        };
        if filter.has_lazy_members {
            found.extend(self.members(view, (scope.room, target), members, timeline)?);
        }
        if let Some(timeline) = timeline.filter(|_| !at_end && range.has_forks) {
            // What the timeline says itself is not to come before it.
            let shown: BTreeSet<EventNumber> =
                timeline.events.iter().map(|event| event.number).collect();
            found.retain(|event| !shown.contains(&event.number));
        }
        // What changed within the timeline without being in it, members too: those told above may have changed.
        if let Some(timeline) = timeline.filter(|timeline| !at_end && timeline.has_gaps) {
            let shown: BTreeSet<EventNumber> =
                timeline.events.iter().map(|event| event.number).collect();
            let later = self.changes(view, scope.room, (target, range.end), true)?;
            found.extend(
                later
                    .into_iter()
                    .filter(|event| !shown.contains(&event.number)),
            );
        }
        Ok(told(found, |event| filter.state.accepts(event)))
    }

    fn whole(
        &self,
        view: &View<'_>,
        room: RoomNumber,
        root: RootNumber,
        all_members: bool,
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        let mut state = self.inner.rooms.core_state(view.snapshot, room, root)?;
        if all_members {
            state.extend(self.inner.rooms.member_state(view.snapshot, room, root)?);
        }
        Ok(state)
    }

    fn changes(
        &self,
        view: &View<'_>,
        room: RoomNumber,
        (before, after): (RootNumber, RootNumber),
        all_members: bool,
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        if before == after {
            return Ok(Vec::new());
        }
        let members = if all_members {
            Members::All
        } else {
            Members::None
        };
        let changed =
            self.inner
                .rooms
                .state_since(view.snapshot, room, (before, after), members)?;
        Ok(changed)
    }

    /// The memberships of the senders of a timeline and of `members`.
    fn members(
        &self,
        view: &View<'_>,
        at: (RoomNumber, RootNumber),
        mut members: BTreeSet<OwnedUserId>,
        timeline: Option<&Timeline>,
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        let events = timeline
            .map(|timeline| timeline.events.as_slice())
            .unwrap_or_default();
        members.extend(events.iter().map(|event| event.pdu.sender.clone()));
        let keys: Vec<_> = members
            .iter()
            .map(|member| ("m.room.member", UserId::as_str(member)))
            .collect();
        Ok(self.inner.rooms.state_events(view.snapshot, at, &keys)?)
    }

    /// What is told beside state events. What a membership replaced says how a user came to be in the room; of other state, and
    /// of many members, it is left out.
    pub(super) fn state_unsigned(
        &self,
        view: &View<'_>,
        room: RoomNumber,
        events: &[Arc<StoredEvent>],
    ) -> Result<Vec<Unsigned>, Error> {
        let own = Some(view.request.user.as_str());
        let mut unsigned = vec![Unsigned::default(); events.len()];
        for (event, unsigned) in events.iter().zip(&mut unsigned) {
            let is_own = event.pdu.state_key.as_deref() == own;
            if is_own || event.meta.redacted_by.is_some() {
                let told = std::slice::from_ref(event);
                *unsigned = self
                    .inner
                    .rooms
                    .unsigned(view.snapshot, room, told)?
                    .pop()
                    .unwrap_or_default();
            }
        }
        Ok(unsigned)
    }
}

/// One event for each key, the last that was found, in the order of the timeline.
fn told(
    found: Vec<Arc<StoredEvent>>,
    accepts: impl Fn(&StoredEvent) -> bool,
) -> Vec<Arc<StoredEvent>> {
    let mut by_key: BTreeMap<(u16, String, String), Arc<StoredEvent>> = BTreeMap::new();
    for event in found.into_iter().filter(|event| accepts(event)) {
        let type_number = event.meta.event_type;
        let event_type = match type_number {
            crate::rooms::TypeNumber::OTHER => event.pdu.event_type.to_string(),
            _ => String::new(),
        };
        let state_key = event.pdu.state_key.clone().unwrap_or_default();
        by_key.insert((type_number.0, event_type, state_key), event);
    }
    let mut told: Vec<_> = by_key.into_values().collect();
    told.sort_by_key(|event| event.meta.index);
    told
}

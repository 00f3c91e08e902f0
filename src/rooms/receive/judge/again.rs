//! Judging an event again, once the state before it is known as a whole.
//!
//! What the event is does not change: its place, its position, what was counted for it. What follows from the state does:
//! whether the rules allow it, and the states before and after it.

use std::sync::Arc;

use super::{Arrival, AuthEvents, Court, Place};
use crate::{
    events::{Pdu, RootNumber, format::MAX_IDENTIFIER_BYTES},
    rooms::{
        Error, Intake, StoredEvent,
        draft::{Counters, Draft},
        event::{EventKey, flag},
        head::Head,
        resolution::{self, key_of},
        state::{Source, StateRows},
        writer::place::{self, Basis, Numbered, Numbers, Site},
    },
};

/// An event as it is from now on.
pub(in crate::rooms) struct Again {
    pub(in crate::rooms) event: StoredEvent,
    pub(in crate::rooms) id: EventKey,
    pub(in crate::rooms) state: Option<StateRows>,
    next: Counters,
}

/// What the rules say of an event that is judged again.
const REJECTED: u32 = flag::REJECTED_BY_AUTH_EVENTS | flag::REJECTED_BY_STATE;

/// Judges an event whose previous and auth events have been judged again, and adds it to the draft. `told` is the state
/// before it as another server told it, if previous events were missing.
pub(in crate::rooms) fn again(
    head: &Head,
    source: &Source<'_>,
    draft: &Draft,
    (event, told): (&StoredEvent, Option<RootNumber>),
) -> Result<Again, Error> {
    let mut pdu = Pdu::clone(&event.pdu);
    pdu.rejected = has_long_identifier(&pdu);
    let arrival = Arrival {
        id: EventKey::of(&pdu.event_id),
        own: Some(event.number),
        pdu: Arc::new(pdu),
        numbers: Numbers {
            sender: event.meta.sender,
            event_type: event.meta.event_type,
            target: None,
        },
        intake: Intake::Live,
        told: None,
        lacks_members: false,
        // What the room is now has no say in it any more.
        place: Place::Past {
            index: event.meta.index,
            ord_all: event.meta.ord_all,
            ord_room: event.meta.ord_room,
        },
    };
    let court = Court::new(head, source, draft, &arrival)?;
    let again = court.again(event, told)?;
    draft.add(&again.event, again.state.as_ref(), again.next);
    Ok(again)
}

impl Court<'_> {
    fn again(&self, event: &StoredEvent, told: Option<RootNumber>) -> Result<Again, Error> {
        let auth_events = self.auth_events()?.map_err(|_missing| {
            Error::corrupt("bodies", "an auth event of a stored event is missing")
        })?;
        let site = Site {
            head: self.head,
            source: self.source,
            basis: self.basis_again(event, told)?,
            next: self.draft.counters(),
        };
        let independent = self.check_independent(&auth_events)?;
        let failure = match event.meta.has(flag::OUTLIER) {
            true => {
                let checked = match independent {
                    Ok(()) => self.check_by_auth_events(&auth_events)?,
                    refused => refused,
                };
                let refused = checked.err();
                refused.map(|error| (flag::REJECTED_BY_AUTH_EVENTS, error))
            }
            false => self.check(&site, independent, &auth_events)?,
        };
        let failed = failure.map(|(flag, _)| flag).unwrap_or_default();
        self.replaced(event, site, &auth_events, failed)
    }

    /// The state before the event.
    fn basis_again(&self, event: &StoredEvent, told: Option<RootNumber>) -> Result<Basis, Error> {
        let mut roots: Vec<RootNumber> = told.into_iter().collect();
        for prev in &event.meta.prev_events {
            let prev = self.source.event(*prev)?;
            let prev = prev.filter(|prev| !prev.meta.has(flag::OUTLIER));
            roots.extend(prev.map(|prev| prev.meta.root_after));
        }
        Ok(resolution::resolve(self.head, self.source, self.draft, &roots)?.into())
    }

    fn replaced(
        &self,
        event: &StoredEvent,
        mut site: Site<'_>,
        auth_events: &AuthEvents,
        failed: u32,
    ) -> Result<Again, Error> {
        let mut meta = event.meta.clone();
        let (was_rejected, was_visible) = (meta.is_rejected(), meta.is_visible());
        meta.flags &= !(REJECTED | flag::STATE_PARTIAL);
        meta.flags |= failed;
        meta.root_before = site.basis.root;
        meta.root_after = site.basis.root;
        let auth_states = auth_events.iter().filter_map(|event| event.meta.state);
        meta.auth_states = auth_states.collect();
        if was_rejected && !meta.is_rejected() && !meta.has(flag::OUTLIER) {
            // Others that stand in the timeline came after it, so there is no place for it any more.
            meta.flags |= flag::HIDDEN;
        }
        if was_visible && !meta.is_visible() {
            meta.relation = None;
        }
        let mut pdu = Arc::clone(&event.pdu);
        if pdu.rejected != meta.is_rejected() {
            Arc::make_mut(&mut pdu).rejected = meta.is_rejected();
        }
        let mut replaced = StoredEvent {
            number: event.number,
            meta,
            pdu,
        };
        let state = self.state_again(&mut site, &mut replaced)?;
        Ok(Again {
            event: replaced,
            id: self.arrival.id.clone(),
            state,
            next: site.next,
        })
    }

    /// The rows of a state event, whose number and state after it are entered into `event`.
    fn state_again(
        &self,
        site: &mut Site<'_>,
        event: &mut StoredEvent,
    ) -> Result<Option<StateRows>, Error> {
        let key = key_of(event.meta.event_type, &event.pdu);
        let Some(key) = key.filter(|_| !event.meta.has(flag::REJECTED_BY_AUTH_EVENTS)) else {
            return Ok(None);
        };
        let mut next = site.next;
        let mut numbered = match event.meta.state {
            Some(state) => Numbered::known(state, (*self.source.graph(state)?).clone()),
            None => {
                let parents = &event.meta.auth_states;
                place::number_state(self.source, event.number, &key, &mut next, parents)?
            }
        };
        event.meta.state = Some(numbered.state);
        numbered.row.flags = u8::from(event.meta.is_rejected());
        let current = site.state(&key)?;
        let is_told = matches!(&current, Some((state, _)) if *state == numbered.state);
        // The state that others told may have the event already.
        let is_apart = event.meta.is_rejected() || event.meta.has(flag::OUTLIER);
        let rows = if is_apart || is_told {
            numbered.unapplied(&key)
        } else {
            let rows =
                place::state_rows(site, (&event.pdu, numbered), (&key, &current), &mut next)?;
            if let Some((root, _)) = rows.root {
                event.meta.root_after = root;
            }
            rows
        };
        site.next = next;
        Ok(Some(rows))
    }
}

/// Whether an event was rejected for its form alone.
fn has_long_identifier(pdu: &Pdu) -> bool {
    let event_type = pdu.event_type.to_string();
    let room_id = pdu.room_id.as_ref().map(|room_id| room_id.as_str());
    let fields = [
        Some(event_type.as_str()),
        Some(pdu.sender.as_str()),
        room_id,
        pdu.state_key.as_deref(),
    ];
    let mut fields = fields.into_iter().flatten();
    fields.any(|field| field.len() > MAX_IDENTIFIER_BYTES)
}

//! Putting a judged event in its place: its numbers, what it mentions, what it redacts and relates to, and the state after
//! it.

use std::sync::Arc;

use ruma::{EventId, OwnedEventId};

use super::{AuthEvents, Court, Place, Prevs};
use crate::{
    events::{EventNumber, Pdu, redact::target, version},
    rooms::{
        Error, Intake, Relation, StoredEvent, TypeNumber,
        draft::Counters,
        event::{self, EventKey, EventMeta, flag},
        gaps::{GAP_WIDTH, GapRow},
        partial::Noted,
        redact::{self, Redacted},
        relations,
        resolution::key_of,
        state::{Fresh, Source, StateRows},
        stubs::{self, Stub},
        threads::ThreadChange,
        unread,
        writer::place::{self, Basis, Current, Numbered, Prepared, Site, Turn, Was},
    },
};

/// An event that is being put in its place.
pub(super) struct Settling<'a> {
    court: &'a Court<'a>,
    number: EventNumber,
    meta: EventMeta,
    pdu: Arc<Pdu>,
    turn: Turn,
    /// What is missing right before it.
    missing: Vec<OwnedEventId>,
    redaction: Option<Redacted>,
    next: Counters,
}

impl<'a> Settling<'a> {
    pub(super) fn new(court: &'a Court<'a>, site: &mut Site<'_>, flags: u32) -> Self {
        let arrival = court.arrival;
        let mut next = site.next;
        let number = court.own.unwrap_or(EventNumber(next.event));
        if court.own.is_none() {
            next.event = next.event.saturating_add(1);
        }
        let mut meta = EventMeta {
            flags,
            event_type: arrival.numbers.event_type,
            sender: arrival.numbers.sender,
            timestamp: u64::from(arrival.pdu.origin_server_ts.0),
            received: court.source.rooms.clock.now_ms(),
            root_before: site.basis.root,
            root_after: site.basis.root,
            depth: arrival.pdu.depth,
            ..EventMeta::default()
        };
        match arrival.place {
            Place::Live | Place::TakingUp | Place::Returning => {
                meta.index = court.head.row.high;
                meta.ord_all = court.head.row.ord_all;
                meta.ord_thread = court.head.row.ord_main;
                meta.ord_room = court.head.row.ord_room;
            }
            Place::Past {
                index,
                ord_all,
                ord_room,
            } => {
                meta.index = index;
                meta.ord_all = ord_all;
                meta.ord_room = ord_room;
            }
            Place::Outlier => {}
        }
        if arrival.pdu.is_state() {
            meta.flags |= flag::STATE;
        }
        if arrival.numbers.event_type == TypeNumber::ENCRYPTED {
            meta.flags |= flag::ENCRYPTED;
        }
        if arrival.numbers.event_type == TypeNumber::MERGE && !arrival.pdu.is_state() {
            meta.flags |= flag::HIDDEN;
        }
        if arrival.intake == Intake::Vouched {
            meta.flags |= flag::RELAYED;
        }
        let turn = Turn {
            was: match (court.own, &court.known) {
                (None, _) => Was::Unknown,
                (Some(_), None) => Was::Stub,
                (Some(_), Some(_)) => Was::Outlier,
            },
            ..Turn::default()
        };
        let mut pdu = Arc::clone(&arrival.pdu);
        if meta.is_rejected() && !pdu.rejected {
            Arc::make_mut(&mut pdu).rejected = true;
        }
        Self {
            court,
            number,
            meta,
            pdu,
            turn,
            missing: Vec::new(),
            redaction: None,
            next,
        }
    }

    /// What is needed to judge the event again.
    pub(super) fn note(&mut self, noted: Option<Noted>) {
        self.turn.noted = noted;
    }

    fn source(&self) -> &'a Source<'a> {
        self.court.source
    }

    /// The number by which an event is mentioned; `None` if it cannot be an event of this room.
    fn mention(&mut self, id: &EventId) -> Result<Option<EventNumber>, Error> {
        if let Some(number) = self.source().event_number(id)? {
            return Ok(Some(number));
        }
        let rules = self.court.head.rules;
        if !version::is_event_id(id, rules) || *id == self.court.arrival.pdu.event_id {
            return Ok(None);
        }
        let id = EventKey::of(id);
        if let Some(stub) = self.turn.stubs.iter().find(|stub| stub.id == id) {
            return Ok(Some(stub.event));
        }
        let is_elsewhere = event::place(self.source().snapshot()?, &id)?.is_some();
        Ok((!is_elsewhere).then(|| self.add_stub(id, None)))
    }

    fn add_stub(&mut self, id: EventKey, redacted_by: Option<EventNumber>) -> EventNumber {
        let event = EventNumber(self.next.event);
        self.next.event = self.next.event.saturating_add(1);
        self.turn.stubs.push(Stub {
            event,
            id,
            redacted_by,
        });
        event
    }

    pub(super) fn prevs(&mut self, prevs: &Prevs) -> Result<(), Error> {
        self.meta.prev_events = prevs.known.clone();
        for id in &prevs.missing {
            let number = self.mention(id)?;
            self.meta.prev_events.extend(number);
        }
        // What is taken for history is followed by what was accepted.
        let is_past = matches!(self.court.arrival.place, Place::Past { .. });
        if is_past || self.meta.is_accepted() {
            self.missing.clone_from(&prevs.missing);
            self.missing.extend(prevs.behind.iter().cloned());
        }
        Ok(())
    }

    pub(super) fn cite(&mut self, auth_events: &AuthEvents) {
        let states = auth_events.iter().filter_map(|event| event.meta.state);
        self.meta.auth_states = states.collect();
    }

    /// What redacts the event, and what it redacts.
    pub(super) fn redact(&mut self) -> Result<(), Error> {
        if self.turn.was == Was::Stub
            && let Some(number) = self.redaction_before()?
            && let Some(redaction) = self.source().event(number)?
        {
            let state = self.source().root(redaction.meta.root_before)?;
            let at = Basis {
                root: redaction.meta.root_before,
                row: state,
            };
            if self.may_redact((&redaction.pdu, &self.pdu), &at)? {
                let redacted =
                    crate::events::redact::redacted(&self.pdu, &self.court.head.rules.redaction);
                let damaged = |error: crate::events::redact::RedactError| {
                    Error::corrupt("bodies", &error.to_string())
                };
                self.pdu = Arc::new(redacted.map_err(damaged)?);
                self.meta.flags |= flag::REDACTED;
                self.meta.redacted_by = Some(number);
            }
        }
        let rules = self.court.head.rules;
        if let Some(redacts) = target(&self.pdu, &rules.redaction)
            && self.meta.is_accepted()
        {
            self.redact_other(&redacts)?;
        }
        Ok(())
    }

    /// A redaction that came before the event.
    fn redaction_before(&self) -> Result<Option<EventNumber>, Error> {
        let redaction = |fresh: &Fresh| fresh.redactions.get(&self.number).copied();
        match self.source().unpublished(redaction) {
            Some(number) => Ok(Some(number)),
            None => {
                let source = self.source();
                stubs::redacted_by(source.snapshot()?, source.room, self.number)
            }
        }
    }

    /// Redacts another event, if that has come and the sender may. Otherwise the redaction is not shown.
    fn redact_other(&mut self, redacts: &EventId) -> Result<(), Error> {
        let own = self.number;
        let known = self.source().event_number(redacts)?;
        let target = match known {
            Some(number) => self.source().event(number)?,
            None => None,
        };
        let Some(target) = target else {
            self.meta.flags |= flag::HIDDEN;
            if !version::is_event_id(redacts, self.court.head.rules) {
                return Ok(());
            }
            let id = EventKey::of(redacts);
            self.meta.redacts = match known {
                Some(event) => {
                    self.turn.stubs.push(Stub {
                        event,
                        id,
                        redacted_by: Some(own),
                    });
                    Some(event)
                }
                None if event::place(self.source().snapshot()?, &id)?.is_some() => None,
                None => Some(self.add_stub(id, Some(own))),
            };
            return Ok(());
        };
        self.meta.redacts = Some(target.number);
        let row = self.source().root(self.meta.root_before)?;
        let at = Basis {
            root: self.meta.root_before,
            row,
        };
        if !self.may_redact((&self.pdu, &target.pdu), &at)? {
            self.meta.flags |= flag::HIDDEN;
            return Ok(());
        }
        if target.meta.has(flag::REDACTED) {
            return Ok(());
        }
        let mut redacted = redact::redacted(&target, self.court.head.rules)?;
        redacted.thread = ThreadChange::without(self.source(), &target)?;
        redacted.event.meta.redacted_by = Some(own);
        self.redaction = Some(redacted);
        Ok(())
    }

    fn may_redact(&self, events: (&Pdu, &Pdu), at: &Basis) -> Result<bool, Error> {
        redact::may_redact(self.court.head, self.source(), events, at)
    }

    /// What the event relates to.
    pub(super) fn relate(&mut self, site: &Site<'_>) -> Result<(), Error> {
        if !self.meta.is_visible() || self.meta.has(flag::REDACTED) {
            return Ok(());
        }
        // Most events relate to nothing, and need not be read for it.
        if !self.pdu.content.get().contains("m.relates_to") {
            return Ok(());
        }
        let Some(content) = relations::relating(&self.pdu) else {
            return Ok(());
        };
        let Some((relation, parent)) = relations::relates_to(&content) else {
            return Ok(());
        };
        let Some(number) = self.mention(parent)? else {
            return Ok(());
        };
        self.meta.relation = Some((relation, number));
        let parent = site.source.event(number)?;
        self.meta.thread_root = match parent {
            Some(parent) => place::thread_root(relation, &parent),
            // The thread is known by its root also before that has come.
            None if relation == Relation::Thread => Some(number),
            None => None,
        };
        Ok(())
    }

    pub(super) fn finish(mut self, mut site: Site<'_>) -> Result<Prepared, Error> {
        let (court, number) = (self.court, self.number);
        let arrival = court.arrival;
        let is_live = !matches!(arrival.place, Place::Past { .. } | Place::Outlier);
        if self.meta.is_visible() && is_live {
            self.meta.index += 1;
        }
        if !self.missing.is_empty() {
            self.meta.index += if is_live { GAP_WIDTH } else { 0 };
            let missing = self.missing.iter().map(|id| &**id);
            self.turn.gap = Some(GapRow::of(missing));
        }
        site.next = self.next;
        let (state, current) = self.state(&mut site)?;
        if let Some((root, _)) = state.as_ref().and_then(|rows| rows.root) {
            self.meta.root_after = root;
        }
        let unread = match self.meta.is_visible() && is_live {
            true => {
                let rooms = court.source.rooms;
                unread::count(rooms, court.head, court.source, &self.pdu, &mut self.meta)?
            }
            false => unread::Counted::nothing(&court.head.row),
        };
        let event = StoredEvent {
            number,
            meta: self.meta,
            pdu: self.pdu,
        };
        court.draft.add(&event, state.as_ref(), site.next);
        court.draft.add_stubs(&self.turn.stubs);
        let mut memberships = Vec::new();
        if event.meta.is_accepted() && is_live {
            let ends = match arrival.place {
                Place::TakingUp => place::only(court.source, &event)?,
                _ => place::ends(court.head, court.source, court.draft, &event)?,
            };
            self.turn.takes_up = arrival.place == Place::TakingUp;
            memberships = match (&state, arrival.numbers.target) {
                (Some(rows), Some(target)) if ends.is_step => {
                    let change = (number, rows.state, &event.pdu);
                    vec![place::membership(&site, change, (&current, target))?]
                }
                _ if ends.is_step => Vec::new(),
                _ => place::memberships(court.source, (&court.head.root, &ends.row))?,
            };
            self.turn.ends = Some(ends);
        }
        let thread = match event.meta.is_visible() {
            true => ThreadChange::by(court.source, &event)?,
            false => None,
        };
        Ok(Prepared {
            id: arrival.id.clone(),
            event,
            state,
            memberships,
            redaction: self.redaction,
            thread,
            unread,
            next: site.next,
            turn: Some(Box::new(self.turn)),
        })
    }

    /// The rows of a state event, and what it replaces in the state before it.
    fn state(&mut self, site: &mut Site<'_>) -> Result<(Option<StateRows>, Current), Error> {
        let court = self.court;
        let key = key_of(self.meta.event_type, &self.pdu);
        let Some(key) = key.filter(|_| !self.meta.has(flag::REJECTED_BY_AUTH_EVENTS)) else {
            return Ok((None, None));
        };
        let mut next = site.next;
        let known = court.known.as_ref().and_then(|known| known.meta.state);
        let mut numbered = match known {
            Some(state) => Numbered::known(state, (*court.source.graph(state)?).clone()),
            None => {
                let parents = &self.meta.auth_states;
                place::number_state(court.source, self.number, &key, &mut next, parents)?
            }
        };
        self.meta.state = Some(numbered.state);
        if self.meta.has(flag::REJECTED_BY_STATE | flag::OUTLIER) {
            numbered.row.flags = u8::from(self.meta.is_rejected());
            site.next = next;
            return Ok((Some(numbered.unapplied(&key)), None));
        }
        let current = site.state(&key)?;
        let pdu = (&*self.pdu, numbered);
        let rows = place::state_rows(site, pdu, (&key, &current), &mut next)?;
        site.next = next;
        Ok((Some(rows), current))
    }
}

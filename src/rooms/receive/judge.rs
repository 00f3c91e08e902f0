//! The checks of a received event, in their order, and everything that follows from their outcome.
//!
//! Nothing here changes anything, so it can run again when a row turns out not to be in memory.

mod again;
mod settling;

use std::{collections::BTreeSet, sync::Arc};

use ruma::{
    EventId, OwnedEventId,
    events::{StateEventType, TimelineEventType},
};
use smallvec::SmallVec;

pub(in crate::rooms) use self::again::{Again, again};
use self::settling::Settling;
use super::{Intake, refused, told};
use crate::{
    events::{AuthError, EventNumber, Pdu, RootNumber, auth, extremities},
    rooms::{
        Error, StoredEvent,
        draft::Draft,
        event::{EventKey, flag},
        head::Head,
        partial::{self, Noted},
        resolution::{self, create_event_id},
        state::Source,
        writer::place::{self, Basis, Current, Numbers, Prepared, Site},
    },
};

/// An event that has come.
pub(in crate::rooms) struct Arrival {
    pub(super) pdu: Arc<Pdu>,
    pub(super) id: EventKey,
    /// Its number, if it was mentioned before.
    pub(super) own: Option<EventNumber>,
    pub(super) numbers: Numbers,
    pub(super) intake: Intake,
    /// The state before it, where previous events are missing.
    pub(super) told: Option<Vec<OwnedEventId>>,
    /// Memberships were left out of that: with it a room becomes partial.
    pub(in crate::rooms) lacks_members: bool,
    pub(in crate::rooms) place: Place,
}

/// Where an event goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::rooms) enum Place {
    /// On top of the timeline.
    Live,
    /// At the top, as the only extremity: with it this server comes to the room, or comes back.
    TakingUp,
    /// At the top, beside what was last here: with it this server comes back, and others have not heard yet how it left.
    Returning,
    /// Among the history, at this index and with these ordinals. What the room is now does not change.
    Past {
        index: i64,
        ord_all: u64,
        ord_room: u64,
    },
    /// Nowhere: it is a part of states and auth chains only.
    Outlier,
}

/// What is to be done with an event.
pub(super) enum Verdict {
    Known(Arc<StoredEvent>),
    MissingAuth(Vec<OwnedEventId>),
    MissingPrev(Vec<OwnedEventId>),
    /// To be stored; and why it is not allowed, if so.
    Settled(Box<Prepared>, Option<AuthError>),
}

/// Judges an event that stays apart from the graph, adding it to the draft.
pub(super) fn judge_outlier(
    head: &Head,
    source: &Source<'_>,
    draft: &Draft,
    arrival: &Arrival,
) -> Result<Verdict, Error> {
    Court::new(head, source, draft, arrival)?.judge_outlier()
}

/// Judges an event of the history, adding it to the draft.
pub(super) fn judge_past(
    head: &Head,
    source: &Source<'_>,
    draft: &Draft,
    arrival: &Arrival,
) -> Result<Verdict, Error> {
    Court::new(head, source, draft, arrival)?.judge()
}

/// Judges an event.
pub(super) fn judge(head: &Head, source: &Source<'_>, arrival: &Arrival) -> Result<Verdict, Error> {
    let draft = Draft::new(head);
    let verdict = {
        let source = source.with_draft(&draft);
        Court::new(head, &source, &draft, arrival)?.judge()?
    };
    Ok(match verdict {
        Verdict::Settled(prepared, error) => {
            Verdict::Settled(Box::new(prepared.with(draft)), error)
        }
        other => other,
    })
}

/// What an event is judged with.
struct Court<'a> {
    head: &'a Head,
    source: &'a Source<'a>,
    draft: &'a Draft,
    arrival: &'a Arrival,
    own: Option<EventNumber>,
    /// The event as it was stored before: an outlier.
    known: Option<Arc<StoredEvent>>,
}

/// The events that an event cites as auth events.
type AuthEvents = SmallVec<[Arc<StoredEvent>; 6]>;

/// The state that the rules look at for an event, by key.
type Looked = SmallVec<[(StateEventType, String, Current); 6]>;

/// Which check an event failed, as a flag, and why.
type Failure = Option<(u32, AuthError)>;

/// The previous events.
#[derive(Default)]
struct Prevs {
    known: SmallVec<[EventNumber; 2]>,
    missing: Vec<OwnedEventId>,
    /// What is missing before the known ones that were not accepted: an event that is accepted comes after it as well.
    behind: Vec<OwnedEventId>,
}

impl<'a> Court<'a> {
    fn new(
        head: &'a Head,
        source: &'a Source<'a>,
        draft: &'a Draft,
        arrival: &'a Arrival,
    ) -> Result<Self, Error> {
        // It may have been mentioned by another event of the same draft.
        let id = &arrival.pdu.event_id;
        let drafted = source.unpublished(|fresh| fresh.event_numbers.get(id).copied());
        let own = drafted.or(arrival.own);
        let known = match own {
            Some(number) => source.event(number)?,
            None => None,
        };
        Ok(Self {
            head,
            source,
            draft,
            arrival,
            own,
            known,
        })
    }

    fn judge_outlier(&self) -> Result<Verdict, Error> {
        if let Some(known) = &self.known {
            return Ok(Verdict::Known(Arc::clone(known)));
        }
        if !self.head.extremities.is_empty()
            && let Some(verdict) = self.judge_create()?
        {
            return Ok(verdict);
        }
        let auth_events = match self.auth_events()? {
            Ok(auth_events) => auth_events,
            Err(missing) => return Ok(Verdict::MissingAuth(missing)),
        };
        let checked = match self.check_independent(&auth_events)? {
            Ok(()) => self.check_by_auth_events(&auth_events)?,
            refused => refused,
        };
        match checked {
            Ok(()) => self.apart(&auth_events, (flag::OUTLIER, None)),
            Err(error) => self.refused(&auth_events, error),
        }
    }

    /// An event that its auth events refuse. If these may have been refused for what is not known of a partial room, it is to
    /// be judged again.
    fn refused(&self, auth_events: &AuthEvents, error: AuthError) -> Result<Verdict, Error> {
        let mut flags = flag::OUTLIER | flag::REJECTED_BY_AUTH_EVENTS;
        let mut metas = auth_events.iter().map(|event| &event.meta);
        if metas.any(|meta| meta.is_rejected() && meta.has(flag::STATE_PARTIAL)) {
            flags |= flag::STATE_PARTIAL;
        }
        self.apart(auth_events, (flags, Some(error)))
    }

    fn judge(&self) -> Result<Verdict, Error> {
        if let Some(known) = &self.known
            && !known.meta.has(flag::OUTLIER)
        {
            return Ok(Verdict::Known(Arc::clone(known)));
        }
        if let Some(verdict) = self.judge_create()? {
            return Ok(verdict);
        }
        let auth_events = match self.auth_events()? {
            Ok(auth_events) => auth_events,
            Err(missing) => return Ok(Verdict::MissingAuth(missing)),
        };
        let prevs = self.prevs()?;
        let independent = self.check_independent(&auth_events)?;
        if !prevs.missing.is_empty() && self.arrival.told.is_none() {
            let failure = match independent {
                Err(error) => Err(error),
                Ok(()) => self.check_by_auth_events(&auth_events)?,
            };
            return match (failure, &self.known) {
                (Ok(()), _) => Ok(Verdict::MissingPrev(prevs.missing)),
                (Err(_), Some(known)) => Ok(Verdict::Known(Arc::clone(known))),
                (Err(error), None) => self.refused(&auth_events, error),
            };
        }
        let (mut basis, told) = self.basis(&prevs)?;
        let lacks_members = self.arrival.lacks_members && told.is_some();
        let is_partial = self.is_partial(&prevs, lacks_members)?;
        let mut judged_by = basis;
        if is_partial {
            let (head, source, draft) = (self.head, self.source, self.draft);
            basis = partial::filled(source, draft, basis, &auth_events)?;
            judged_by = partial::judged_by(head, source, draft, basis, &auth_events)?;
        }
        let site = Site {
            head: self.head,
            source: self.source,
            basis,
            next: self.draft.counters(),
        };
        let judged_at = Site {
            basis: judged_by,
            ..site
        };
        let (flags, error) = self.check(&judged_at, independent, &auth_events)?.unzip();
        let mut flags = flags.unwrap_or_default();
        let noted = is_partial.then(|| Noted::new(told, lacks_members));
        if is_partial {
            flags |= flag::STATE_PARTIAL;
        }
        self.settle(site, (&auth_events, &prevs), (flags, error), noted)
    }

    /// A room begins once: a create event is only taken as the end of its history.
    fn judge_create(&self) -> Result<Option<Verdict>, Error> {
        let is_past = matches!(self.arrival.place, Place::Past { .. });
        if self.arrival.pdu.event_type != TimelineEventType::RoomCreate
            || (is_past && self.known.is_some())
        {
            return Ok(None);
        }
        if let Some(known) = &self.known {
            return Ok(Some(Verdict::Known(Arc::clone(known))));
        }
        let error = refused("the room has been created by another event");
        let flags = flag::OUTLIER | flag::REJECTED_BY_AUTH_EVENTS;
        self.apart(&AuthEvents::new(), (flags, Some(error)))
            .map(Some)
    }

    fn rules(&self) -> &'static ruma::room_version_rules::AuthorizationRules {
        &self.head.rules.authorization
    }

    fn auth_events(&self) -> Result<Result<AuthEvents, Vec<OwnedEventId>>, Error> {
        let mut found = AuthEvents::new();
        let mut missing = Vec::new();
        for id in &self.arrival.pdu.auth_events {
            let event = match self.source.event_number(id)? {
                Some(number) => self.source.event(number)?,
                None => None,
            };
            match event {
                Some(event) => found.push(event),
                None => missing.push(id.clone()),
            }
        }
        Ok(match missing.is_empty() {
            true => Ok(found),
            false => Err(missing),
        })
    }

    fn prevs(&self) -> Result<Prevs, Error> {
        let mut prevs = Prevs::default();
        for id in &self.arrival.pdu.prev_events {
            let ends = &self.head.extremities;
            if let Some((end, _)) = ends.iter().find(|(_, end)| end == id) {
                prevs.known.push(*end);
                continue;
            }
            match self.placed(id)? {
                Some(event) => prevs.known.push(event.number),
                None => prevs.missing.push(id.clone()),
            }
        }
        prevs.known.sort_unstable();
        prevs.known.dedup();
        prevs.behind = self.missing_behind(&prevs.known)?;
        Ok(prevs)
    }

    /// What is missing before those of the events that were rejected or soft-failed.
    fn missing_behind(&self, events: &[EventNumber]) -> Result<Vec<OwnedEventId>, Error> {
        let ends = &self.head.extremities;
        let is_end = |number: &EventNumber| ends.iter().any(|(end, _)| end == number);
        let mut front: Vec<_> = events.iter().copied().filter(|of| !is_end(of)).collect();
        let (mut seen, mut missing) = (BTreeSet::new(), Vec::new());
        while let Some(number) = front.pop() {
            let Some(event) = self.source.event(number)? else {
                continue;
            };
            let is_passed = seen.len() < extremities::MAX_PASSED && seen.insert(number);
            if event.meta.is_accepted() || !is_passed {
                continue;
            }
            for id in &event.pdu.prev_events {
                match self.placed(id)? {
                    Some(event) => front.push(event.number),
                    None => missing.push(id.clone()),
                }
            }
        }
        Ok(missing)
    }

    /// An event that has a place in the graph.
    fn placed(&self, id: &EventId) -> Result<Option<Arc<StoredEvent>>, Error> {
        let event = match self.source.event_number(id)? {
            Some(number) => self.source.event(number)?,
            None => None,
        };
        Ok(event.filter(|event| !event.meta.has(flag::OUTLIER)))
    }

    /// Whether memberships are missing in what is known of the state before the event.
    fn is_partial(&self, prevs: &Prevs, lacks_members: bool) -> Result<bool, Error> {
        Ok(lacks_members
            || (self.head.row.partial
                && partial::any_partial(self.source, prevs.known.iter().copied())?))
    }

    /// The state before the event, and the part of it that another server has told.
    fn basis(&self, prevs: &Prevs) -> Result<(Basis, Option<RootNumber>), Error> {
        let ends = &self.head.extremities;
        let is_end = |prev| ends.iter().any(|(end, _)| end == prev);
        if prevs.missing.is_empty()
            && prevs.known.len() == ends.len()
            && prevs.known.iter().all(is_end)
        {
            return Ok((Basis::current(self.head), None));
        }
        let (head, source, draft) = (self.head, self.source, self.draft);
        let told = self
            .arrival
            .told
            .as_ref()
            .filter(|_| !prevs.missing.is_empty());
        let Some(told) = told else {
            return Ok((Basis::after(head, source, draft, &prevs.known)?, None));
        };
        let like = (head.row.root, head.root);
        let root = told::root(head, source, draft, (like, told))?;
        let mut roots = vec![root.0];
        for prev in &prevs.known {
            roots.push(place::event(source, *prev)?.meta.root_after);
        }
        let resolved = resolution::resolve(head, source, draft, &roots)?;
        Ok((resolved.into(), Some(root.0)))
    }

    /// The rules that need no state.
    fn check_independent(&self, auth_events: &AuthEvents) -> Result<Result<(), AuthError>, Error> {
        let pdu = &self.arrival.pdu;
        if pdu.rejected {
            return Ok(Err(refused("an identifier is too long")));
        }
        let create = self.create()?;
        let found = |id: &EventId| {
            let cited = auth_events.iter().find(|event| event.pdu.event_id == id);
            let create = create.as_ref().filter(|event| event.pdu.event_id == id);
            cited.or(create).map(|event| Arc::clone(&event.pdu))
        };
        Ok(auth::check_independent(self.rules(), pdu, found))
    }

    /// The create event where the room's ID stands for it, and no event cites it.
    fn create(&self) -> Result<Option<Arc<StoredEvent>>, Error> {
        if !self.rules().room_create_event_id_as_room_id {
            return Ok(None);
        }
        if let Some(key) = self.source.rooms.state_key("m.room.create", "")
            && let Some((_, event)) = self.head.state(self.source, &key)?
        {
            return Ok(Some(event));
        }
        let Some(id) = create_event_id(&self.head.room_id) else {
            return Ok(None);
        };
        match self.source.event_number(&id)? {
            Some(number) => self.source.event(number),
            None => Ok(None),
        }
    }

    /// The rules at the state that the auth events are.
    fn check_by_auth_events(
        &self,
        auth_events: &AuthEvents,
    ) -> Result<Result<(), AuthError>, Error> {
        let create = self.create()?;
        let fetch = |event_type: &StateEventType, key: &str| {
            let wanted = TimelineEventType::from(event_type.to_string());
            let is_it = |event: &&Arc<StoredEvent>| {
                event.pdu.event_type == wanted && event.pdu.state_key.as_deref() == Some(key)
            };
            let found = auth_events.iter().chain(&create).find(is_it);
            found.map(|event| Arc::clone(&event.pdu))
        };
        Ok(auth::check(self.rules(), &self.arrival.pdu, fetch))
    }

    /// The state that the rules look at, as it is at the site of the event.
    fn looked_at(&self, site: &Site<'_>) -> Result<Looked, Error> {
        let pdu = &self.arrival.pdu;
        let key = pdu.state_key.as_deref();
        let mut keys = auth::selection(
            self.rules(),
            &pdu.event_type,
            &pdu.sender,
            key,
            &pdu.content,
        );
        if self.rules().room_create_event_id_as_room_id
            && pdu.event_type != TimelineEventType::RoomCreate
        {
            keys.push((StateEventType::RoomCreate, String::new()));
        }
        let mut looked = Looked::new();
        for (event_type, key) in keys {
            let current = match self.source.rooms.state_key(&event_type.to_string(), &key) {
                Some(found) => site.state(&found)?,
                None => None,
            };
            looked.push((event_type, key, current));
        }
        Ok(looked)
    }

    /// The rules at a state, of which `looked` is what they look at.
    fn check_at(&self, basis: &Basis, looked: &Looked) -> Result<Result<(), AuthError>, Error> {
        let pdu = &self.arrival.pdu;
        let fetch = |event_type: &StateEventType, key: &str| {
            let found = looked
                .iter()
                .find(|(known, state_key, _)| known == event_type && state_key == key);
            let (.., current) = found?;
            current.as_ref().map(|(_, event)| Arc::clone(&event.pdu))
        };
        let levels = basis.levels(self.source.rooms, self.head, self.source)?;
        Ok(match levels {
            Some(levels) => auth::check_with_levels(self.rules(), pdu, &levels, fetch),
            None => auth::check(self.rules(), pdu, fetch),
        })
    }

    /// All checks, until one fails.
    fn check(
        &self,
        site: &Site<'_>,
        independent: Result<(), AuthError>,
        auth_events: &AuthEvents,
    ) -> Result<Failure, Error> {
        // What was numbered as a state event stays one.
        let is_numbered = self
            .known
            .as_ref()
            .is_some_and(|known| known.meta.state.is_some());
        let by_auth_events = match is_numbered {
            true => flag::REJECTED_BY_STATE,
            false => flag::REJECTED_BY_AUTH_EVENTS,
        };
        if let Err(error) = independent {
            return Ok(Some((by_auth_events, error)));
        }
        let looked = self.looked_at(site)?;
        if !is_cited(
            &looked,
            auth_events,
            self.rules().room_create_event_id_as_room_id,
        ) && let Err(error) = self.check_by_auth_events(auth_events)?
        {
            return Ok(Some((by_auth_events, error)));
        }
        if let Err(error) = self.check_at(&site.basis, &looked)? {
            return Ok(Some((flag::REJECTED_BY_STATE, error)));
        }
        // What is known of the current state of a partial room may lack the sender.
        if self.arrival.place == Place::Live
            && !self.head.row.partial
            && !site.basis.is_current(self.head)
        {
            let now = Site {
                basis: Basis::current(self.head),
                ..*site
            };
            let looked = self.looked_at(&now)?;
            if let Err(error) = self.check_at(&now.basis, &looked)? {
                return Ok(Some((flag::SOFT_FAILED, error)));
            }
        }
        Ok(match self.arrival.intake {
            Intake::Unsigned => {
                let error = refused("the policy server of the room has not signed the event");
                Some((flag::SOFT_FAILED, error))
            }
            Intake::Live | Intake::Vouched | Intake::Answered => None,
        })
    }

    /// An event whose place in the graph is not known.
    fn apart(
        &self,
        auth_events: &AuthEvents,
        failure: (u32, Option<AuthError>),
    ) -> Result<Verdict, Error> {
        let site = Site {
            head: self.head,
            source: self.source,
            basis: Basis::default(),
            next: self.draft.counters(),
        };
        self.settle(site, (auth_events, &Prevs::default()), failure, None)
    }

    /// Puts an event in its place.
    fn settle(
        &self,
        mut site: Site<'_>,
        (auth_events, prevs): (&AuthEvents, &Prevs),
        (flags, error): (u32, Option<AuthError>),
        noted: Option<Noted>,
    ) -> Result<Verdict, Error> {
        let mut settling = Settling::new(self, &mut site, flags);
        settling.note(noted);
        settling.prevs(prevs)?;
        settling.cite(auth_events);
        settling.redact()?;
        settling.relate(&site)?;
        let prepared = settling.finish(site)?;
        Ok(Verdict::Settled(Box::new(prepared), error))
    }
}

/// Whether an event cites exactly the state before it, so that checking it against both is doing the same twice.
fn is_cited(looked: &Looked, auth_events: &AuthEvents, has_implicit_create: bool) -> bool {
    let mut cited = 0;
    for (event_type, _, current) in looked {
        if has_implicit_create && *event_type == StateEventType::RoomCreate {
            continue;
        }
        let Some((_, event)) = current else { continue };
        if !auth_events.iter().any(|auth| auth.number == event.number) {
            return false;
        }
        cited += 1;
    }
    cited == auth_events.len()
}

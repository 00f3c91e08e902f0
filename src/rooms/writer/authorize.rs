//! From what a client wants to send to an event that may be appended: reads what is needed, builds, signs, checks.
//!
//! Nothing here changes anything, so it can run again when a row turns out not to be in memory.

use std::sync::Arc;

use ruma::{
    CanonicalJsonObject, EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, RoomId,
    UserId,
    canonical_json::CanonicalJsonValue,
    events::{StateEventType, TimelineEventType},
};
use serde_json::value::RawValue;
use smallvec::SmallVec;

use super::place::{self, Basis, Current, Ends, Numbers, Prepared, Site, Turn};
use crate::events::{
    Authorized, EventNumber, NewPdu, Pdu, PowerLevels, StateNumber, Verified, auth,
    extremities::{self, MAX_CITED},
    version,
};
use crate::rooms::{
    Error, NewEvent, Relation, Rooms, StoredEvent, TypeNumber,
    draft::{Counters, Draft},
    event::{self, EventKey, EventMeta, flag},
    head::Head,
    milliseconds, partial,
    redact::{self, Redacted},
    relations,
    state::{Source, StateKey, state_key},
    stubs::Stub,
    threads::ThreadChange,
    unread,
};

/// The largest depth that canonical JSON can hold.
const MAX_DEPTH: u64 = (1 << 53) - 1;

/// An event of the current state that the authorization rules look at.
struct AuthEvent {
    event_type: StateEventType,
    key: String,
    state: StateNumber,
    event: Arc<StoredEvent>,
    /// Known from the room ID, so it is not cited: the create event, from version 12 on.
    is_implicit: bool,
}

/// What was read for an event.
struct Gathered {
    auth: SmallVec<[AuthEvent; 6]>,
    parent: Option<(Relation, Arc<StoredEvent>)>,
    /// The event that this one redacts, as it is.
    redacted: Option<EventNumber>,
    /// The same as it is from now on, unless it is redacted already.
    redaction: Option<Redacted>,
    /// The event that it redacts, where that has not come yet.
    awaited: Option<Awaited>,
    /// Of a state event: its key, and the event that it replaces.
    state: Option<(StateKey, Current)>,
}

/// An event that is mentioned before it has come.
struct Awaited {
    id: EventKey,
    /// Its number, if it was mentioned before.
    number: Option<EventNumber>,
}

impl Gathered {
    /// The auth events that the event names.
    fn cited(&self) -> impl Iterator<Item = &AuthEvent> {
        self.auth.iter().filter(|auth| !auth.is_implicit)
    }
}

/// Reads what the event needs, builds and signs it, checks it against the state that it comes after.
pub(super) fn authorize(
    rooms: &Rooms,
    head: &Head,
    source: &Source<'_>,
    new: &NewEvent,
    numbers: &Numbers,
) -> Result<Prepared, Error> {
    if head.extremities.len() > MAX_CITED {
        let draft = Draft::new(head);
        let prepared = on_some_ends(head, &source.with_draft(&draft), &draft, (new, numbers))?;
        return Ok(prepared.with(draft));
    }
    let site = Site {
        head,
        source,
        basis: Basis::current(head),
        next: Counters::of(&head.row),
    };
    let newest_first = head.extremities.iter().rev();
    let cited: SmallVec<[_; 2]> = newest_first.collect();
    send(rooms, &site, &cited, (new, numbers))
}

/// The same where there are more extremities than one event cites.
fn on_some_ends(
    head: &Head,
    source: &Source<'_>,
    draft: &Draft,
    (new, numbers): (&NewEvent, &Numbers),
) -> Result<Prepared, Error> {
    let rooms = source.rooms;
    let newest_first = head.extremities.iter().rev().collect();
    let cited = extremities::to_cite(newest_first, |below| {
        let below = u64::try_from(below).unwrap_or(u64::MAX);
        usize::try_from(rooms.clock.random_below(below)).unwrap_or_default()
    });
    let ends: Vec<_> = cited.iter().map(|(number, _)| *number).collect();
    let site = Site {
        head,
        source,
        basis: Basis::after(head, source, draft, &ends)?,
        next: draft.counters(),
    };
    let mut prepared = send(rooms, &site, &cited, (new, numbers))?;
    let turn = prepared.turn.get_or_insert_default();
    draft.add(&prepared.event, prepared.state.as_ref(), prepared.next);
    let ends = place::ends(head, source, draft, &prepared.event)?;
    prepared.memberships = place::memberships(source, (&head.root, &ends.row))?;
    turn.ends = Some(ends);
    Ok(prepared)
}

fn send(
    rooms: &Rooms,
    site: &Site<'_>,
    cited: &[&(EventNumber, OwnedEventId)],
    (new, numbers): (&NewEvent, &Numbers),
) -> Result<Prepared, Error> {
    let (head, source) = (site.head, site.source);
    check_content(rooms, head, source, new)?;
    let gathered = gather(rooms, site, new, numbers)?;
    let timestamp = new
        .timestamp
        .unwrap_or_else(|| milliseconds(rooms.clock.now_ms()));
    let event = build(head, source, cited, (new, timestamp), &gathered)?;
    let event = check(rooms, site, event, &gathered)?;
    let pdu = Arc::new(event.into_pdu());
    let id = EventKey::of(&pdu.event_id);
    let mut meta = meta(rooms, site, &pdu, numbers, &gathered);
    meta.prev_events = cited.iter().map(|(number, _)| *number).collect();
    if head.row.partial && partial::any_partial(source, meta.prev_events.iter().copied())? {
        meta.flags |= flag::STATE_PARTIAL;
    }
    let mut next = site.next;
    let number = EventNumber(next.event);
    next.event = next.event.checked_add(1).ok_or(Error::Full)?;
    let turn = gathered.awaited.as_ref().map(|awaited| {
        let target = awaited.number.unwrap_or(EventNumber(next.event));
        next.event = next.event.max(target.0.saturating_add(1));
        meta.redacts = Some(target);
        redacting(head, (number, &pdu.event_id), (target, awaited.id.clone()))
    });
    let mut state = None;
    let mut memberships = Vec::new();
    if let Some((key, current)) = &gathered.state {
        let parents = &meta.auth_states;
        let numbered = place::number_state(source, number, key, &mut next, parents)?;
        let rows = place::state_rows(site, (&pdu, numbered), (key, current), &mut next)?;
        meta.flags |= flag::STATE;
        meta.state = Some(rows.state);
        if let Some((root, _)) = rows.root {
            meta.root_after = root;
        }
        if let Some(target) = numbers.target {
            let change = (number, rows.state, &pdu);
            memberships.push(place::membership(site, change, (current, target))?);
        }
        state = Some(rows);
    }
    let unread = match meta.has(flag::HIDDEN) {
        true => unread::Counted::nothing(&head.row),
        false => unread::count(rooms, head, source, &pdu, &mut meta)?,
    };
    let redaction = gathered.redaction.map(|mut redacted| {
        redacted.event.meta.redacted_by = Some(number);
        redacted
    });
    let event = StoredEvent { number, meta, pdu };
    let thread = ThreadChange::by(source, &event)?;
    Ok(Prepared {
        event,
        id,
        state,
        memberships,
        redaction,
        thread,
        unread,
        next,
        turn: turn.map(Box::new),
    })
}

/// Holds an event against the rules.
fn check(
    rooms: &Rooms,
    site: &Site<'_>,
    event: Verified,
    gathered: &Gathered,
) -> Result<Authorized, Error> {
    let fetch = |event_type: &StateEventType, key: &str| {
        let found = gathered
            .auth
            .iter()
            .find(|known| known.event_type == *event_type && known.key == key);
        found.map(|found| Arc::clone(&found.event.pdu))
    };
    let rules = &site.head.rules.authorization;
    if event.event_type == TimelineEventType::RoomMember {
        auth::check_sending(rules, &event, fetch)?;
    }
    let authorized = match site.basis.levels(rooms, site.head, site.source)? {
        Some(levels) => event.authorize_with_levels(rules, &levels, fetch),
        None => event.authorize(rules, fetch),
    };
    Ok(authorized.map_err(|refused| refused.error)?)
}

/// What a redaction leaves behind for an event that has not come: when it comes, it is redacted at once.
fn redacting(
    head: &Head,
    (own, own_id): (EventNumber, &EventId),
    (target, id): (EventNumber, EventKey),
) -> Turn {
    let stub = Stub {
        event: target,
        id,
        redacted_by: Some(own),
    };
    let ends = Ends {
        extremities: vec![(own, own_id.to_owned())],
        root: head.row.root,
        row: head.root,
        is_step: true,
    };
    Turn {
        ends: Some(ends),
        stubs: vec![stub],
        ..Turn::default()
    }
}

/// Refuses what no sender may send in this room, whatever their power.
///
/// # Errors
/// [`Error::Invalid`] for a second create event, and for a creator among the users of the power levels where creators are above them all.
fn check_content(
    rooms: &Rooms,
    head: &Head,
    source: &Source<'_>,
    new: &NewEvent,
) -> Result<(), Error> {
    match new.event_type {
        TimelineEventType::RoomCreate if !head.extremities.is_empty() => {
            Err(Error::Invalid("the room has been created already".into()))
        }
        TimelineEventType::RoomPowerLevels
            if head.rules.authorization.explicitly_privilege_room_creators =>
        {
            let Some(CanonicalJsonValue::Object(users)) = new.content.get("users") else {
                return Ok(());
            };
            let levels = head.levels(rooms, source)?;
            let is_creator = |user: &String| {
                let user = <&UserId>::try_from(user.as_str());
                user.is_ok_and(|user| {
                    levels
                        .as_ref()
                        .is_some_and(|levels| levels.is_creator(user))
                })
            };
            match users.keys().any(is_creator) {
                true => Err(Error::Invalid(
                    "creators are above all power levels and not among their users".into(),
                )),
                false => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

fn gather(
    rooms: &Rooms,
    site: &Site<'_>,
    new: &NewEvent,
    numbers: &Numbers,
) -> Result<Gathered, Error> {
    let (head, source) = (site.head, site.source);
    let implicit_create = head.rules.authorization.room_create_event_id_as_room_id;
    let mut keys = auth_keys(head, new)?;
    if implicit_create && new.event_type != TimelineEventType::RoomCreate {
        keys.push((StateEventType::RoomCreate, String::new()));
    }
    let mut auth = SmallVec::new();
    for (event_type, key) in keys {
        let Some(found) = rooms.state_key(&event_type.to_string(), &key) else {
            continue;
        };
        if let Some((state, event)) = site.state(&found)? {
            let is_implicit = implicit_create && event_type == StateEventType::RoomCreate;
            auth.push(AuthEvent {
                event_type,
                key,
                state,
                event,
                is_implicit,
            });
        }
    }
    let state = match &new.state_key {
        Some(key) => {
            let key = state_key(numbers.event_type, &new.event_type.to_string(), key);
            let current = site.state(&key)?;
            Some((key, current))
        }
        None => None,
    };
    let parent = match relations::relates_to(&new.content) {
        Some((relation, event_id)) => {
            find(head, source, event_id)?.map(|parent| (relation, parent))
        }
        None => None,
    };
    if let Some((relation, parent)) = &parent {
        let kind = (numbers.sender, numbers.event_type);
        relations::check(source, kind, &new.content, (*relation, parent))?;
    }
    let mut awaited = None;
    let redacted = match &new.redacts {
        Some(event_id) if new.event_type == TimelineEventType::RoomRedaction => {
            let target = find(head, source, event_id)?;
            // Other servers may have what never came here: whoever may redact anything may redact that.
            if target.is_none() {
                if !levels(head, &auth)?.may_redact_others(&new.sender) {
                    return Err(Error::NotFound);
                }
                awaited = Awaited::new(head, source, event_id)?;
            }
            target
        }
        _ => None,
    };
    let redaction = match &redacted {
        Some(target) => redaction(head, source, new, &auth, target)?,
        None => None,
    };
    Ok(Gathered {
        auth,
        parent,
        redacted: redacted.map(|target| target.number),
        redaction,
        awaited,
        state,
    })
}

impl Awaited {
    /// `None` for what cannot be an event of this room.
    fn new(head: &Head, source: &Source<'_>, event_id: &EventId) -> Result<Option<Self>, Error> {
        let (id, number) = (EventKey::of(event_id), source.event_number(event_id)?);
        if !version::is_event_id(event_id, head.rules)
            || number.is_none() && event::place(source.snapshot()?, &id)?.is_some()
        {
            return Ok(None);
        }
        Ok(Some(Self { id, number }))
    }
}

/// What the redaction of `target` makes of it; nothing if it is redacted already.
fn redaction(
    head: &Head,
    source: &Source<'_>,
    new: &NewEvent,
    auth: &[AuthEvent],
    target: &StoredEvent,
) -> Result<Option<Redacted>, Error> {
    redact::check(&new.sender, &levels(head, auth)?, target)?;
    if target.meta.has(flag::REDACTED) {
        return Ok(None);
    }
    let mut redacted = redact::redacted(target, head.rules)?;
    redacted.thread = ThreadChange::without(source, target)?;
    Ok(Some(redacted))
}

/// The power levels among the events that authorize another.
fn levels(head: &Head, auth: &[AuthEvent]) -> Result<PowerLevels, Error> {
    let found = |event_type: &StateEventType| {
        let known = auth
            .iter()
            .find(|known| known.event_type == *event_type && known.key.is_empty());
        known.map(|known| &*known.event.pdu)
    };
    let create = found(&StateEventType::RoomCreate).ok_or(Error::NotFound)?;
    let levels = found(&StateEventType::RoomPowerLevels);
    Ok(PowerLevels::new(&head.rules.authorization, levels, create))
}

/// The keys of the state that authorizes an event.
fn auth_keys(head: &Head, new: &NewEvent) -> Result<Vec<(StateEventType, String)>, Error> {
    // Only the content of memberships matters here; others are spared being written out.
    let content = if new.event_type == TimelineEventType::RoomMember {
        raw(&new.content)?
    } else {
        empty()?
    };
    let rules = &head.rules.authorization;
    Ok(auth::selection(
        rules,
        &new.event_type,
        &new.sender,
        new.state_key.as_deref(),
        &content,
    ))
}

fn raw(content: &CanonicalJsonObject) -> Result<Box<RawValue>, Error> {
    serde_json::value::to_raw_value(content)
        .map_err(|_malformed| Error::Invalid("the content is not JSON".into()))
}

fn empty() -> Result<Box<RawValue>, Error> {
    raw(&CanonicalJsonObject::new())
}

/// An event of the room by its ID, unless it is only a stub.
fn find(
    head: &Head,
    source: &Source<'_>,
    event_id: &EventId,
) -> Result<Option<Arc<StoredEvent>>, Error> {
    debug_assert_eq!(head.room, source.room);
    match source.event_number(event_id)? {
        Some(number) => source.event(number),
        None => Ok(None),
    }
}

fn build(
    head: &Head,
    source: &Source<'_>,
    cited: &[&(EventNumber, OwnedEventId)],
    (new, timestamp): (&NewEvent, MilliSecondsSinceUnixEpoch),
    gathered: &Gathered,
) -> Result<Verified, Error> {
    let rooms = source.rooms;
    let is_create = new.event_type == TimelineEventType::RoomCreate;
    let auth_events: SmallVec<[&Pdu; 6]> = gathered.cited().map(|auth| &*auth.event.pdu).collect();
    let named = rooms.named_after(
        head.rules,
        source,
        cited.iter().map(|(number, _)| *number),
        &auth_events,
    )?;
    let new = NewPdu {
        room_id: (!(is_create && head.rules.authorization.room_create_event_id_as_room_id))
            .then(|| head.room_id.clone()),
        sender: new.sender.clone(),
        event_type: new.event_type.clone(),
        state_key: new.state_key.clone(),
        content: new.content.clone(),
        origin_server_ts: timestamp,
        depth: head.row.max_depth.saturating_add(1).min(MAX_DEPTH),
        prev_events: cited.iter().map(|(_, event_id)| event_id.clone()).collect(),
        auth_events: auth_events
            .iter()
            .map(|event| event.event_id.clone())
            .collect(),
        redacts: new.redacts.clone(),
        named,
    };
    Ok(rooms.signer.build(new, head.rules)?)
}

/// The room ID that a create event gives its room, from version 12 on.
pub(in crate::rooms) fn room_id_of(
    rooms: &Rooms,
    head: &Head,
    create: &NewEvent,
) -> Result<OwnedRoomId, Error> {
    let nothing = Gathered {
        auth: SmallVec::new(),
        parent: None,
        redacted: None,
        redaction: None,
        awaited: None,
        state: None,
    };
    let timestamp = create
        .timestamp
        .unwrap_or_else(|| milliseconds(rooms.clock.now_ms()));
    let source = head.source(rooms, None);
    let pdu = build(head, &source, &[], (create, timestamp), &nothing)?;
    let hash = pdu.event_id.as_str().trim_start_matches('$');
    RoomId::parse(format!("!{hash}")).map_err(|_invalid| Error::UnsupportedVersion)
}

fn meta(
    rooms: &Rooms,
    site: &Site<'_>,
    pdu: &Pdu,
    numbers: &Numbers,
    gathered: &Gathered,
) -> EventMeta {
    let mut meta = EventMeta {
        flags: flag::LOCAL,
        event_type: numbers.event_type,
        sender: numbers.sender,
        timestamp: u64::from(pdu.origin_server_ts.0),
        received: rooms.clock.now_ms(),
        root_before: site.basis.root,
        root_after: site.basis.root,
        index: site.head.row.high + 1,
        depth: pdu.depth,
        auth_states: gathered.cited().map(|auth| auth.state).collect(),
        relation: gathered
            .parent
            .as_ref()
            .map(|(relation, parent)| (*relation, parent.number)),
        redacts: gathered.redacted,
        ..EventMeta::default()
    };
    if let Some((relation, parent)) = &gathered.parent {
        meta.thread_root = place::thread_root(*relation, parent);
    }
    if numbers.event_type == TypeNumber::ENCRYPTED {
        meta.flags |= flag::ENCRYPTED;
    }
    if numbers.event_type == TypeNumber::MERGE && !pdu.is_state() {
        let row = &site.head.row;
        meta.flags |= flag::HIDDEN;
        meta.index = row.high;
        meta.ord_all = row.ord_all;
        meta.ord_thread = row.ord_main;
        meta.ord_room = row.ord_room;
    }
    meta
}

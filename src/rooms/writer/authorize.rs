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

use crate::rooms::{
    Class, Error, NewEvent, Relation, Rooms, ServerNumber, StoredEvent, TypeNumber,
    event::{EventHash, EventMeta, flag, hash_of},
    head::Head,
    membership::MembershipChange,
    membership_of, milliseconds,
    redact::{self, Redacted},
    relations,
    state::{GraphRow, RootRow, Source, StateKey, StateRows, state_key},
    threads::ThreadChange,
    unread,
};
use crate::{
    accounts::UserNumber,
    events::{
        EventNumber, NewPdu, NodeNumber, Pdu, PowerLevels, StateNumber, Verified, auth, trie,
    },
};

/// Forward extremities that an event cites at most.
const MAX_PREV_EVENTS: usize = 10;
/// The largest depth that canonical JSON can hold.
const MAX_DEPTH: u64 = (1 << 53) - 1;

/// An event that passed all checks, with everything that `append` writes of it.
pub(super) struct Authorized {
    pub(super) event: StoredEvent,
    pub(super) hash: EventHash,
    pub(super) state: Option<StateRows>,
    pub(super) membership: Option<MembershipChange>,
    /// The event that this one redacts, as it is from now on.
    pub(super) redaction: Option<Redacted>,
    /// What it changes about the thread that it is said in.
    pub(super) thread: Option<ThreadChange>,
    pub(super) unread: unread::Counted,
}

/// Numbers given out before: of the sender, the type, and the user whose membership the event is.
pub(super) struct Numbers {
    pub(super) sender: UserNumber,
    pub(super) event_type: TypeNumber,
    pub(super) target: Option<Target>,
}

/// The user whose membership an event is.
#[derive(Clone, Copy)]
pub(super) struct Target {
    pub(super) user: UserNumber,
    pub(super) server: ServerNumber,
    pub(super) is_local: bool,
}

/// A state event of the state before, with its number.
type Current = Option<(StateNumber, Arc<StoredEvent>)>;

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
    /// Of a state event: its key, and the event that it replaces.
    state: Option<(StateKey, Current)>,
}

impl Gathered {
    /// The auth events that the event names.
    fn cited(&self) -> impl Iterator<Item = &AuthEvent> {
        self.auth.iter().filter(|auth| !auth.is_implicit)
    }
}

/// Reads what the event needs, builds and signs it, checks it against the current state.
pub(super) fn authorize(
    rooms: &Rooms,
    head: &Head,
    source: &Source<'_>,
    new: &NewEvent,
    numbers: &Numbers,
) -> Result<Authorized, Error> {
    check_content(rooms, head, source, new)?;
    let gathered = gather(rooms, head, source, new, numbers)?;
    let timestamp = new
        .timestamp
        .unwrap_or_else(|| milliseconds(rooms.clock.now_ms()));
    let event = build(rooms, head, new, timestamp, &gathered)?;
    let fetch = |event_type: &StateEventType, key: &str| {
        let found = gathered
            .auth
            .iter()
            .find(|known| known.event_type == *event_type && known.key == key);
        found.map(|found| Arc::clone(&found.event.pdu))
    };
    if new.event_type == TimelineEventType::RoomMember {
        auth::check_sending(&head.rules.authorization, &event, fetch)?;
    }
    let rules = &head.rules.authorization;
    let authorized = match head.levels(rooms, source)? {
        Some(levels) => event.authorize_with_levels(rules, &levels, fetch),
        None => event.authorize(rules, fetch),
    };
    let event = authorized.map_err(|refused| refused.error)?;
    let pdu = Arc::new(event.into_pdu());
    let hash = hash_of(&pdu.event_id).ok_or(Error::UnsupportedVersion)?;
    let mut meta = meta(rooms, head, &pdu, numbers, &gathered);
    let mut state = None;
    let mut membership = None;
    if let Some((key, current)) = &gathered.state {
        let rows = state_rows(
            rooms,
            head,
            source,
            &pdu,
            (key, current),
            meta.auth_states.clone(),
        )?;
        meta.flags |= flag::STATE;
        meta.state = Some(rows.state);
        if let Some((root, _)) = rows.root {
            meta.root_after = root;
        }
        if let Some(target) = numbers.target {
            membership = Some(membership_change(
                rooms,
                head,
                source,
                &pdu,
                (current, target),
            )?);
        }
        state = Some(rows);
    }
    let unread = unread::count(rooms, head, source, &pdu, &mut meta)?;
    let number = head.next_event();
    let redaction = gathered.redaction.map(|mut redacted| {
        redacted.event.meta.redacted_by = Some(number);
        redacted
    });
    let event = StoredEvent { number, meta, pdu };
    let thread = ThreadChange::by(source, &event)?;
    Ok(Authorized {
        event,
        hash,
        state,
        membership,
        redaction,
        thread,
        unread,
    })
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
    head: &Head,
    source: &Source<'_>,
    new: &NewEvent,
    numbers: &Numbers,
) -> Result<Gathered, Error> {
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
        if let Some((state, event)) = head.state(source, &found)? {
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
            let current = head.state(source, &key)?;
            Some((key, current))
        }
        None => None,
    };
    let parent = match relates_to(&new.content) {
        Some((relation, event_id)) => {
            find(head, source, event_id)?.map(|parent| (relation, parent))
        }
        None => None,
    };
    if let Some((relation, parent)) = &parent {
        let kind = (numbers.sender, numbers.event_type);
        relations::check(source, kind, &new.content, (*relation, parent))?;
    }
    let redacted = match &new.redacts {
        Some(event_id) if new.event_type == TimelineEventType::RoomRedaction => {
            Some(find(head, source, event_id)?.ok_or(Error::NotFound)?)
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
        state,
    })
}

/// What the redaction of `target` makes of it; nothing if it is redacted already.
fn redaction(
    head: &Head,
    source: &Source<'_>,
    new: &NewEvent,
    auth: &[AuthEvent],
    target: &StoredEvent,
) -> Result<Option<Redacted>, Error> {
    let found = |event_type: &StateEventType| {
        let known = auth
            .iter()
            .find(|known| known.event_type == *event_type && known.key.is_empty());
        known.map(|known| &*known.event.pdu)
    };
    let create = found(&StateEventType::RoomCreate).ok_or(Error::NotFound)?;
    let levels = found(&StateEventType::RoomPowerLevels);
    let levels = PowerLevels::new(&head.rules.authorization, levels, create);
    redact::check(&new.sender, &levels, target)?;
    if target.meta.has(flag::REDACTED) {
        return Ok(None);
    }
    let mut redacted = redact::redacted(target, head.rules)?;
    redacted.thread = ThreadChange::without(source, target)?;
    Ok(Some(redacted))
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

/// The relation of an event's content and the ID of the event it points at.
///
/// Spec: c2s, "Forming relationships between events".
fn relates_to(content: &CanonicalJsonObject) -> Option<(Relation, &EventId)> {
    let CanonicalJsonValue::Object(relates_to) = content.get("m.relates_to")? else {
        return None;
    };
    let CanonicalJsonValue::String(rel_type) = relates_to.get("rel_type")? else {
        return None;
    };
    let CanonicalJsonValue::String(event_id) = relates_to.get("event_id")? else {
        return None;
    };
    let event_id = <&EventId>::try_from(event_id.as_str()).ok()?;
    Some((Relation::of(rel_type), event_id))
}

/// The forward extremities that the next event cites: the newest.
fn cited(head: &Head) -> impl Iterator<Item = &(EventNumber, OwnedEventId)> {
    head.extremities.iter().rev().take(MAX_PREV_EVENTS)
}

fn build(
    rooms: &Rooms,
    head: &Head,
    new: &NewEvent,
    timestamp: MilliSecondsSinceUnixEpoch,
    gathered: &Gathered,
) -> Result<Verified, Error> {
    let is_create = new.event_type == TimelineEventType::RoomCreate;
    let new = NewPdu {
        room_id: (!(is_create && head.rules.authorization.room_create_event_id_as_room_id))
            .then(|| head.room_id.clone()),
        sender: new.sender.clone(),
        event_type: new.event_type.clone(),
        state_key: new.state_key.clone(),
        content: new.content.clone(),
        origin_server_ts: timestamp,
        depth: head.row.max_depth.saturating_add(1).min(MAX_DEPTH),
        prev_events: cited(head).map(|(_, event_id)| event_id.clone()).collect(),
        auth_events: gathered
            .cited()
            .map(|auth| auth.event.pdu.event_id.clone())
            .collect(),
        redacts: new.redacts.clone(),
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
        state: None,
    };
    let timestamp = create
        .timestamp
        .unwrap_or_else(|| milliseconds(rooms.clock.now_ms()));
    let pdu = build(rooms, head, create, timestamp, &nothing)?;
    let hash = pdu.event_id.as_str().trim_start_matches('$');
    RoomId::parse(format!("!{hash}")).map_err(|_invalid| Error::UnsupportedVersion)
}

fn meta(
    rooms: &Rooms,
    head: &Head,
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
        root_before: head.row.root,
        root_after: head.row.root,
        index: head.row.high + 1,
        depth: pdu.depth,
        prev_events: cited(head).map(|(number, _)| *number).collect(),
        auth_states: gathered.cited().map(|auth| auth.state).collect(),
        relation: gathered
            .parent
            .as_ref()
            .map(|(relation, parent)| (*relation, parent.number)),
        redacts: gathered.redacted,
        ..EventMeta::default()
    };
    if let Some((relation, parent)) = &gathered.parent {
        // What relates to an event of a thread belongs to the thread as well.
        meta.thread_root = match relation {
            Relation::Thread => Some(parent.meta.thread_root.unwrap_or(parent.number)),
            _ => parent.meta.thread_root,
        };
    }
    if numbers.event_type == TypeNumber::ENCRYPTED {
        meta.flags |= flag::ENCRYPTED;
    }
    meta
}

/// The rows of a state event that replaces `current` at `key`.
fn state_rows(
    rooms: &Rooms,
    head: &Head,
    source: &Source<'_>,
    pdu: &Pdu,
    (key, current): (&StateKey, &Current),
    parents: SmallVec<[StateNumber; 4]>,
) -> Result<StateRows, Error> {
    let known_key = source.key_number(key)?;
    let number = known_key.unwrap_or_else(|| head.next_key());
    let state = head.next_state();
    let before = head.root.node(key.event_type);
    let edited = trie::edit(source, before, &[(number, Some(state))], head.next_node())?;
    let mut root = head.root;
    root.replace(rooms, pdu, (key, current), edited.root)?;
    let nodes = edited
        .nodes
        .into_iter()
        .map(|(number, node)| (number, Arc::new(node)))
        .collect();
    Ok(StateRows {
        state,
        graph: GraphRow {
            event: head.next_event(),
            key: number,
            flags: 0,
            parents,
        },
        key: key.clone(),
        is_new_key: known_key.is_none(),
        nodes,
        root: Some((head.next_root(), root)),
    })
}

impl RootRow {
    /// Puts an event in the place of `current`; `node` is the trie of its type afterwards.
    fn replace(
        &mut self,
        rooms: &Rooms,
        pdu: &Pdu,
        (key, current): (&StateKey, &Current),
        node: NodeNumber,
    ) -> Result<(), Error> {
        let event_type = StateEventType::from(pdu.event_type.to_string());
        let state_key = pdu.state_key.as_deref().unwrap_or_default();
        let print = |event_id: &EventId| {
            rooms
                .fingerprint_key
                .entry(&event_type, state_key, event_id)
        };
        if let Some((_, current)) = current {
            self.fingerprint = self.fingerprint.without(print(&current.pdu.event_id));
        }
        self.fingerprint = self.fingerprint.with(print(&pdu.event_id));
        let added = u64::from(current.is_none());
        if key.event_type != TypeNumber::MEMBER {
            self.core = node;
            self.core_count += added;
            return Ok(());
        }
        self.members = node;
        self.member_count += added;
        let before = current
            .as_ref()
            .map(|(_, event)| Class::of(&membership_of(event)));
        let after = class_of(pdu);
        for (count, class) in [
            (&mut self.joined, Class::Join),
            (&mut self.invited, Class::Invite),
        ] {
            *count = count
                .saturating_add(u64::from(after == class))
                .saturating_sub(u64::from(before == Some(class)));
        }
        Ok(())
    }
}

/// The class of a membership event.
fn class_of(pdu: &Pdu) -> Class {
    #[derive(serde::Deserialize)]
    struct Content {
        membership: ruma::events::room::member::MembershipState,
    }
    pdu.content_as::<Content>()
        .map_or(Class::Leave, |content| Class::of(&content.membership))
}

fn membership_change(
    rooms: &Rooms,
    head: &Head,
    source: &Source<'_>,
    pdu: &Pdu,
    (current, target): (&Current, Target),
) -> Result<MembershipChange, Error> {
    let after = class_of(pdu);
    let shown = target.is_local && matches!(after, Class::Invite | Class::Knock);
    Ok(MembershipChange {
        user: target.user,
        is_local: target.is_local,
        server: target.server,
        before: current
            .as_ref()
            .map(|(_, event)| Class::of(&membership_of(event))),
        after,
        event: head.next_event(),
        state: head.next_state(),
        stripped: if shown {
            Some(stripped(rooms, head, source, pdu)?)
        } else {
            None
        },
    })
}

/// State that an invited or knocking user is shown.
///
/// Spec: c2s, "Stripped state".
const STRIPPED_TYPES: &[&str] = &[
    "m.room.create",
    "m.room.name",
    "m.room.avatar",
    "m.room.topic",
    "m.room.join_rules",
    "m.room.canonical_alias",
    "m.room.encryption",
];

/// The stripped state as a JSON array: the room's, the sender's membership, and the event itself.
fn stripped(rooms: &Rooms, head: &Head, source: &Source<'_>, pdu: &Pdu) -> Result<String, Error> {
    let mut events = Vec::new();
    for event_type in STRIPPED_TYPES {
        let Some(key) = rooms.state_key(event_type, "") else {
            continue;
        };
        if let Some((_, event)) = head.state(source, &key)? {
            events.push(event);
        }
    }
    if pdu.state_key.as_deref() != Some(pdu.sender.as_str())
        && let Some(key) = rooms.state_key("m.room.member", pdu.sender.as_str())
        && let Some((_, event)) = head.state(source, &key)?
    {
        events.push(event);
    }
    let events = events.iter().map(|event| &*event.pdu).chain([pdu]);
    let shown: Vec<_> = events.map(stripped_event).collect();
    serde_json::to_string(&shown)
        .map_err(|_malformed| Error::Invalid("the content is not JSON".into()))
}

#[derive(serde::Serialize)]
struct StrippedEvent<'a> {
    content: &'a RawValue,
    sender: &'a UserId,
    state_key: &'a str,
    #[serde(rename = "type")]
    event_type: String,
}

fn stripped_event(pdu: &Pdu) -> StrippedEvent<'_> {
    StrippedEvent {
        content: &pdu.content,
        sender: &pdu.sender,
        state_key: pdu.state_key.as_deref().unwrap_or_default(),
        event_type: pdu.event_type.to_string(),
    }
}

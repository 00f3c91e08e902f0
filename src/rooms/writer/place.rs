//! Where an event stands: the state before and after it, and what the room is once it belongs to it.
//!
//! The same for events of our own and of others. What is usual costs nothing here: an event that cites every forward
//! extremity and comes after the current state is the only extremity, and the state after it is the current one.

use std::{collections::BTreeSet, sync::Arc};

use ruma::{EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, UserId, events::TimelineEventType};
use serde_json::value::RawValue;
use smallvec::SmallVec;

use crate::rooms::{
    Class, Error, Relation, Rooms, ServerNumber, StoredEvent, TypeNumber,
    draft::{Counters, Draft, Entry, Made},
    event::{EventKey, flag},
    gaps::GapRow,
    head::Head,
    membership::{MembershipChange, class_of},
    partial::Noted,
    redact::Redacted,
    resolution::{self, Root},
    state::{GraphRow, RootRow, Source, StateKey, StateRows},
    stubs::Stub,
    threads::ThreadChange,
    unread,
};
use crate::{
    accounts::UserNumber,
    events::{
        EventNumber, NodeNumber, Pdu, PowerLevels, RootNumber, StateKeyNumber, StateNumber,
        extremities, trie,
    },
};

/// An event that passed what it must pass, with everything that `append` writes of it.
pub(in crate::rooms) struct Prepared {
    pub(in crate::rooms) event: StoredEvent,
    pub(in crate::rooms) id: EventKey,
    pub(in crate::rooms) state: Option<StateRows>,
    /// What changes in the current state.
    pub(in crate::rooms) memberships: Vec<MembershipChange>,
    /// The event that this one redacts, as it is from now on.
    pub(in crate::rooms) redaction: Option<Redacted>,
    /// What it changes about the thread that it is said in.
    pub(in crate::rooms) thread: Option<ThreadChange>,
    pub(in crate::rooms) unread: unread::Counted,
    /// The free numbers afterwards.
    pub(in crate::rooms) next: Counters,
    /// Of an event that is not simply the next one, on top of all others.
    pub(in crate::rooms) turn: Option<Box<Turn>>,
}

/// What is special about an event.
#[derive(Default)]
pub(in crate::rooms) struct Turn {
    /// `None`: extremities and current state stay as they are.
    pub(in crate::rooms) ends: Option<Ends>,
    pub(in crate::rooms) made: Made,
    /// Events that it mentions and that are not known.
    pub(in crate::rooms) stubs: Vec<Stub>,
    pub(in crate::rooms) was: Was,
    /// What is missing before it.
    pub(in crate::rooms) gap: Option<GapRow>,
    /// With it this server comes to the room: what was before it is given up.
    pub(in crate::rooms) takes_up: bool,
    /// It is to be judged again when the room is partial no more.
    pub(in crate::rooms) noted: Option<Noted>,
}

/// What was known of an event before it came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::rooms) enum Was {
    #[default]
    Unknown,
    Stub,
    Outlier,
}

/// What the room is after an event.
pub(in crate::rooms) struct Ends {
    pub(in crate::rooms) extremities: Vec<(EventNumber, OwnedEventId)>,
    pub(in crate::rooms) root: RootNumber,
    pub(in crate::rooms) row: RootRow,
    /// The current state is that before with this event in its place, or the same.
    pub(in crate::rooms) is_step: bool,
}

impl Prepared {
    /// Takes over what a draft has made for it.
    pub(in crate::rooms) fn with(mut self, draft: Draft) -> Self {
        let (made, counters) = draft.into_made();
        self.turn.get_or_insert_default().made = made;
        self.next = counters;
        self
    }
}

/// Numbers given out before: of the sender, the type, and the user whose membership the event is.
#[derive(Clone, Copy)]
pub(in crate::rooms) struct Numbers {
    pub(in crate::rooms) sender: UserNumber,
    pub(in crate::rooms) event_type: TypeNumber,
    pub(in crate::rooms) target: Option<Target>,
}

/// The user whose membership an event is.
#[derive(Clone, Copy)]
pub(in crate::rooms) struct Target {
    pub(in crate::rooms) user: UserNumber,
    pub(in crate::rooms) server: ServerNumber,
    pub(in crate::rooms) is_local: bool,
}

/// A state event of the state before, with its number.
pub(in crate::rooms) type Current = Option<(StateNumber, Arc<StoredEvent>)>;

/// The state before an event.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::rooms) struct Basis {
    pub(in crate::rooms) root: RootNumber,
    pub(in crate::rooms) row: RootRow,
}

impl From<Root> for Basis {
    fn from((root, row): Root) -> Self {
        Self { root, row }
    }
}

impl Basis {
    pub(in crate::rooms) fn current(head: &Head) -> Self {
        (head.row.root, head.root).into()
    }

    /// The state after several events.
    pub(in crate::rooms) fn after(
        head: &Head,
        source: &Source<'_>,
        draft: &Draft,
        ends: &[EventNumber],
    ) -> Result<Self, Error> {
        let mut roots = Vec::with_capacity(ends.len());
        for end in ends {
            roots.push(event(source, *end)?.meta.root_after);
        }
        resolution::resolve(head, source, draft, &roots).map(Self::from)
    }

    pub(in crate::rooms) fn is_current(&self, head: &Head) -> bool {
        self.root == head.row.root
    }

    pub(in crate::rooms) fn state(
        &self,
        head: &Head,
        source: &Source<'_>,
        key: &StateKey,
    ) -> Result<Current, Error> {
        match self.is_current(head) {
            true => head.state(source, key),
            false => source.state(&self.row, key),
        }
    }

    /// `None` before the room has a create event.
    pub(in crate::rooms) fn levels(
        &self,
        rooms: &Rooms,
        head: &Head,
        source: &Source<'_>,
    ) -> Result<Option<Arc<PowerLevels>>, Error> {
        match self.is_current(head) {
            true => head.levels(rooms, source),
            false => {
                let levels = head.levels_of(rooms, |key| source.state(&self.row, key))?;
                Ok(levels.map(Arc::new))
            }
        }
    }
}

/// Where an event is put.
pub(in crate::rooms) struct Site<'a> {
    pub(in crate::rooms) head: &'a Head,
    pub(in crate::rooms) source: &'a Source<'a>,
    pub(in crate::rooms) basis: Basis,
    /// The free numbers.
    pub(in crate::rooms) next: Counters,
}

impl Site<'_> {
    pub(in crate::rooms) fn state(&self, key: &StateKey) -> Result<Current, Error> {
        self.basis.state(self.head, self.source, key)
    }
}

/// An event that the room has.
pub(in crate::rooms) fn event(
    source: &Source<'_>,
    number: EventNumber,
) -> Result<Arc<StoredEvent>, Error> {
    let event = source.event(number)?;
    event.ok_or_else(|| Error::corrupt("bodies", "an event of the graph is missing"))
}

/// What relates to an event of a thread belongs to the thread as well.
pub(in crate::rooms) fn thread_root(
    relation: Relation,
    parent: &StoredEvent,
) -> Option<EventNumber> {
    match relation {
        Relation::Thread => Some(parent.meta.thread_root.unwrap_or(parent.number)),
        _ => parent.meta.thread_root,
    }
}

/// A state event with its numbers.
pub(in crate::rooms) struct Numbered {
    pub(in crate::rooms) state: StateNumber,
    pub(in crate::rooms) row: GraphRow,
    is_new: bool,
    is_new_key: bool,
}

/// Numbers a state event that had no number before.
pub(in crate::rooms) fn number_state(
    source: &Source<'_>,
    event: EventNumber,
    key: &StateKey,
    next: &mut Counters,
    parents: &SmallVec<[StateNumber; 4]>,
) -> Result<Numbered, Error> {
    let known_key = source.key_number(key)?;
    let row = GraphRow {
        event,
        key: known_key.unwrap_or(StateKeyNumber(next.key)),
        flags: 0,
        parents: parents.clone(),
    };
    let state = StateNumber(next.state);
    next.state = next.state.checked_add(1).ok_or(Error::Full)?;
    if known_key.is_none() {
        next.key = next.key.checked_add(1).ok_or(Error::Full)?;
    }
    Ok(Numbered {
        state,
        row,
        is_new: true,
        is_new_key: known_key.is_none(),
    })
}

impl Numbered {
    /// A state event that was stored before.
    pub(in crate::rooms) fn known(state: StateNumber, row: GraphRow) -> Self {
        Self {
            state,
            row,
            is_new: false,
            is_new_key: false,
        }
    }

    /// The rows of an event that does not change the state.
    pub(in crate::rooms) fn unapplied(self, key: &StateKey) -> StateRows {
        StateRows {
            state: self.state,
            graph: self.row,
            key: key.clone(),
            is_new: self.is_new,
            is_new_key: self.is_new_key,
            nodes: Vec::new(),
            root: None,
        }
    }
}

/// The rows of a state event that replaces `current` at `key`.
pub(in crate::rooms) fn state_rows(
    site: &Site<'_>,
    (pdu, numbered): (&Pdu, Numbered),
    (key, current): (&StateKey, &Current),
    next: &mut Counters,
) -> Result<StateRows, Error> {
    let rooms = site.source.rooms;
    let is_member = key.event_type == TypeNumber::MEMBER;
    let mut rows = numbered.unapplied(key);
    let before = site.basis.row.node(key.event_type);
    let change = (rows.graph.key, Some(rows.state));
    let edited = trie::edit(site.source, before, &[change], NodeNumber(next.node))?;
    let mut root = site.basis.row;
    let node = match is_member {
        true => &mut root.members,
        false => &mut root.core,
    };
    *node = edited.root;
    let replaced = current
        .as_ref()
        .map(|(_, event)| Entry::of(rooms, key.event_type, &event.pdu));
    let entry = Entry::of(rooms, key.event_type, pdu);
    root.count(is_member, replaced, Some(entry));
    for (number, node) in edited.nodes {
        next.node = number.0.checked_add(1).ok_or(Error::Full)?;
        rows.nodes.push((number, Arc::new(node)));
    }
    rows.root = Some((RootNumber(next.root), root));
    next.root = next.root.checked_add(1).ok_or(Error::Full)?;
    Ok(rows)
}

/// The previous events of an event that was rejected or soft-failed; `None` for others.
pub(in crate::rooms) fn behind(
    source: &Source<'_>,
    number: EventNumber,
) -> Result<Option<Vec<EventNumber>>, Error> {
    let passed = source.event(number)?.filter(|event| {
        let refused = event.meta.is_rejected() || event.meta.has(flag::SOFT_FAILED);
        refused && !event.meta.has(flag::OUTLIER)
    });
    Ok(passed.map(|passed| passed.meta.prev_events.to_vec()))
}

/// What the room is after some events that did not come last of all, and the memberships that change by that. They are its
/// extremities, in the order in which their IDs are given.
pub(in crate::rooms) fn ends_beside(
    head: &Head,
    source: &Source<'_>,
    draft: &Draft,
    (numbers, extremities): (&[EventNumber], Vec<(EventNumber, OwnedEventId)>),
) -> Result<(Ends, Vec<MembershipChange>), Error> {
    let Basis { root, row } = Basis::after(head, source, draft, numbers)?;
    let memberships = memberships(source, (&head.root, &row))?;
    let ends = Ends {
        extremities,
        root,
        row,
        is_step: false,
    };
    Ok((ends, memberships))
}

/// What the room is once an accepted event belongs to it, which the draft holds.
pub(in crate::rooms) fn ends(
    head: &Head,
    source: &Source<'_>,
    draft: &Draft,
    event: &StoredEvent,
) -> Result<Ends, Error> {
    let own = (event.number, event.pdu.event_id.clone());
    let cites = |(end, _): &(EventNumber, OwnedEventId)| event.meta.prev_events.contains(end);
    if head.extremities.iter().all(cites) {
        let root = event.meta.root_after;
        return Ok(Ends {
            extremities: vec![own],
            root,
            row: match root == head.row.root {
                true => head.root,
                false => source.root(root)?,
            },
            is_step: event.meta.root_before == head.row.root,
        });
    }
    let before: BTreeSet<_> = head.extremities.iter().map(|(end, _)| *end).collect();
    let behind = |number| behind(source, number);
    let after = extremities::after(&before, event.number, &event.meta.prev_events, behind)?;
    let kept = head
        .extremities
        .iter()
        .filter(|(end, _)| after.contains(end));
    let extremities: Vec<_> = kept.cloned().chain([own]).collect();
    let numbers: Vec<_> = extremities.iter().map(|(end, _)| *end).collect();
    let Basis { root, row } = Basis::after(head, source, draft, &numbers)?;
    Ok(Ends {
        extremities,
        root,
        row,
        is_step: false,
    })
}

/// What the room is if nothing counts but this event, which the draft holds.
pub(in crate::rooms) fn only(source: &Source<'_>, event: &StoredEvent) -> Result<Ends, Error> {
    let root = event.meta.root_after;
    Ok(Ends {
        extremities: vec![(event.number, event.pdu.event_id.clone())],
        root,
        row: source.root(root)?,
        is_step: false,
    })
}

/// The change that a membership event is which replaces `current`.
pub(in crate::rooms) fn membership(
    site: &Site<'_>,
    (event, state, pdu): (EventNumber, StateNumber, &Arc<Pdu>),
    (current, target): (&Current, Target),
) -> Result<MembershipChange, Error> {
    let after = class_of(pdu);
    let before = current.as_ref().map(|(_, event)| class_of(&event.pdu));
    let is_shown = target.is_local && matches!(after, Class::Invite | Class::Knock);
    let stripped = match is_shown {
        true => Some(stripped(site.source, pdu, |key| site.state(key))?),
        false => None,
    };
    Ok(MembershipChange {
        user: target.user,
        is_local: target.is_local,
        server: target.server,
        before,
        after: Some(after),
        event,
        state,
        pdu: Arc::clone(pdu),
        stripped,
    })
}

/// The memberships that differ between two states.
pub(in crate::rooms) fn memberships(
    source: &Source<'_>,
    (before, after): (&RootRow, &RootRow),
) -> Result<Vec<MembershipChange>, Error> {
    if before.members == after.members {
        return Ok(Vec::new());
    }
    let differences = trie::diff(source, before.members, after.members)?;
    let mut changes = Vec::with_capacity(differences.len());
    for chunk in differences.chunks(MEMBERS_READ_AT_ONCE) {
        let states = chunk.iter().flat_map(|of| [of.before, of.after]).flatten();
        let states: Vec<_> = states.collect();
        let mut events = source.events_of_states(&states)?.into_iter();
        for difference in chunk {
            let old = difference.before.and_then(|_| events.next());
            let new = difference.after.and_then(|_| events.next());
            let state = difference.after.or(difference.before).unwrap_or_default();
            changes.extend(membership_between(source, after, state, (old, new))?);
        }
    }
    Ok(changes)
}

/// Memberships that are read at once.
const MEMBERS_READ_AT_ONCE: usize = 1_000;

fn membership_between(
    source: &Source<'_>,
    after: &RootRow,
    state: StateNumber,
    (old, new): (Option<Arc<StoredEvent>>, Option<Arc<StoredEvent>>),
) -> Result<Option<MembershipChange>, Error> {
    let Some(event) = new.as_ref().or(old.as_ref()) else {
        return Ok(None);
    };
    let Some(user) = member_of(&event.pdu) else {
        return Ok(None);
    };
    let rooms = source.rooms;
    let number = rooms.accounts.user_number(source.snapshot()?, user)?;
    let is_local = rooms.accounts.is_local(user);
    let class = new.as_ref().map(|event| class_of(&event.pdu));
    let is_shown = is_local && matches!(class, Some(Class::Invite | Class::Knock));
    Ok(Some(MembershipChange {
        user: number.ok_or_else(|| Error::corrupt("user_numbers", "a member has none"))?,
        is_local,
        server: rooms.numbers.intern_server(user.server_name()),
        before: old.as_ref().map(|event| class_of(&event.pdu)),
        after: class,
        event: event.number,
        state,
        pdu: Arc::clone(&event.pdu),
        stripped: match is_shown {
            true => Some(stripped(source, &event.pdu, |key| {
                source.state(after, key)
            })?),
            false => None,
        },
    }))
}

/// The user whose membership an event is.
pub(in crate::rooms) fn member_of(pdu: &Pdu) -> Option<&UserId> {
    <&UserId>::try_from(pdu.state_key.as_deref()?).ok()
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
fn stripped(
    source: &Source<'_>,
    pdu: &Pdu,
    state: impl Fn(&StateKey) -> Result<Current, Error>,
) -> Result<String, Error> {
    let rooms = source.rooms;
    let mut events = Vec::new();
    for event_type in STRIPPED_TYPES {
        let Some(key) = rooms.state_key(event_type, "") else {
            continue;
        };
        if let Some((_, event)) = state(&key)? {
            events.push(event);
        }
    }
    if pdu.state_key.as_deref() != Some(pdu.sender.as_str())
        && let Some(key) = rooms.state_key("m.room.member", pdu.sender.as_str())
        && let Some((_, event)) = state(&key)?
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
    #[serde(flatten)]
    whole: Option<Whole<'a>>,
}

/// What the create event shows besides: the whole event, so that who is invited can see what the room's ID stands for (MSC4311).
#[derive(serde::Serialize)]
struct Whole<'a> {
    event_id: &'a EventId,
    origin_server_ts: MilliSecondsSinceUnixEpoch,
}

fn stripped_event(pdu: &Pdu) -> StrippedEvent<'_> {
    StrippedEvent {
        content: &pdu.content,
        sender: &pdu.sender,
        state_key: pdu.state_key.as_deref().unwrap_or_default(),
        event_type: pdu.event_type.to_string(),
        whole: (pdu.event_type == TimelineEventType::RoomCreate).then(|| Whole {
            event_id: &pdu.event_id,
            origin_server_ts: pdu.origin_server_ts,
        }),
    }
}

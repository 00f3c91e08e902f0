//! What is made while one event is judged, before it belongs to the room: states that had to be resolved, and the numbers
//! taken on the way.
//!
//! A judgment can run twice (in memory first, then with a snapshot) or come to nothing, so it changes nothing of the
//! head: it draws its numbers from a draft, which is taken over when the event is appended and forgotten otherwise.

use std::{
    cell::{Cell, RefCell},
    sync::Arc,
};

use ruma::events::StateEventType;
use smallvec::SmallVec;

use super::{
    Class, Error, Rooms, RootRow, StoredEvent, TypeNumber,
    head::{Head, HeadRow},
    membership::class_of,
    state::{Fresh, Source, StateRows},
    stubs::Stub,
};
use crate::events::{
    Fingerprint, NodeNumber, Pdu, RootNumber, StateKeyNumber, StateNumber,
    trie::{self, Node},
};

/// States that are the resolution of others: these by number, sorted, and the answer.
pub(super) type Resolved = (SmallVec<[RootNumber; 4]>, RootNumber);

/// The free numbers of a room.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counters {
    pub(super) event: u32,
    pub(super) state: u32,
    pub(super) key: u32,
    pub(super) node: u32,
    pub(super) root: u32,
}

impl Counters {
    pub(super) fn of(row: &HeadRow) -> Self {
        Self {
            event: row.next_event,
            state: row.next_state,
            key: row.next_key,
            node: row.next_node,
            root: row.next_root,
        }
    }

    pub(super) fn write(self, row: &mut HeadRow) {
        row.next_event = self.event;
        row.next_state = self.state;
        row.next_key = self.key;
        row.next_node = self.node;
        row.next_root = self.root;
    }
}

/// A judgment in the making.
pub(super) struct Draft {
    /// Where [`Source`] looks.
    pub(super) rows: RefCell<Fresh>,
    counters: Cell<Counters>,
    made: RefCell<Made>,
}

/// What came of a draft, in the order in which it was made.
#[derive(Default)]
pub(super) struct Made {
    pub(super) nodes: Vec<(NodeNumber, Arc<Node>)>,
    pub(super) roots: Vec<(RootNumber, RootRow)>,
    pub(super) resolved: Vec<Resolved>,
}

/// What one event is in a state.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    print: Fingerprint,
    /// Of memberships.
    class: Option<Class>,
}

impl Entry {
    pub(super) fn of(rooms: &Rooms, event_type: TypeNumber, pdu: &Pdu) -> Self {
        let name = StateEventType::from(pdu.event_type.to_string());
        let key = pdu.state_key.as_deref().unwrap_or_default();
        Self {
            print: rooms.fingerprint_key.entry(&name, key, &pdu.event_id),
            class: (event_type == TypeNumber::MEMBER).then(|| class_of(pdu)),
        }
    }
}

/// A key of a state that gets another event, or none.
pub(super) struct Change {
    pub(super) key: StateKeyNumber,
    pub(super) is_member: bool,
    pub(super) before: Option<Entry>,
    pub(super) after: Option<(StateNumber, Entry)>,
}

impl RootRow {
    /// Counts one changed key.
    pub(super) fn count(&mut self, is_member: bool, before: Option<Entry>, after: Option<Entry>) {
        if let Some(before) = before {
            self.fingerprint = self.fingerprint.without(before.print);
        }
        if let Some(after) = after {
            self.fingerprint = self.fingerprint.with(after.print);
        }
        let count = match is_member {
            true => &mut self.member_count,
            false => &mut self.core_count,
        };
        *count = (*count + u64::from(after.is_some())).saturating_sub(u64::from(before.is_some()));
        let class = |entry: Option<Entry>| entry.and_then(|entry| entry.class);
        let (before, after) = (class(before), class(after));
        for (count, class) in [
            (&mut self.joined, Class::Join),
            (&mut self.invited, Class::Invite),
        ] {
            *count = (*count + u64::from(after == Some(class)))
                .saturating_sub(u64::from(before == Some(class)));
        }
    }
}

impl Draft {
    pub(super) fn new(head: &Head) -> Self {
        Self {
            rows: RefCell::default(),
            counters: Cell::new(Counters::of(&head.row)),
            made: RefCell::default(),
        }
    }

    pub(super) fn counters(&self) -> Counters {
        self.counters.get()
    }

    /// Makes an event findable, and goes on after its numbers.
    pub(super) fn add(&self, event: &StoredEvent, state: Option<&StateRows>, next: Counters) {
        self.counters.set(next);
        let mut rows = self.rows.borrow_mut();
        rows.events.insert(event.number, Arc::new(event.clone()));
        let id = event.pdu.event_id.clone();
        rows.event_numbers.insert(id, event.number);
        let Some(state) = state else { return };
        rows.key_numbers.insert(state.key.clone(), state.graph.key);
        rows.graph
            .insert(state.state, Arc::new(state.graph.clone()));
        rows.nodes.extend(state.nodes.iter().cloned());
        rows.roots.extend(state.root);
    }

    /// Makes mentioned events findable.
    pub(super) fn add_stubs(&self, stubs: &[Stub]) {
        self.rows.borrow_mut().add_stubs(stubs);
    }

    /// The state `row` with these changes; not numbered yet.
    pub(super) fn changed(
        &self,
        source: &Source<'_>,
        mut row: RootRow,
        changes: &[Change],
    ) -> Result<RootRow, Error> {
        let edits = |is_member| {
            let part = changes.iter().filter(move |of| of.is_member == is_member);
            part.map(|change| (change.key, change.after.map(|(state, _)| state)))
                .collect::<Vec<_>>()
        };
        row.core = self.edited(source, row.core, &edits(false))?;
        row.members = self.edited(source, row.members, &edits(true))?;
        for change in changes {
            let after = change.after.map(|(_, entry)| entry);
            row.count(change.is_member, change.before, after);
        }
        Ok(row)
    }

    fn edited(
        &self,
        source: &Source<'_>,
        node: NodeNumber,
        edits: &[(StateKeyNumber, Option<StateNumber>)],
    ) -> Result<NodeNumber, Error> {
        if edits.is_empty() {
            return Ok(node);
        }
        let mut counters = self.counters.get();
        let edited = trie::edit(source, node, edits, NodeNumber(counters.node))?;
        let (mut rows, mut made) = (self.rows.borrow_mut(), self.made.borrow_mut());
        for (number, node) in edited.nodes {
            counters.node = number.0 + 1;
            let node = Arc::new(node);
            rows.nodes.insert(number, Arc::clone(&node));
            made.nodes.push((number, node));
        }
        self.counters.set(counters);
        Ok(edited.root)
    }

    /// Numbers a state.
    pub(super) fn add_root(&self, row: RootRow) -> RootNumber {
        let mut counters = self.counters.get();
        let number = RootNumber(counters.root);
        let next = counters.root.checked_add(1);
        counters.root = next.expect("a room has fewer than 2^32 states");
        self.counters.set(counters);
        self.rows.borrow_mut().roots.insert(number, row);
        self.made.borrow_mut().roots.push((number, row));
        number
    }

    /// Remembers what states resolve to.
    pub(super) fn remember(&self, resolved: Resolved) {
        self.made.borrow_mut().resolved.push(resolved);
    }

    /// The answer of an earlier resolution for the same event.
    pub(super) fn remembered(&self, roots: &[RootNumber]) -> Option<RootNumber> {
        let made = self.made.borrow();
        let found = made.resolved.iter().find(|(known, _)| **known == *roots);
        found.map(|(_, root)| *root)
    }

    pub(super) fn into_made(self) -> (Made, Counters) {
        (self.made.into_inner(), self.counters.get())
    }
}

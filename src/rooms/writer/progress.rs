//! How the head of a room moves on: to after an event, and what of it is kept until that is published.

use std::sync::Arc;

use super::{
    LOG_STATE,
    place::{Ends, Prepared, Turn, Was},
};
use crate::{
    events::{EventNumber, RootNumber},
    rooms::{
        StoredEvent,
        draft::Made,
        event::EventKey,
        forks, gaps,
        head::Head,
        membership::MembershipChange,
        state::{self, StateRows},
        stubs,
        threads::ThreadChange,
    },
    storage::{Batch, Topic},
};

impl Head {
    /// Moves the head on to after an event.
    pub(super) fn advance(&mut self, prepared: &Prepared) {
        let (event, unread) = (&prepared.event, &prepared.unread);
        prepared.next.write(&mut self.row);
        match prepared.turn.as_ref().map(|turn| turn.ends.as_ref()) {
            None => {
                let is_cited = |end: &EventNumber| event.meta.prev_events.contains(end);
                self.extremities.retain(|(number, _)| !is_cited(number));
                self.extremities
                    .push((event.number, event.pdu.event_id.clone()));
                if let Some((number, root)) = prepared.state.as_ref().and_then(|state| state.root) {
                    self.set_root(number, root);
                }
            }
            Some(Some(ends)) => {
                self.extremities.clone_from(&ends.extremities);
                self.set_root(ends.root, ends.row);
            }
            Some(None) => {}
        }
        self.set_memberships(&prepared.memberships);
        let row = &mut self.row;
        if event.meta.is_accepted() {
            row.max_depth = row.max_depth.max(event.meta.depth);
        }
        // What is not shown has an index only to leave the room for a gap below it.
        row.high = event.meta.index;
        if !event.meta.is_visible() {
            return;
        }
        if unread.moves_up {
            row.bump = event.meta.index;
        }
        row.ord_all = event.meta.ord_all;
        row.ord_room = event.meta.ord_room;
        row.ord_main = unread.ord_main;
    }

    /// Moves the head on to other ends of the graph, without an event on top of it.
    pub(in crate::rooms) fn set_ends(&mut self, ends: &Ends, memberships: &[MembershipChange]) {
        self.extremities.clone_from(&ends.extremities);
        self.set_root(ends.root, ends.row);
        self.set_memberships(memberships);
        self.forget_state();
    }

    fn set_memberships(&mut self, changes: &[MembershipChange]) {
        self.row.extremities = self.extremities.iter().map(|(number, _)| *number).collect();
        for change in changes.iter().filter(|change| change.is_local) {
            self.row.local = self.row.local.saturating_add_signed(change.joined());
        }
    }

    fn set_root(&mut self, number: RootNumber, root: state::RootRow) {
        self.row.root = number;
        self.row.joined = root.joined;
        self.row.invited = root.invited;
        self.root = root;
    }

    /// Adds what is special about an event; `before` was the current state before it.
    pub(super) fn insert_turn(
        &mut self,
        batch: &mut Batch,
        (event, id): (&StoredEvent, &EventKey),
        turn: &Turn,
        before: RootNumber,
    ) {
        let room = self.room;
        for (number, node) in &turn.made.nodes {
            state::insert_node(batch, room, *number, node);
        }
        for (number, root) in &turn.made.roots {
            state::insert_root(batch, room, *number, root);
        }
        for stub in &turn.stubs {
            stubs::insert(batch, room, stub);
        }
        if turn.was == Was::Stub {
            stubs::remove(batch, room, id);
        }
        if let Some(gap) = &turn.gap {
            // Below what is not shown a gap is all the same: what comes later belongs into it.
            let hidden = i64::from(!event.meta.is_visible());
            gaps::insert(batch, room, event.meta.index + hidden, gap);
        }
        if turn.takes_up {
            self.row.taken_up = event.meta.index;
        }
        if turn.noted.is_some_and(|noted| noted.lacks_members) {
            self.row.partial = true;
        }
        if let Some(ends) = &turn.ends {
            let meta = &event.meta;
            let shown = match meta.is_visible() {
                true => (meta.root_before, meta.root_after),
                false => (before, before),
            };
            self.insert_ends(batch, ends, shown, before);
        }
    }

    /// Notes a step of the current state, from `before`, that is not the one that the timeline shows.
    pub(in crate::rooms) fn insert_ends(
        &mut self,
        batch: &mut Batch,
        ends: &Ends,
        shown: (RootNumber, RootNumber),
        before: RootNumber,
    ) {
        let room = self.room;
        // Where there was no room before nobody knows anything of it.
        if shown != (before, ends.root) && before != RootNumber::default() {
            forks::insert(batch, room, ends.root);
            self.row.forks = self.row.forks.saturating_add(1);
        }
        if ends.root != before && !ends.is_step {
            let mut payload = [0; 12];
            payload[..4].copy_from_slice(&room.0.to_be_bytes());
            payload[4..8].copy_from_slice(&before.0.to_be_bytes());
            payload[8..].copy_from_slice(&ends.root.0.to_be_bytes());
            batch.log(LOG_STATE, &payload);
            batch.wake(Topic::Room(room.0));
        }
    }

    /// Keeps changed threads until they are published.
    pub(super) fn remember_threads(&mut self, changes: [Option<&ThreadChange>; 2]) {
        let [newer, _] = &mut self.fresh;
        for change in changes.into_iter().flatten() {
            newer.threads.insert(change.root(), change.after);
        }
    }

    /// Keeps what was appended until it is published.
    pub(super) fn remember(
        &mut self,
        event: &Arc<StoredEvent>,
        state: Option<StateRows>,
        redacted: Option<&StoredEvent>,
        turn: Option<Box<Turn>>,
    ) {
        let ends = turn.as_ref().map(|turn| turn.ends.as_ref());
        let is_step = |ends: Option<&Ends>| ends.is_some_and(|ends| ends.is_step);
        let is_current = ends.is_none_or(is_step);
        if matches!(ends, Some(Some(ends)) if !ends.is_step) {
            self.forget_state();
        }
        if state.is_some() && is_current {
            self.forget_levels(event.meta.event_type);
        }
        if let Some(redacted) = redacted {
            self.forget_levels(redacted.meta.event_type);
        }
        if let Some(turn) = turn {
            self.remember_turn(*turn);
        }
        let [newer, _] = &mut self.fresh;
        newer.events.insert(event.number, Arc::clone(event));
        newer
            .event_numbers
            .insert(event.pdu.event_id.clone(), event.number);
        if let Some(redacted) = redacted {
            let redacted = Arc::new(redacted.clone());
            for known in self.known.values_mut().flatten() {
                if known.1.number == redacted.number {
                    known.1 = Arc::clone(&redacted);
                }
            }
            newer.events.insert(redacted.number, redacted);
        }
        let Some(state) = state else { return };
        let key = state.key.clone();
        if is_current {
            self.known
                .insert(key.clone(), Some((state.state, Arc::clone(event))));
        }
        newer.key_numbers.insert(key, state.graph.key);
        newer.graph.insert(state.state, Arc::new(state.graph));
        newer.nodes.extend(state.nodes);
        newer.roots.extend(state.root);
    }

    fn remember_turn(&mut self, turn: Turn) {
        self.remember_made(turn.made);
        let [newer, _] = &mut self.fresh;
        newer.add_stubs(&turn.stubs);
    }

    pub(in crate::rooms) fn remember_made(&mut self, made: Made) {
        self.remember_resolved(made.resolved);
        let [newer, _] = &mut self.fresh;
        newer.nodes.extend(made.nodes);
        newer.roots.extend(made.roots);
    }

    /// Keeps an event that changes nothing of what the room is now until it is published.
    pub(in crate::rooms) fn remember_apart(&mut self, prepared: Prepared) {
        if let Some(turn) = prepared.turn {
            self.remember_turn(*turn);
        }
        self.remember_threads([prepared.thread.as_ref(), None]);
        let [newer, _] = &mut self.fresh;
        let event = Arc::new(prepared.event);
        let id = event.pdu.event_id.clone();
        newer.event_numbers.insert(id, event.number);
        newer.events.insert(event.number, event);
        if let Some(redacted) = prepared.redaction {
            let number = redacted.event.number;
            self.forget_state();
            let [newer, _] = &mut self.fresh;
            newer.events.insert(number, Arc::new(redacted.event));
        }
        let Some(state) = prepared.state else { return };
        let [newer, _] = &mut self.fresh;
        newer.key_numbers.insert(state.key, state.graph.key);
        newer.graph.insert(state.state, Arc::new(state.graph));
        newer.nodes.extend(state.nodes);
        newer.roots.extend(state.root);
    }
}

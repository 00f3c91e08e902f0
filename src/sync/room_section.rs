//! The sections of rooms that the reader is or was in.

use std::{collections::BTreeSet, sync::Arc};

use ruma::{OwnedUserId, RoomId};
use serde_json::{Map, Value};

use super::{
    Error, StatePlace, Sync,
    fragment::Key,
    state::StateRange,
    summary::{Summary, write_summary},
    timeline::{Range, Timeline},
    v3::{Scope, View, begin_room, write_data},
};
use crate::{
    accounts::AccountData,
    events::RootNumber,
    rooms::{
        Class, Place, RoomNumber, StoredEvent, UserRoom,
        client_event::{Unsigned, write_event, write_text},
        membership_of,
    },
    storage::Position,
};

/// Own memberships that are walked back to find what the reader was at a moment.
const MAX_MEMBERSHIPS_WALKED: usize = 100;

/// How the reader came to where it is, from what it knows.
#[derive(Debug, Default)]
struct Path {
    /// What the reader was at the moment that it knows.
    before: Option<Class>,
    /// It was not joined at some time since.
    was_away: bool,
    /// The membership that ended the last time that it was joined.
    left_with: Option<Arc<StoredEvent>>,
}

impl Path {
    /// The reader has been joined all the time, so that it knows the room.
    fn is_steady(&self) -> bool {
        self.before == Some(Class::Join) && !self.was_away
    }
}

/// What is written of a room.
#[derive(Default)]
pub(super) struct Section {
    pub(super) timeline: Option<Timeline>,
    pub(super) state: Vec<Arc<StoredEvent>>,
}

impl Sync {
    /// A room that the reader is in.
    pub(super) fn write_joined(
        &self,
        to: &mut Vec<u8>,
        view: &View<'_>,
        (entry, room_id): (&UserRoom, &RoomId),
        mut data: Vec<AccountData>,
    ) -> Result<(), Error> {
        let path = match view.since {
            Some(since) => self.path(view, entry, Some(since.position))?,
            None => Path::default(),
        };
        let known = view.since.filter(|_| path.is_steady());
        // Who is told of all members was not told of the room before they were known.
        let is_untold = match known {
            Some(since) if !view.request.filter.has_lazy_members => {
                self.was_completed_since(view, entry.room, since.position)?
            }
            _ => false,
        };
        let known = known.filter(|_| !is_untold);
        if known.is_none() && view.since.is_some() {
            let (user, room) = (view.request.viewer.user, entry.room.0);
            data = self
                .inner
                .accounts
                .room_account_data(view.snapshot, user, room)?;
        }
        let scope = Scope {
            room: entry.room,
            room_id,
            joined_since: self.joined_since(view, entry)?,
        };
        let mark = to.len();
        begin_room(to, room_id);
        let has_events = self.write_events(to, view, &scope, known.map(|since| since.position))?;
        let has_data = write_room_data(to, view, room_id, &data);
        let has_ephemeral = self.write_ephemeral(to, view, &scope, known)?;
        self.write_unread(to, view, entry.room)?;
        to.push(b'}');
        let has_news = has_events || has_data || has_ephemeral;
        if known.is_none() && view.since.is_some() {
            self.note_members(view, entry.room)?;
        }
        if !has_news && known.is_some() && !view.request.is_full_state {
            to.truncate(mark);
        }
        Ok(())
    }

    /// The index from which on the reader sees everything.
    fn joined_since(&self, view: &View<'_>, entry: &UserRoom) -> Result<Option<i64>, Error> {
        if view.since.is_some() && !view.is_new(entry.position) {
            return Ok(Some(i64::MIN));
        }
        let own = self
            .inner
            .rooms
            .event(view.snapshot, entry.room, entry.event)?;
        Ok(own.map(|own| own.meta.index))
    }

    /// Timeline, state and summary; true if there is any news.
    fn write_events(
        &self,
        to: &mut Vec<u8>,
        view: &View<'_>,
        scope: &Scope<'_>,
        known: Option<Position>,
    ) -> Result<bool, Error> {
        let range = Range {
            room: scope.room,
            since: known.unwrap_or_default(),
            until: i64::MAX,
        };
        let mut timeline = self.timeline(view, scope, range)?;
        if let (Some(timeline), None, Some(_)) = (&mut timeline, known, view.since) {
            // The client may have an older part of the timeline, which this one does not continue.
            timeline.is_limited = true;
        }
        let rooms = &self.inner.rooms;
        let since = known.unwrap_or_default();
        let has_forks = rooms.has_forked_since(view.snapshot, scope.room, since)?;
        if let (Some(timeline), true) = (&mut timeline, has_forks) {
            timeline.after = self.current_root(view, scope.room)?;
            timeline.has_gaps = true;
        }
        let is_whole_now = match known {
            Some(since) => self.was_completed_since(view, scope.room, since)?,
            None => false,
        };
        let key = timeline
            .as_ref()
            .filter(|_| !has_forks && !is_whole_now)
            .and_then(|timeline| self.fragment_key(view, scope, timeline, known));
        let reader = view.request.viewer.user;
        if let Some(key) = &key
            && let Some(fragment) = self.inner.fragments.get(key, reader, view.now_ms)
        {
            to.extend_from_slice(&fragment.json);
            write_summary(to, None);
            return Ok(true);
        }
        let current = match &timeline {
            Some(timeline) => timeline.after,
            None => self.current_root(view, scope.room)?,
        };
        let mut range = self.state_range(view, scope.room, (timeline.as_ref(), current), known)?;
        if let Some(since) = known.filter(|_| has_forks || is_whole_now) {
            range.has_forks = has_forks;
            // What the client knows of the state of a partial room was a part of it, or wrong.
            range.known = match view.request.is_full_state || is_whole_now {
                true => None,
                false => self.root_at(view, scope.room, since)?,
            };
        }
        let summary = self.summary_for(view, scope.room, &range, current)?;
        let members = lazy_members(view, &range, summary.as_ref());
        let state = self.state(view, scope, range, timeline.as_ref(), members)?;
        let section = Section { timeline, state };
        let start = to.len();
        self.write_section(to, view, scope.room, &section)?;
        // What the reader sent itself is written with its transaction IDs.
        if let (Some(key), Some(timeline)) = (key, &section.timeline)
            && timeline
                .events
                .iter()
                .all(|event| event.meta.sender != reader)
        {
            let senders = timeline.events.iter().map(|event| event.meta.sender);
            let json = to.get(start..).unwrap_or_default();
            self.inner.fragments.put(key, json, senders, view.now_ms);
        }
        write_summary(to, summary.as_ref());
        if known.is_some() && summary.is_some() {
            self.note_joins(view, &section)?;
        }
        let has_timeline = section
            .timeline
            .is_some_and(|timeline| !timeline.events.is_empty() || timeline.is_limited);
        Ok(has_timeline || !section.state.is_empty())
    }

    /// The summary, if there may be news in it.
    fn summary_for(
        &self,
        view: &View<'_>,
        room: RoomNumber,
        range: &StateRange,
        current: RootNumber,
    ) -> Result<Option<Summary>, Error> {
        match range.known {
            Some(known) if known == range.end && !view.request.is_full_state => Ok(None),
            _ => Ok(Some(self.summary(view, room, current)?)),
        }
    }

    /// Whether the members of the room have become known since.
    fn was_completed_since(
        &self,
        view: &View<'_>,
        room: RoomNumber,
        since: Position,
    ) -> Result<bool, Error> {
        let rooms = &self.inner.rooms;
        Ok(rooms.was_completed_since(view.snapshot, room, since)?)
    }

    /// The key of what is the same for all who know the room up to where the timeline begins.
    fn fragment_key(
        &self,
        view: &View<'_>,
        scope: &Scope<'_>,
        timeline: &Timeline,
        known: Option<Position>,
    ) -> Option<Key> {
        let is_same_for_all = known.is_some()
            && !view.request.is_full_state
            && !timeline.is_limited
            && timeline.range_start == timeline.after
            && view.ignored.is_empty()
            && scope.joined_since == Some(i64::MIN)
            && !timeline.events.is_empty()
            && !timeline.may_have_relations();
        is_same_for_all.then_some(Key {
            room: scope.room,
            first: timeline.first,
            last: timeline.last,
            filter: view.request.filter.hash,
            state_place: view.request.state_place,
        })
    }

    /// The state after everything that the snapshot shows.
    fn current_root(&self, view: &View<'_>, room: RoomNumber) -> Result<RootNumber, Error> {
        let head = self.inner.rooms.head(view.snapshot, room)?;
        Ok(head.map(|head| head.root).unwrap_or_default())
    }

    fn state_range(
        &self,
        view: &View<'_>,
        room: RoomNumber,
        (timeline, current): (Option<&Timeline>, RootNumber),
        known: Option<Position>,
    ) -> Result<StateRange, Error> {
        let start = timeline.map_or(current, |timeline| timeline.before);
        let is_limited = timeline.is_some_and(|timeline| timeline.is_limited);
        let known = match known {
            Some(_) if view.request.is_full_state => None,
            Some(since) if is_limited => self.root_at(view, room, since)?,
            Some(_) => Some(timeline.map_or(current, |timeline| timeline.range_start)),
            None => None,
        };
        Ok(StateRange {
            known,
            start,
            end: current,
            has_gap: is_limited,
            has_forks: false,
        })
    }

    /// A room that the reader has left, was banned from, or whose invite came to nothing: what happened up to then.
    pub(super) fn write_left(
        &self,
        to: &mut Vec<u8>,
        view: &View<'_>,
        (entry, room_id): (&UserRoom, &RoomId),
        data: &[AccountData],
    ) -> Result<(), Error> {
        let last = self
            .inner
            .rooms
            .event(view.snapshot, entry.room, entry.event)?;
        let section = match last {
            Some(last) => self.left(view, (entry, room_id), &last)?,
            // This server is not in the room: there is nothing but the news itself.
            None => self.left_outside(view, entry)?,
        };
        begin_room(to, room_id);
        self.write_section(to, view, entry.room, &section)?;
        write_room_data(to, view, room_id, data);
        to.push(b'}');
        Ok(())
    }

    /// The end of a membership in a room that this server is not in, if an event brought it about.
    fn left_outside(&self, view: &View<'_>, entry: &UserRoom) -> Result<Section, Error> {
        let user = view.request.viewer.user;
        let event = self.inner.rooms.outside_event(view.snapshot, user, entry)?;
        Ok(Section {
            timeline: event.map(|event| Timeline::of(event, entry.class)),
            state: Vec::new(),
        })
    }

    fn left(
        &self,
        view: &View<'_>,
        (entry, room_id): (&UserRoom, &RoomId),
        last: &StoredEvent,
    ) -> Result<Section, Error> {
        let news = view.since.filter(|_| view.is_new(entry.position));
        let path = self.path(view, entry, news.map(|since| since.position))?;
        let was_known = path.before == Some(Class::Join);
        let came_and_went = !was_known && path.left_with.is_some();
        let known = news.map(|since| since.position).filter(|_| !came_and_went);
        let scope = Scope {
            room: entry.room,
            room_id,
            joined_since: None,
        };
        let range = Range {
            room: entry.room,
            since: known.unwrap_or_default(),
            until: last.meta.index.saturating_add(1),
        };
        let mut timeline = self.timeline(view, &scope, range)?;
        if let (Some(timeline), true) = (&mut timeline, news.is_some() && came_and_went) {
            timeline.is_limited = true;
        }
        // Who was never in the room is told nothing of its state.
        let state = match &path.left_with {
            Some(left) => {
                let known = known.filter(|_| was_known);
                let range = self.left_range(view, entry.room, (timeline.as_ref(), left), known)?;
                let members = lazy_members(view, &range, None);
                self.state(view, &scope, range, timeline.as_ref(), members)?
            }
            None => Vec::new(),
        };
        Ok(Section { timeline, state })
    }

    /// The states that a reader who has left may know of: none after that.
    fn left_range(
        &self,
        view: &View<'_>,
        room: RoomNumber,
        (timeline, left): (Option<&Timeline>, &StoredEvent),
        known: Option<Position>,
    ) -> Result<StateRange, Error> {
        let end = left.meta.root_after;
        let first = timeline.and_then(|timeline| timeline.events.first());
        let first = first.filter(|first| first.meta.index <= left.meta.index);
        let known = match known {
            Some(since) if !view.request.is_full_state => self.root_at(view, room, since)?,
            _ => None,
        };
        Ok(StateRange {
            known,
            start: first.map_or(end, |first| first.meta.root_before),
            end,
            has_gap: timeline.is_some_and(|timeline| timeline.is_limited),
            has_forks: false,
        })
    }

    /// How the reader got to its present membership, walking back to `since` (without one: to when it was joined last).
    fn path(
        &self,
        view: &View<'_>,
        entry: &UserRoom,
        since: Option<Position>,
    ) -> Result<Path, Error> {
        let rooms = &self.inner.rooms;
        let known = since.unwrap_or_default();
        let mut path = Path::default();
        if since.is_some() && entry.position <= known {
            path.before = Some(entry.class);
            return Ok(path);
        }
        let mut later: Option<Arc<StoredEvent>> = None;
        let mut next = rooms.event(view.snapshot, entry.room, entry.event)?;
        for _ in 0..MAX_MEMBERSHIPS_WALKED {
            let Some(event) = next else { break };
            let class = Class::of(&membership_of(&event));
            if class == Class::Join && path.left_with.is_none() {
                path.left_with = later.take();
            }
            if event.meta.position <= known {
                path.before = Some(class);
                break;
            }
            path.was_away |= class != Class::Join;
            if since.is_none() && class == Class::Join {
                break;
            }
            let before = (entry.room, event.meta.root_before);
            let user = view.request.user.as_str();
            next = rooms.state_event(view.snapshot, before, "m.room.member", user)?;
            later = Some(event);
        }
        if let Some(since) = since
            && rooms.has_forked_since(view.snapshot, entry.room, Position::default())?
        {
            // What the membership was is not what came before its event.
            path.before = self.membership_at(view, entry.room, since)?;
        }
        Ok(path)
    }

    /// What the reader was in the current state of a moment.
    fn membership_at(
        &self,
        view: &View<'_>,
        room: RoomNumber,
        position: Position,
    ) -> Result<Option<Class>, Error> {
        let Some(root) = self.root_at(view, room, position)? else {
            return Ok(None);
        };
        let (rooms, user) = (&self.inner.rooms, view.request.user.as_str());
        let event = rooms.state_event(view.snapshot, (room, root), "m.room.member", user)?;
        Ok(event.map(|event| Class::of(&membership_of(&event))))
    }

    /// Timeline and state, as the first fields of a room.
    fn write_section(
        &self,
        to: &mut Vec<u8>,
        view: &View<'_>,
        room: RoomNumber,
        section: &Section,
    ) -> Result<(), Error> {
        to.extend_from_slice(b"\"timeline\":{\"events\":");
        match &section.timeline {
            Some(timeline) => {
                let unsigned = self.timeline_unsigned(view, room, timeline)?;
                write_events(to, view, &timeline.events, &unsigned);
                let limited = if timeline.is_limited { "true" } else { "false" };
                to.extend_from_slice(b",\"limited\":");
                to.extend_from_slice(limited.as_bytes());
                to.extend_from_slice(b",\"prev_batch\":");
                write_text(to, &Place::before(timeline.start).to_string());
            }
            None => {
                let high = self
                    .inner
                    .rooms
                    .head(view.snapshot, room)?
                    .map_or(0, |head| head.high);
                to.extend_from_slice(b"[],\"limited\":false,\"prev_batch\":");
                write_text(to, &Place(high).to_string());
            }
        }
        let name = match view.request.state_place {
            StatePlace::Start => "state",
            StatePlace::End => "state_after",
            StatePlace::UnstableEnd => "org.matrix.msc4222.state_after",
        };
        to.extend_from_slice(b"},");
        write_text(to, name);
        to.extend_from_slice(b":{\"events\":");
        let unsigned = self.state_unsigned(view, room, &section.state)?;
        write_events(to, view, &section.state, &unsigned);
        to.push(b'}');
        Ok(())
    }
}

/// Members that are told though members are loaded lazily: the reader where it gets all state, and those who name the room.
fn lazy_members(
    view: &View<'_>,
    range: &StateRange,
    summary: Option<&Summary>,
) -> BTreeSet<OwnedUserId> {
    let heroes = summary
        .map(|summary| summary.heroes.as_slice())
        .unwrap_or_default();
    let own = range.known.is_none().then(|| view.request.user.clone());
    heroes.iter().cloned().chain(own).collect()
}

/// Account data of a room, as a field that is not the first.
fn write_room_data(
    to: &mut Vec<u8>,
    view: &View<'_>,
    room_id: &RoomId,
    data: &[AccountData],
) -> bool {
    let filter = &view.request.filter.room_account_data;
    // It has no sender: it is the reader's own.
    let accepts = filter.accepts_room(room_id) && filter.accepts_sender(&view.request.user);
    let wanted = data
        .iter()
        .filter(|data| accepts && filter.accepts_type(&data.event_type));
    to.extend_from_slice(b",\"account_data\":{\"events\":");
    let any = write_data(to, wanted);
    to.push(b'}');
    any
}

/// Events as an array, in the form and with the fields that the filter asks for.
fn write_events(
    to: &mut Vec<u8>,
    view: &View<'_>,
    events: &[Arc<StoredEvent>],
    unsigned: &[Unsigned],
) {
    let filter = &view.request.filter;
    to.push(b'[');
    for (at, (event, unsigned)) in events.iter().zip(unsigned).enumerate() {
        if at > 0 {
            to.push(b',');
        }
        let start = to.len();
        write_event(to, event, filter.form(), unsigned, view.now_ms);
        if let Some(fields) = &filter.fields {
            let whole = serde_json::from_slice(to.get(start..).unwrap_or_default());
            to.truncate(start);
            let some = only(whole.unwrap_or_default(), fields);
            serde_json::to_writer(&mut *to, &some).expect("a vector takes all bytes");
        }
    }
    to.push(b']');
}

/// What is left of an event of which only some fields are wanted.
///
/// Spec: c2s, "POST /_matrix/client/v3/user/{userId}/filter" (`event_fields`).
fn only(event: Map<String, Value>, fields: &[Vec<String>]) -> Map<String, Value> {
    let mut some = Map::new();
    let event = Value::Object(event);
    for path in fields {
        let found = path.iter().try_fold(&event, |value, name| value.get(name));
        if let (Some(found), Some((last, parents))) = (found, path.split_last()) {
            let parent = parents.iter().try_fold(&mut some, |parent, name| {
                let inner = parent.entry(name.clone());
                inner
                    .or_insert_with(|| Value::Object(Map::new()))
                    .as_object_mut()
            });
            if let Some(parent) = parent {
                parent.insert(last.clone(), found.clone());
            }
        }
    }
    some
}

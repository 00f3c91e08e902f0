//! What a user was notified of, newest first: the timelines of the user's rooms, merged, held against the user's rules.
//!
//! Nothing is stored for it, so the rules of today decide, and what was redacted is gone.
//!
//! Spec: c2s, "Listing notifications".

use std::{
    collections::{BinaryHeap, HashMap, VecDeque},
    sync::Arc,
};

use ruma::{
    RoomVersionId, UInt, UserId,
    push::{Action, PushConditionRoomCtx},
};
use serde::Deserialize;

use super::{
    content::Look,
    markers::{Markers, ReadThread},
    rules,
};
use crate::{
    accounts::UserNumber,
    events::{Pdu, PowerLevels, version},
    rooms::{Class, Error, Placed, RoomNumber, Rooms, Sight, StoredEvent, UserRoom, flag},
    storage::{Position, Snapshot},
};

/// Events of a room that are read at once.
const PAGE: usize = 20;
/// Events that one request looks at; then it answers with what it has found.
const MAX_LOOKED_AT: usize = 2_000;

/// An event that a user was notified of.
#[derive(Clone, Debug)]
pub struct Notification {
    pub room: RoomNumber,
    pub event: Arc<StoredEvent>,
    pub actions: Vec<Action>,
    pub is_read: bool,
}

/// Which notifications are asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Those before this moment.
    pub before: Option<Position>,
    pub limit: usize,
    pub only_highlights: bool,
}

/// One page.
#[derive(Clone, Debug, Default)]
pub struct Notifications {
    pub found: Vec<Notification>,
    /// Where the next page goes on; `None` if there is none.
    pub next: Option<Position>,
}

/// The part of a room's timeline that is still to be looked at, newest first.
struct Rest {
    room: RoomNumber,
    page: VecDeque<Placed>,
    is_over: bool,
}

/// What is known of the user in a room.
struct Standing {
    sight: Sight,
    markers: Markers,
    name: String,
}

/// Whose notifications are listed.
struct Reader<'a> {
    rooms: &'a Rooms,
    snapshot: &'a Snapshot,
    number: UserNumber,
    id: &'a UserId,
    standings: HashMap<RoomNumber, Standing>,
}

impl Rooms {
    /// What a user of this server was notified of, newest first.
    pub fn notifications(
        &self,
        snapshot: &Snapshot,
        (number, id): (UserNumber, &UserId),
        wanted: Wanted,
    ) -> Result<Notifications, Error> {
        let mut reader = Reader {
            rooms: self,
            snapshot,
            number,
            id,
            standings: HashMap::new(),
        };
        let mut rests = Vec::new();
        let mut newest = BinaryHeap::new();
        for entry in self.rooms_of(snapshot, number)?.iter() {
            if let Some(rest) = reader.start(entry, wanted.before)? {
                if let Some(next) = rest.page.front() {
                    newest.push((next.position, rests.len()));
                }
                rests.push(rest);
            }
        }
        let mut page = Notifications::default();
        let mut looked_at = 0;
        while let Some((position, at)) = newest.pop() {
            let Some(rest) = rests.get_mut(at) else { break };
            let Some(placed) = rest.page.pop_front() else {
                continue;
            };
            let found = reader.notification(rest.room, &placed.event, wanted.only_highlights)?;
            page.found.extend(found);
            looked_at += 1;
            reader.refill(rest, placed.index)?;
            if let Some(next) = rest.page.front() {
                newest.push((next.position, at));
            }
            let is_enough = page.found.len() >= wanted.limit || looked_at >= MAX_LOOKED_AT;
            if is_enough && !newest.is_empty() {
                page.next = Some(position);
                break;
            }
        }
        Ok(page)
    }
}

impl Reader<'_> {
    /// The newest events of a room before a moment. Of a room to which the user is invited, the invite.
    fn start(&self, entry: &UserRoom, before: Option<Position>) -> Result<Option<Rest>, Error> {
        let (rooms, snapshot, room) = (self.rooms, self.snapshot, entry.room);
        let is_before = |position: Position| before.is_none_or(|before| position < before);
        match entry.class {
            Class::Join => {}
            Class::Invite if is_before(entry.position) => {
                let event = match rooms.outside_event(snapshot, self.number, entry)? {
                    Some(invite) => Some(invite),
                    None => rooms.event(snapshot, room, entry.event)?,
                };
                let invite = event.map(|event| Placed {
                    index: event.meta.index,
                    position: entry.position,
                    event,
                });
                return Ok(Some(Rest {
                    room,
                    page: invite.into_iter().collect(),
                    is_over: true,
                }));
            }
            _ => return Ok(None),
        }
        let index = match before {
            Some(before) => {
                let at = Position(before.0.saturating_sub(1));
                rooms.index_at(snapshot, room, at)?.saturating_add(1)
            }
            None => i64::MAX,
        };
        let mut rest = Rest {
            room,
            page: VecDeque::new(),
            is_over: false,
        };
        self.refill(&mut rest, index)?;
        Ok(Some(rest))
    }

    fn refill(&self, rest: &mut Rest, before: i64) -> Result<(), Error> {
        if !rest.page.is_empty() || rest.is_over {
            return Ok(());
        }
        let start = Position::default();
        let (page, more) =
            self.rooms
                .timeline_since(self.snapshot, rest.room, start, before, PAGE)?;
        rest.page = page.into();
        rest.is_over = !more;
        Ok(())
    }

    fn notification(
        &mut self,
        room: RoomNumber,
        event: &Arc<StoredEvent>,
        only_highlights: bool,
    ) -> Result<Option<Notification>, Error> {
        if event.pdu.sender == self.id || event.pdu.is_state() && !self.is_about(event) {
            return Ok(None);
        }
        let is_outside = event.meta.has(flag::OUTLIER);
        let actions = match is_outside {
            true => self.actions_outside(room, event)?,
            false => self.actions(room, event)?,
        };
        let notifies = actions.iter().any(Action::should_notify);
        if !notifies || only_highlights && !actions.iter().any(Action::is_highlight) {
            return Ok(None);
        }
        if is_outside {
            return Ok(Some(Notification {
                room,
                event: Arc::clone(event),
                is_read: false,
                actions,
            }));
        }
        let Some(standing) = self.standing(room)? else {
            return Ok(None);
        };
        let thread = event.meta.thread_root;
        let thread = thread.map_or(ReadThread::Main, ReadThread::Root).key();
        Ok(Some(Notification {
            room,
            event: Arc::clone(event),
            is_read: event.meta.index <= standing.markers.index(thread),
            actions,
        }))
    }

    /// Whether a state event may notify at all: most of a room's history are memberships of others.
    fn is_about(&self, event: &StoredEvent) -> bool {
        let event_type = event.pdu.event_type.to_string();
        event_type != "m.room.member" || event.pdu.state_key.as_deref() == Some(self.id.as_str())
    }

    fn standing(&mut self, room: RoomNumber) -> Result<Option<&mut Standing>, Error> {
        if !self.standings.contains_key(&room) {
            let sight = self
                .rooms
                .sight(self.snapshot, self.id, self.number, room)?;
            let markers = Markers::read(self.snapshot, self.number, room)?;
            let member = self.state(room, "m.room.member", self.id.as_str())?;
            let standing = Standing {
                sight,
                markers,
                name: self.name_in(member.as_deref()),
            };
            self.standings.insert(room, standing);
        }
        Ok(self.standings.get_mut(&room))
    }

    /// The name of the user by its membership.
    fn name_in(&self, member: Option<&StoredEvent>) -> String {
        #[derive(Default, Deserialize)]
        struct Content {
            displayname: Option<String>,
        }
        let content = member.and_then(|member| member.pdu.content_as::<Content>().ok());
        let name = content.unwrap_or_default().displayname;
        name.unwrap_or_else(|| self.id.localpart().to_owned())
    }

    fn state(
        &self,
        room: RoomNumber,
        event_type: &str,
        key: &str,
    ) -> Result<Option<Arc<StoredEvent>>, Error> {
        let Some(head) = self.rooms.head(self.snapshot, room)? else {
            return Ok(None);
        };
        self.rooms
            .state_event(self.snapshot, (room, head.root), event_type, key)
    }

    /// What the rules of the user do with an event; nothing, if the user was not there.
    fn actions(
        &mut self,
        room: RoomNumber,
        event: &Arc<StoredEvent>,
    ) -> Result<Vec<Action>, Error> {
        let (rooms, snapshot) = (self.rooms, self.snapshot);
        let ignored = rooms.accounts.ignored_users(snapshot, self.number)?;
        if ignored.contains(&event.pdu.sender) {
            return Ok(Vec::new());
        }
        let look = Look::at(&event.pdu);
        let may_notify_room =
            look.mentions_room && self.may_notify_room(room, &event.pdu.sender)?;
        let joined = rooms.published(room).map_or(0, |room| room.head.joined);
        let room_id = rooms.room_id(room).ok_or(Error::NotFound)?;
        let id = self.id;
        let Some(standing) = self.standing(room)? else {
            return Ok(Vec::new());
        };
        let membership = rooms.membership_when(snapshot, &mut standing.sight, event)?;
        let was_there = matches!(membership, Class::Join | Class::Invite);
        // Who is invited may not see the room, but the invite.
        let is_own = event.pdu.state_key.as_deref() == Some(id.as_str());
        if !was_there || !(is_own || rooms.may_see(snapshot, &mut standing.sight, event)?) {
            return Ok(Vec::new());
        }
        let Some(standing) = self.standings.get(&room) else {
            return Ok(Vec::new());
        };
        let joined = UInt::new_saturating(joined);
        let context = rules::context(&room_id, joined, (id, &standing.name));
        let levels = rules::sender_levels(&event.pdu.sender, may_notify_room);
        self.actions_by_rules(&event.pdu, &context.with_power_levels(levels))
    }

    /// As [`Self::actions`], for an invite into a room that this server is not in: nothing else is known of the room.
    fn actions_outside(
        &self,
        room: RoomNumber,
        invite: &StoredEvent,
    ) -> Result<Vec<Action>, Error> {
        let ignored = self
            .rooms
            .accounts
            .ignored_users(self.snapshot, self.number)?;
        if ignored.contains(&invite.pdu.sender) {
            return Ok(Vec::new());
        }
        let room_id = self.rooms.room_id(room).ok_or(Error::NotFound)?;
        let name = self.name_in(Some(invite));
        let context = rules::context(&room_id, UInt::MIN, (self.id, &name));
        let levels = rules::sender_levels(&invite.pdu.sender, false);
        self.actions_by_rules(&invite.pdu, &context.with_power_levels(levels))
    }

    fn actions_by_rules(
        &self,
        pdu: &Pdu,
        context: &PushConditionRoomCtx,
    ) -> Result<Vec<Action>, Error> {
        let rules = self.rooms.accounts.push_rules(self.snapshot, self.number)?;
        let rule = rules::matching(&rules, &rules::flattened(pdu), context);
        Ok(rule.map(|rule| rule.actions().to_vec()).unwrap_or_default())
    }

    fn may_notify_room(&self, room: RoomNumber, sender: &UserId) -> Result<bool, Error> {
        let Some(create) = self.state(room, "m.room.create", "")? else {
            return Ok(false);
        };
        let levels = self.state(room, "m.room.power_levels", "")?;
        let Some(head) = self.rooms.head(self.snapshot, room)? else {
            return Ok(false);
        };
        let version = RoomVersionId::try_from(head.version.as_str());
        let rules = version.ok().and_then(|version| version::rules(&version));
        let rules = rules.ok_or(Error::UnsupportedVersion)?;
        let levels = levels.as_ref().map(|event| &*event.pdu);
        let levels = PowerLevels::new(&rules.authorization, levels, &create.pdu);
        Ok(levels.may_notify(sender, "room"))
    }
}

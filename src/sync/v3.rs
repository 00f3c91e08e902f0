//! The answer of classic sync, written as JSON straight from the pieces.
//!
//! Spec: c2s, "GET /_matrix/client/v3/sync".

use std::{cell::RefCell, collections::BTreeMap};

use bytes::Bytes;
use ruma::{RoomId, UserId};

use super::{
    Error, Request, Sync,
    devices_section::{write_key_counts, write_messages},
    token::Token,
};
use crate::{
    accounts::{AccountData, GLOBAL, Ignored, UserNumber},
    rooms::{
        Class, RoomNumber, UserRoom,
        client_event::{write_number, write_text},
    },
    storage::{Position, Snapshot},
};

/// An answer, ready to be sent.
pub(super) struct Answer {
    pub(super) body: Bytes,
    /// The `next_batch` of the answer.
    pub(super) token: Token,
    /// It says something that the client does not know.
    pub(super) is_news: bool,
}

/// One reader's view of one snapshot.
pub(super) struct View<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) request: &'a Request,
    /// What the reader knows; `None`: nothing.
    pub(super) since: Option<Token>,
    pub(super) ignored: Ignored,
    pub(super) now_ms: u64,
    /// Something that is not stored has changed since.
    pub(super) is_volatile_new: bool,
    /// Users who have come to share a room with the reader.
    pub(super) newly_shared: RefCell<Vec<UserNumber>>,
    /// The reader's rooms in which something may have happened since.
    pub(super) changed_rooms: RefCell<Vec<UserRoom>>,
}

impl View<'_> {
    /// Whether something of this position is new to the reader.
    pub(super) fn is_new(&self, position: Position) -> bool {
        self.since.is_none_or(|since| position > since.position)
    }
}

/// A room as one reader stands to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scope<'a> {
    pub(super) room: RoomNumber,
    pub(super) room_id: &'a RoomId,
    /// The index from which on the reader has been joined, if it is.
    pub(super) joined_since: Option<i64>,
}

/// The four objects of `rooms`, as far as they are written.
#[derive(Default)]
struct Sections {
    join: Vec<u8>,
    invite: Vec<u8>,
    knock: Vec<u8>,
    leave: Vec<u8>,
}

/// Account data by room, as far as it is new.
pub(super) type RoomData = BTreeMap<u32, Vec<AccountData>>;

impl Sync {
    /// What is new to a client that knows all up to `since`.
    pub(super) fn build(
        &self,
        snapshot: &Snapshot,
        request: &Request,
        since: Option<Token>,
    ) -> Result<Answer, Error> {
        let viewer = request.viewer;
        let since_messages = since.map(Token::to_device);
        let device = (viewer.user, viewer.device);
        let encryption = &self.inner.encryption;
        let messages = encryption.messages(snapshot, device, since_messages)?;
        let key_counts = encryption.key_counts(snapshot, device)?;
        let token = Token {
            position: snapshot.position(),
            volatile: self.inner.ephemeral.volatile(),
            to_device: messages.upto,
        };
        let view = View {
            snapshot,
            request,
            since,
            ignored: self
                .inner
                .accounts
                .ignored_users(snapshot, request.viewer.user)?,
            now_ms: self.inner.clock.now_ms(),
            is_volatile_new: since.is_none_or(|since| since.volatile != token.volatile),
            newly_shared: RefCell::default(),
            changed_rooms: RefCell::default(),
        };
        let known = since.filter(|_| !request.is_full_state);
        let known = known.map_or(Position::default(), |since| since.position);
        let user = request.viewer.user;
        let changes = self
            .inner
            .accounts
            .account_data_changes(snapshot, user, known)?;
        let mut body = b"{\"next_batch\":".to_vec();
        write_text(&mut body, &token.to_string());
        let (global, of_rooms) = by_room(changes);
        let has_data = write_global_data(&mut body, &view, &global);
        let has_rooms = self.write_rooms(&mut body, &view, of_rooms)?;
        let has_presence = self.write_presence(&mut body, &view)?;
        let has_messages = write_messages(&mut body, &messages);
        let has_changed_devices = self.write_device_lists(&mut body, &view)?;
        write_key_counts(&mut body, &key_counts);
        body.push(b'}');
        Ok(Answer {
            body: body.into(),
            token,
            is_news: has_data
                || has_rooms
                || has_presence
                || has_messages
                || has_changed_devices
                || view.is_new(key_counts.position),
        })
    }

    /// True if any room has news.
    fn write_rooms(
        &self,
        to: &mut Vec<u8>,
        view: &View<'_>,
        mut data: RoomData,
    ) -> Result<bool, Error> {
        let rooms = self
            .inner
            .rooms
            .rooms_of(view.snapshot, view.request.viewer.user)?;
        let mut sections = Sections::default();
        for entry in rooms.iter() {
            self.write_room(&mut sections, view, entry, &mut data)?;
        }
        let Sections {
            join,
            invite,
            knock,
            leave,
        } = &sections;
        let written = [
            ("join", join),
            ("invite", invite),
            ("knock", knock),
            ("leave", leave),
        ];
        let mut separator: &[u8] = b",\"rooms\":{";
        for (name, section) in written.iter().filter(|(_, section)| !section.is_empty()) {
            to.extend_from_slice(separator);
            write_text(to, name);
            to.extend_from_slice(b":{");
            to.extend_from_slice(section);
            to.push(b'}');
            separator = b",";
        }
        let has_news = separator == b",";
        if has_news {
            to.push(b'}');
        }
        Ok(has_news)
    }

    fn write_room(
        &self,
        sections: &mut Sections,
        view: &View<'_>,
        entry: &UserRoom,
        data: &mut RoomData,
    ) -> Result<(), Error> {
        let own_data = data.remove(&entry.room.0).unwrap_or_default();
        if !self.may_have_news(view, entry, &own_data) {
            return Ok(());
        }
        if view.since.is_some() {
            view.changed_rooms.borrow_mut().push(entry.clone());
        }
        let Some(room_id) = self.inner.rooms.room_id(entry.room) else {
            return Ok(());
        };
        if !view.request.filter.rooms.accepts(&room_id) {
            return Ok(());
        }
        match entry.class {
            // Who wants to be told of all members is told of the room when they are known.
            Class::Join
                if !view.request.filter.has_lazy_members
                    && self.is_partial(view, entry.room)? => {}
            Class::Join => {
                let section = &mut sections.join;
                self.write_joined(section, view, (entry, &room_id), own_data)?;
            }
            Class::Invite => {
                let section = (&mut sections.invite, "invite_state");
                self.write_stripped(section, view, (entry, &room_id))?;
            }
            Class::Knock => {
                let section = (&mut sections.knock, "knock_state");
                self.write_stripped(section, view, (entry, &room_id))?;
            }
            Class::Leave | Class::Ban => {
                let section = &mut sections.leave;
                self.write_left(section, view, (entry, &room_id), &own_data)?;
            }
        }
        Ok(())
    }

    /// Whether the members of a room are not all known.
    fn is_partial(&self, view: &View<'_>, room: RoomNumber) -> Result<bool, Error> {
        let head = self.inner.rooms.head(view.snapshot, room)?;
        Ok(head.is_some_and(|head| head.partial))
    }

    /// A look at what is in memory: false for nearly all rooms of nearly all syncs.
    fn may_have_news(&self, view: &View<'_>, entry: &UserRoom, data: &[AccountData]) -> bool {
        let is_whole = view.since.is_none() || view.request.is_full_state;
        if matches!(entry.class, Class::Leave | Class::Ban) {
            let is_wanted = is_whole && view.request.filter.include_leave && !entry.is_forgotten;
            // Also one that is forgotten by now: else the user's other devices would never learn of the leave.
            return is_wanted || (view.since.is_some() && view.is_new(entry.position));
        }
        if is_whole || view.is_new(entry.position) || !data.is_empty() {
            return true;
        }
        if entry.class != Class::Join {
            return false;
        }
        let published = self.inner.rooms.published(entry.room);
        published.is_some_and(|room| view.is_new(room.position))
            || self.may_have_ephemeral(view, entry.room)
    }

    /// An invite or a knock: the stripped state that the user was shown.
    ///
    /// Spec: c2s, "Stripped state"; invites by ignored users are not told: "Ignoring Users".
    fn write_stripped(
        &self,
        (to, name): (&mut Vec<u8>, &str),
        view: &View<'_>,
        (entry, room_id): (&UserRoom, &RoomId),
    ) -> Result<(), Error> {
        let is_whole = view.since.is_none() || view.request.is_full_state;
        if !is_whole && !view.is_new(entry.position) {
            return Ok(());
        }
        let rooms = &self.inner.rooms;
        let user = view.request.viewer.user;
        if entry.class == Class::Invite && !view.ignored.is_empty() {
            let inviter = rooms.sender_of_membership(view.snapshot, user, entry)?;
            if inviter.is_some_and(|inviter| view.ignored.contains(&inviter)) {
                return Ok(());
            }
        }
        let stripped = rooms.stripped_state(view.snapshot, user, entry.room)?;
        begin_room(to, room_id);
        write_text(to, name);
        to.extend_from_slice(b":{\"events\":");
        to.extend_from_slice(stripped.as_deref().unwrap_or("[]").as_bytes());
        to.extend_from_slice(b"}}");
        Ok(())
    }
}

/// Opens the object of a room in a section.
pub(super) fn begin_room(to: &mut Vec<u8>, room_id: &RoomId) {
    if !to.is_empty() {
        to.push(b',');
    }
    write_text(to, room_id.as_str());
    to.extend_from_slice(b":{");
}

fn by_room(changes: Vec<AccountData>) -> (Vec<AccountData>, RoomData) {
    let mut of_rooms = RoomData::new();
    let mut global = Vec::new();
    for change in changes {
        match change.room {
            GLOBAL => global.push(change),
            room => of_rooms.entry(room).or_default().push(change),
        }
    }
    (global, of_rooms)
}

/// True if there is any.
fn write_global_data(to: &mut Vec<u8>, view: &View<'_>, data: &[AccountData]) -> bool {
    let filter = &view.request.filter.account_data;
    // Account data has no sender: it is the user's own.
    let user: &UserId = &view.request.user;
    let wanted = data
        .iter()
        .filter(|data| filter.accepts_type(&data.event_type) && filter.accepts_sender(user));
    let start = to.len();
    to.extend_from_slice(b",\"account_data\":{\"events\":");
    if !write_data(to, wanted) {
        to.truncate(start);
        return false;
    }
    to.push(b'}');
    true
}

/// Account data as an array of events; true if there is any.
pub(super) fn write_data<'a>(
    to: &mut Vec<u8>,
    data: impl Iterator<Item = &'a AccountData>,
) -> bool {
    to.push(b'[');
    let start = to.len();
    for data in data {
        if to.len() > start {
            to.push(b',');
        }
        to.extend_from_slice(b"{\"content\":");
        to.extend_from_slice(data.content.get().as_bytes());
        to.extend_from_slice(b",\"type\":");
        write_text(to, &data.event_type);
        to.push(b'}');
    }
    let any = to.len() > start;
    to.push(b']');
    any
}

/// Appends `name` and a number to an object that is not empty.
pub(super) fn write_count(to: &mut Vec<u8>, name: &str, count: u64) {
    to.push(b',');
    write_text(to, name);
    to.push(b':');
    write_number(to, count);
}

//! What is about the moment: receipts, typing, unread counts, presence.
//!
//! Spec: c2s, "Receipts", "Typing Notifications", "Receiving notifications", "Presence".

use serde::Serialize;

use super::{
    Error, Sync,
    room_section::Section,
    token::Token,
    v3::{Scope, View, write_count},
};
use crate::{
    accounts::UserNumber,
    ephemeral::PresenceEvent,
    rooms::{
        Class, Count, RoomNumber, TypeNumber,
        client_event::{write_number, write_text},
        membership_of,
    },
    storage::Position,
};

const RECEIPT: &str = "m.receipt";
const TYPING: &str = "m.typing";
const PRESENCE: &str = "m.presence";

/// Members of a newly joined room whose presence is told.
const MAX_MEMBERS_TOLD: usize = 500;

/// An event of which only type and content are known.
#[derive(Serialize)]
struct Plain<'a, C> {
    #[serde(rename = "type")]
    event_type: &'a str,
    content: C,
}

impl Sync {
    /// A look at what is in memory: whether there may be receipts or typing in a room.
    pub(super) fn may_have_ephemeral(&self, view: &View<'_>, room: RoomNumber) -> bool {
        let since = view
            .since
            .map_or(Position::default(), |since| since.position);
        let ephemeral = &self.inner.ephemeral;
        ephemeral.may_have_receipts_since(room, since)
            || (view.is_volatile_new
                && ephemeral
                    .typing_since(room, view.since.map(|since| since.volatile))
                    .is_some())
    }

    /// Receipts and typing, as a field that is not the first; true if there is any news.
    pub(super) fn write_ephemeral(
        &self,
        to: &mut Vec<u8>,
        view: &View<'_>,
        scope: &Scope<'_>,
        known: Option<Token>,
    ) -> Result<bool, Error> {
        to.extend_from_slice(b",\"ephemeral\":{\"events\":[");
        let start = to.len();
        let filter = &view.request.filter.ephemeral;
        let accepts = filter.accepts_room(scope.room_id);
        let known = known.filter(|_| !view.request.is_full_state);
        let mut has_news = false;
        if view.is_volatile_new || known.is_none() {
            let since = known.map(|since| since.volatile);
            if let Some(users) = self.inner.ephemeral.typing_since(scope.room, since)
                && accepts
                && filter.accepts_type(TYPING)
            {
                write_plain(to, TYPING, serde_json::json!({ "user_ids": users }));
                has_news = true;
            }
        }
        let since = known.map_or(Position::default(), |since| since.position);
        let reader = view.request.viewer.user;
        let ephemeral = &self.inner.ephemeral;
        if let Some(receipts) =
            ephemeral.receipts_since(view.snapshot, scope.room, since, reader)?
        {
            // Receipts of the reader change the unread counts, so it is news even to those who do not want receipts.
            has_news = true;
            if accepts && filter.accepts_type(RECEIPT) {
                if to.len() > start {
                    to.push(b',');
                }
                write_plain(to, RECEIPT, &receipts);
            }
        }
        to.extend_from_slice(b"]}");
        Ok(has_news)
    }

    /// How much of a room is unread, as fields that are not the first.
    pub(super) fn write_unread(
        &self,
        to: &mut Vec<u8>,
        view: &View<'_>,
        room: RoomNumber,
    ) -> Result<(), Error> {
        let rooms = &self.inner.rooms;
        let user = view.request.viewer.user;
        let unread = rooms.unread(view.snapshot, user, room)?;
        to.extend_from_slice(b",\"unread_notifications\":");
        if view.request.filter.has_thread_counts {
            let by_thread = rooms.unread_threads(view.snapshot, user, room)?;
            write_counts(to, by_thread.main);
            if !by_thread.threads.is_empty() {
                to.extend_from_slice(b",\"unread_thread_notifications\":{");
                for (at, (root, count)) in by_thread.threads.iter().enumerate() {
                    if at > 0 {
                        to.push(b',');
                    }
                    write_text(to, root.as_str());
                    to.push(b':');
                    write_counts(to, *count);
                }
                to.push(b'}');
            }
        } else {
            write_counts(to, unread.total);
        }
        // MSC2654.
        write_count(to, "org.matrix.msc2654.unread_count", unread.unread_count);
        Ok(())
    }

    /// Notes the members of a room that the reader has joined.
    pub(super) fn note_members(&self, view: &View<'_>, room: RoomNumber) -> Result<(), Error> {
        if !wants_presence(view) {
            return Ok(());
        }
        let rooms = &self.inner.rooms;
        let members = rooms.members(view.snapshot, room, Class::Join, MAX_MEMBERS_TOLD)?;
        let members = members.into_iter().map(|(user, ..)| user);
        view.newly_shared.borrow_mut().extend(members);
        Ok(())
    }

    /// Notes who has joined a room of the reader.
    pub(super) fn note_joins(&self, view: &View<'_>, section: &Section) -> Result<(), Error> {
        if !wants_presence(view) {
            return Ok(());
        }
        let timeline = section
            .timeline
            .iter()
            .flat_map(|timeline| &timeline.events);
        for event in timeline.chain(&section.state) {
            let user = event.pdu.state_key.as_deref();
            if event.meta.event_type == TypeNumber::MEMBER
                && Class::of(&membership_of(event)) == Class::Join
                && let Some(Ok(user)) = user.map(<&ruma::UserId>::try_from)
            {
                let number = self.inner.accounts.user_number(view.snapshot, user)?;
                view.newly_shared.borrow_mut().extend(number);
            }
        }
        Ok(())
    }

    /// The presence of others; true if there is any.
    pub(super) fn write_presence(&self, to: &mut Vec<u8>, view: &View<'_>) -> Result<bool, Error> {
        let newly_shared: Vec<UserNumber> = view.newly_shared.take();
        if !wants_presence(view) || (!view.is_volatile_new && newly_shared.is_empty()) {
            return Ok(false);
        }
        let filter = &view.request.filter.presence;
        let since = view.since.filter(|_| !view.request.is_full_state);
        let since = since.map(|since| since.volatile);
        let reader = view.request.viewer.user;
        let ephemeral = &self.inner.ephemeral;
        let events = ephemeral.presence_since(view.snapshot, reader, since, &newly_shared)?;
        let events: Vec<&PresenceEvent> = events
            .iter()
            .filter(|event| filter.accepts_sender(&event.sender))
            .filter(|event| !view.ignored.contains(&event.sender))
            .collect();
        if events.is_empty() {
            return Ok(false);
        }
        to.extend_from_slice(b",\"presence\":{\"events\":");
        serde_json::to_writer(&mut *to, &events).expect("a vector takes all bytes");
        to.push(b'}');
        Ok(true)
    }
}

fn wants_presence(view: &View<'_>) -> bool {
    view.request.filter.presence.accepts_type(PRESENCE)
}

fn write_plain(to: &mut Vec<u8>, event_type: &str, content: impl Serialize) {
    let event = Plain {
        event_type,
        content,
    };
    serde_json::to_writer(to, &event).expect("a vector takes all bytes");
}

fn write_counts(to: &mut Vec<u8>, count: Count) {
    to.extend_from_slice(b"{\"highlight_count\":");
    write_number(to, count.highlights);
    to.extend_from_slice(b",\"notification_count\":");
    write_number(to, count.notifications);
    to.push(b'}');
}

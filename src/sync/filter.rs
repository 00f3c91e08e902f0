//! Filters as sync applies them: what a client stored or sent, made ready to be asked about many events.
//!
//! Spec: c2s, "Filtering".

use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use ruma::{
    OwnedRoomId, OwnedUserId, RoomId, UserId,
    api::client::filter::{
        EventFormat, Filter as PlainDefinition, FilterDefinition, LazyLoadOptions, RoomEventFilter,
        UrlFilter,
    },
};

use crate::rooms::{StoredEvent, client_event::EventForm};

/// Events of a room's timeline when the filter names no limit.
const DEFAULT_TIMELINE_LIMIT: usize = 10;
/// The most events of a room's timeline, whatever the filter says.
const MAX_TIMELINE_LIMIT: usize = 500;

/// What a client wants to hear of.
#[derive(Debug)]
pub struct Filter {
    /// Filters with the same hash say the same.
    pub hash: u64,
    /// Fields of events to be shown; all if absent.
    pub fields: Option<Vec<Vec<String>>>,
    pub is_federation_format: bool,
    pub presence: Selection,
    pub account_data: Selection,
    pub rooms: RoomSelection,
    pub include_leave: bool,
    pub timeline: EventSelection,
    pub timeline_limit: usize,
    pub state: EventSelection,
    pub ephemeral: EventSelection,
    pub room_account_data: EventSelection,
    pub has_lazy_members: bool,
    pub has_thread_counts: bool,
}

/// Which types and senders are wanted.
#[derive(Debug, Default)]
pub struct Selection {
    types: Option<Vec<String>>,
    not_types: Vec<String>,
    senders: Option<BTreeSet<OwnedUserId>>,
    not_senders: BTreeSet<OwnedUserId>,
}

/// Which rooms are wanted.
#[derive(Debug, Default)]
pub struct RoomSelection {
    rooms: Option<BTreeSet<OwnedRoomId>>,
    not_rooms: BTreeSet<OwnedRoomId>,
}

/// Which events of which rooms are wanted.
#[derive(Debug, Default)]
pub struct EventSelection {
    events: Selection,
    rooms: RoomSelection,
    url: Option<UrlFilter>,
}

impl Filter {
    /// A filter ready to be used.
    pub fn new(definition: &FilterDefinition) -> Self {
        let room = &definition.room;
        let lists = [
            &room.timeline,
            &room.state,
            &room.ephemeral,
            &room.account_data,
        ];
        let limit = room.timeline.limit.map(u64::from);
        let limit = limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX));
        Self {
            hash: hash(definition),
            fields: definition
                .event_fields
                .as_ref()
                .map(|fields| fields.iter().map(|field| path(field)).collect()),
            is_federation_format: definition.event_format == EventFormat::Federation,
            presence: Selection::plain(&definition.presence),
            account_data: Selection::plain(&definition.account_data),
            rooms: RoomSelection::new(room.rooms.as_deref(), &room.not_rooms),
            include_leave: room.include_leave,
            timeline: EventSelection::new(&room.timeline),
            timeline_limit: limit
                .unwrap_or(DEFAULT_TIMELINE_LIMIT)
                .min(MAX_TIMELINE_LIMIT),
            state: EventSelection::new(&room.state),
            ephemeral: EventSelection::new(&room.ephemeral),
            room_account_data: EventSelection::new(&room.account_data),
            has_lazy_members: matches!(
                room.state.lazy_load_options,
                LazyLoadOptions::Enabled { .. }
            ),
            has_thread_counts: lists.iter().any(|list| list.unread_thread_notifications),
        }
    }

    /// The form of events.
    pub fn form(&self) -> EventForm<'static> {
        match self.is_federation_format {
            true => EventForm::Federation,
            false => EventForm::Sync,
        }
    }
}

impl Default for Filter {
    fn default() -> Self {
        Self::new(&FilterDefinition::default())
    }
}

fn hash(definition: &FilterDefinition) -> u64 {
    let mut hasher = DefaultHasher::new();
    // What cannot be written is equal to itself only, which it is not: no filter that was read from JSON is such.
    serde_json::to_string(definition)
        .unwrap_or_default()
        .hash(&mut hasher);
    hasher.finish()
}

/// The names in a path with dots, of which some may be escaped.
fn path(field: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut name = String::new();
    let mut letters = field.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => match letters.next() {
                Some(escaped @ ('.' | '\\')) => name.push(escaped),
                Some(other) => name.extend(['\\', other]),
                None => name.push('\\'),
            },
            '.' => names.push(std::mem::take(&mut name)),
            letter => name.push(letter),
        }
    }
    names.push(name);
    names
}

impl Selection {
    fn plain(definition: &PlainDefinition) -> Self {
        Self {
            types: definition.types.clone(),
            not_types: definition.not_types.clone(),
            senders: definition
                .senders
                .as_ref()
                .map(|users| users.iter().cloned().collect()),
            not_senders: definition.not_senders.iter().cloned().collect(),
        }
    }

    /// Whether anything may be accepted at all.
    pub fn is_empty(&self) -> bool {
        self.types.as_ref().is_some_and(Vec::is_empty)
            || self.senders.as_ref().is_some_and(BTreeSet::is_empty)
    }

    fn accepts_all(&self) -> bool {
        self.types.is_none()
            && self.senders.is_none()
            && self.not_types.is_empty()
            && self.not_senders.is_empty()
    }

    pub fn accepts_type(&self, event_type: &str) -> bool {
        let is_wanted =
            |types: &Vec<String>| types.iter().any(|wanted| matches(wanted, event_type));
        self.types.as_ref().is_none_or(is_wanted)
            && !self.not_types.iter().any(|not| matches(not, event_type))
    }

    pub fn accepts_sender(&self, sender: &UserId) -> bool {
        self.senders
            .as_ref()
            .is_none_or(|senders| senders.contains(sender))
            && !self.not_senders.contains(sender)
    }
}

impl RoomSelection {
    fn new(rooms: Option<&[OwnedRoomId]>, not_rooms: &[OwnedRoomId]) -> Self {
        Self {
            rooms: rooms.map(|rooms| rooms.iter().cloned().collect()),
            not_rooms: not_rooms.iter().cloned().collect(),
        }
    }

    /// Whether every room is wanted, so that none needs to be looked at.
    pub fn accepts_all(&self) -> bool {
        self.rooms.is_none() && self.not_rooms.is_empty()
    }

    pub fn accepts(&self, room: &RoomId) -> bool {
        self.rooms.as_ref().is_none_or(|rooms| rooms.contains(room))
            && !self.not_rooms.contains(room)
    }
}

impl EventSelection {
    /// The events that a filter of a room's events wants.
    pub fn new(definition: &RoomEventFilter) -> Self {
        Self {
            events: Selection {
                types: definition.types.clone(),
                not_types: definition.not_types.clone(),
                senders: definition
                    .senders
                    .as_ref()
                    .map(|users| users.iter().cloned().collect()),
                not_senders: definition.not_senders.iter().cloned().collect(),
            },
            rooms: RoomSelection::new(definition.rooms.as_deref(), &definition.not_rooms),
            url: definition.url_filter,
        }
    }

    /// Whether every event of every room is wanted.
    pub fn accepts_all(&self) -> bool {
        self.events.accepts_all() && self.rooms.accepts_all() && self.url.is_none()
    }

    /// Whether events of the room may be wanted at all.
    pub fn accepts_room(&self, room: &RoomId) -> bool {
        self.rooms.accepts(room) && !self.events.is_empty()
    }

    pub fn accepts_type(&self, event_type: &str) -> bool {
        self.events.accepts_type(event_type)
    }

    pub fn accepts_sender(&self, sender: &UserId) -> bool {
        self.events.accepts_sender(sender)
    }

    /// Whether an event of an accepted room is wanted.
    pub fn accepts(&self, event: &StoredEvent) -> bool {
        if !self.events.accepts_all() {
            let event_type = event.pdu.event_type.to_string();
            if !self.accepts_type(&event_type) || !self.accepts_sender(&event.pdu.sender) {
                return false;
            }
        }
        match &self.url {
            None => true,
            Some(UrlFilter::EventsWithUrl) => has_url(event),
            Some(UrlFilter::EventsWithoutUrl) => !has_url(event),
        }
    }
}

fn has_url(event: &StoredEvent) -> bool {
    #[derive(serde::Deserialize)]
    struct Content {
        #[serde(default)]
        url: Option<serde::de::IgnoredAny>,
    }
    event
        .pdu
        .content_as::<Content>()
        .is_ok_and(|content| content.url.is_some())
}

/// Whether `text` is what `wanted` says, where `*` stands for any letters.
fn matches(wanted: &str, text: &str) -> bool {
    let mut parts = wanted.split('*');
    let Some(rest) = text.strip_prefix(parts.next().unwrap_or_default()) else {
        return false;
    };
    let Some(last) = parts.next_back() else {
        return rest.is_empty();
    };
    let mut rest = rest;
    for part in parts {
        match rest.split_once(part) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests;

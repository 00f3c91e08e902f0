//! Which events of a room a request wants.
//!
//! Spec: c2s, "Filtering".

use ruma::{
    RoomId, UInt,
    api::client::filter::{LazyLoadOptions, RoomEventFilter},
};

use super::events;
use crate::{rooms::StoredEvent, sync::filter::EventSelection};

/// The filter of a request about one room.
pub(super) struct Wanted {
    selection: EventSelection,
    /// The room is one that the filter wants.
    has_room: bool,
    /// Members are told of as far as their events are.
    pub(super) has_lazy_members: bool,
    /// Events at most.
    pub(super) limit: usize,
}

impl Wanted {
    pub(super) fn new(filter: &RoomEventFilter, room_id: &RoomId, limit: UInt) -> Self {
        let selection = EventSelection::new(filter);
        Self {
            has_room: selection.accepts_room(room_id),
            selection,
            has_lazy_members: matches!(filter.lazy_load_options, LazyLoadOptions::Enabled { .. }),
            limit: events::limit(Some(filter.limit.unwrap_or(limit).min(limit)), 0),
        }
    }

    /// Whether an event of the room is wanted.
    pub(super) fn accepts(&self, event: &StoredEvent) -> bool {
        self.has_room && self.selection.accepts(event)
    }
}

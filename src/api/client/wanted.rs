//! Which events of a room a request wants.
//!
//! Spec: c2s, "Filtering".

use ruma::{
    RoomId,
    api::client::filter::{LazyLoadOptions, RoomEventFilter, UrlFilter},
};

use crate::rooms::StoredEvent;

/// The filter of a request about one room.
pub(super) struct Wanted {
    filter: RoomEventFilter,
    /// The room is one that the filter wants.
    has_room: bool,
    /// Members are told of as far as their events are.
    pub(super) has_lazy_members: bool,
}

impl Wanted {
    pub(super) fn new(filter: &RoomEventFilter, room_id: &RoomId) -> Self {
        let is_listed = filter
            .rooms
            .as_ref()
            .is_none_or(|rooms| rooms.iter().any(|room| room == room_id));
        Self {
            has_room: is_listed && !filter.not_rooms.iter().any(|room| room == room_id),
            has_lazy_members: matches!(filter.lazy_load_options, LazyLoadOptions::Enabled { .. }),
            filter: filter.clone(),
        }
    }

    /// Whether an event of the room is wanted.
    pub(super) fn accepts(&self, event: &StoredEvent) -> bool {
        let filter = &self.filter;
        let sender = &event.pdu.sender;
        self.has_room
            && filter
                .senders
                .as_ref()
                .is_none_or(|senders| senders.contains(sender))
            && !filter.not_senders.contains(sender)
            && self.accepts_type(event)
            && match filter.url_filter {
                None => true,
                Some(UrlFilter::EventsWithUrl) => has_url(event),
                Some(UrlFilter::EventsWithoutUrl) => !has_url(event),
            }
    }

    fn accepts_type(&self, event: &StoredEvent) -> bool {
        let filter = &self.filter;
        if filter.types.is_none() && filter.not_types.is_empty() {
            return true;
        }
        let event_type = event.pdu.event_type.to_string();
        let is_one_of =
            |types: &[String]| types.iter().any(|pattern| matches(pattern, &event_type));
        filter.types.as_deref().is_none_or(is_one_of) && !is_one_of(&filter.not_types)
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

/// Whether `text` is as `pattern` says, in which `*` stands for any text.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((head, tail)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(mut rest) = text.strip_prefix(head) else {
        return false;
    };
    let (middle, last) = tail.rsplit_once('*').unwrap_or(("", tail));
    for part in middle.split('*').filter(|part| !part.is_empty()) {
        match rest.split_once(part) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, text) in [
            ("a", "a"),
            ("*", ""),
            ("m.*", "m.x"),
            ("*.y", "x.y"),
            ("a*b*c", "a1b2c"),
            ("a**c", "ac"),
        ] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("a", "ab"),
            ("m.*", "n.x"),
            ("a*b*c", "a1c"),
            ("ab*b", "ab"),
            ("", "a"),
        ] {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }
}

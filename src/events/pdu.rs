//! One event, as it is stored and as the rules see it.
//!
//! The fields are those that auth rules, state resolution and timelines ask for; [`Pdu::json`] is the whole event. Nothing here checks
//! anything: see `format`, `sign` and `auth`.

mod floats;
mod reference;

use bytes::Bytes;
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId,
    events::TimelineEventType, state_res::Event,
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;

pub use self::reference::References;

/// A persistent data unit: an event of a room.
#[derive(Clone, Debug)]
pub struct Pdu {
    pub event_id: OwnedEventId,
    /// `None` in the create event of a room whose ID is made from that event.
    pub room_id: Option<OwnedRoomId>,
    pub sender: OwnedUserId,
    pub event_type: TimelineEventType,
    pub state_key: Option<String>,
    pub content: Box<RawValue>,
    /// The content as the rules read it, where that is not how it was written: power levels before version 6 may be floats, of which only what is before
    /// the point counts.
    pub judged: Option<Box<RawValue>>,
    pub origin_server_ts: MilliSecondsSinceUnixEpoch,
    pub depth: u64,
    pub prev_events: Vec<OwnedEventId>,
    pub auth_events: Vec<OwnedEventId>,
    /// The target of a redaction, wherever it is written. Which place counts depends on the version: [`crate::events::redact::target`].
    pub redacts: Option<OwnedEventId>,
    /// Failed a check on receipt. Comes from the flags of the stored event, never from its JSON.
    pub rejected: bool,
    /// Canonical JSON without `unsigned`, and without `event_id` where that is a hash of the rest. Before version 6 with all numbers that
    /// JSON has.
    pub json: Bytes,
}

/// JSON that passed no format check, or a damaged row.
#[derive(Debug, thiserror::Error)]
#[error("the event {event_id} is malformed: {source}")]
pub struct Malformed {
    pub event_id: OwnedEventId,
    #[source]
    pub source: serde_json::Error,
}

/// The fields of the JSON, borrowed where serde can.
#[derive(Deserialize)]
struct Fields<'a> {
    room_id: Option<OwnedRoomId>,
    sender: OwnedUserId,
    #[serde(rename = "type")]
    event_type: TimelineEventType,
    state_key: Option<String>,
    #[serde(borrow)]
    content: &'a RawValue,
    origin_server_ts: MilliSecondsSinceUnixEpoch,
    depth: u64,
    prev_events: References,
    auth_events: References,
    #[serde(borrow)]
    redacts: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct RedactionContent {
    redacts: Option<OwnedEventId>,
}

impl Pdu {
    /// Reads what [`Pdu::json`] of an accepted event was.
    ///
    /// # Errors
    ///
    /// If a field that every event has is missing or of another type.
    pub fn from_stored(
        event_id: OwnedEventId,
        json: Bytes,
        rejected: bool,
    ) -> Result<Self, Malformed> {
        let fields: Fields<'_> = match serde_json::from_slice(&json) {
            Ok(fields) => fields,
            Err(source) => return Err(Malformed { event_id, source }),
        };
        let redacts = match fields.event_type {
            TimelineEventType::RoomRedaction => redaction_target(fields.redacts, fields.content),
            _ => None,
        };
        let judged = match fields.event_type {
            TimelineEventType::RoomPowerLevels => floats::truncated(fields.content),
            _ => None,
        };
        Ok(Self {
            event_id,
            room_id: fields.room_id,
            sender: fields.sender,
            event_type: fields.event_type,
            state_key: fields.state_key,
            content: fields.content.to_owned(),
            judged,
            origin_server_ts: fields.origin_server_ts,
            depth: fields.depth,
            prev_events: fields.prev_events.ids,
            auth_events: fields.auth_events.ids,
            redacts,
            rejected,
            json,
        })
    }

    /// The content as `T`.
    ///
    /// # Errors
    ///
    /// If the content is not what `T` expects; the sender chose it freely.
    pub fn content_as<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(self.content.get())
    }

    /// The content as the rules read it.
    pub(in crate::events) fn judged_content(&self) -> &RawValue {
        self.judged.as_deref().unwrap_or(&self.content)
    }

    /// Whether the ID is a part of the event, and no hash of it: in versions 1 and 2.
    pub fn is_named(&self) -> bool {
        self.event_id.server_name().is_some()
    }

    pub fn is_state(&self) -> bool {
        self.state_key.is_some()
    }
}

/// Lenient: neither place is checked before an event is accepted.
fn redaction_target(top_level: Option<&RawValue>, content: &RawValue) -> Option<OwnedEventId> {
    top_level
        .and_then(|value| serde_json::from_str(value.get()).ok())
        .or_else(|| {
            let content: RedactionContent = serde_json::from_str(content.get()).ok()?;
            content.redacts
        })
}

impl Event for Pdu {
    type Id = OwnedEventId;

    fn event_id(&self) -> &OwnedEventId {
        &self.event_id
    }

    fn room_id(&self) -> Option<&RoomId> {
        self.room_id.as_deref()
    }

    fn sender(&self) -> &UserId {
        &self.sender
    }

    fn origin_server_ts(&self) -> MilliSecondsSinceUnixEpoch {
        self.origin_server_ts
    }

    fn event_type(&self) -> &TimelineEventType {
        &self.event_type
    }

    fn content(&self) -> &RawValue {
        self.judged_content()
    }

    fn state_key(&self) -> Option<&str> {
        self.state_key.as_deref()
    }

    fn prev_events(&self) -> Box<dyn DoubleEndedIterator<Item = &OwnedEventId> + '_> {
        Box::new(self.prev_events.iter())
    }

    fn auth_events(&self) -> Box<dyn DoubleEndedIterator<Item = &OwnedEventId> + '_> {
        Box::new(self.auth_events.iter())
    }

    fn redacts(&self) -> Option<&OwnedEventId> {
        self.redacts.as_ref()
    }

    fn rejected(&self) -> bool {
        self.rejected
    }
}

#[cfg(test)]
mod tests;

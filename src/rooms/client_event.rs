//! An event as clients get it: the client form of the stored JSON, with what this server adds in `unsigned`.
//!
//! The JSON is put together from the pieces of the stored canonical JSON; nothing is parsed again. What stands in `unsigned`
//! is gathered for a whole page at once ([`Rooms::unsigned`]), apart from what only one device is shown
//! ([`Rooms::transaction_ids`]), so that a page can be written once for many readers.
//!
//! Spec: c2s, "Event format", "Room event fields"; rooms/v11, "Moving the redacts property".

use std::sync::Arc;

use ruma::{RoomId, events::TimelineEventType};
use serde_json::value::RawValue;

use super::{Class, Error, RoomNumber, Rooms, StoredEvent};
use crate::{accounts::UserNumber, events::Pdu, storage::Snapshot};

/// Whom an event is written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Viewer {
    pub user: UserNumber,
    /// The hash of the device; 0 for none.
    pub device: u64,
}

/// What an event looks like.
#[derive(Clone, Copy, Debug)]
pub enum EventForm<'a> {
    /// Without `room_id`, as in sync, where the room stands around it.
    Sync,
    /// With `room_id`.
    Client(&'a RoomId),
    /// The PDU as other servers have it, with `event_id` and `unsigned` added.
    Federation,
}

/// What a client is told of an event beside the event.
#[derive(Clone, Debug, Default)]
pub struct Unsigned {
    /// The transaction ID with which the reading device sent the event.
    pub transaction_id: Option<String>,
    /// The state event that this one replaced.
    pub replaces: Option<Arc<StoredEvent>>,
    /// The redaction of this event.
    pub redacted_because: Option<Arc<StoredEvent>>,
    /// The membership of the reader when the event was sent.
    pub membership: Option<Class>,
    /// Bundled aggregations: the content of `m.relations`.
    pub relations: Option<Box<RawValue>>,
}

impl Rooms {
    /// What all who may see `events` are told beside them, in their order; one read for all that is not in memory.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn unsigned(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        events: &[Arc<StoredEvent>],
    ) -> Result<Vec<Unsigned>, Error> {
        let redactions: Vec<_> = events
            .iter()
            .filter_map(|event| event.meta.redacted_by)
            .collect();
        let mut redactions = self.events(snapshot, room, &redactions)?.into_iter();
        let mut all = Vec::with_capacity(events.len());
        for event in events {
            let redacted_because = match event.meta.redacted_by {
                Some(_) => redactions.next().flatten(),
                None => None,
            };
            all.push(Unsigned {
                replaces: self.replaced_by(snapshot, room, event)?,
                redacted_because,
                ..Unsigned::default()
            });
        }
        Ok(all)
    }

    /// The state event in whose place a state event came.
    fn replaced_by(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        event: &StoredEvent,
    ) -> Result<Option<Arc<StoredEvent>>, Error> {
        let Some(key) = &event.pdu.state_key else {
            return Ok(None);
        };
        let event_type = event.pdu.event_type.to_string();
        self.state_event(snapshot, (room, event.meta.root_before), &event_type, key)
    }

    /// Adds the transaction IDs of events that the device of `viewer` sent itself.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn transaction_ids(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        viewer: Viewer,
        events: &[Arc<StoredEvent>],
        unsigned: &mut [Unsigned],
    ) -> Result<(), Error> {
        let own = events.iter().zip(unsigned);
        let (own, numbers): (Vec<_>, Vec<_>) = own
            .filter(|(event, _)| event.meta.sender == viewer.user)
            .filter(|(event, _)| self.remembers_transaction(event))
            .map(|(event, unsigned)| (unsigned, event.number))
            .unzip();
        let sent = self.sent_with(snapshot, room, &numbers)?;
        for (unsigned, sent) in own.into_iter().zip(sent) {
            unsigned.transaction_id = sent
                .filter(|sent| sent.user == viewer.user && sent.device == viewer.device)
                .map(|sent| sent.transaction_id);
        }
        Ok(())
    }
}

/// Appends `event` in a form.
pub fn write_event(
    to: &mut Vec<u8>,
    event: &StoredEvent,
    form: EventForm<'_>,
    unsigned: &Unsigned,
    now_ms: u64,
) {
    match form {
        EventForm::Sync => write_client(to, &event.pdu, None),
        EventForm::Client(room_id) => write_client(to, &event.pdu, Some(room_id)),
        EventForm::Federation => write_federation(to, &event.pdu),
    }
    to.extend_from_slice(b",\"unsigned\":");
    write_unsigned(to, event, form, unsigned, now_ms);
    to.push(b'}');
}

/// An event in a form, as a value of its own.
pub fn event_json(
    event: &StoredEvent,
    form: EventForm<'_>,
    unsigned: &Unsigned,
    now_ms: u64,
) -> Box<RawValue> {
    let mut json = Vec::with_capacity(event.pdu.json.len());
    write_event(&mut json, event, form, unsigned, now_ms);
    let text = String::from_utf8(json).expect("it is put together from text");
    RawValue::from_string(text).expect("it is put together as JSON")
}

/// All but the end of the client form.
fn write_client(to: &mut Vec<u8>, pdu: &Pdu, room_id: Option<&RoomId>) {
    to.extend_from_slice(b"{\"content\":");
    write_content(to, pdu);
    to.extend_from_slice(b",\"event_id\":");
    write_text(to, pdu.event_id.as_str());
    to.extend_from_slice(b",\"origin_server_ts\":");
    write_number(to, u64::from(pdu.origin_server_ts.0));
    if let Some(redacts) = &pdu.redacts {
        to.extend_from_slice(b",\"redacts\":");
        write_text(to, redacts.as_str());
    }
    if let Some(room_id) = room_id {
        to.extend_from_slice(b",\"room_id\":");
        write_text(to, room_id.as_str());
    }
    to.extend_from_slice(b",\"sender\":");
    write_text(to, pdu.sender.as_str());
    if let Some(state_key) = &pdu.state_key {
        to.extend_from_slice(b",\"state_key\":");
        write_text(to, state_key);
    }
    to.extend_from_slice(b",\"type\":");
    write_type(to, &pdu.event_type);
}

/// The content; that of a redaction names its target whatever the room version.
fn write_content(to: &mut Vec<u8>, pdu: &Pdu) {
    #[derive(serde::Deserialize)]
    struct Redaction {
        redacts: Option<serde::de::IgnoredAny>,
    }
    let content = pdu.content.get();
    if let Some(redacts) = &pdu.redacts
        && !pdu
            .content_as::<Redaction>()
            .is_ok_and(|content| content.redacts.is_some())
        && let Some(rest) = content.strip_prefix('{')
    {
        to.extend_from_slice(b"{\"redacts\":");
        write_text(to, redacts.as_str());
        if !rest.trim_start().starts_with('}') {
            to.push(b',');
        }
        to.extend_from_slice(rest.as_bytes());
        return;
    }
    to.extend_from_slice(content.as_bytes());
}

/// The stored PDU with its ID, without its end.
fn write_federation(to: &mut Vec<u8>, pdu: &Pdu) {
    let json = pdu.json.strip_suffix(b"}").unwrap_or(&pdu.json);
    to.extend_from_slice(json);
    // In versions 1 and 2 it is a part of the event.
    if pdu.is_named() {
        return;
    }
    to.extend_from_slice(b",\"event_id\":");
    write_text(to, pdu.event_id.as_str());
}

fn write_unsigned(
    to: &mut Vec<u8>,
    event: &StoredEvent,
    form: EventForm<'_>,
    unsigned: &Unsigned,
    now_ms: u64,
) {
    to.extend_from_slice(b"{\"age\":");
    write_number(to, now_ms.saturating_sub(event.meta.timestamp));
    if let Some(relations) = &unsigned.relations {
        to.extend_from_slice(b",\"m.relations\":");
        to.extend_from_slice(relations.get().as_bytes());
    }
    if let Some(membership) = unsigned.membership {
        to.extend_from_slice(b",\"membership\":");
        write_text(to, membership.as_str());
    }
    if let Some(replaced) = &unsigned.replaces {
        to.extend_from_slice(b",\"prev_content\":");
        to.extend_from_slice(replaced.pdu.content.get().as_bytes());
        to.extend_from_slice(b",\"prev_sender\":");
        write_text(to, replaced.pdu.sender.as_str());
        to.extend_from_slice(b",\"replaces_state\":");
        write_text(to, replaced.pdu.event_id.as_str());
    }
    if let Some(redaction) = &unsigned.redacted_because {
        let room_id = match form {
            EventForm::Client(room_id) => Some(room_id),
            EventForm::Sync | EventForm::Federation => None,
        };
        to.extend_from_slice(b",\"redacted_because\":");
        write_client(to, &redaction.pdu, room_id);
        to.extend_from_slice(b",\"unsigned\":{\"age\":");
        write_number(to, now_ms.saturating_sub(redaction.meta.timestamp));
        to.extend_from_slice(b"}}");
    }
    if let Some(transaction_id) = &unsigned.transaction_id {
        to.extend_from_slice(b",\"transaction_id\":");
        write_text(to, transaction_id);
    }
    to.push(b'}');
}

fn write_type(to: &mut Vec<u8>, event_type: &TimelineEventType) {
    write_text(to, &event_type.to_string());
}

/// Appends a JSON string. Nearly all texts here need no escaping.
pub fn write_text(to: &mut Vec<u8>, text: &str) {
    let needs_escape = |byte: u8| byte < 0x20 || byte == b'"' || byte == b'\\';
    if text.bytes().any(needs_escape) {
        serde_json::to_writer(to, text).expect("a vector takes all bytes");
        return;
    }
    to.push(b'"');
    to.extend_from_slice(text.as_bytes());
    to.push(b'"');
}

/// Appends a number in decimal.
pub fn write_number(to: &mut Vec<u8>, number: u64) {
    serde_json::to_writer(to, &number).expect("a vector takes all bytes");
}

#[cfg(test)]
mod tests;

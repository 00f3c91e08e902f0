//! One stored event: its body (`ev`), its metadata (`em`), and how its ID leads to it (`eid`).
//!
//! The body is the canonical JSON that was signed, without `unsigned` and, where its ID is a hash of the rest, without
//! `event_id`. What this server knows about the event is the metadata. engine.md section 5.2.

mod key;

use std::sync::Arc;

use bytes::Bytes;
use ruma::EventId;
use smallvec::SmallVec;

pub(crate) use self::key::EventKey;
pub(super) use self::key::{place, places, put_text, take_text};

use super::{Error, RoomNumber, TypeNumber};
use crate::{
    accounts::UserNumber,
    events::{EventNumber, Pdu, RootNumber, StateNumber},
    storage::{Batch, Family, Position, PositionAt, Record, Snapshot, Table},
};

pub(super) static BODIES: Table<(RoomNumber, EventNumber), Body> =
    Table::new("bodies", Family::Events, b'e');
pub(super) static METAS: Table<(RoomNumber, EventNumber), EventMeta> =
    Table::new("metas", Family::EventMeta, b'e');

/// Where an event of this ID lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventPlace {
    pub room: RoomNumber,
    pub event: EventNumber,
}

impl Record for EventPlace {
    fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.room.0.to_be_bytes());
        to.extend_from_slice(&self.event.0.to_be_bytes());
    }
    fn decode(from: &[u8]) -> Result<Self, String> {
        let mut reader = Reader(from);
        Ok(Self {
            room: RoomNumber(reader.u32()?),
            event: EventNumber(reader.u32()?),
        })
    }
}

/// The stored body: format, ID, canonical JSON. Empty JSON: a stub, or a purged body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Body {
    pub(super) id: EventKey,
    pub(super) json: Bytes,
}

/// The ID is a hash, the body is canonical JSON as it is.
const FORMAT_JSON: u8 = 0;
/// The ID is text, the body is JSON as it is.
const FORMAT_TEXT_ID_JSON: u8 = 2;

impl Record for Body {
    fn encode(&self, to: &mut Vec<u8>) {
        match &self.id {
            EventKey::Hash(hash) => {
                to.push(FORMAT_JSON);
                to.extend_from_slice(hash);
            }
            EventKey::Text(text) => {
                to.push(FORMAT_TEXT_ID_JSON);
                put_text(to, text);
            }
        }
        to.extend_from_slice(&self.json);
    }
    fn decode(from: &[u8]) -> Result<Self, String> {
        let mut reader = Reader(from);
        let id = match reader.u8()? {
            FORMAT_JSON => EventKey::Hash(reader.array()?),
            FORMAT_TEXT_ID_JSON => EventKey::Text(take_text(&mut reader)?),
            other => return Err(format!("unknown body format {other}")),
        };
        Ok(Self {
            id,
            json: Bytes::copy_from_slice(reader.0),
        })
    }
}

/// What [`EventMeta::flags`] says; engine.md section 5.2.
pub mod flag {
    pub const OUTLIER: u32 = 1;
    pub const REJECTED_BY_AUTH_EVENTS: u32 = 1 << 1;
    pub const REJECTED_BY_STATE: u32 = 1 << 2;
    pub const SOFT_FAILED: u32 = 1 << 3;
    pub const REDACTED: u32 = 1 << 4;
    pub const PURGED: u32 = 1 << 5;
    pub const STATE_PARTIAL: u32 = 1 << 6;
    pub const POLICY_CHECKED: u32 = 1 << 7;
    pub const NOTIFIES: u32 = 1 << 8;
    pub const ENCRYPTED: u32 = 1 << 9;
    pub const STATE: u32 = 1 << 10;
    pub const LOCAL: u32 = 1 << 11;
    pub const STUB: u32 = 1 << 12;
    pub const HIDDEN: u32 = 1 << 13;
    pub const STICKY: u32 = 1 << 14;
    /// Another server gave it to this one to be sent on to all: a join, leave or knock.
    pub const RELAYED: u32 = 1 << 15;
}

/// How an event relates to another (`rel` in `em` and in relation rows).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Relation {
    /// `m.replace`
    Replace = 1,
    /// `m.annotation`
    Annotation = 2,
    /// `m.reference`
    Reference = 3,
    /// `m.thread`
    Thread = 4,
    /// Any other `rel_type`; its text stands in the event.
    Other = 255,
}

impl Relation {
    /// The relation of a `rel_type`.
    pub fn of(rel_type: &str) -> Self {
        match rel_type {
            "m.replace" => Self::Replace,
            "m.annotation" => Self::Annotation,
            "m.reference" => Self::Reference,
            "m.thread" => Self::Thread,
            _ => Self::Other,
        }
    }

    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        [
            Self::Replace,
            Self::Annotation,
            Self::Reference,
            Self::Thread,
            Self::Other,
        ]
        .into_iter()
        .find(|relation| *relation as u8 == byte)
    }
}

/// What this server knows about an event besides its body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventMeta {
    /// When it became visible; zero for backfilled events and outliers.
    pub position: Position,
    /// Bits of [`flag`].
    pub flags: u32,
    pub event_type: TypeNumber,
    /// Zero in the row of a stub.
    pub sender: UserNumber,
    /// `origin_server_ts`, in milliseconds, at most 2^48 - 1.
    pub timestamp: u64,
    /// When this server got it, in milliseconds.
    pub received: u64,
    pub root_before: RootNumber,
    pub root_after: RootNumber,
    /// Its place in the timeline, if it is in it.
    pub index: i64,
    pub depth: u64,
    /// Running ordinals for unread counts; engine.md section 11.
    pub ord_all: u64,
    pub ord_thread: u64,
    pub ord_room: u64,
    /// Its number as a state event.
    pub state: Option<StateNumber>,
    pub prev_events: SmallVec<[EventNumber; 2]>,
    pub auth_states: SmallVec<[StateNumber; 4]>,
    pub relation: Option<(Relation, EventNumber)>,
    pub redacts: Option<EventNumber>,
    pub redacted_by: Option<EventNumber>,
    pub thread_root: Option<EventNumber>,
}

/// First byte of an `em` row.
const META_VERSION: u8 = 1;

impl EventMeta {
    /// Where the committer writes the position.
    pub(super) const POSITION: PositionAt = PositionAt::Value(1);

    pub fn has(&self, flags: u32) -> bool {
        self.flags & flags != 0
    }

    /// Whether the event is a part of the room's graph, not rejected and not soft-failed.
    pub fn is_accepted(&self) -> bool {
        !self.has(
            flag::OUTLIER
                | flag::REJECTED_BY_AUTH_EVENTS
                | flag::REJECTED_BY_STATE
                | flag::SOFT_FAILED
                | flag::STUB,
        )
    }

    /// Whether the rules refuse the event.
    pub fn is_rejected(&self) -> bool {
        self.has(flag::REJECTED_BY_AUTH_EVENTS | flag::REJECTED_BY_STATE)
    }

    /// Whether the event is shown to clients as a part of the timeline.
    pub fn is_visible(&self) -> bool {
        !self.has(
            flag::OUTLIER
                | flag::REJECTED_BY_AUTH_EVENTS
                | flag::REJECTED_BY_STATE
                | flag::SOFT_FAILED
                | flag::STUB
                | flag::HIDDEN
                | flag::PURGED,
        )
    }
}

impl Record for EventMeta {
    fn encode(&self, to: &mut Vec<u8>) {
        to.push(META_VERSION);
        to.extend_from_slice(&self.position.0.to_be_bytes());
        to.extend_from_slice(&self.flags.to_be_bytes());
        to.extend_from_slice(&self.event_type.0.to_be_bytes());
        to.extend_from_slice(&self.sender.0.to_be_bytes());
        put_u48(to, self.timestamp);
        put_u48(to, self.received);
        to.extend_from_slice(&self.root_before.0.to_be_bytes());
        to.extend_from_slice(&self.root_after.0.to_be_bytes());
        to.extend_from_slice(&self.index.to_be_bytes());
        for number in [self.depth, self.ord_all, self.ord_thread, self.ord_room] {
            put_varint(to, number);
        }
        put_varint(to, self.state.map_or(0, |state| u64::from(state.0) + 1));
        put_varint(to, self.prev_events.len() as u64);
        for event in &self.prev_events {
            put_varint(to, u64::from(event.0));
        }
        put_varint(to, self.auth_states.len() as u64);
        for state in &self.auth_states {
            put_varint(to, u64::from(state.0));
        }
        match self.relation {
            None => to.push(0),
            Some((relation, parent)) => {
                to.push(relation as u8);
                put_varint(to, u64::from(parent.0));
            }
        }
        for event in [self.redacts, self.redacted_by, self.thread_root] {
            put_varint(to, event.map_or(0, |event| u64::from(event.0) + 1));
        }
    }

    fn decode(from: &[u8]) -> Result<Self, String> {
        let mut reader = Reader(from);
        match reader.u8()? {
            META_VERSION => {}
            other => return Err(format!("unknown version {other}")),
        }
        let mut meta = Self {
            position: Position(reader.u64()?),
            flags: reader.u32()?,
            event_type: TypeNumber(reader.u16()?),
            sender: UserNumber(reader.u32()?),
            timestamp: reader.u48()?,
            received: reader.u48()?,
            root_before: RootNumber(reader.u32()?),
            root_after: RootNumber(reader.u32()?),
            index: i64::from_be_bytes(reader.u64()?.to_be_bytes()),
            depth: reader.varint()?,
            ord_all: reader.varint()?,
            ord_thread: reader.varint()?,
            ord_room: reader.varint()?,
            state: reader.optional_number()?.map(StateNumber),
            ..Self::default()
        };
        for _ in 0..reader.varint()? {
            meta.prev_events.push(EventNumber(reader.varint_u32()?));
        }
        for _ in 0..reader.varint()? {
            meta.auth_states.push(StateNumber(reader.varint_u32()?));
        }
        meta.relation = match reader.u8()? {
            0 => None,
            byte => {
                let relation =
                    Relation::from_byte(byte).ok_or_else(|| format!("unknown relation {byte}"))?;
                Some((relation, EventNumber(reader.varint_u32()?)))
            }
        };
        meta.redacts = reader.optional_number()?.map(EventNumber);
        meta.redacted_by = reader.optional_number()?.map(EventNumber);
        meta.thread_root = reader.optional_number()?.map(EventNumber);
        Ok(meta)
    }
}

/// An event as readers and the writer hold it.
#[derive(Clone, Debug)]
pub struct StoredEvent {
    pub number: EventNumber,
    pub meta: EventMeta,
    pub pdu: Arc<Pdu>,
}

impl StoredEvent {
    pub fn event_id(&self) -> &EventId {
        &self.pdu.event_id
    }

    /// What it costs in a cache, in bytes.
    pub(super) fn weight(&self) -> usize {
        // The JSON, its parsed form, and the fixed parts.
        self.pdu.json.len() * 2 + 700
    }
}

/// Reads the events of `numbers`, in their order; `None` where there is only a stub or nothing.
pub(super) fn load(
    snapshot: &Snapshot,
    room: RoomNumber,
    numbers: &[EventNumber],
) -> Result<Vec<Option<Arc<StoredEvent>>>, Error> {
    let keys: Vec<_> = numbers.iter().map(|number| (room, *number)).collect();
    let bodies = snapshot.get_many(&BODIES, &keys)?;
    let metas = snapshot.get_many(&METAS, &keys)?;
    let rows = numbers.iter().zip(bodies).zip(metas);
    rows.map(|((number, body), meta)| match (body, meta) {
        (Some(body), Some(meta)) if !body.json.is_empty() => decode(*number, body, meta).map(Some),
        _ => Ok(None),
    })
    .collect()
}

fn decode(number: EventNumber, body: Body, meta: EventMeta) -> Result<Arc<StoredEvent>, Error> {
    let rejected = meta.has(flag::REJECTED_BY_AUTH_EVENTS | flag::REJECTED_BY_STATE);
    let pdu = Pdu::from_stored(body.id.id(), body.json, rejected)
        .map_err(|malformed| Error::corrupt("bodies", &malformed.to_string()))?;
    Ok(Arc::new(StoredEvent {
        number,
        meta,
        pdu: Arc::new(pdu),
    }))
}

/// Adds the rows of one event.
pub(super) fn insert(batch: &mut Batch, room: RoomNumber, event: &StoredEvent, id: &EventKey) {
    let key = (room, event.number);
    let place = EventPlace {
        room,
        event: event.number,
    };
    key::insert(batch, id, place);
    let body = Body {
        id: id.clone(),
        json: event.pdu.json.clone(),
    };
    batch.put(&BODIES, &key, &body);
    batch.put_stamped(&METAS, &key, &event.meta, EventMeta::POSITION);
}

/// Adds the rows of an event without a position: an outlier, or one that came before what is live.
pub(super) fn insert_past(batch: &mut Batch, room: RoomNumber, event: &StoredEvent, id: &EventKey) {
    insert(batch, room, event, id);
    // The later write counts.
    batch.put(&METAS, &(room, event.number), &event.meta);
}

/// Reads fixed and variable width numbers off the front of a row.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let (front, rest) = self
            .0
            .split_at_checked(length)
            .ok_or_else(|| "the row is too short".to_owned())?;
        self.0 = rest;
        Ok(front)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.take(N)?
            .try_into()
            .map_err(|_length| "the row is too short".to_owned())
    }

    pub(super) fn u8(&mut self) -> Result<u8, String> {
        Ok(u8::from_be_bytes(self.array()?))
    }
    pub(super) fn u16(&mut self) -> Result<u16, String> {
        Ok(u16::from_be_bytes(self.array()?))
    }
    pub(super) fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_be_bytes(self.array()?))
    }
    pub(super) fn u48(&mut self) -> Result<u64, String> {
        let mut bytes = [0; 8];
        bytes[2..].copy_from_slice(self.take(6)?);
        Ok(u64::from_be_bytes(bytes))
    }
    pub(super) fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// An unsigned LEB128 number.
    pub(super) fn varint(&mut self) -> Result<u64, String> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err("a number is too long".to_owned())
    }

    pub(super) fn varint_u32(&mut self) -> Result<u32, String> {
        u32::try_from(self.varint()?).map_err(|_large| "a number is too large".to_owned())
    }

    /// A number stored plus one, zero for none.
    pub(super) fn optional_number(&mut self) -> Result<Option<u32>, String> {
        match self.varint()? {
            0 => Ok(None),
            number => u32::try_from(number - 1)
                .map(Some)
                .map_err(|_large| "a number is too large".to_owned()),
        }
    }
}

/// Appends an unsigned LEB128 number.
pub(super) fn put_varint(to: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        to.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    to.push(number.to_le_bytes()[0]);
}

/// Appends the low six bytes, big endian.
pub(super) fn put_u48(to: &mut Vec<u8>, number: u64) {
    to.extend_from_slice(&number.to_be_bytes()[2..]);
}

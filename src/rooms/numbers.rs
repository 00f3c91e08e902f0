//! Interned identifiers: small numbers in keys instead of long text, given out once and never reused.
//!
//! A number is queued in a batch of its own before anything refers to it, so a row never names an unknown number.
//! engine.md section 2.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use ruma::{OwnedRoomId, OwnedServerName, RoomId, ServerName};

use super::Error;
use crate::{
    events::{EventNumber, NodeNumber, RootNumber, StateKeyNumber, StateNumber},
    storage::{Batch, Family, KeyError, KeyPart, Store, Table, Text},
};

/// A room, in keys.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(transparent)]
pub struct RoomNumber(pub u32);

/// A server, in keys.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(transparent)]
pub struct ServerNumber(pub u32);

/// An event type, in keys. 1 to 63 are the well-known types of [`WELL_KNOWN`]; [`TypeNumber::OTHER`] stands for every
/// type that came after the numbers ran out.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(transparent)]
pub struct TypeNumber(pub u16);

impl TypeNumber {
    pub const CREATE: Self = Self(1);
    pub const MEMBER: Self = Self(2);
    pub const POWER_LEVELS: Self = Self(3);
    pub const MESSAGE: Self = Self(14);
    pub const ENCRYPTED: Self = Self(15);
    pub const REDACTION: Self = Self(16);
    pub const REACTION: Self = Self(17);
    /// Ties loose ends of the graph together and is not shown.
    pub const MERGE: Self = Self(33);
    /// Any type without a number of its own; its text stands in the event.
    pub const OTHER: Self = Self(u16::MAX);
}

/// Types with fixed numbers: the first has number 1. Append only, 63 at most.
const WELL_KNOWN: &[&str] = &[
    "m.room.create",
    "m.room.member",
    "m.room.power_levels",
    "m.room.join_rules",
    "m.room.history_visibility",
    "m.room.guest_access",
    "m.room.name",
    "m.room.topic",
    "m.room.avatar",
    "m.room.canonical_alias",
    "m.room.encryption",
    "m.room.tombstone",
    "m.room.server_acl",
    "m.room.message",
    "m.room.encrypted",
    "m.room.redaction",
    "m.reaction",
    "m.room.pinned_events",
    "m.room.third_party_invite",
    "m.space.child",
    "m.space.parent",
    "m.sticker",
    "m.call.invite",
    "m.call.candidates",
    "m.call.answer",
    "m.call.hangup",
    "m.poll.start",
    "m.poll.response",
    "m.poll.end",
    "m.room.policy",
    "org.matrix.msc3401.call.member",
    "m.rtc.notification",
    "org.matrix.dummy_event",
];

/// The first number given to a type that is not well known.
const FIRST_FREE_TYPE: u16 = 64;
/// Above this, new types share [`TypeNumber::OTHER`], so that made-up types cannot exhaust the numbers.
const LAST_TYPE: u16 = 60_000;

static ROOM_NUMBERS: Table<(Text,), u32> = Table::new("room_numbers", Family::Interned, b'r');
static ROOM_IDS: Table<(RoomNumber,), String> = Table::new("room_ids", Family::Interned, b'R');
static SERVER_NUMBERS: Table<(Text,), u32> = Table::new("server_numbers", Family::Interned, b's');
static SERVER_NAMES: Table<(ServerNumber,), String> =
    Table::new("server_names", Family::Interned, b'S');
static TYPE_NUMBERS: Table<(Text,), u16> = Table::new("type_numbers", Family::Interned, b't');
static TYPE_NAMES: Table<(TypeNumber,), String> = Table::new("type_names", Family::Interned, b'T');

/// A key part that is a big-endian number in a newtype.
macro_rules! number_key {
    ($($name:ty: $inner:ty),+) => {$(
        impl KeyPart for $name {
            fn encode(&self, to: &mut Vec<u8>) {
                KeyPart::encode(&self.0, to);
            }
            fn decode(from: &mut &[u8]) -> Result<Self, KeyError> {
                <$inner as KeyPart>::decode(from).map(Self)
            }
        }
    )+};
}
number_key!(RoomNumber: u32, ServerNumber: u32, TypeNumber: u16, EventNumber: u32, StateNumber: u32,
    StateKeyNumber: u32, NodeNumber: u32, RootNumber: u32);

/// Both directions of the interned room, server and type names. Types are all in memory; rooms and servers are too, as
/// each costs about 100 bytes.
pub(super) struct Numbers {
    store: Store,
    names: Mutex<Names>,
}

#[derive(Default)]
struct Names {
    rooms: Pairs<OwnedRoomId, RoomNumber>,
    servers: Pairs<OwnedServerName, ServerNumber>,
    types: Pairs<String, TypeNumber>,
}

struct Pairs<N, I> {
    numbers: HashMap<N, I>,
    names: HashMap<I, N>,
    /// One above the highest number given out.
    next: u32,
}

impl<N, I> Default for Pairs<N, I> {
    fn default() -> Self {
        Self {
            numbers: HashMap::new(),
            names: HashMap::new(),
            next: 1,
        }
    }
}

impl<N: Clone + Eq + std::hash::Hash, I: Copy + Eq + std::hash::Hash> Pairs<N, I> {
    fn insert(&mut self, name: N, number: I, raw: u32) {
        self.numbers.insert(name.clone(), number);
        self.names.insert(number, name);
        self.next = self.next.max(raw.saturating_add(1));
    }
}

impl Numbers {
    /// Loads every interned name.
    pub(super) fn load(store: Store) -> Result<Self, Error> {
        let snapshot = store.snapshot()?;
        let mut names = Names::default();
        for (at, name) in WELL_KNOWN.iter().enumerate() {
            let number = u16::try_from(at + 1).expect("fewer than 64 well-known types");
            names
                .types
                .insert((*name).to_owned(), TypeNumber(number), u32::from(number));
        }
        names.types.next = u32::from(FIRST_FREE_TYPE);
        for row in snapshot.scan(ROOM_IDS.all(), crate::storage::Order::Forward) {
            let ((number,), id) = row?;
            let id = RoomId::parse(&id)
                .map_err(|_invalid| Error::corrupt("room_ids", "not a room ID"))?;
            names.rooms.insert(id, number, number.0);
        }
        for row in snapshot.scan(SERVER_NAMES.all(), crate::storage::Order::Forward) {
            let ((number,), name) = row?;
            let name = ServerName::parse(&name)
                .map_err(|_invalid| Error::corrupt("server_names", "not a name"))?;
            names.servers.insert(name, number, number.0);
        }
        for row in snapshot.scan(TYPE_NAMES.all(), crate::storage::Order::Forward) {
            let ((number,), name) = row?;
            names.types.insert(name, number, u32::from(number.0));
        }
        Ok(Self {
            store,
            names: Mutex::new(names),
        })
    }

    fn names(&self) -> std::sync::MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn room(&self, room_id: &RoomId) -> Option<RoomNumber> {
        self.names().rooms.numbers.get(room_id).copied()
    }

    pub(super) fn room_id(&self, room: RoomNumber) -> Option<OwnedRoomId> {
        self.names().rooms.names.get(&room).cloned()
    }

    /// The number of a server; `None` if none of its users was ever in a room here.
    pub(super) fn server(&self, name: &ServerName) -> Option<ServerNumber> {
        self.names().servers.numbers.get(name).copied()
    }

    pub(super) fn server_name(&self, server: ServerNumber) -> Option<OwnedServerName> {
        self.names().servers.names.get(&server).cloned()
    }

    /// The number of a type; `None` if no event of this type was ever seen.
    pub(super) fn type_number(&self, event_type: &str) -> Option<TypeNumber> {
        let names = self.names();
        match names.types.numbers.get(event_type) {
            Some(number) => Some(*number),
            None if names.types.next > u32::from(LAST_TYPE) => Some(TypeNumber::OTHER),
            None => None,
        }
    }

    /// The text of a type; `None` for [`TypeNumber::OTHER`].
    pub(super) fn type_name(&self, number: TypeNumber) -> Option<String> {
        self.names().types.names.get(&number).cloned()
    }

    /// The number of a room, given out now if it has none.
    ///
    /// The batch is queued before the number is handed out, and the queue is the order of the log: what refers to the
    /// number cannot become durable without it, so its commit need not be waited for.
    pub(super) fn intern_room(&self, room_id: &RoomId) -> RoomNumber {
        self.intern_new_room(room_id).0
    }

    /// The same, and whether it was given out now: to one caller only.
    pub(super) fn intern_new_room(&self, room_id: &RoomId) -> (RoomNumber, bool) {
        let mut names = self.names();
        if let Some(number) = names.rooms.numbers.get(room_id) {
            return (*number, false);
        }
        let number = RoomNumber(names.rooms.next);
        let mut batch = Batch::new();
        batch.put(&ROOM_NUMBERS, &(Text(room_id.as_str().into()),), &number.0);
        batch.put(&ROOM_IDS, &(number,), &room_id.as_str().to_owned());
        drop(self.store.submit(batch));
        names.rooms.insert(room_id.to_owned(), number, number.0);
        (number, true)
    }

    /// The number of a server, given out now if it has none. See [`Self::intern_room`].
    pub(super) fn intern_server(&self, name: &ServerName) -> ServerNumber {
        let mut names = self.names();
        if let Some(number) = names.servers.numbers.get(name) {
            return *number;
        }
        let number = ServerNumber(names.servers.next);
        let mut batch = Batch::new();
        batch.put(&SERVER_NUMBERS, &(Text(name.as_str().into()),), &number.0);
        batch.put(&SERVER_NAMES, &(number,), &name.as_str().to_owned());
        drop(self.store.submit(batch));
        names.servers.insert(name.to_owned(), number, number.0);
        number
    }

    /// The number of a type, given out now if it has none. See [`Self::intern_room`].
    pub(super) fn intern_type(&self, event_type: &str) -> TypeNumber {
        let mut names = self.names();
        if let Some(number) = names.types.numbers.get(event_type) {
            return *number;
        }
        let next = names.types.next;
        if next > u32::from(LAST_TYPE) {
            return TypeNumber::OTHER;
        }
        let number = TypeNumber(u16::try_from(next).unwrap_or(u16::MAX));
        let mut batch = Batch::new();
        batch.put(&TYPE_NUMBERS, &(Text(event_type.into()),), &number.0);
        batch.put(&TYPE_NAMES, &(number,), &event_type.to_owned());
        drop(self.store.submit(batch));
        names.types.insert(event_type.to_owned(), number, next);
        number
    }
}

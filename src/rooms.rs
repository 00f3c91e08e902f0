//! Rooms: everything that an event changes, written by one writer per room.
//!
//! [`Rooms`] is cheap to clone. Reading functions take a [`Snapshot`] and block; writing goes through the
//! [`RoomWriter`], of which there is one per room at a time. Nothing here uses the network.

mod acl;
mod adopt;
mod aggregations;
mod alias;
mod cache;
pub mod client_event;
mod comings;
mod create;
mod directory;
mod draft;
mod event;
mod forks;
mod gaps;
mod handover;
mod head;
mod hierarchy;
pub mod identity;
mod member;
mod membership;
mod merge;
mod naming;
mod numbers;
mod outgoing;
mod outside;
mod page;
mod partial;
mod profile;
mod receive;
mod recommend;
mod redact;
mod relations;
mod resolution;
mod send;
mod serve;
mod sharing;
mod state;
mod stubs;
mod succession;
mod summary;
mod template;
mod threads;
mod timeline;
mod unread;
mod upgrade;
mod verify;
mod visibility;
mod visible_users;
mod writer;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, RwLock, atomic::AtomicU64},
};

use lru::LruCache;
use ruma::{
    CanonicalJsonObject, EventId, MilliSecondsSinceUnixEpoch, OwnedRoomId, OwnedServerName, RoomId,
    ServerName, UInt, canonical_json::CanonicalJsonValue,
};

pub use self::{
    adopt::Adoption,
    aggregations::Rendering,
    alias::AliasRow,
    comings::Coming,
    create::{CreateRoom, Preset},
    directory::{Config as DirectoryConfig, DirectoryPage, DirectoryQuery, Listed},
    event::{EventMeta, EventPlace, Relation, StoredEvent, flag},
    gaps::Gap,
    handover::{Handover, Omit},
    head::HeadRow,
    hierarchy::{Hierarchy, HierarchyQuery, RemoteRoom, RemoteRooms, ServedHierarchy},
    member::{Extra, MembershipAction},
    membership::{Class, MemberRow, UserRoom, class_of},
    numbers::{RoomNumber, ServerNumber, TypeNumber},
    outgoing::Outgoing,
    outside::{MAX_OUTSIDE_INVITES, Outside, OutsideChange, Residence, StrippedState},
    page::{NoPlace, Page, PageQuery, Place},
    partial::{Lacking, Recheck, Untold},
    receive::{HistoryEvent, Intake, Outcome, Received},
    recommend::Signing,
    relations::{MAX_RELATION_DEPTH, RelationQuery},
    send::{NewEvent, Transaction},
    serve::{MissingQuery, ServedState, ServerSight},
    state::{Members, RootRow, membership_of},
    summary::Summary,
    threads::{ThreadQuery, ThreadRow},
    timeline::{Placed, TimelineRow},
    unread::{Count, Notification, Notifications, ReadThread, Unread, UnreadThreads, Wanted},
    upgrade::Upgrade,
    verify::Violation,
    visibility::Sight,
    visible_users::VisibleUsers,
    writer::RoomWriter,
};
use self::{cache::Cache, head::Head, numbers::Numbers, state::StateKey};
use crate::{
    accounts::{Accounts, UserNumber},
    clock::Clock,
    events::{
        AuthError, EventNumber, NodeNumber, RootNumber, Signer, StateKeyNumber, StateNumber,
        fingerprint::FingerprintKey, graph::Graph, sign::BuildError, trie::Node,
    },
    storage::{self, Locks, Position, Snapshot, Store},
    units::ByteSize,
};

/// What went wrong with a room.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The room, event or user is not known here.
    #[error("not found")]
    NotFound,
    /// The room's rules forbid it.
    #[error("{0}")]
    Forbidden(std::borrow::Cow<'static, str>),
    /// The event fails the authorization rules.
    #[error("the event is not allowed: {0}")]
    NotAllowed(#[from] AuthError),
    /// The event cannot be built: too large, or a value that canonical JSON cannot hold.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// A parameter of the request is invalid.
    #[error("{0}")]
    Invalid(std::borrow::Cow<'static, str>),
    /// The room version is not supported.
    #[error("this server does not support the room version")]
    UnsupportedVersion,
    /// The alias exists already.
    #[error("the alias is in use")]
    AliasInUse,
    /// A canonical alias that does not lead to the room.
    #[error("an alias does not lead to this room")]
    BadAlias,
    /// Text that is no room alias.
    #[error("this is not a room alias")]
    InvalidAlias,
    /// A thread cannot start from an event that relates to another.
    #[error("a thread cannot start from an event that relates to another")]
    NoThreadRoot,
    /// The user has annotated the event so before.
    #[error("you have annotated the event so before")]
    DuplicateAnnotation,
    /// The store failed, or a row is damaged.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// The account of a member could not be read.
    #[error(transparent)]
    Accounts(#[from] crate::accounts::Error),
    /// A restricted join: this server does not know all the rooms whose members may join.
    #[error("this server cannot tell whether the user may join")]
    UnableToAuthorizeJoin,
    /// A restricted join: the user may join, but nobody here may let them in.
    #[error("no member of this server may let the user in")]
    UnableToGrantJoin,
    /// The room has used up the numbers of events, states or nodes.
    #[error("the room is full")]
    Full,
    /// A row is not in memory; only inside this module: the caller tries again with a snapshot.
    #[error("a row is not in memory")]
    NotInMemory,
}

impl Error {
    fn corrupt(table: &'static str, reason: &str) -> Self {
        Self::Storage(storage::Error::Corrupt {
            table,
            reason: reason.to_owned(),
        })
    }
}

/// Rooms.
#[derive(
    Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(default)]
pub struct Config {
    /// Version of new rooms when the client does not ask for one: `"1"` to `"12"`. Default `"12"`.
    pub default_version: String,
    /// Memory for event bodies. More helps servers with many busy rooms. Default `"24MiB"`.
    pub event_cache: ByteSize,
    /// Memory for room states. More helps servers with very large rooms. Default `"24MiB"`.
    pub state_cache: ByteSize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            default_version: "12".to_owned(),
            event_cache: ByteSize(24 << 20),
            state_cache: ByteSize(24 << 20),
        }
    }
}

/// The rooms of this server.
#[derive(Clone)]
pub struct Rooms {
    inner: Arc<Inner>,
}

impl std::ops::Deref for Rooms {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.inner
    }
}

/// What [`Rooms`] shares between its clones.
pub struct Inner {
    store: Store,
    clock: Clock,
    signer: Arc<Signer>,
    accounts: Accounts,
    config: Config,
    numbers: Numbers,
    locks: Locks<RoomNumber>,
    alias_locks: Locks<String>,
    /// Heads of rooms written lately; one is taken out while its room is being written.
    heads: Mutex<LruCache<RoomNumber, Box<Head>>>,
    published: RwLock<HashMap<RoomNumber, Arc<Published>>>,
    caches: Caches,
    /// A room has many forward extremities.
    loose_ends: tokio::sync::Notify,
    /// Key of the fingerprints of states; fixed for the life of the database.
    fingerprint_key: FingerprintKey,
    habits: unread::HabitsCache,
    unread_rows: unread::StoredCache,
    /// Where events go that a policy server shall sign.
    signings: RwLock<Option<tokio::sync::mpsc::Sender<Signing>>>,
}

/// What is kept in memory of every room, as published.
#[derive(Clone, Debug)]
pub struct Published {
    pub head: HeadRow,
    /// Position of the last event.
    pub position: Position,
    /// The current state has not changed after this.
    pub state_position: Position,
    recent: timeline::Recent,
}

impl Published {
    /// When the current state changed last, if it is that of `head` at `position`.
    fn state_changed(before: Option<&Arc<Self>>, head: &HeadRow, position: Position) -> Position {
        let same = before.filter(|before| before.head.root == head.root);
        same.map_or(position, |before| before.state_position)
    }
}

struct Caches {
    events: Cache<(RoomNumber, EventNumber), Arc<StoredEvent>>,
    places: Cache<event::EventKey, EventPlace>,
    nodes: Cache<(RoomNumber, NodeNumber), Arc<Node>>,
    roots: Cache<(RoomNumber, RootNumber), RootRow>,
    graph: Cache<(RoomNumber, StateNumber), Arc<state::GraphRow>>,
    /// The whole auth graphs of rooms whose state was resolved lately.
    graphs: Cache<RoomNumber, Arc<Graph>>,
    key_numbers: Cache<(RoomNumber, StateKey), StateKeyNumber>,
    user_rooms: Cache<UserNumber, (Position, Arc<Vec<UserRoom>>)>,
    /// Position of the last change of a body that may be cached (redaction, purge).
    bodies_changed: AtomicU64,
    /// Position of the last change of a membership.
    membership_changed: AtomicU64,
}

impl Caches {
    fn new(config: &Config) -> Self {
        let bytes = |size: ByteSize| usize::try_from(size.0).unwrap_or(usize::MAX);
        let (events, states) = (bytes(config.event_cache), bytes(config.state_cache));
        Self {
            events: Cache::new(events),
            places: Cache::new(events / 8),
            nodes: Cache::new(states / 2),
            roots: Cache::new(states / 8),
            graph: Cache::new(states / 4),
            graphs: Cache::new(GRAPHS_BYTES),
            key_numbers: Cache::new(states / 8),
            user_rooms: Cache::new(states / 4),
            bodies_changed: AtomicU64::new(0),
            membership_changed: AtomicU64::new(0),
        }
    }
}

/// Memory for the auth graphs of rooms whose state had to be resolved.
const GRAPHS_BYTES: usize = 128 << 20;
/// Heads kept of rooms that nobody is writing to.
const MAX_IDLE_HEADS: usize = 2_048;

impl Rooms {
    /// Loads the interned names and the head of every room. Blocks.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn new(
        store: Store,
        clock: Clock,
        signer: Arc<Signer>,
        accounts: Accounts,
        config: Config,
    ) -> Result<Self, Error> {
        let numbers = Numbers::load(store.clone())?;
        let snapshot = store.snapshot()?;
        let mut published = HashMap::new();
        for row in snapshot.scan(head::HEADS.all(), storage::Order::Forward) {
            let ((room,), storage::Stamped(position, head)) = row?;
            let recent = timeline::Recent::default();
            let row = Published {
                head,
                position,
                state_position: position,
                recent,
            };
            published.insert(room, Arc::new(row));
        }
        let inner = Inner {
            fingerprint_key: FingerprintKey(store.database_key()),
            caches: Caches::new(&config),
            store,
            clock,
            signer,
            accounts,
            config,
            numbers,
            locks: Locks::new(),
            alias_locks: Locks::new(),
            loose_ends: tokio::sync::Notify::new(),
            habits: unread::HabitsCache::default(),
            unread_rows: unread::StoredCache::default(),
            signings: RwLock::default(),
            heads: Mutex::new(LruCache::unbounded()),
            published: RwLock::new(published),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// The number of a room that this server has heard of.
    pub fn number(&self, room_id: &RoomId) -> Option<RoomNumber> {
        self.numbers.room(room_id)
    }

    /// The number of a room that exists here.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the room is not here.
    pub fn resident(&self, room_id: &RoomId) -> Result<RoomNumber, Error> {
        let room = self.numbers.room(room_id).ok_or(Error::NotFound)?;
        if self.published(room).is_none() {
            return Err(Error::NotFound);
        }
        Ok(room)
    }

    pub fn room_id(&self, room: RoomNumber) -> Option<OwnedRoomId> {
        self.numbers.room_id(room)
    }

    pub fn server_name(&self, server: ServerNumber) -> Option<OwnedServerName> {
        self.numbers.server_name(server)
    }

    /// The name of this server.
    pub fn own_name(&self) -> &ServerName {
        self.signer.server_name()
    }

    /// What signs our events.
    pub fn signer(&self) -> &Signer {
        &self.signer
    }

    /// The text of an event type, unless it is [`TypeNumber::OTHER`].
    pub fn type_name(&self, number: TypeNumber) -> Option<String> {
        self.numbers.type_name(number)
    }

    /// The number of an event type, if an event of it was ever seen.
    pub fn type_number(&self, event_type: &str) -> Option<TypeNumber> {
        self.numbers.type_number(event_type)
    }

    /// What is published of a room, in memory. It may be newer than a snapshot taken before.
    pub fn published(&self, room: RoomNumber) -> Option<Arc<Published>> {
        self.published
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&room)
            .cloned()
    }

    /// Every room that exists here, in no particular order.
    pub fn all(&self) -> Vec<RoomNumber> {
        self.published
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .keys()
            .copied()
            .collect()
    }

    /// The head of a room in a snapshot.
    pub fn head(&self, snapshot: &Snapshot, room: RoomNumber) -> Result<Option<HeadRow>, Error> {
        if let Some(published) = self.published(room)
            && published.position <= snapshot.position()
        {
            return Ok(Some(published.head.clone()));
        }
        Ok(snapshot
            .get(&head::HEADS, &(room,))?
            .map(|storage::Stamped(_, head)| head))
    }

    /// The events of `numbers`, in their order; `None` for stubs and purged events. One read for all that are not in
    /// memory.
    pub fn events(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        numbers: &[EventNumber],
    ) -> Result<Vec<Option<Arc<StoredEvent>>>, Error> {
        let mut events: Vec<_> = numbers
            .iter()
            .map(|number| self.caches.events.get(&(room, *number)))
            .collect();
        let missing: Vec<_> = numbers
            .iter()
            .zip(&events)
            .filter(|(_, event)| event.is_none())
            .collect();
        if missing.is_empty() {
            return Ok(events);
        }
        let missing: Vec<_> = missing.into_iter().map(|(number, _)| *number).collect();
        let mut found = event::load(snapshot, room, &missing)?.into_iter();
        for event in events.iter_mut().filter(|event| event.is_none()) {
            *event = found.next().flatten();
            if let Some(event) = event {
                self.remember(snapshot.position(), room, event);
            }
        }
        Ok(events)
    }

    /// One event by its number.
    pub fn event(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        number: EventNumber,
    ) -> Result<Option<Arc<StoredEvent>>, Error> {
        Ok(self.events(snapshot, room, &[number])?.pop().flatten())
    }

    /// One event by its ID, with its room.
    pub fn event_by_id(
        &self,
        snapshot: &Snapshot,
        event_id: &EventId,
    ) -> Result<Option<(RoomNumber, Arc<StoredEvent>)>, Error> {
        let id = event::EventKey::of(event_id);
        let place = match self.caches.places.get(&id) {
            Some(place) => Some(place),
            None => event::place(snapshot, &id)?,
        };
        let Some(place) = place else { return Ok(None) };
        Ok(self
            .event(snapshot, place.room, place.event)?
            .map(|event| (place.room, event)))
    }

    /// One event of a room by its ID.
    pub fn event_in_room(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        event_id: &EventId,
    ) -> Result<Option<Arc<StoredEvent>>, Error> {
        Ok(self
            .event_by_id(snapshot, event_id)?
            .filter(|(found, _)| *found == room)
            .map(|(_, event)| event))
    }

    /// Caches an event read at `position`, unless bodies have changed since.
    fn remember(&self, position: Position, room: RoomNumber, event: &Arc<StoredEvent>) {
        let weight = event.weight();
        self.caches
            .events
            .put_if((room, event.number), Arc::clone(event), weight, || {
                position.0
                    >= self
                        .caches
                        .bodies_changed
                        .load(std::sync::atomic::Ordering::Acquire)
            });
    }
}

/// A JSON object as content of an event.
fn object(value: serde_json::Value) -> Result<CanonicalJsonObject, Error> {
    match CanonicalJsonValue::try_from(value) {
        Ok(CanonicalJsonValue::Object(object)) => Ok(object),
        _ => Err(Error::Invalid(
            "a number is out of the range of canonical JSON".into(),
        )),
    }
}

fn milliseconds(now_ms: u64) -> MilliSecondsSinceUnixEpoch {
    MilliSecondsSinceUnixEpoch(UInt::new_saturating(now_ms))
}

#[cfg(test)]
pub(crate) mod tests;

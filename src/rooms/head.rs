//! The head of a room: what its writer must know to take the next event.
//!
//! The stored row is read by everyone; the writer's [`Head`] runs ahead of it by what is in flight. engine.md sections 5.5
//! and 9.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use ruma::{
    EventId, OwnedEventId, OwnedRoomId, RoomVersionId, room_version_rules::RoomVersionRules,
};

use super::{
    Error, RoomNumber, Rooms, StoredEvent, TypeNumber,
    draft::Resolved,
    send::TransactionKey,
    state::{Fresh, RootRow, Source, StateKey},
};
use crate::{
    events::{EventNumber, PowerLevels, RootNumber, StateNumber, version},
    storage::{Batch, Family, PositionAt, Snapshot, Stamped, Table},
};

pub(super) static HEADS: Table<(RoomNumber,), Stamped<HeadRow>> =
    Table::new("room_heads", Family::RoomHeads, b'h');

/// The stored head of a room. The position in front of it is that of the last event.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct HeadRow {
    pub version: String,
    pub extremities: Vec<EventNumber>,
    pub root: RootNumber,
    pub next_event: u32,
    pub next_state: u32,
    pub next_key: u32,
    pub next_node: u32,
    pub next_root: u32,
    /// The highest and the lowest index of the timeline.
    pub high: i64,
    pub low: i64,
    pub max_depth: u64,
    /// Index of the last event that moves the room up in a list.
    pub bump: i64,
    pub ord_all: u64,
    pub ord_room: u64,
    /// Ordinal of the main timeline: as `ord_all` without events of threads.
    pub ord_main: u64,
    pub joined: u64,
    pub invited: u64,
    /// Joined members of this server.
    pub local: u64,
    /// How often the current state was another than that after the last event.
    #[serde(default)]
    pub forks: u64,
    /// Index of the event with which this server came to the room, the last time: what ended before it is given up.
    #[serde(default)]
    pub taken_up: i64,
    /// Memberships are still to be fetched.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    /// That was so once.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub was_partial: bool,
}

/// Adds the head.
pub(super) fn insert(batch: &mut Batch, room: RoomNumber, head: &HeadRow) {
    batch.put_stamped(
        &HEADS,
        &(room,),
        &Stamped(Default::default(), head.clone()),
        PositionAt::Value(0),
    );
}

/// The head as its writer holds it, including what is in flight.
pub(super) struct Head {
    pub(super) room: RoomNumber,
    pub(super) room_id: OwnedRoomId,
    pub(super) rules: &'static RoomVersionRules,
    pub(super) row: HeadRow,
    /// The current state.
    pub(super) root: RootRow,
    pub(super) extremities: Vec<(EventNumber, OwnedEventId)>,
    /// State events of the current state that were asked for; emptied when it grows too large.
    pub(super) known: HashMap<StateKey, Option<(StateNumber, Arc<StoredEvent>)>>,
    /// The power levels of the current state, once they were asked for.
    levels: OnceLock<Arc<PowerLevels>>,
    /// What is in flight: the newer generation, then the older, which is dropped as a whole when published.
    pub(super) fresh: [Fresh; 2],
    /// Transactions in flight, by generation like `fresh`.
    pub(super) transactions: [HashMap<TransactionKey, OwnedEventId>; 2],
    pub(super) unborn: bool,
    /// Batches submitted, and how many of them when the older generation was closed.
    submitted: u64,
    /// Batches that were handed to the store; less than `submitted` if a writer gave up half way.
    pub(super) handed: u64,
    closed_at: u64,
    published: Arc<AtomicU64>,
    /// What counting unread events needs.
    pub(super) unread: super::unread::Memory,
    /// What states resolved to lately.
    resolved: VecDeque<Resolved>,
}

/// Resolutions that are remembered.
const MAX_RESOLVED: usize = 32;

/// Entries of [`Head::known`] before it is emptied.
const MAX_KNOWN: usize = 4_096;

impl Head {
    /// The head of a room that does not exist yet.
    pub(super) fn unborn(
        room: RoomNumber,
        room_id: OwnedRoomId,
        version: &RoomVersionId,
    ) -> Result<Self, Error> {
        let row = HeadRow {
            version: version.as_str().to_owned(),
            extremities: Vec::new(),
            root: RootNumber::default(),
            next_event: 1,
            next_state: 1,
            next_key: 1,
            next_node: 1,
            next_root: 1,
            high: 0,
            low: 1,
            max_depth: 0,
            bump: 0,
            ord_all: 0,
            ord_room: 0,
            ord_main: 0,
            joined: 0,
            invited: 0,
            local: 0,
            forks: 0,
            taken_up: 0,
            partial: false,
            was_partial: false,
        };
        Self::new(room, room_id, row, Vec::new(), RootRow::default()).map(|head| Self {
            unborn: true,
            ..head
        })
    }

    fn new(
        room: RoomNumber,
        room_id: OwnedRoomId,
        row: HeadRow,
        extremities: Vec<(EventNumber, OwnedEventId)>,
        root: RootRow,
    ) -> Result<Self, Error> {
        let version = RoomVersionId::try_from(row.version.as_str())
            .map_err(|_invalid| Error::UnsupportedVersion)?;
        Ok(Self {
            room,
            room_id,
            rules: version::rules(&version).ok_or(Error::UnsupportedVersion)?,
            row,
            root,
            extremities,
            known: HashMap::new(),
            levels: OnceLock::new(),
            fresh: [Fresh::default(), Fresh::default()],
            transactions: [HashMap::new(), HashMap::new()],
            unborn: false,
            submitted: 0,
            handed: 0,
            closed_at: 0,
            published: Arc::default(),
            unread: super::unread::Memory::default(),
            resolved: VecDeque::new(),
        })
    }

    /// Reads the head of a room that has nothing in flight.
    pub(super) fn load(
        rooms: &Rooms,
        snapshot: &Snapshot,
        room: RoomNumber,
    ) -> Result<Self, Error> {
        let row = rooms.head(snapshot, room)?.ok_or(Error::NotFound)?;
        let room_id = rooms.numbers.room_id(room).ok_or(Error::NotFound)?;
        let root = rooms.root(snapshot, room, row.root)?;
        let mut extremities = Vec::with_capacity(row.extremities.len());
        for number in &row.extremities {
            let event = rooms.event(snapshot, room, *number)?;
            let event =
                event.ok_or_else(|| Error::corrupt("bodies", "a forward extremity is missing"))?;
            extremities.push((*number, event.pdu.event_id.clone()));
        }
        Self::new(room, room_id, row, extremities, root)
    }

    /// Where this room's rows are read, what is in flight included.
    pub(super) fn source<'a>(
        &'a self,
        rooms: &'a Rooms,
        snapshot: Option<&'a Snapshot>,
    ) -> Source<'a> {
        Source {
            rooms,
            room: self.room,
            fresh: &self.fresh,
            draft: None,
            snapshot,
            unborn: self.unborn,
        }
    }

    /// Whether all that was submitted is published, so that the head can be dropped and read again.
    pub(super) fn is_settled(&self) -> bool {
        self.published.load(Ordering::Acquire) >= self.submitted
    }

    /// Whether the store has all that this head builds on.
    pub(super) fn is_whole(&self) -> bool {
        self.handed == self.submitted
    }

    /// Whether an event may not be in snapshots yet.
    pub(super) fn is_fresh(&self, event_id: &EventId) -> bool {
        let mut generations = self.fresh.iter();
        generations.any(|fresh| fresh.event_numbers.contains_key(event_id))
    }

    /// Drops what was in flight and has been published.
    pub(super) fn settle(&mut self) {
        let published = self.published.load(Ordering::Acquire);
        if published > 0 {
            self.unborn = false;
        }
        if published < self.closed_at {
            return;
        }
        let everything = published >= self.submitted;
        let [newer, older] = &mut self.fresh;
        *older = if everything {
            Fresh::default()
        } else {
            std::mem::take(newer)
        };
        let [newer_transactions, older_transactions] = &mut self.transactions;
        *older_transactions = if everything {
            HashMap::new()
        } else {
            std::mem::take(newer_transactions)
        };
        if everything {
            *newer = Fresh::default();
            newer_transactions.clear();
            self.unread.settle();
        }
        self.closed_at = self.submitted;
        if self.known.len() > MAX_KNOWN {
            self.known.clear();
        }
    }

    /// Counts a batch that is about to be submitted.
    pub(super) fn count(&mut self, batch: &mut Batch) {
        self.submitted += 1;
        let published = Arc::clone(&self.published);
        batch.on_publish(move |_| {
            published.fetch_add(1, Ordering::Release);
        });
    }

    /// The state event of the current state at a key.
    pub(super) fn state(
        &self,
        source: &Source<'_>,
        key: &StateKey,
    ) -> Result<Option<(StateNumber, Arc<StoredEvent>)>, Error> {
        match self.known.get(key) {
            Some(known) => Ok(known.clone()),
            None => source.state(&self.root, key),
        }
    }

    /// The power levels of the current state. `None` before the room has a create event.
    pub(super) fn levels(
        &self,
        rooms: &Rooms,
        source: &Source<'_>,
    ) -> Result<Option<Arc<PowerLevels>>, Error> {
        if let Some(levels) = self.levels.get() {
            return Ok(Some(Arc::clone(levels)));
        }
        let levels = self.levels_of(rooms, |key| self.state(source, key))?;
        Ok(levels.map(|levels| Arc::clone(self.levels.get_or_init(|| Arc::new(levels)))))
    }

    /// The power levels of a state. `None` before the room has a create event.
    pub(super) fn levels_of(
        &self,
        rooms: &Rooms,
        state: impl Fn(&StateKey) -> Result<Option<(StateNumber, Arc<StoredEvent>)>, Error>,
    ) -> Result<Option<PowerLevels>, Error> {
        let state = |event_type| match rooms.state_key(event_type, "") {
            Some(key) => state(&key),
            None => Ok(None),
        };
        let Some((_, create)) = state("m.room.create")? else {
            return Ok(None);
        };
        let levels = state("m.room.power_levels")?;
        let levels = levels.as_ref().map(|(_, event)| &*event.pdu);
        let rules = &self.rules.authorization;
        Ok(Some(PowerLevels::new(rules, levels, &create.pdu)))
    }

    /// What states resolved to before.
    pub(super) fn resolved(&self, roots: &[RootNumber]) -> Option<RootNumber> {
        let found = self.resolved.iter().find(|(known, _)| **known == *roots);
        found.map(|(_, root)| *root)
    }

    pub(super) fn remember_resolved(&mut self, resolved: Vec<Resolved>) {
        self.resolved.extend(resolved);
        while self.resolved.len() > MAX_RESOLVED {
            self.resolved.pop_front();
        }
    }

    pub(super) fn version(&self) -> RoomVersionId {
        RoomVersionId::try_from(self.row.version.as_str())
            .expect("the version was parsed when the head was made")
    }

    /// Forgets what is known of the current state, as it was replaced as a whole.
    pub(super) fn forget_state(&mut self) {
        self.known.clear();
        self.levels = OnceLock::new();
    }

    /// Forgets the power levels, as an event of the type they come from was appended or redacted.
    pub(super) fn forget_levels(&mut self, event_type: TypeNumber) {
        if matches!(event_type, TypeNumber::CREATE | TypeNumber::POWER_LEVELS) {
            self.levels = OnceLock::new();
        }
    }
}

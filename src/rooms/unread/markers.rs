//! Where users have read to, what is exceptional after that, and the counts that follow.
//!
//! A marker for all threads, one for the main timeline and one per thread; the later of those that concern an event counts.
//! Markers that come from receipts and markers that come from own messages are separate rows, so that each row has one
//! writer at a time.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use ruma::OwnedEventId;
use smallvec::SmallVec;

use super::rules::{self, Mode};
use crate::{
    accounts::UserNumber,
    events::EventNumber,
    rooms::{Error, RoomNumber, Rooms, StoredEvent, cache::Cache, event::Reader},
    storage::{Batch, Family, Index, Order, Position, Record, Snapshot, Table},
};

/// By user, room, thread and [`Source`].
pub(super) static MARKERS: Table<(UserNumber, RoomNumber, u32, u8), Marker> =
    Table::new("read_markers", Family::Users, b'o');
/// By user, room, thread and place.
pub(super) static EXCEPTIONS: Table<(UserNumber, RoomNumber, u32, Index), Exception> =
    Table::new("unread_exceptions", Family::Users, b'x');
/// The ordinal of a thread at each event of it that notifies.
pub(super) static THREADS: Table<(RoomNumber, EventNumber, Index), u64> =
    Table::new("thread_ordinals", Family::Timeline, b'o');
/// Events that highlight for everybody, with their thread.
pub(super) static MENTIONS: Table<(RoomNumber, Index), u32> =
    Table::new("room_mentions", Family::Timeline, b'm');

/// Exceptions that one receipt removes at most; those left do no harm, as they stand before the marker.
const MAX_REMOVED: usize = 2_000;
/// Events looked at in one read on the way back to one of the main timeline.
const PAGE: usize = 50;

/// What a marker or a count is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadThread {
    /// The whole room.
    All,
    /// What belongs to no thread.
    Main,
    /// The thread of this event.
    Root(EventNumber),
}

impl ReadThread {
    /// The number in keys. No event has the number 0, and none gets the last one.
    pub fn key(self) -> u32 {
        match self {
            Self::All => 0,
            Self::Main => u32::MAX,
            Self::Root(root) => root.0,
        }
    }
}

/// Where a marker comes from.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(super) enum Source {
    /// A receipt, or the join.
    Read = 0,
    /// A message of the user's own.
    Sent = 1,
}

/// A place up to which a user has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Marker {
    pub(super) index: i64,
    pub(super) ord_all: u64,
    /// Of the thread that the marker is about; of the main timeline if it is about all.
    pub(super) ord_thread: u64,
    pub(super) ord_room: u64,
}

impl Marker {
    /// Before everything.
    const START: Self = Self {
        index: i64::MIN,
        ord_all: 0,
        ord_thread: 0,
        ord_room: 0,
    };
}

impl Record for Marker {
    fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.index.to_be_bytes());
        for ordinal in [self.ord_all, self.ord_thread, self.ord_room] {
            to.extend_from_slice(&ordinal.to_be_bytes());
        }
    }
    fn decode(from: &[u8]) -> Result<Self, String> {
        let mut reader = Reader(from);
        Ok(Self {
            index: reader.u64()?.cast_signed(),
            ord_all: reader.u64()?,
            ord_thread: reader.u64()?,
            ord_room: reader.u64()?,
        })
    }
}

/// What an event is to one user beyond what it is by the user's mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Exception {
    pub(super) notify: i8,
    pub(super) highlight: i8,
    /// The user heard of mentions only at that time.
    pub(super) of_mentions: bool,
    /// The event notifies those who hear of all, and not those who hear of mentions only.
    pub(super) is_usual: bool,
}

impl Exception {
    /// What to add to the notifications of a user in `mode`, which may be another by now.
    fn notify_in(self, mode: Mode) -> i64 {
        let usual = i64::from(self.is_usual);
        i64::from(self.notify)
            + match (self.of_mentions, mode) {
                (false, Mode::Mentions) => usual,
                (true, Mode::All) => -usual,
                _ => 0,
            }
    }
}

impl Record for Exception {
    fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.notify.to_be_bytes());
        to.extend_from_slice(&self.highlight.to_be_bytes());
        to.push(u8::from(self.of_mentions) | u8::from(self.is_usual) << 1);
    }
    fn decode(from: &[u8]) -> Result<Self, String> {
        let mut reader = Reader(from);
        let (notify, highlight) = (reader.u8()?.cast_signed(), reader.u8()?.cast_signed());
        let bits = reader.u8()?;
        Ok(Self {
            notify,
            highlight,
            of_mentions: bits & 1 != 0,
            is_usual: bits & 2 != 0,
        })
    }
}

/// Unread events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub notifications: u64,
    pub highlights: u64,
}

/// What a user has not read of a room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unread {
    /// All threads together.
    pub total: Count,
    /// Events that notify by default, whatever the user's rules. Spec: MSC2654.
    pub unread_count: u64,
}

/// What a user has not read of a room, by thread.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnreadThreads {
    pub main: Count,
    /// By the event that the thread hangs on; only threads with something unread.
    pub threads: BTreeMap<OwnedEventId, Count>,
}

/// The markers of a user in a room.
pub(super) struct Markers {
    all: Marker,
    main: Marker,
    /// With those threads only whose marker stands after that for all.
    threads: BTreeMap<EventNumber, Marker>,
}

impl Markers {
    pub(super) fn read(
        snapshot: &Snapshot,
        user: UserNumber,
        room: RoomNumber,
    ) -> Result<Self, Error> {
        let mut markers = Self {
            all: Marker::START,
            main: Marker::START,
            threads: BTreeMap::new(),
        };
        for row in snapshot.scan(MARKERS.prefix(&(user, room)), Order::Forward) {
            let ((_, _, thread, _), marker) = row?;
            // Those for all come first, as their number is 0.
            let place = if thread == ReadThread::All.key() {
                &mut markers.all
            } else if thread == ReadThread::Main.key() {
                &mut markers.main
            } else if marker.index > markers.all.index {
                markers.threads.entry(EventNumber(thread)).or_insert(marker)
            } else {
                continue;
            };
            if marker.index > place.index {
                *place = marker;
            }
        }
        Ok(markers)
    }

    /// The place up to which a thread is read.
    pub(super) fn index(&self, thread: u32) -> i64 {
        let own = if thread == ReadThread::Main.key() {
            self.main.index
        } else {
            let marker = self.threads.get(&EventNumber(thread));
            marker.map_or(i64::MIN, |marker| marker.index)
        };
        own.max(self.all.index)
    }

    /// The ordinal of the main timeline up to which it is read.
    fn main_ordinal(&self) -> u64 {
        match self.main.index > self.all.index {
            true => self.main.ord_thread.max(self.all.ord_thread),
            false => self.all.ord_thread,
        }
    }
}

/// What is stored of a user in a room.
struct Stored {
    markers: Markers,
    /// By thread and place.
    exceptions: Vec<(u32, i64, Exception)>,
}

impl Stored {
    fn read(snapshot: &Snapshot, user: UserNumber, room: RoomNumber) -> Result<Self, Error> {
        let rows = snapshot.scan(EXCEPTIONS.prefix(&(user, room)), Order::Forward);
        let exceptions = rows.map(|row| {
            row.map(|((_, _, thread, Index(index)), exception)| (thread, index, exception))
        });
        Ok(Self {
            exceptions: exceptions.collect::<Result<_, _>>()?,
            markers: Markers::read(snapshot, user, room)?,
        })
    }

    /// What it costs in a cache, in bytes.
    fn weight(&self) -> usize {
        self.exceptions.len() * size_of::<(u32, i64, Exception)>()
            + self.markers.threads.len() * size_of::<(EventNumber, Marker)>() * 2
            + size_of::<Self>()
            + 96
    }
}

/// What is stored of users in rooms, as far as it was asked for lately. Entries go when their rows change.
pub(in crate::rooms) struct StoredCache {
    rows: Cache<(UserNumber, RoomNumber), Arc<Stored>>,
    /// The position of the last change, by user modulo their number.
    changed: [AtomicU64; SLOTS],
}

const SLOTS: usize = 64;
/// Memory for what is stored of users in rooms, in bytes.
const STORED_CACHE_BYTES: usize = 4 << 20;

impl Default for StoredCache {
    fn default() -> Self {
        Self {
            rows: Cache::new(STORED_CACHE_BYTES),
            changed: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

impl StoredCache {
    fn changed(&self, user: UserNumber) -> &AtomicU64 {
        let slot = usize::try_from(user.0).unwrap_or(0) % SLOTS;
        self.changed
            .get(slot)
            .expect("a remainder is below the number of slots")
    }

    fn forget(&self, user: UserNumber, room: RoomNumber, position: Position) {
        self.changed(user).fetch_max(position.0, Ordering::AcqRel);
        self.rows.remove(&(user, room));
    }
}

/// The sums of what follows the markers, of one user in one room.
struct Tally {
    stored: Arc<Stored>,
    mode: Mode,
    /// Unread events that notify by default: in the main timeline, and in all threads.
    main: u64,
    threads: u64,
    /// Differences from that, by thread.
    differences: BTreeMap<u32, (i64, i64)>,
}

impl Tally {
    /// Sums of all differences and of what notifies by default.
    fn total(&self) -> Count {
        let (mut notify, mut highlight) = (0, 0);
        for (more, marked) in self.differences.values() {
            notify += more;
            highlight += marked;
        }
        self.count(self.main + self.threads, (notify, highlight))
    }

    /// The count of a thread with so many events that notify by default.
    fn thread(&self, thread: u32, usual: u64) -> Count {
        self.count(
            usual,
            self.differences.get(&thread).copied().unwrap_or_default(),
        )
    }

    fn count(&self, usual: u64, (notify, highlight): (i64, i64)) -> Count {
        let usual = match self.mode {
            Mode::All => i64::try_from(usual).unwrap_or(i64::MAX),
            Mode::Mentions => 0,
            Mode::Mute => return Count::default(),
        };
        let positive = |count: i64| u64::try_from(count).unwrap_or(0);
        Count {
            notifications: positive(usual.saturating_add(notify)),
            highlights: positive(highlight),
        }
    }
}

/// The ordinal of a thread at a place of the room.
pub(super) fn thread_ordinal(
    snapshot: &Snapshot,
    room: RoomNumber,
    root: EventNumber,
    index: i64,
) -> Result<u64, Error> {
    let range = THREADS.through(&(room, root, Index(index)), &(room, root));
    Ok(snapshot
        .first(range, Order::Backward)?
        .map_or(0, |(_, ordinal)| ordinal))
}

impl Rooms {
    /// What a user of this server has not read of a room. What the room was published with after `snapshot` may be in it.
    pub fn unread(
        &self,
        snapshot: &Snapshot,
        user: UserNumber,
        room: RoomNumber,
    ) -> Result<Unread, Error> {
        let Some(tally) = self.tally(snapshot, user, room)? else {
            return Ok(Unread::default());
        };
        Ok(Unread {
            total: tally.total(),
            unread_count: tally.main + tally.threads,
        })
    }

    /// As [`Rooms::unread`], by thread.
    ///
    /// Spec: c2s, "Receiving notifications", threaded read receipts.
    pub fn unread_threads(
        &self,
        snapshot: &Snapshot,
        user: UserNumber,
        room: RoomNumber,
    ) -> Result<UnreadThreads, Error> {
        let Some(tally) = self.tally(snapshot, user, room)? else {
            return Ok(UnreadThreads::default());
        };
        let main = ReadThread::Main.key();
        let mut usual = match tally.mode {
            Mode::All => self.usual_by_thread(snapshot, room, &tally)?,
            Mode::Mentions | Mode::Mute => BTreeMap::new(),
        };
        for thread in tally.differences.keys().filter(|thread| **thread != main) {
            usual.entry(EventNumber(*thread)).or_insert(0);
        }
        let roots: Vec<_> = usual.keys().copied().collect();
        let events = self.events(snapshot, room, &roots)?;
        let mut threads = BTreeMap::new();
        for ((root, usual), event) in usual.into_iter().zip(events) {
            let count = tally.thread(root.0, usual);
            if let Some(event) = event.filter(|_| count != Count::default()) {
                threads.insert(event.event_id().to_owned(), count);
            }
        }
        Ok(UnreadThreads {
            main: tally.thread(main, tally.main),
            threads,
        })
    }

    /// How many events notify by default in each thread that has any unread: newest threads first, until all are found.
    fn usual_by_thread(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        tally: &Tally,
    ) -> Result<BTreeMap<EventNumber, u64>, Error> {
        let mut found = BTreeMap::new();
        let mut left = tally.threads;
        let mut before = EventNumber(u32::MAX);
        while left > 0 {
            let range = THREADS.before(&(room, before), &(room,));
            let Some(((_, root, _), last)) = snapshot.first(range, Order::Backward)? else {
                break;
            };
            let read = thread_ordinal(snapshot, room, root, tally.stored.markers.index(root.0))?;
            let unread = last.saturating_sub(read);
            if unread > 0 {
                found.insert(root, unread);
                left = left.saturating_sub(unread);
            }
            before = root;
        }
        Ok(found)
    }

    fn tally(
        &self,
        snapshot: &Snapshot,
        user: UserNumber,
        room: RoomNumber,
    ) -> Result<Option<Tally>, Error> {
        let Some((ord_all, ord_main, ord_room)) = self.ordinals(snapshot, room)? else {
            return Ok(None);
        };
        let stored = self.stored(snapshot, user, room)?;
        let markers = &stored.markers;
        let mut threads = ord_all
            .saturating_sub(markers.all.ord_all)
            .saturating_sub(ord_main.saturating_sub(markers.all.ord_thread));
        for (root, marker) in &markers.threads {
            let before = thread_ordinal(snapshot, room, *root, markers.all.index)?;
            threads = threads.saturating_sub(marker.ord_thread.saturating_sub(before));
        }
        let mut tally = Tally {
            mode: self.mode(snapshot, user, room)?,
            main: ord_main.saturating_sub(markers.main_ordinal()),
            threads,
            differences: BTreeMap::new(),
            stored: Arc::clone(&stored),
        };
        for (thread, index, exception) in &stored.exceptions {
            if *index > markers.index(*thread) {
                let sums = tally.differences.entry(*thread).or_default();
                sums.0 += exception.notify_in(tally.mode);
                sums.1 += i64::from(exception.highlight);
            }
        }
        if ord_room > tally.stored.markers.all.ord_room {
            self.add_room_mentions(snapshot, room, &mut tally)?;
        }
        Ok(Some(tally))
    }

    fn add_room_mentions(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        tally: &mut Tally,
    ) -> Result<(), Error> {
        let range = MENTIONS.after(&(room, Index(tally.stored.markers.all.index)), &(room,));
        for row in snapshot.scan(range, Order::Forward) {
            let ((_, Index(index)), thread) = row?;
            if index > tally.stored.markers.index(thread) {
                let sums = tally.differences.entry(thread).or_default();
                sums.1 += 1;
                // In this mode nothing notifies but what is highlighted.
                sums.0 += i64::from(tally.mode == Mode::Mentions);
            }
        }
        Ok(())
    }

    /// What is stored of a user in a room. It may be newer than the snapshot.
    fn stored(
        &self,
        snapshot: &Snapshot,
        user: UserNumber,
        room: RoomNumber,
    ) -> Result<Arc<Stored>, Error> {
        let cache = &self.unread_rows;
        if let Some(stored) = cache.rows.get(&(user, room)) {
            return Ok(stored);
        }
        let stored = Arc::new(Stored::read(snapshot, user, room)?);
        let weight = stored.weight();
        cache
            .rows
            .put_if((user, room), Arc::clone(&stored), weight, || {
                snapshot.position().0 >= cache.changed(user).load(Ordering::Acquire)
            });
        Ok(stored)
    }

    /// Forgets what is in memory of users in a room when `batch` is published, which changes their rows.
    pub(in crate::rooms) fn forget_unread(
        &self,
        batch: &mut Batch,
        room: RoomNumber,
        users: SmallVec<[UserNumber; 2]>,
    ) {
        if users.is_empty() {
            return;
        }
        let rooms = self.clone();
        batch.before_publish(move |position| {
            for user in users {
                rooms.unread_rows.forget(user, room, position);
            }
        });
    }

    /// The ordinals of a room: all, main timeline, room mentions.
    fn ordinals(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
    ) -> Result<Option<(u64, u64, u64)>, Error> {
        if let Some(published) = self.published(room)
            && published.position <= snapshot.position()
        {
            let head = &published.head;
            return Ok(Some((head.ord_all, head.ord_main, head.ord_room)));
        }
        let head = self.head(snapshot, room)?;
        Ok(head.map(|head| (head.ord_all, head.ord_main, head.ord_room)))
    }

    fn mode(&self, snapshot: &Snapshot, user: UserNumber, room: RoomNumber) -> Result<Mode, Error> {
        let Some(own) = self.accounts.own_rules(Some(snapshot))? else {
            return Ok(Mode::All);
        };
        if !own.users.contains(&user) {
            return Ok(Mode::All);
        }
        let habits = rules::habits(self, Some(snapshot), user, &own)?;
        let room = self.numbers.room_id(room).ok_or(Error::NotFound)?;
        Ok(habits.mode(&room))
    }

    /// Whether a receipt for `thread` may name `event`: it belongs to the thread, or relates to what does, the event that
    /// the thread hangs on included.
    ///
    /// Spec: c2s, "Receipts", "Threaded read receipts".
    pub fn is_in_thread(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        event: &StoredEvent,
        thread: ReadThread,
    ) -> Result<bool, Error> {
        /// Relations of relations that are followed.
        const MAX_STEPS: usize = 8;
        let root = match thread {
            ReadThread::All => return Ok(true),
            ReadThread::Main => return Ok(event.meta.thread_root.is_none()),
            ReadThread::Root(root) => root,
        };
        let (mut number, mut meta) = (event.number, event.meta.clone());
        for _ in 0..MAX_STEPS {
            if number == root || meta.thread_root == Some(root) {
                return Ok(true);
            }
            let Some((_, parent)) = meta.relation else {
                return Ok(false);
            };
            let Some(parent) = self.event(snapshot, room, parent)? else {
                return Ok(false);
            };
            (number, meta) = (parent.number, parent.meta.clone());
        }
        Ok(false)
    }

    /// Adds to `batch` what it means for the counts that a user of this server has read a thread up to `event`. Nothing if
    /// the user has read further already. One caller at a time per user.
    pub fn read_up_to(
        &self,
        snapshot: &Snapshot,
        batch: &mut Batch,
        (user, room): (UserNumber, RoomNumber),
        (thread, event): (ReadThread, &StoredEvent),
    ) -> Result<(), Error> {
        let index = event.meta.index;
        let key = (user, room, thread.key(), Source::Read as u8);
        let before = snapshot.get(&MARKERS, &key)?;
        if before.is_some_and(|before| before.index >= index) {
            return Ok(());
        }
        let ord_thread = match thread {
            ReadThread::Root(root) => thread_ordinal(snapshot, room, root, index)?,
            ReadThread::Main | ReadThread::All => self.main_ordinal_at(snapshot, room, event)?,
        };
        let marker = Marker {
            index,
            ord_all: event.meta.ord_all,
            ord_thread,
            ord_room: event.meta.ord_room,
        };
        batch.put(&MARKERS, &key, &marker);
        self.forget_unread(batch, room, SmallVec::from_slice(&[user]));
        if thread == ReadThread::All {
            for row in snapshot.scan(MARKERS.prefix(&(user, room)), Order::Forward) {
                let (key, marker) = row?;
                if key.2 != thread.key() && key.3 == Source::Read as u8 && marker.index <= index {
                    batch.delete(&MARKERS, &key);
                }
            }
        }
        let of_thread = EXCEPTIONS.prefix(&(user, room, thread.key()));
        let range = match thread {
            ReadThread::All => EXCEPTIONS.prefix(&(user, room)),
            ReadThread::Main | ReadThread::Root(_) => of_thread,
        };
        for row in snapshot.scan(range, Order::Forward).take(MAX_REMOVED) {
            let (key, _) = row?;
            if key.3.0 <= index {
                batch.delete(&EXCEPTIONS, &key);
            }
        }
        Ok(())
    }

    /// The ordinal of the main timeline at the place of an event.
    fn main_ordinal_at(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        event: &StoredEvent,
    ) -> Result<u64, Error> {
        if event.meta.thread_root.is_none() {
            return Ok(event.meta.ord_thread);
        }
        let mut from = event.meta.index;
        loop {
            let page = self.timeline(snapshot, room, from, Order::Backward, PAGE)?;
            let of_main = page
                .iter()
                .find(|placed| placed.event.meta.thread_root.is_none());
            match (of_main, page.last()) {
                (Some(placed), _) => return Ok(placed.event.meta.ord_thread),
                (None, Some(last)) => from = last.index,
                (None, None) => return Ok(0),
            }
        }
    }
}

//! How far users have read, as they show it to others and to themselves.
//!
//! Of each user, thread and kind the newest receipt is kept; an index by position answers what is new in a room since a sync
//! token. What a receipt means for unread counts is written by `rooms` into the same batch.
//!
//! Spec: c2s, "Receipts", "Fully read markers"; s2s, "Receipts".

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{PoisonError, RwLock},
};

use ruma::{EventId, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId};
use serde::{Deserialize, Serialize};
use serde_json::{json, value::to_raw_value};

use super::{Ephemeral, Error, Who};
use crate::{
    accounts::{FULLY_READ, UserNumber},
    rooms::{ReadThread, RoomNumber, StoredEvent},
    storage::{Batch, Family, Locks, Order, Position, PositionAt, Snapshot, Stamped, Table, Topic},
};

static RECEIPTS: Table<(UserNumber, RoomNumber, u32, u8), Stamped<ReceiptRow>> =
    Table::new("receipts", Family::Users, b'r');
static BY_POSITION: Table<(RoomNumber, Position, UserNumber, u32, u8), ()> =
    Table::new("receipts_by_position", Family::Timeline, b'q');

/// Kind of the log entry of a receipt: room, user, thread u32, kind u8.
pub const LOG_RECEIPT: u8 = 3;
/// Receipts of a room that are told to somebody who knows none.
const MAX_CURRENT: usize = 1_000;

/// Who sees a receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum ReceiptKind {
    /// `m.read`: everybody in the room.
    Public = 1,
    /// `m.read.private`: the user alone.
    Private = 2,
}

impl ReceiptKind {
    const fn of(byte: u8) -> Self {
        match byte {
            1 => Self::Public,
            _ => Self::Private,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Public => "m.read",
            Self::Private => "m.read.private",
        }
    }
}

/// What a receipt is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReceiptThread {
    Unthreaded,
    Main,
    Root(OwnedEventId),
}

/// A receipt that a client sends.
#[derive(Clone, Debug)]
pub struct NewReceipt {
    pub kind: ReceiptKind,
    pub event: OwnedEventId,
    pub thread: ReceiptThread,
}

/// A receipt of a user of another server, who is in the room.
#[derive(Clone, Debug)]
pub struct RemoteReceipt {
    pub user: UserNumber,
    pub new: NewReceipt,
    /// Milliseconds since the Unix epoch.
    pub ts: u64,
}

/// A receipt of a user of another server, who is in the room, that names something which can be no event of any room.
#[derive(Clone, Debug)]
pub struct OpaqueReceipt {
    pub user: UserNumber,
    pub event: String,
    pub is_of_main_thread: bool,
    /// Milliseconds since the Unix epoch.
    pub ts: u64,
}

/// Which receipt an entry of the log is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceiptPlace {
    pub room: RoomNumber,
    pub user: UserNumber,
    pub thread: u32,
    pub kind: ReceiptKind,
}

impl ReceiptPlace {
    const BYTES: usize = 13;

    pub(super) fn encode(self) -> [u8; Self::BYTES] {
        let mut payload = [0; Self::BYTES];
        for (to, from) in payload
            .chunks_mut(4)
            .zip([self.room.0, self.user.0, self.thread])
        {
            to.copy_from_slice(&from.to_be_bytes());
        }
        payload[12] = self.kind as u8;
        payload
    }

    /// What the payload of an entry of kind [`LOG_RECEIPT`] says.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let (room, rest) = payload.split_first_chunk()?;
        let (user, rest) = rest.split_first_chunk()?;
        let (thread, kind) = rest.split_first_chunk()?;
        Some(Self {
            room: RoomNumber(u32::from_be_bytes(*room)),
            user: UserNumber(u32::from_be_bytes(*user)),
            thread: u32::from_be_bytes(*thread),
            kind: ReceiptKind::of(*kind.first()?),
        })
    }
}

/// A receipt as it stands now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalReceipt {
    pub event: OwnedEventId,
    pub ts: u64,
    /// As clients write it.
    pub thread: Option<String>,
}

/// The index of what has no place in the timeline: before everything that has one.
const NOWHERE: i64 = i64::MIN;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct ReceiptRow {
    event: String,
    /// The place of the event in the timeline, or [`NOWHERE`].
    index: i64,
    /// Milliseconds since the Unix epoch.
    ts: u64,
    /// As clients write it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    thread: Option<String>,
}

/// One receipt, as it stands in `m.receipt`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReceiptContent {
    pub ts: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thread_id: Option<String>,
}

/// The content of `m.receipt`: by event, kind and user.
pub type Receipts = BTreeMap<String, BTreeMap<&'static str, BTreeMap<OwnedUserId, ReceiptContent>>>;

pub(super) struct State {
    /// One change of a user's receipts at a time.
    turns: Locks<UserNumber>,
    /// The position of the last receipt of each room since the process started.
    last: RwLock<HashMap<RoomNumber, Position>>,
    started: Position,
}

impl State {
    pub(super) fn new(started: Position) -> Self {
        Self {
            turns: Locks::new(),
            last: RwLock::default(),
            started,
        }
    }

    /// Whether a room may have receipts after `since`.
    fn may_have_since(&self, room: RoomNumber, since: Position) -> bool {
        let last = self.last.read().unwrap_or_else(PoisonError::into_inner);
        last.get(&room)
            .map_or(since < self.started, |last| *last > since)
    }
}

impl Ephemeral {
    /// Notes how far a user has read: receipts, and the marker up to which everything is read. All or nothing, but for the
    /// marker, which is account data.
    ///
    /// # Errors
    /// [`Error::NotJoined`], [`Error::UnknownEvent`], [`Error::WrongThread`].
    pub async fn read_up_to(
        &self,
        user: &Who,
        room_id: &RoomId,
        receipts: Vec<NewReceipt>,
        fully_read: Option<OwnedEventId>,
    ) -> Result<(), Error> {
        let turn = self.inner.receipts.turns.lock(user.number).await;
        let change = Change {
            user: user.number,
            room_id: room_id.to_owned(),
            receipts,
            fully_read,
        };
        let this = self.clone();
        let prepared = self
            .inner
            .store
            .read(move |snapshot| this.prepare_receipts(snapshot, &change))
            .await?;
        match prepared.batch {
            Some(mut batch) => {
                batch.hold(turn);
                self.inner.store.submit(batch).await?;
            }
            None => drop(turn),
        }
        if let Some(marker) = prepared.marker {
            let content = to_raw_value(&json!({ "event_id": marker }))
                .expect("an object with one text is JSON");
            let (accounts, room) = (&self.inner.accounts, prepared.room.0);
            accounts
                .set_account_data(user.number, room, FULLY_READ, &content)
                .await?;
        }
        Ok(())
    }

    fn prepare_receipts(&self, snapshot: &Snapshot, change: &Change) -> Result<Prepared, Error> {
        let room = self.joined_room(snapshot, change.user, &change.room_id)?;
        let mut batch = Batch::new();
        let mut placed = Vec::with_capacity(change.receipts.len());
        for receipt in &change.receipts {
            placed.push((receipt, self.place(snapshot, room, receipt)?));
        }
        // Two may move the same marker: the last write is the one that counts.
        placed.sort_by_key(|(_, place)| place.event.meta.index);
        for (receipt, place) in &placed {
            let row = ReceiptRow::new(receipt, place, self.inner.clock.now_ms());
            let at = place.of((change.user, room), receipt.kind);
            if put_receipt(snapshot, &mut batch, at, row)? {
                let (user, place) = ((change.user, room), (place.thread, &*place.event));
                let rooms = &self.inner.rooms;
                rooms.read_up_to(snapshot, &mut batch, user, place)?;
            }
        }
        let is_new = !batch.is_empty();
        if is_new {
            let is_seen = |receipt: &NewReceipt| receipt.kind == ReceiptKind::Public;
            let topic = match change.receipts.iter().any(is_seen) {
                true => Topic::Room(room.0),
                false => Topic::User(change.user.0),
            };
            self.announce_receipts(&mut batch, room, topic);
        }
        let marker = match &change.fully_read {
            Some(event) => self.new_marker(snapshot, (change.user, room), event)?,
            None => None,
        };
        Ok(Prepared {
            room,
            batch: is_new.then_some(batch),
            marker,
        })
    }

    fn announce_receipts(&self, batch: &mut Batch, room: RoomNumber, topic: Topic) {
        batch.relaxed();
        batch.wake(topic);
        let this = self.clone();
        batch.before_publish(move |position| {
            let last = &this.inner.receipts.last;
            let mut last = last.write().unwrap_or_else(PoisonError::into_inner);
            last.insert(room, position);
        });
    }

    /// Notes how far users of other servers have read. The caller has seen that they are in the room. Answers which receipts
    /// are about events that this server does not know, maybe not yet.
    ///
    /// # Errors
    /// The store failed.
    pub async fn remote_receipts(
        &self,
        room: RoomNumber,
        receipts: Vec<RemoteReceipt>,
    ) -> Result<Vec<RemoteReceipt>, Error> {
        let users: BTreeSet<UserNumber> = receipts.iter().map(|receipt| receipt.user).collect();
        let mut turns = Vec::with_capacity(users.len());
        // In the order of their numbers: who takes several turns never waits in a circle.
        for user in users {
            turns.push(self.inner.receipts.turns.lock(user).await);
        }
        let this = self.clone();
        let prepare = move |snapshot: &Snapshot| -> Result<_, Error> {
            let mut batch = Batch::new();
            let mut unknown = Vec::new();
            let mut placed = Vec::with_capacity(receipts.len());
            for receipt in receipts {
                match this.place(snapshot, room, &receipt.new) {
                    Ok(place) => placed.push((receipt, place)),
                    Err(Error::UnknownEvent) => unknown.push(receipt),
                    Err(Error::WrongThread) => {}
                    Err(error) => return Err(error),
                }
            }
            placed.sort_by_key(|(_, place)| place.event.meta.index);
            for (receipt, place) in &placed {
                let row = ReceiptRow::new(&receipt.new, place, receipt.ts);
                let at = place.of((receipt.user, room), receipt.new.kind);
                put_receipt(snapshot, &mut batch, at, row)?;
            }
            Ok((batch, unknown))
        };
        let (mut batch, unknown) = self.inner.store.read(prepare).await?;
        if !batch.is_empty() {
            self.announce_receipts(&mut batch, room, Topic::Room(room.0));
            batch.hold(turns);
            self.inner.store.submit(batch).await?;
        }
        Ok(unknown)
    }

    /// Notes receipts that name no event. They stand for nothing but themselves, until one comes that does name an event.
    ///
    /// # Errors
    /// The store failed.
    pub async fn remote_opaque_receipts(
        &self,
        room: RoomNumber,
        receipts: Vec<OpaqueReceipt>,
    ) -> Result<(), Error> {
        for receipt in receipts {
            let turn = self.inner.receipts.turns.lock(receipt.user).await;
            let (thread, name) = match receipt.is_of_main_thread {
                true => (ReadThread::Main, Some("main".to_owned())),
                false => (ReadThread::All, None),
            };
            let place = ReceiptPlace {
                room,
                user: receipt.user,
                thread: thread.key(),
                kind: ReceiptKind::Public,
            };
            let row = ReceiptRow {
                event: receipt.event,
                index: NOWHERE,
                ts: receipt.ts,
                thread: name,
            };
            let prepare = move |snapshot: &Snapshot| -> Result<_, Error> {
                let mut batch = Batch::new();
                put_receipt(snapshot, &mut batch, place, row)?;
                Ok(batch)
            };
            let mut batch = self.inner.store.read(prepare).await?;
            if !batch.is_empty() {
                self.announce_receipts(&mut batch, room, Topic::Room(room.0));
                batch.hold(turn);
                self.inner.store.submit(batch).await?;
            }
        }
        Ok(())
    }

    /// The receipt at a place, as it stands now.
    pub fn receipt_at(
        &self,
        snapshot: &Snapshot,
        place: ReceiptPlace,
    ) -> Result<Option<LocalReceipt>, Error> {
        let key = (place.user, place.room, place.thread, place.kind as u8);
        let row = snapshot.get(&RECEIPTS, &key)?;
        Ok(row.and_then(|Stamped(_, row)| {
            Some(LocalReceipt {
                event: OwnedEventId::try_from(row.event).ok()?,
                ts: row.ts,
                thread: row.thread,
            })
        }))
    }

    /// The event and the thread that a receipt names.
    fn place(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        receipt: &NewReceipt,
    ) -> Result<Place, Error> {
        let rooms = &self.inner.rooms;
        let event = self.event(snapshot, room, &receipt.event)?;
        let thread = match &receipt.thread {
            ReceiptThread::Unthreaded => ReadThread::All,
            ReceiptThread::Main => ReadThread::Main,
            ReceiptThread::Root(root) => {
                let root = rooms.event_in_room(snapshot, room, root)?;
                ReadThread::Root(root.ok_or(Error::WrongThread)?.number)
            }
        };
        match rooms.is_in_thread(snapshot, room, &event, thread)? {
            true => Ok(Place { event, thread }),
            false => Err(Error::WrongThread),
        }
    }

    fn event(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        event: &EventId,
    ) -> Result<std::sync::Arc<StoredEvent>, Error> {
        let found = self.inner.rooms.event_in_room(snapshot, room, event)?;
        found
            .filter(|found| found.meta.is_visible())
            .ok_or(Error::UnknownEvent)
    }

    /// The new place of the marker of what is fully read, unless it is there or further already.
    fn new_marker(
        &self,
        snapshot: &Snapshot,
        (user, room): (UserNumber, RoomNumber),
        wanted: &EventId,
    ) -> Result<Option<OwnedEventId>, Error> {
        #[derive(Deserialize)]
        struct Content {
            event_id: OwnedEventId,
        }
        let wanted = self.event(snapshot, room, wanted)?;
        let accounts = &self.inner.accounts;
        let before = accounts.account_data(snapshot, user, room.0, FULLY_READ)?;
        let before = before.and_then(|json| serde_json::from_str::<Content>(json.get()).ok());
        if let Some(before) = before
            && let Some(before) =
                self.inner
                    .rooms
                    .event_in_room(snapshot, room, &before.event_id)?
            && before.meta.index >= wanted.meta.index
        {
            return Ok(None);
        }
        Ok(Some(wanted.event_id().to_owned()))
    }

    /// Whether a room may have receipts that are new since `since`; looks at memory only.
    pub fn may_have_receipts_since(&self, room: RoomNumber, since: Position) -> bool {
        self.inner.receipts.may_have_since(room, since)
    }

    /// The receipts of a room that are new since `since` (zero: all current ones), as `reader` sees them; `None` if there
    /// are none. Costs no read where nothing is new.
    pub fn receipts_since(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        since: Position,
        reader: UserNumber,
    ) -> Result<Option<Receipts>, Error> {
        if !self.inner.receipts.may_have_since(room, since) {
            return Ok(None);
        }
        let from = Position(since.0.saturating_add(1));
        let rows = snapshot.scan(BY_POSITION.from(&(room, from), &(room,)), Order::Backward);
        let mut keys = Vec::new();
        for row in rows {
            let ((_, _, user, thread, kind), ()) = row?;
            let is_own = user == reader;
            let is_shown = is_own || ReceiptKind::of(kind) == ReceiptKind::Public;
            // The reader's own come in any case: they tell the client what is unread.
            if is_shown && (is_own || keys.len() < MAX_CURRENT) {
                keys.push((user, room, thread, kind));
            }
        }
        if keys.is_empty() {
            return Ok(None);
        }
        let rows = snapshot.get_many(&RECEIPTS, &keys)?;
        let users: Vec<_> = keys.iter().map(|(user, ..)| *user).collect();
        let users = self.inner.accounts.user_ids(snapshot, &users)?;
        let mut receipts = Receipts::new();
        for (((_, _, _, kind), user), row) in keys.iter().zip(users).zip(rows) {
            let Some(Stamped(_, row)) = row else { continue };
            add(&mut receipts, ReceiptKind::of(*kind), user, row);
        }
        Ok(Some(receipts))
    }
}

/// Adds a receipt, unless a newer one is there; then it answers false.
fn put_receipt(
    snapshot: &Snapshot,
    batch: &mut Batch,
    place: ReceiptPlace,
    row: ReceiptRow,
) -> Result<bool, Error> {
    let ReceiptPlace {
        room,
        user,
        thread,
        kind,
    } = place;
    let key = (user, room, thread, kind as u8);
    if let Some(Stamped(position, before)) = snapshot.get(&RECEIPTS, &key)? {
        // Of two that have no place, the one that came last counts.
        let is_other = row.index == NOWHERE && before.event != row.event;
        let is_newer = row.index > before.index || (row.index == before.index && is_other);
        if !is_newer {
            return Ok(false);
        }
        let known = (room, position, user, thread, kind as u8);
        batch.delete(&BY_POSITION, &known);
    }
    let at = PositionAt::Value(0);
    batch.put_stamped(&RECEIPTS, &key, &Stamped(Position::default(), row), at);
    let key = (room, Position::default(), user, thread, kind as u8);
    batch.put_stamped(&BY_POSITION, &key, &(), PositionAt::Key(4));
    batch.log(LOG_RECEIPT, &place.encode());
    Ok(true)
}

/// Where a user has receipts for one event twice, the one for all threads is shown.
///
/// Spec: c2s, "Receipts" (MSC4102).
fn add(receipts: &mut Receipts, kind: ReceiptKind, user: OwnedUserId, row: ReceiptRow) {
    let users = receipts
        .entry(row.event)
        .or_default()
        .entry(kind.name())
        .or_default();
    let receipt = ReceiptContent {
        ts: row.ts,
        thread_id: row.thread,
    };
    let is_better =
        |known: &ReceiptContent| known.thread_id.is_some() && receipt.thread_id.is_none();
    if users.get(&user).is_none_or(is_better) {
        users.insert(user, receipt);
    }
}

/// What a client says it has read.
struct Change {
    user: UserNumber,
    room_id: OwnedRoomId,
    receipts: Vec<NewReceipt>,
    fully_read: Option<OwnedEventId>,
}

/// The event and the thread that a receipt names.
struct Place {
    event: std::sync::Arc<StoredEvent>,
    thread: ReadThread,
}

impl Place {
    /// Where the receipt of a user for it is kept.
    fn of(&self, (user, room): (UserNumber, RoomNumber), kind: ReceiptKind) -> ReceiptPlace {
        ReceiptPlace {
            room,
            user,
            thread: self.thread.key(),
            kind,
        }
    }
}

impl ReceiptRow {
    fn new(receipt: &NewReceipt, place: &Place, ts: u64) -> Self {
        Self {
            event: receipt.event.to_string(),
            index: place.event.meta.index,
            ts,
            thread: match &receipt.thread {
                ReceiptThread::Unthreaded => None,
                ReceiptThread::Main => Some("main".to_owned()),
                ReceiptThread::Root(root) => Some(root.to_string()),
            },
        }
    }
}

/// What is to be written.
struct Prepared {
    room: RoomNumber,
    batch: Option<Batch>,
    marker: Option<OwnedEventId>,
}

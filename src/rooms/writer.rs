//! The one writer of a room: authorizes events on the head and appends them.
//!
//! [`RoomWriter`] is the guard of the room's lock. An event is prepared in two steps: everything that is read is read
//! first (in memory if possible, else on the blocking pool), then `append` builds one batch of the event and all that is
//! derived from it, moves the head on and does not wait. engine.md sections 6.1 and 9.

pub(super) mod authorize;
pub(super) mod place;
mod progress;

use std::sync::Arc;

use ruma::{CanonicalJsonObject, OwnedEventId, UserId, events::TimelineEventType};

use self::place::{Numbers, Prepared, Target, Was};
use super::{
    Class, Error, NewEvent, Published, RoomNumber, Rooms, StoredEvent,
    event::{self, EventKey, flag},
    head::{self, Head, HeadRow},
    membership::{self, MembershipChange},
    membership_of, partial,
    send::TransactionKey,
    state::{self, Source},
    timeline::{self, Recent},
    unread,
};
use crate::{
    events::{EventNumber, Pdu, PowerLevels, Verified},
    storage::{self, Batch, Commit, Guard, Snapshot, Topic},
};

/// Kinds of log entries; engine.md section 10.
pub(super) const LOG_EVENT: u8 = 1;
pub(super) const LOG_STATE: u8 = 2;

/// The writer of a room. Holding it is the permission to write; dropping it gives the room to the next.
pub struct RoomWriter {
    rooms: Rooms,
    /// What is written together with the next batch, because that would grow too large.
    ahead: std::sync::Mutex<Vec<Batch>>,
    /// Always there but while a read is under way.
    held: Option<Held>,
}

/// The head of a room with the turn of its lock. They stay together wherever they are dropped, also on another thread
/// after a request was given up: the head goes back before the next writer gets its turn.
struct Held {
    rooms: Rooms,
    /// Always there until this is dropped.
    head: Option<Box<Head>>,
    _turn: Guard<RoomNumber>,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(head) = self.head.take() {
            self.rooms.keep_head(head);
        }
    }
}

impl Held {
    fn head(&self) -> &Head {
        self.head
            .as_ref()
            .expect("the head is there until this is dropped")
    }
}

/// An event that was sent, maybe not durable yet.
#[must_use = "an event counts as sent when it is durable"]
pub struct Sent {
    pub event_id: OwnedEventId,
    /// `None`: there was nothing to write.
    pub(super) commit: Option<Commit>,
}

impl Sent {
    /// Waits until the event is durable and visible.
    pub async fn durable(self) -> Result<OwnedEventId, Error> {
        if let Some(commit) = self.commit {
            commit.await?;
        }
        Ok(self.event_id)
    }
}

impl Rooms {
    /// Waits for the room's turn, and for space in the commit queue.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the room is not here.
    pub async fn write(&self, room: RoomNumber) -> Result<RoomWriter, Error> {
        self.store.has_room().await;
        let turn = self.locks.lock(room).await;
        let head = match self.take_head(room) {
            Some(head) => head,
            None => {
                let rooms = self.clone();
                let read =
                    move |snapshot: &Snapshot| Head::load(&rooms, snapshot, room).map(Box::new);
                self.store.read(read).await?
            }
        };
        let mut writer = RoomWriter::new(self, head, turn);
        writer.head_mut().settle();
        Ok(writer)
    }

    /// The writer of a room that does not exist yet.
    pub(super) async fn write_unborn(&self, head: Head) -> RoomWriter {
        self.store.has_room().await;
        let turn = self.locks.lock(head.room).await;
        RoomWriter::new(self, Box::new(head), turn)
    }

    fn take_head(&self, room: RoomNumber) -> Option<Box<Head>> {
        self.heads().pop(&room)
    }

    fn keep_head(&self, head: Box<Head>) {
        if head.extremities.is_empty() {
            // No room has come of it.
            return;
        }
        if !head.is_whole() {
            // The writer gave up on what it had prepared: the head is read again by the next.
            self.forget_graph(head.room);
            return;
        }
        let mut heads = self.heads();
        heads.put(head.room, head);
        while heads.len() > super::MAX_IDLE_HEADS {
            let Some((room, oldest)) = heads.pop_lru() else {
                break;
            };
            if !oldest.is_settled() {
                // What it has in flight is nowhere else yet.
                heads.put(room, oldest);
                break;
            }
        }
    }

    fn heads(&self) -> std::sync::MutexGuard<'_, lru::LruCache<RoomNumber, Box<Head>>> {
        self.heads
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl RoomWriter {
    fn new(rooms: &Rooms, head: Box<Head>, turn: Guard<RoomNumber>) -> Self {
        let held = Held {
            rooms: rooms.clone(),
            head: Some(head),
            _turn: turn,
        };
        Self {
            rooms: rooms.clone(),
            ahead: std::sync::Mutex::default(),
            held: Some(held),
        }
    }

    pub(super) fn head(&self) -> &Head {
        self.held
            .as_ref()
            .expect("the head is held while no read is under way")
            .head()
    }

    pub(super) fn head_mut(&mut self) -> &mut Head {
        self.held
            .as_mut()
            .and_then(|held| held.head.as_mut())
            .expect("the head is held while no read is under way")
    }

    fn ahead(&mut self) -> &mut Vec<Batch> {
        let ahead = self.ahead.get_mut();
        ahead.unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(super) fn rooms(&self) -> &Rooms {
        &self.rooms
    }

    /// The room that this writes.
    pub fn room(&self) -> RoomNumber {
        self.head().room
    }

    /// The version rules of the room.
    pub fn rules(&self) -> &'static ruma::room_version_rules::RoomVersionRules {
        self.head().rules
    }

    /// A state event of the current state, including what is in flight.
    pub async fn state(
        &mut self,
        event_type: &str,
        key: &str,
    ) -> Result<Option<Arc<StoredEvent>>, Error> {
        let Some(key) = self.rooms.state_key(event_type, key) else {
            return Ok(None);
        };
        self.with_source(move |head, source| Ok(head.state(source, &key)?.map(|(_, event)| event)))
            .await
    }

    /// The current membership of a user, including what is in flight.
    pub async fn membership(&mut self, user: &UserId) -> Result<Option<Class>, Error> {
        let event = self.state("m.room.member", user.as_str()).await?;
        Ok(event.map(|event| Class::of(&membership_of(&event))))
    }

    /// The power levels of the current state, including what is in flight.
    pub async fn power_levels(&mut self) -> Result<Arc<PowerLevels>, Error> {
        let rooms = self.rooms.clone();
        let levels = self
            .with_source(move |head, source| head.levels(&rooms, source))
            .await?;
        levels.ok_or(Error::NotFound)
    }

    /// Authorizes and appends an event of a local user. The room can take its next event at once; the event counts as
    /// sent when [`Sent::durable`] resolves.
    ///
    /// # Errors
    /// [`Error::NotAllowed`] by the room's rules, [`Error::Build`] if it is too large.
    pub async fn send(&mut self, event: NewEvent) -> Result<Sent, Error> {
        if let Some(sent) = self.sent_before(&event).await? {
            return Ok(sent);
        }
        let key = self.rooms.transaction_key(self.room(), &event);
        let transaction = event.transaction.clone();
        let authorized = self.authorize(event).await?;
        let mut batch = Batch::new();
        let event_id = authorized.event.pdu.event_id.clone();
        if let (Some(key), Some(transaction)) = (key, &transaction) {
            let place = (self.room(), authorized.event.number);
            self.rooms
                .insert_transaction(&mut batch, (&key, transaction), place, &event_id);
            self.remember_transaction(key, event_id.clone());
        }
        let batch = self.append(authorized, batch);
        let commit = Some(self.submit(batch));
        Ok(Sent { event_id, commit })
    }

    /// The answer for an event that need not be sent: its transaction was, or it would only repeat the current state.
    pub(super) async fn sent_before(&mut self, event: &NewEvent) -> Result<Option<Sent>, Error> {
        if let Some(key) = self.rooms.transaction_key(self.room(), event)
            && let Some(event_id) = self
                .rooms
                .known_transaction(&self.head().transactions, &key)?
        {
            return Ok(Some(self.in_flight(event_id)));
        }
        let unchanged = self.unchanged(event).await?;
        Ok(unchanged.map(|event_id| self.in_flight(event_id)))
    }

    /// An event as it would be sent now. Nothing has changed.
    pub(super) async fn draft(&mut self, event: NewEvent) -> Result<Verified, Error> {
        let authorized = self.authorize(event).await?;
        Ok(Verified::from_stored(Pdu::clone(&authorized.event.pdu)))
    }

    /// Authorizes and appends an event, leaving it to the caller to submit the batch, before anything else of this
    /// room. `None` if the event would only repeat the current state.
    pub(super) async fn prepare(&mut self, event: NewEvent) -> Result<Option<Batch>, Error> {
        if self.unchanged(&event).await?.is_some() {
            return Ok(None);
        }
        let authorized = self.authorize(event).await?;
        Ok(Some(self.append(authorized, Batch::new())))
    }

    /// Queues a batch that [`Self::prepare`] made.
    pub(super) fn submit(&mut self, batch: Batch) -> Commit {
        self.head_mut().handed += 1;
        let mut batches = std::mem::take(self.ahead());
        if batches.is_empty() {
            return self.rooms.store.submit(batch);
        }
        batches.push(batch);
        let commits = self.rooms.store.submit_all(batches);
        commits
            .into_iter()
            .next_back()
            .expect("there is one for each batch")
    }

    /// Queues batches that [`Self::prepare`] made, in their order: a crash leaves all of them or none.
    pub(super) fn submit_all(&mut self, batches: Vec<Batch>) -> Vec<Commit> {
        self.head_mut().handed += batches.len() as u64;
        self.rooms.store.submit_all(batches)
    }

    async fn authorize(&mut self, event: NewEvent) -> Result<Prepared, Error> {
        if let Some(target) = &event.redacts
            && self.head().is_fresh(target)
        {
            // Its rows are written again, with the position that it does not have yet.
            self.settled().await?;
        }
        let numbers = self.numbers(&event).await?;
        let rooms = self.rooms.clone();
        self.with_source(move |head, source| {
            authorize::authorize(&rooms, head, source, &event, &numbers)
        })
        .await
    }

    pub(super) fn remember_transaction(&mut self, key: TransactionKey, event_id: OwnedEventId) {
        let [newer, _] = &mut self.head_mut().transactions;
        newer.insert(key, event_id);
    }

    /// The answer for an event that was appended before: it counts when all that is in flight is durable.
    fn in_flight(&self, event_id: OwnedEventId) -> Sent {
        let commit = self.all_in_flight();
        Sent { event_id, commit }
    }

    /// Resolves when all that is in flight is durable; `None` if it is.
    pub(super) fn all_in_flight(&self) -> Option<Commit> {
        // An empty batch is committed after everything that was queued before it.
        (!self.head().is_settled()).then(|| self.rooms.store.submit(Batch::new()))
    }

    /// Waits until snapshots show all that is in flight.
    pub(super) async fn settled(&mut self) -> Result<(), Error> {
        if let Some(commit) = self.all_in_flight() {
            commit.await?;
        }
        self.head_mut().settle();
        Ok(())
    }

    /// The current state event, if `event` would only repeat it.
    async fn unchanged(&mut self, event: &NewEvent) -> Result<Option<OwnedEventId>, Error> {
        let Some(key) = &event.state_key else {
            return Ok(None);
        };
        let event_type = event.event_type.to_string();
        let Some(current) = self.state(&event_type, key).await? else {
            return Ok(None);
        };
        if current.pdu.sender != event.sender {
            return Ok(None);
        }
        let same = current
            .pdu
            .content_as::<CanonicalJsonObject>()
            .is_ok_and(|content| content == event.content);
        Ok(same.then(|| current.pdu.event_id.clone()))
    }

    /// Numbers of the users, servers and types that the event names, given out now where they are new.
    async fn numbers(&self, event: &NewEvent) -> Result<Numbers, Error> {
        let key = event.state_key.as_deref();
        let numbers = self.numbers_of(&event.sender, &event.event_type, key);
        let numbers = numbers.await?;
        let is_member = event.event_type == TimelineEventType::RoomMember;
        if is_member && key.is_some() && numbers.target.is_none() {
            return Err(Error::Invalid("the state key is not a user ID".into()));
        }
        Ok(numbers)
    }

    /// The same by the fields of an event. There is no target if the state key is not a user ID.
    pub(super) async fn numbers_of(
        &self,
        sender: &UserId,
        event_type: &TimelineEventType,
        state_key: Option<&str>,
    ) -> Result<Numbers, Error> {
        let accounts = &self.rooms.accounts;
        let interned = accounts.intern(&[sender]).await?;
        let sender = interned.first().copied().ok_or(Error::NotFound)?;
        let type_number = self.rooms.numbers.intern_type(&event_type.to_string());
        let mut target = None;
        if *event_type == TimelineEventType::RoomMember
            && let Some(Ok(user)) = state_key.map(<&UserId>::try_from)
        {
            let interned = accounts.intern(&[user]).await?;
            target = Some(Target {
                user: interned.first().copied().ok_or(Error::NotFound)?,
                server: self.rooms.numbers.intern_server(user.server_name()),
                is_local: accounts.is_local(user),
            });
        }
        Ok(Numbers {
            sender,
            event_type: type_number,
            target,
        })
    }

    /// Runs `read` with what is in memory, and if that is not enough again on the blocking pool with a snapshot.
    pub(super) async fn with_source<T: Send + 'static>(
        &mut self,
        read: impl Fn(&Head, &Source<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let head = self.head();
        match read(head, &head.source(&self.rooms, None)) {
            Err(Error::NotInMemory) => {}
            done => return done,
        }
        let held = self
            .held
            .take()
            .expect("the head is held while no read is under way");
        let rooms = self.rooms.clone();
        // The head travels to the other thread and back, also when the closure fails.
        let (held, result) = self
            .rooms
            .store
            .read(move |snapshot| -> Result<_, storage::Error> {
                let head = held.head();
                let result = read(head, &head.source(&rooms, Some(snapshot)));
                Ok((held, result))
            })
            .await?;
        self.held = Some(held);
        result
    }

    /// Adds a prepared event, and everything derived from it, in one batch. `batch` holds what the caller adds.
    ///
    /// The head moves on, so the answer must be submitted: then the event is durable when its [`Commit`] resolves. If it
    /// cannot be committed the process ends.
    pub(super) fn append(&mut self, prepared: Prepared, mut batch: Batch) -> Batch {
        let rooms = self.rooms.clone();
        let head = self.head_mut();
        let room = head.room;
        let before = head.row.root;
        head.advance(&prepared);
        let Prepared {
            event,
            id,
            state,
            memberships,
            redaction,
            thread,
            mut unread,
            next: _,
            turn,
        } = prepared;
        head.unread
            .advance(&rooms, &event, &memberships, &mut unread);
        event::insert(&mut batch, room, &event, &id);
        partial::note(&mut batch, room, &event, turn.as_deref());
        timeline::insert(&mut batch, room, &event);
        if let Some(turn) = &turn {
            head.insert_turn(&mut batch, (&event, &id), turn, before);
        }
        head::insert(&mut batch, room, &head.row);
        if let Some(state) = &state {
            state::insert(&mut batch, room, state, &id);
        }
        let mut ahead = rooms.insert_memberships(&mut batch, room, &memberships);
        super::relations::insert(&mut batch, room, &event, thread.as_ref());
        let readers = unread::insert(&mut batch, room, &event, &memberships, &unread);
        rooms.forget_unread(&mut batch, room, readers);
        if let Some(redacted) = &redaction {
            super::redact::insert(&mut batch, room, redacted);
        }
        if event.meta.is_visible() || event.meta.has(flag::LOCAL | flag::RELAYED) {
            batch.log(LOG_EVENT, &log_entry(room, event.number));
            batch.wake(Topic::Room(room.0));
        }
        head.count(&mut batch);
        let was_known = turn.as_ref().is_some_and(|turn| turn.was == Was::Outlier);
        let event = Arc::new(event);
        head.remember(
            &event,
            state,
            redaction.as_ref().map(|redacted| &redacted.event),
            turn,
        );
        head.remember_threads([
            thread.as_ref(),
            redaction
                .as_ref()
                .and_then(|redacted| redacted.thread.as_ref()),
        ]);
        rooms.publish_with(
            &mut batch,
            room,
            head.row.clone(),
            (event, id, was_known),
            redaction.map(|redacted| redacted.event),
        );
        self.ahead().append(&mut ahead);
        batch
    }
}

impl Rooms {
    /// Adds changes of memberships to `batch`; where these are very many it answers with full batches, which go ahead of it.
    fn insert_memberships(
        &self,
        batch: &mut Batch,
        room: RoomNumber,
        memberships: &[MembershipChange],
    ) -> Vec<Batch> {
        let mut ahead = Vec::new();
        for change in memberships {
            if batch.bytes() > MANY_BYTES {
                ahead.push(std::mem::take(batch));
            }
            membership::insert(batch, room, change);
            if change.is_local {
                self.invalidate_user_rooms(batch, change.user);
            }
        }
        ahead
    }
}

/// Where very many memberships change at once a batch is closed above this, in bytes.
const MANY_BYTES: usize = 800_000;

/// Payload of a log entry of kind [`LOG_EVENT`]: room and event.
fn log_entry(room: RoomNumber, event: EventNumber) -> [u8; 8] {
    let mut payload = [0; 8];
    payload[..4].copy_from_slice(&room.0.to_be_bytes());
    payload[4..].copy_from_slice(&event.0.to_be_bytes());
    payload
}

/// What the payload of a log entry of kind [`LOG_EVENT`] says.
pub(super) fn read_log_entry(payload: &[u8]) -> Option<(RoomNumber, EventNumber)> {
    let (room, event) = payload.split_first_chunk()?;
    let room = RoomNumber(u32::from_be_bytes(*room));
    let event = EventNumber(u32::from_be_bytes(event.try_into().ok()?));
    Some((room, event))
}

impl Rooms {
    /// Makes the head known in memory when `batch` becomes visible, and forgets the bodies that it replaces.
    pub(super) fn publish_head(
        &self,
        batch: &mut Batch,
        room: RoomNumber,
        head: HeadRow,
        changed: Vec<EventNumber>,
    ) {
        let rooms = self.clone();
        batch.before_publish(move |position| {
            if !changed.is_empty() {
                rooms
                    .caches
                    .bodies_changed
                    .fetch_max(position.0, std::sync::atomic::Ordering::AcqRel);
            }
            for event in changed {
                rooms.caches.events.remove(&(room, event));
            }
            let mut all = rooms
                .published
                .write()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            let before = all.get(&room);
            let recent = before.map(|published| published.recent.clone());
            let published = Published {
                state_position: Published::state_changed(before, &head, position),
                head,
                position,
                recent: recent.unwrap_or_default(),
            };
            all.insert(room, Arc::new(published));
        });
    }

    /// Makes the head and the bodies known in memory when `batch` becomes visible.
    fn publish_with(
        &self,
        batch: &mut Batch,
        room: RoomNumber,
        head: HeadRow,
        (event, id, was_known): (Arc<StoredEvent>, EventKey, bool),
        redacted: Option<StoredEvent>,
    ) {
        let rooms = self.clone();
        batch.before_publish(move |position| {
            let mut event = Arc::unwrap_or_clone(event);
            event.meta.position = position;
            let weight = event.weight();
            let (number, meta) = (event.number, event.meta.clone());
            // Who reads an outlier that has come into the timeline must not put it back as it was.
            let changed = &rooms.caches.bodies_changed;
            if was_known {
                changed.fetch_max(position.0, std::sync::atomic::Ordering::AcqRel);
            }
            let place = super::EventPlace {
                room,
                event: event.number,
            };
            let cost = id.weight() + size_of::<super::EventPlace>() + 96;
            rooms.caches.places.put(id, place, cost);
            rooms
                .caches
                .events
                .put((room, event.number), Arc::new(event), weight);
            if let Some(redacted) = redacted {
                rooms
                    .caches
                    .bodies_changed
                    .fetch_max(position.0, std::sync::atomic::Ordering::AcqRel);
                let weight = redacted.weight();
                rooms
                    .caches
                    .events
                    .put((room, redacted.number), Arc::new(redacted), weight);
            }
            let mut all = rooms
                .published
                .write()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            let before = all.get(&room);
            let recent = before.map(|published| &published.recent);
            let recent = recent.unwrap_or(&Recent::default()).with(&meta, number);
            let published = Published {
                state_position: Published::state_changed(before, &head, position),
                head,
                position,
                recent,
            };
            all.insert(room, Arc::new(published));
        });
    }
}

//! Sending to other servers what happens here: follows the log, deals events and EDUs out to the servers that get them, and
//! starts a task for each server that has something to get.
//!
//! The task of the follower owns the dealing out; what it has dealt out lies in [`Destinations`], behind one lock that is held
//! for moments only. All waiting is on the clock that the server was given, so that a test can move it. engine.md section 13.
//!
//! Spec: s2s, "Transactions".

mod deliver;
mod destinations;
mod metrics;
mod queue;
mod route;
mod rows;
mod status;
mod transaction;
mod volatile;
mod walk;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use ruma::{UserId, events::room::member::MembershipState};
use tokio::sync::Notify;

pub use self::status::{DestinationState, DestinationStatus};
use self::{
    deliver::Lanes,
    destinations::{Destinations, Queued},
    metrics::SenderMetrics,
    route::Routes,
    volatile::Receipt,
};
use super::{Error, Federation, Mode, device_lists::ListEdu, edu::WaitingReceipts};
use crate::{
    accounts::UserNumber,
    clock::Clock,
    encryption::{LOG_DEVICE_LIST, ListChange},
    ephemeral::{
        LOG_RECEIPT, LocalChanges, LocalPresence, ReceiptKind, ReceiptPlace, RemoteReceipt,
    },
    rooms::{Class, RoomNumber, Rooms, ServerNumber, StoredEvent, TypeNumber, membership_of},
    storage::{Batch, LogEntry, LogPage, Position, Snapshot, Store, Topic},
    tasks::{Stage, Stop, Tasks},
    telemetry::Metrics,
};

/// Entries of the log that are dealt out in one go.
const PAGE: usize = 1_000;
/// Without anything that wakes it the follower looks after this time.
const PAUSE: Duration = Duration::from_secs(60);
/// What has changed is written after so long. Until then a crash has servers get some things twice.
const SAVE_AFTER_MS: u64 = 1_000;
/// The cursor is written when it is so many positions old, though nothing was sent.
const MAX_UNSAVED: u64 = 10_000;
/// Members of a room who are looked at for presence when somebody joins.
const MAX_TOLD: usize = 500;
/// Presence goes out so often.
const PRESENCE_EVERY_MS: u64 = 5_000;

/// What the sender shares between its tasks.
pub(super) struct Sender {
    destinations: Mutex<Destinations>,
    /// A server is to be started or tried again, or there is something to write.
    news: Notify,
    /// The follower waits for news.
    is_at_rest: AtomicBool,
    /// A task has ended.
    ended: Notify,
    lanes: Lanes,
    routes: Routes,
    metrics: SenderMetrics,
    /// One writes at a time.
    saving: tokio::sync::Mutex<()>,
    /// The cursor as it is stored.
    saved: AtomicU64,
    /// The sender has never run.
    is_new: bool,
    transactions: Transactions,
    /// Tells EDUs apart that are queued at one position.
    edus: AtomicU32,
    pub(super) receipts: WaitingReceipts,
}

/// Makes transaction IDs that no process of this server has used or will use.
struct Transactions {
    prefix: String,
    next: AtomicU64,
}

/// What the follower keeps between its rounds.
#[derive(Default)]
struct Round {
    /// Waits for the next time at which presence goes out.
    presence: BTreeMap<UserNumber, Arc<LocalPresence>>,
    presence_due_ms: u64,
    save_due_ms: Option<u64>,
}

/// Whom a page of the log concerns.
#[derive(Default)]
struct Dealt {
    events: Vec<(ServerNumber, Queued)>,
    receipts: Vec<(ServerNumber, Arc<Receipt>)>,
    /// Presence of those whom a server has come to share a room with.
    presence: Vec<(ServerNumber, Arc<LocalPresence>)>,
    /// Receipts of other servers whose events have come.
    placed: Vec<(RoomNumber, RemoteReceipt)>,
    /// Changes of device lists, with the positions at which the log tells of them.
    lists: Vec<(Position, ListEdu)>,
}

impl Sender {
    /// The sender as it was when the store was closed. One that has never run begins now. Blocks.
    pub(super) fn new(store: &Store, clock: &Clock, metrics: &Metrics) -> Result<Self, Error> {
        let stored = rows::load(&store.snapshot()?)?;
        let position = store.position();
        let cursor = stored.cursor.unwrap_or(position);
        let destinations = Destinations::load(cursor, stored.destinations, stored.with_edus);
        let (writer, sequence) = (position.writer(), position.sequence());
        let transactions = Transactions {
            prefix: format!("{writer}.{sequence}.{}", clock.random_string(8)),
            next: AtomicU64::new(0),
        };
        Ok(Self {
            destinations: Mutex::new(destinations),
            news: Notify::new(),
            is_at_rest: AtomicBool::new(false),
            ended: Notify::new(),
            lanes: Lanes::default(),
            routes: Routes::default(),
            metrics: SenderMetrics::new(metrics),
            saving: tokio::sync::Mutex::default(),
            saved: AtomicU64::new(cursor.0),
            is_new: stored.cursor.is_none(),
            transactions,
            edus: AtomicU32::new(0),
            receipts: WaitingReceipts::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Destinations> {
        let destinations = self.destinations.lock();
        destinations.unwrap_or_else(PoisonError::into_inner)
    }

    /// An ID that no process of this server has used or will use.
    fn transaction_id(&self) -> String {
        let number = self.transactions.next.fetch_add(1, Ordering::Relaxed);
        format!("{}.{number}", self.transactions.prefix)
    }
}

impl Federation {
    /// Starts to send. To be called once.
    pub fn start(&self, tasks: &Tasks) {
        if self.inner.config.mode == Mode::Off {
            return;
        }
        self.inner.ephemeral.watch_local();
        let (federation, spawner) = (self.clone(), tasks.clone());
        tasks.start("federation", Stage::Followers, move |stop| {
            let (federation, tasks) = (federation.clone(), spawner.clone());
            async move { federation.follow(&tasks, &stop).await }
        });
    }

    async fn follow(&self, tasks: &Tasks, stop: &Stop) -> Result<(), Error> {
        let sender = &self.inner.sender;
        if sender.is_new {
            self.save_sender().await?;
        }
        let mut round = Round::default();
        while !stop.is_requested() {
            let tick = self.inner.store.tick();
            let after = sender.lock().distributed();
            let page = self.inner.store.log(after, PAGE).await?;
            self.deal_out(&page).await?;
            self.take_local(&mut round).await?;
            self.save_if_due(&mut round).await?;
            self.start_deliveries(tasks);
            if page.entries.is_empty() {
                sender.is_at_rest.store(true, Ordering::SeqCst);
                tokio::select! {
                    _woken = self.inner.store.wait(&[Topic::Log], tick, PAUSE) => {}
                    () = self.inner.ephemeral.local_news() => {}
                    () = sender.news.notified() => {}
                    () = self.next_due(&round) => {}
                    () = stop.requested() => {}
                }
                sender.is_at_rest.store(false, Ordering::SeqCst);
            }
        }
        // Their tasks are told to stop as well; what they note at the end is to be written.
        while sender.lock().has_running() {
            sender.ended.notified().await;
        }
        self.save_sender().await
    }

    /// Resolves when something is to be done at a certain time.
    async fn next_due(&self, round: &Round) {
        let retry_ms = self.inner.sender.lock().next_retry();
        let presence_ms = (!round.presence.is_empty()).then_some(round.presence_due_ms);
        let due_ms = [retry_ms, presence_ms, round.save_due_ms];
        match due_ms.into_iter().flatten().min() {
            Some(due_ms) => self.inner.clock.sleep_until(due_ms).await,
            None => std::future::pending().await,
        }
    }

    fn start_deliveries(&self, tasks: &Tasks) {
        let now_ms = self.inner.clock.now_ms();
        let ready = self.inner.sender.lock().take_ready(now_ms);
        for (server, is_doubtful) in ready {
            let stop = tasks.stop_signal(Stage::Followers);
            let delivery = self.clone().deliver(server, is_doubtful, stop);
            tasks.spawn("federation destination", Stage::Followers, delivery);
        }
        self.inner.sender.count_metrics();
    }

    /// Deals out a page of the log.
    async fn deal_out(&self, page: &LogPage) -> Result<(), Error> {
        let sender = &self.inner.sender;
        if page.has_gap {
            let after = sender.lock().distributed();
            self.start_anew(after).await?;
        }
        let concerns = |entry: &&LogEntry| self.may_concern_others(entry);
        let entries: Vec<LogEntry> = page.entries.iter().filter(concerns).cloned().collect();
        let mut dealt = Dealt::default();
        if !entries.is_empty() {
            let federation = self.clone();
            let read = move |snapshot: &Snapshot| federation.deal(snapshot, &entries);
            dealt = self.inner.store.read(read).await?;
        }
        self.queue_lists(&dealt.lists).await?;
        let now_ms = self.inner.clock.now_ms();
        {
            let mut destinations = sender.lock();
            for (server, event) in dealt.events {
                destinations.push(server, event, now_ms);
            }
            for (server, receipt) in dealt.receipts {
                destinations.push_volatile(server, |volatile| volatile.receipt(&receipt));
            }
            for (server, presence) in dealt.presence {
                destinations.push_volatile(server, |volatile| volatile.presence(&presence));
            }
            destinations.distributed_to(page.upto);
        }
        for (room, receipt) in dealt.placed {
            self.inner
                .ephemeral
                .remote_receipts(room, vec![receipt])
                .await?;
        }
        Ok(())
    }

    /// False where memory tells that an entry concerns no other server: most rooms of most servers have local members only,
    /// and then nothing is to be read.
    fn may_concern_others(&self, entry: &LogEntry) -> bool {
        let rooms = &self.inner.rooms;
        if let Some((room, number)) = Rooms::logged_event(entry) {
            return !self.inner.sender.receipts.is_empty() || !rooms.stays_here(room, number);
        }
        if entry.kind == LOG_DEVICE_LIST {
            return true;
        }
        let place = (entry.kind == LOG_RECEIPT)
            .then(|| ReceiptPlace::decode(&entry.payload))
            .flatten();
        place.is_some_and(|place| {
            place.kind == ReceiptKind::Public && !rooms.has_local_members_only(place.room)
        })
    }

    /// Whom these entries concern.
    fn deal(&self, snapshot: &Snapshot, entries: &[LogEntry]) -> Result<Dealt, Error> {
        let mut dealt = Dealt::default();
        for entry in entries {
            if let Some((room, number)) = Rooms::logged_event(entry) {
                let Some(event) = self.inner.rooms.event(snapshot, room, number)? else {
                    continue;
                };
                let waiting = self.inner.sender.receipts.take(event.event_id());
                dealt.placed.extend(waiting);
                self.deal_presence(snapshot, room, &event, &mut dealt)?;
                let list = self.join_edu(snapshot, room, &event)?;
                dealt.lists.extend(list.map(|list| (entry.position, list)));
                let Some(targets) = self.targets(snapshot, room, &event)? else {
                    continue;
                };
                for (server, is_parting) in targets.iter() {
                    let queued = Queued {
                        position: entry.position,
                        room,
                        event: number,
                        is_parting,
                    };
                    dealt.events.push((server, queued));
                }
            } else if let Some(change) = ListChange::logged(entry) {
                let list = self.list_edu(snapshot, &change)?;
                dealt.lists.extend(list.map(|list| (entry.position, list)));
            } else if let Some(place) = ReceiptPlace::decode(&entry.payload) {
                self.deal_receipt(snapshot, place, &mut dealt)?;
            }
        }
        Ok(dealt)
    }

    /// When a room gets a member, the servers of the others learn who is online.
    fn deal_presence(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        event: &StoredEvent,
        to: &mut Dealt,
    ) -> Result<(), Error> {
        let inner = &self.inner;
        if event.meta.event_type != TypeNumber::MEMBER || !inner.ephemeral.tells_presence() {
            return Ok(());
        }
        let Some(Ok(user)) = event.pdu.state_key.as_deref().map(<&UserId>::try_from) else {
            return Ok(());
        };
        let before = (room, event.meta.root_before);
        let was_joined =
            inner.rooms.membership_at(snapshot, before, user)? == MembershipState::Join;
        if was_joined || membership_of(event) != MembershipState::Join {
            return Ok(());
        }
        let (users, servers) = if inner.accounts.is_local(user) {
            let number = inner.accounts.user_number(snapshot, user)?;
            let servers = self.servers_now(snapshot, room)?;
            (number.into_iter().collect(), servers)
        } else {
            let members = inner.rooms.members(snapshot, room, Class::Join, MAX_TOLD)?;
            let members: Vec<UserNumber> = members.into_iter().map(|(user, ..)| user).collect();
            let server = inner.rooms.server_number(user.server_name());
            let is_allowed = self.is_allowed(user.server_name());
            (members, is_allowed.then_some(server).into_iter().collect())
        };
        for presence in inner.ephemeral.local_presence(&users) {
            let presence = Arc::new(presence);
            let servers = servers.iter();
            to.presence
                .extend(servers.map(|server| (*server, Arc::clone(&presence))));
        }
        Ok(())
    }

    fn deal_receipt(
        &self,
        snapshot: &Snapshot,
        place: ReceiptPlace,
        to: &mut Dealt,
    ) -> Result<(), Error> {
        if place.kind != ReceiptKind::Public {
            return Ok(());
        }
        let inner = &self.inner;
        let servers = self.servers_now(snapshot, place.room)?;
        if servers.is_empty() {
            return Ok(());
        }
        let user = inner.accounts.user_id(snapshot, place.user)?;
        if !inner.accounts.is_local(&user) {
            return Ok(());
        }
        let receipt = inner.ephemeral.receipt_at(snapshot, place)?;
        let (Some(receipt), Some(room)) = (receipt, inner.rooms.room_id(place.room)) else {
            return Ok(());
        };
        let receipt = Arc::new(Receipt {
            room,
            user,
            event: receipt.event,
            ts: receipt.ts,
            thread: receipt.thread,
        });
        let servers = servers.iter();
        to.receipts
            .extend(servers.map(|server| (*server, Arc::clone(&receipt))));
        Ok(())
    }

    /// The log does not reach back to where the sender was: every server may have missed something.
    async fn start_anew(&self, after: Position) -> Result<(), Error> {
        let federation = self.clone();
        let read = move |snapshot: &Snapshot| -> Result<_, Error> {
            let rooms = &federation.inner.rooms;
            let mut servers = std::collections::BTreeSet::new();
            for room in rooms.all() {
                servers.extend(federation.servers_now(snapshot, room)?.iter().copied());
            }
            let mut lists = Vec::new();
            for change in federation.inner.encryption.local_changes(snapshot, after)? {
                let list = federation.list_edu(snapshot, &change)?;
                lists.extend(list.map(|list| (after, list)));
            }
            Ok((servers, lists))
        };
        let (servers, lists) = self.inner.store.read(read).await?;
        self.queue_lists(&lists).await?;
        tracing::warn!(
            servers = servers.len(),
            "the log has been cut before all of it was sent; rooms are looked through instead"
        );
        let mut destinations = self.inner.sender.lock();
        for server in servers {
            destinations.fall_behind(server, after, 0);
        }
        Ok(())
    }

    /// Takes what users of this server do at the moment.
    async fn take_local(&self, round: &mut Round) -> Result<(), Error> {
        let changes = self.inner.ephemeral.take_local();
        let now_ms = self.inner.clock.now_ms();
        if !changes.presence.is_empty() && round.presence.is_empty() {
            round.presence_due_ms = now_ms.saturating_add(PRESENCE_EVERY_MS);
        }
        for presence in &changes.presence {
            let presence = Arc::clone(presence);
            round.presence.insert(presence.number, presence);
        }
        if !changes.typing.is_empty() {
            self.send_typing(changes).await?;
        }
        if !round.presence.is_empty() && now_ms >= round.presence_due_ms {
            let due = std::mem::take(&mut round.presence);
            self.send_presence(due.into_values().collect()).await?;
        }
        Ok(())
    }

    async fn send_typing(&self, changes: LocalChanges) -> Result<(), Error> {
        let federation = self.clone();
        let read = move |snapshot: &Snapshot| -> Result<_, Error> {
            let mut found = Vec::new();
            for typing in changes.typing {
                let Some(room_id) = federation.inner.rooms.room_id(typing.room) else {
                    continue;
                };
                let servers = federation.servers_now(snapshot, typing.room)?;
                found.push((servers, room_id, typing));
            }
            Ok(found)
        };
        let found = self.inner.store.read(read).await?;
        let mut destinations = self.inner.sender.lock();
        for (servers, room_id, typing) in &found {
            for server in servers.iter() {
                destinations.push_volatile(*server, |volatile| volatile.typing(typing, room_id));
            }
        }
        Ok(())
    }

    async fn send_presence(&self, changes: Vec<Arc<LocalPresence>>) -> Result<(), Error> {
        let federation = self.clone();
        let read = move |snapshot: &Snapshot| -> Result<_, Error> {
            let mut found = Vec::new();
            for presence in changes {
                let rooms = federation.inner.rooms.rooms_of(snapshot, presence.number)?;
                let joined = rooms.iter().take_while(|room| room.class == Class::Join);
                let mut servers = std::collections::BTreeSet::new();
                for room in joined {
                    servers.extend(federation.servers_now(snapshot, room.room)?.iter().copied());
                }
                found.push((servers, presence));
            }
            Ok(found)
        };
        let found = self.inner.store.read(read).await?;
        let mut destinations = self.inner.sender.lock();
        for (servers, presence) in &found {
            for server in servers {
                destinations.push_volatile(*server, |volatile| volatile.presence(presence));
            }
        }
        Ok(())
    }

    async fn save_if_due(&self, round: &mut Round) -> Result<(), Error> {
        let sender = &self.inner.sender;
        let (is_changed, distributed) = {
            let destinations = sender.lock();
            (destinations.is_changed(), destinations.distributed())
        };
        let unsaved = distributed.0 - sender.saved.load(Ordering::Relaxed).min(distributed.0);
        let now_ms = self.inner.clock.now_ms();
        if is_changed && round.save_due_ms.is_none() {
            round.save_due_ms = Some(now_ms.saturating_add(SAVE_AFTER_MS));
        }
        let is_due = round.save_due_ms.is_some_and(|due_ms| now_ms >= due_ms);
        if is_due || unsaved > MAX_UNSAVED {
            round.save_due_ms = None;
            self.save_sender().await?;
        }
        Ok(())
    }

    /// Writes how far everything is.
    async fn save_sender(&self) -> Result<(), Error> {
        let sender = &self.inner.sender;
        let _turn = sender.saving.lock().await;
        let changes = sender.lock().changes(self.inner.clock.now_ms());
        let mut batch = Batch::new();
        rows::insert(&mut batch, &changes);
        // What a crash takes away is found again in the log: the cursor goes with it.
        batch.relaxed();
        self.inner.store.submit(batch).await?;
        let saved = changes.distributed.0;
        sender.saved.store(saved, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests;

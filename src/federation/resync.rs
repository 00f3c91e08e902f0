//! Getting the rest of the state of rooms into which this server was let with a part of it.
//!
//! One worker a room asks the room's servers in turn for the whole state before the join, the one first that let us in, and
//! then has the room judge again what has come meanwhile. What is done is durable, so a restart goes on with what is left.
//! A room that nobody of ours is in any more is tried once a start: it may be that nobody tells us anything.
//!
//! Spec: s2s, "PUT /_matrix/federation/v2/send_join/{roomId}/{eventId}" (`omit_members`).

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use http::Method;
use ruma::{
    EventId, OwnedEventId, OwnedRoomId, OwnedServerName, ServerName,
    api::federation::event::{get_event, get_room_state_ids},
    room_version_rules::RoomVersionRules,
};
use tokio::sync::Notify;

use super::{
    Federation,
    client::Limits,
    device_lists::Believed,
    fetch::{FEW, parse_of_room},
    join::{Expected, MAX_ANSWER_BYTES, SEND_JOIN_TIMEOUT, escaped, wanted},
    membership::MembershipError,
};
use crate::{
    events::Verified,
    rooms::{self, Lacking, Recheck, RoomNumber, Untold},
    storage::{Batch, Position, Snapshot},
    tasks::{Stage, Tasks},
};

/// The IDs of a state may take their server a while.
const STATE_IDS: Limits = Limits {
    timeout: Duration::from_secs(120),
    max_bytes: 64 << 20,
};
const STATE: Limits = Limits {
    timeout: SEND_JOIN_TIMEOUT,
    max_bytes: MAX_ANSWER_BYTES,
};
/// IDs that a state and its auth chain may have: a room of 100,000 members has some 400,000.
const MAX_STATE_IDS: usize = 1_000_000;
/// As few events as these are asked for one by one.
const FEW_EVENTS: usize = 10;
/// Servers that are asked in one round.
const MAX_SERVERS: usize = 20;
/// The wait after a round in which nobody told the state, doubled with each.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const MAX_WAIT: Duration = Duration::from_secs(600);

/// The workers.
#[derive(Default)]
pub(super) struct Resyncing {
    tasks: OnceLock<Tasks>,
    rooms: Mutex<HashMap<RoomNumber, Arc<Worker>>>,
}

/// What a worker is told from outside.
#[derive(Default)]
struct Worker {
    /// Who let us in, and is asked first.
    first: Mutex<Option<OwnedServerName>>,
    /// It is worth trying again now.
    again: Notify,
}

impl Resyncing {
    fn rooms(&self) -> MutexGuard<'_, HashMap<RoomNumber, Arc<Worker>>> {
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A room on its way to being whole.
struct Resync<'a> {
    federation: &'a Federation,
    room: RoomNumber,
    room_id: OwnedRoomId,
    rules: &'static RoomVersionRules,
    worker: &'a Worker,
    /// Rounds in which nobody told the state.
    failed: u32,
    /// Servers that were not told of what happened while the room was partial.
    untold: Option<Untold>,
    /// Who was taken for a member before anything was judged again.
    believed: Option<Believed>,
}

/// The state before an event as one server tells it.
struct Told {
    state: Vec<OwnedEventId>,
    /// Events of it that are not here, as they cannot be had or are not sound.
    absent: usize,
}

impl Federation {
    /// Goes on with the rooms of which an earlier process did not get the whole state.
    pub fn start_resync(&self, tasks: &Tasks) {
        if self.inner.resyncing.tasks.set(tasks.clone()).is_err() {
            return;
        }
        for room in self.inner.rooms.partial_rooms() {
            self.complete_soon(room, None);
        }
        let (federation, stop) = (self.clone(), tasks.stop_signal(Stage::Followers));
        let work = async move {
            tokio::select! {
                told = federation.tell_late_lists() => if let Err(error) = told {
                    tracing::warn!(%error, "changes of lists of devices could not be told");
                },
                () = stop.requested() => {}
            }
        };
        tasks.spawn("late device lists", Stage::Followers, work);
    }

    /// Sees to it that somebody gets the whole state of a room, if it is partial. `first` is asked first.
    pub(super) fn complete_soon(&self, room: RoomNumber, first: Option<OwnedServerName>) {
        let resyncing = &self.inner.resyncing;
        let Some(tasks) = resyncing.tasks.get() else {
            return;
        };
        if !self.inner.rooms.is_partial(room) {
            return;
        }
        let mut rooms = resyncing.rooms();
        let is_new = !rooms.contains_key(&room);
        let worker = Arc::clone(rooms.entry(room).or_default());
        drop(rooms);
        if first.is_some() {
            *worker.first.lock().unwrap_or_else(PoisonError::into_inner) = first;
        }
        worker.again.notify_one();
        if !is_new {
            return;
        }
        let stop = tasks.stop_signal(Stage::Followers);
        let federation = self.clone();
        let work = async move {
            tokio::select! {
                () = federation.complete(room, &worker) => {}
                () = stop.requested() => return,
            }
            federation.inner.resyncing.rooms().remove(&room);
            // Somebody may have come back meanwhile.
            if federation.inner.rooms.residence_of(room) == rooms::Residence::Resident {
                federation.complete_soon(room, None);
            }
        };
        tasks.spawn("resync", Stage::Followers, work);
    }

    async fn complete(&self, room: RoomNumber, worker: &Worker) {
        let (Some(room_id), Ok(rules)) = (
            self.inner.rooms.room_id(room),
            self.inner.rooms.rules_of(room),
        ) else {
            return;
        };
        let mut resync = Resync {
            federation: self,
            room,
            room_id,
            rules,
            worker,
            failed: 0,
            untold: None,
            believed: None,
        };
        // Boxed, as it holds the answers of other servers.
        Box::pin(resync.run()).await;
    }
}

impl Resync<'_> {
    async fn run(&mut self) {
        loop {
            match self.step().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(room_id = %self.room_id, %error, "a partial room could not be completed");
                }
            }
            let rooms = &self.federation.inner.rooms;
            let is_left = rooms.residence_of(self.room) != rooms::Residence::Resident;
            if is_left && self.failed > 0 {
                return;
            }
            let wait = FIRST_WAIT.saturating_mul(2_u32.saturating_pow(self.failed));
            self.failed = self.failed.saturating_add(1);
            tokio::select! {
                () = self.federation.inner.clock.sleep(wait.min(MAX_WAIT)) => {}
                () = self.worker.again.notified() => {}
            }
        }
    }

    /// Goes as far as it goes without waiting. True if the room is whole.
    async fn step(&mut self) -> Result<bool, MembershipError> {
        loop {
            for lacking in self.lacking().await? {
                if !self.fetch(&lacking).await? {
                    return Ok(false);
                }
            }
            self.find_untold().await?;
            self.find_believed().await?;
            let rooms = &self.federation.inner.rooms;
            // The room's turn is given back after each part, so that others get in between.
            let rechecked = rooms.write(self.room).await?.recheck().await?;
            match rechecked {
                // A user of ours has come in between.
                Recheck::Lacking => self.untold = None,
                Recheck::More => {}
                Recheck::Done => {
                    self.tell_untold().await?;
                    self.tell_lists().await?;
                    tracing::info!(room_id = %self.room_id, "the whole state of a joined room is here");
                    return Ok(true);
                }
            }
        }
    }

    /// Finds out, before anything is judged again, which servers this one did not know of.
    async fn find_untold(&mut self) -> Result<(), MembershipError> {
        if self.untold.is_none() {
            let (rooms, room) = (self.federation.inner.rooms.clone(), self.room);
            let find = move |snapshot: &Snapshot| rooms.untold_servers(snapshot, room);
            self.untold = Some(self.federation.inner.store.read(find).await?);
        }
        Ok(())
    }

    /// Finds out who is taken for a member before anything is judged again.
    async fn find_believed(&mut self) -> Result<(), MembershipError> {
        if self.believed.is_none() {
            let (federation, room) = (self.federation.clone(), self.room);
            let find = move |snapshot: &Snapshot| federation.believed(snapshot, room);
            self.believed = Some(self.federation.inner.store.read(find).await?);
        }
        Ok(())
    }

    /// Tells users of this server whose devices are to be looked up, now that it is known who is in the room.
    async fn tell_lists(&mut self) -> Result<(), MembershipError> {
        let believed = self.believed.take().unwrap_or_default();
        self.federation.correct_lists(self.room, believed).await?;
        Ok(self.federation.tell_late_lists().await?)
    }

    /// Tells servers which devices have changed of users that they share the room with.
    async fn tell_untold(&mut self) -> Result<(), MembershipError> {
        let Untold { servers, since } = self.untold.take().unwrap_or_default();
        if servers.is_empty() || since == Position::default() {
            return Ok(());
        }
        let (federation, room) = (self.federation.clone(), self.room);
        let read = move |snapshot: &Snapshot| federation.missed_edus(snapshot, room, since);
        let edus = self.federation.inner.store.read(read).await?;
        let servers: Vec<_> = servers.into_iter().collect();
        for edu in edus {
            let batch = self.federation.queue_canonical(&servers, &edu);
            self.federation.inner.store.submit(batch).await?;
        }
        Ok(())
    }

    async fn lacking(&self) -> Result<Vec<Lacking>, MembershipError> {
        let (rooms, room) = (self.federation.inner.rooms.clone(), self.room);
        let read = move |snapshot: &Snapshot| rooms.lacking(snapshot, room);
        Ok(self.federation.inner.store.read(read).await?)
    }

    /// Gets the whole state before an event from the first server that tells it. False if none does.
    async fn fetch(&mut self, lacking: &Lacking) -> Result<bool, MembershipError> {
        let mut best: Option<Told> = None;
        for server in self.servers().await? {
            match self.ask(&server, lacking).await {
                Ok(told) => {
                    let is_whole = told.absent == 0;
                    if best.as_ref().is_none_or(|best| told.absent < best.absent) {
                        best = Some(told);
                    }
                    if is_whole {
                        break;
                    }
                }
                Err(error) => {
                    tracing::info!(%server, room_id = %self.room_id, %error, "the state of a room cannot be had");
                }
            }
        }
        // What nobody has, not even later, nobody can have: its server may be gone with its keys.
        let may_lack = self.failed > 0;
        let Some(told) = best.filter(|told| told.absent == 0 || may_lack) else {
            return Ok(false);
        };
        if told.absent > 0 {
            tracing::warn!(room_id = %self.room_id, absent = told.absent, "events of the state of a room cannot be had");
        }
        let mut writer = self.federation.inner.rooms.write(self.room).await?;
        writer.keep_whole_state(lacking.event, told.state).await?;
        Ok(true)
    }

    /// Whom to ask, the best first.
    async fn servers(&self) -> Result<Vec<OwnedServerName>, MembershipError> {
        let (rooms, room) = (self.federation.inner.rooms.clone(), self.room);
        let read = move |snapshot: &Snapshot| rooms.servers(snapshot, room);
        let mut servers = self.federation.inner.store.read(read).await?;
        servers.retain(|server| self.federation.is_allowed(server));
        if !servers.is_empty() {
            let turned = (self.failed as usize).saturating_mul(MAX_SERVERS) % servers.len();
            servers.rotate_left(turned);
        }
        let first = self.worker.first.lock();
        let first = first.unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(first) = first {
            servers.retain(|server| *server != first);
            servers.insert(0, first);
        }
        servers.truncate(MAX_SERVERS);
        Ok(servers)
    }

    /// Asks one server for the whole state before an event, and keeps its events.
    ///
    /// Where the event follows a single other, it is asked for the state at that: who has the room has it for longer.
    async fn ask(
        &self,
        server: &OwnedServerName,
        lacking: &Lacking,
    ) -> Result<Told, MembershipError> {
        let prev = match lacking.prev_events.as_slice() {
            [prev] => Some(prev),
            _ => None,
        };
        let at = prev.unwrap_or(&lacking.event_id);
        let request = get_room_state_ids::v1::Request::new(at.clone(), self.room_id.clone());
        let client = &self.federation.inner.client;
        let answer = client.send_within(server, request, STATE_IDS).await?;
        let mut state = answer.pdu_ids;
        let all: BTreeSet<_> = state
            .iter()
            .chain(&answer.auth_chain_ids)
            .cloned()
            .collect();
        if all.len() > MAX_STATE_IDS {
            let reason = "the state of the room is larger than any";
            return Err(MembershipError::bad_answer(server, reason));
        }
        let unknown = self.unknown(all.into_iter().collect()).await?;
        self.get(server, at, unknown).await?;
        if let Some(prev) = prev
            && self.is_state(server, prev).await?
        {
            // It replaces what the state had of its type and state key.
            state.push(prev.clone());
        }
        let absent: HashSet<_> = self.unknown(state.clone()).await?.into_iter().collect();
        state.retain(|id| !absent.contains(id));
        Ok(Told {
            state,
            absent: absent.len(),
        })
    }

    /// Gets events of the state at an event.
    async fn get(
        &self,
        server: &OwnedServerName,
        at: &EventId,
        unknown: Vec<OwnedEventId>,
    ) -> Result<(), MembershipError> {
        let mut missing = unknown;
        if missing.len() > FEW_EVENTS {
            let path = format!(
                "/_matrix/federation/v1/state/{}?event_id={}",
                escaped(self.room_id.as_str()),
                escaped(at.as_str())
            );
            // An answer may be large: only some are in memory at the same time.
            let _permit = self.federation.inner.joining.acquire().await;
            let client = &self.federation.inner.client;
            let answer = client
                .request(server, Method::GET, &path, None, STATE)
                .await?;
            let expected = Expected {
                server: server.clone(),
                room_id: self.room_id.clone(),
                rules: self.rules,
            };
            let ids = missing.iter().cloned().collect();
            let events = wanted(self.federation, &expected, answer.into_body(), ids).await?;
            self.keep(events).await?;
            missing = self.unknown(missing).await?;
        }
        if missing.len() > FEW_EVENTS {
            return Ok(());
        }
        let mut events = Vec::new();
        for event_id in missing {
            events.extend(self.event(server, &event_id).await);
        }
        self.keep(events).await
    }

    async fn event(&self, server: &ServerName, event_id: &EventId) -> Option<Verified> {
        let request = get_event::v1::Request::new(event_id.to_owned());
        let client = &self.federation.inner.client;
        let answer = match client.send_within(server, request, FEW).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::debug!(%error, %event_id, "an event cannot be had");
                return None;
            }
        };
        let parsed = parse_of_room(&answer.pdu, &self.room_id, self.rules)?;
        let parsed = Some(parsed).filter(|parsed| parsed.event_id == event_id)?;
        self.federation.verify_one(parsed, self.rules).await
    }

    /// Whether an event is a state event that its auth events allow. It is fetched if it is not here.
    async fn is_state(
        &self,
        server: &ServerName,
        event_id: &OwnedEventId,
    ) -> Result<bool, MembershipError> {
        if !self.unknown(vec![event_id.clone()]).await?.is_empty() {
            let Some(event) = self.event(server, event_id).await else {
                let reason = "the event before the join cannot be had";
                return Err(MembershipError::bad_answer(server, reason));
            };
            if !event.is_state() {
                return Ok(false);
            }
            self.keep(vec![event]).await?;
        }
        let (rooms, room, id) = (
            self.federation.inner.rooms.clone(),
            self.room,
            event_id.clone(),
        );
        let look = move |snapshot: &Snapshot| -> Result<_, rooms::Error> {
            let event = rooms.event_in_room(snapshot, room, &id)?;
            Ok(event.is_some_and(|event| event.pdu.is_state() && !event.pdu.rejected))
        };
        Ok(self.federation.inner.store.read(look).await?)
    }

    /// Those of `ids` that are not here, not even as outliers.
    async fn unknown(&self, ids: Vec<OwnedEventId>) -> Result<Vec<OwnedEventId>, MembershipError> {
        let (rooms, room) = (self.federation.inner.rooms.clone(), self.room);
        let find = move |snapshot: &Snapshot| rooms.unknown(snapshot, room, &ids);
        Ok(self.federation.inner.store.read(find).await?)
    }

    /// Keeps events that have no place in the timeline.
    async fn keep(&self, events: Vec<Verified>) -> Result<(), MembershipError> {
        if events.is_empty() {
            return Ok(());
        }
        let inner = &self.federation.inner;
        let mut writer = inner.rooms.write(self.room).await?;
        writer.receive_outliers(events).await?;
        drop(writer);
        inner.store.submit(Batch::new()).await?;
        Ok(())
    }
}

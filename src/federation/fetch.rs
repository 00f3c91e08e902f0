//! Getting the events that a received one needs: those before it, and those that allow it.
//!
//! What another server tells is checked like any PDU, and bounded in number, bytes and time. A [`Session`] is the work for
//! one room on account of one server; the room is not held while the network is waited for.

mod backoff;
mod gap;
mod order;
mod state;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use ruma::{
    CanonicalJsonValue, EventId, OwnedEventId, OwnedRoomId, OwnedServerName, RoomId, RoomVersionId,
    api::federation::{authorization::get_event_authorization, event::get_event},
    room_version_rules::RoomVersionRules,
};
use serde_json::value::RawValue;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use self::backoff::Backoff;
pub(super) use self::order::in_order;
use super::{
    Error, Federation,
    client::{Client, Limits},
};
use crate::{
    clock::Clock,
    events::{Verified, format, format::Parsed, version},
    rooms::{self, RoomNumber},
    storage::{Batch, Snapshot},
};

/// Events that are fetched in one session.
const MAX_FETCHED_EVENTS: usize = 10_000;
/// The longest time for all that one received event needs.
const FETCH_DEADLINE: Duration = Duration::from_secs(120);
/// The longest wait for one answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// The longest wait for the state of a room: it may be large, and take its server a while.
const STATE_TIMEOUT: Duration = Duration::from_secs(60);
/// The largest answer that holds few events: 20 of the largest size are 1.3 MB.
const MAX_ANSWER_BYTES: usize = 8 << 20;
/// The largest answer that holds a state or an auth chain.
const MAX_STATE_BYTES: usize = 64 << 20;
/// Servers that are asked for one thing.
const MAX_SERVERS: usize = 4;
/// Events asked for at the same time, in one session.
const CONCURRENT_EVENTS: usize = 8;
/// Auth events that are asked for one by one, before the whole chain is.
const MAX_SINGLE_AUTH_EVENTS: usize = 20;
/// More PDUs than this are read on the blocking pool.
const READ_AT_ONCE: usize = 32;
/// Sessions on account of one server, in all rooms, and of all servers. States in particular take memory.
const MAX_SESSIONS_OF_SERVER: usize = 8;
const MAX_STATES: usize = 3;

pub(super) const FEW: Limits = Limits {
    timeout: REQUEST_TIMEOUT,
    max_bytes: MAX_ANSWER_BYTES,
};
const MANY: Limits = Limits {
    timeout: STATE_TIMEOUT,
    max_bytes: MAX_STATE_BYTES,
};

/// What sessions share.
pub(super) struct Fetching {
    backoff: Backoff,
    servers: Mutex<HashMap<OwnedServerName, Weak<Semaphore>>>,
    states: Semaphore,
}

impl Fetching {
    pub(super) fn new(clock: Clock) -> Self {
        Self {
            backoff: Backoff::new(clock),
            servers: Mutex::default(),
            states: Semaphore::new(MAX_STATES),
        }
    }

    /// The turn of a server: one that answers slowly holds up itself.
    async fn turn(&self, server: &OwnedServerName) -> Option<OwnedSemaphorePermit> {
        let semaphore = {
            let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
            servers.retain(|_, semaphore| semaphore.strong_count() > 0);
            match servers.get(server).and_then(Weak::upgrade) {
                Some(semaphore) => semaphore,
                None => {
                    let semaphore = Arc::new(Semaphore::new(MAX_SESSIONS_OF_SERVER));
                    servers.insert(server.clone(), Arc::downgrade(&semaphore));
                    semaphore
                }
            }
        };
        semaphore.acquire_owned().await.ok()
    }
}

/// Work for one room.
pub(super) struct Session<'a> {
    federation: &'a Federation,
    room: RoomNumber,
    room_id: OwnedRoomId,
    rules: &'static RoomVersionRules,
    /// Who is asked, the best first.
    servers: Vec<OwnedServerName>,
    /// Events that may still be fetched.
    left: usize,
    is_policy_server_away: bool,
}

impl<'a> Session<'a> {
    /// Work for `room` that asks `first` before others.
    ///
    /// # Errors
    /// The room is not here.
    pub(super) async fn new(
        federation: &'a Federation,
        room: RoomNumber,
        first: &[OwnedServerName],
    ) -> Result<Self, Error> {
        let rooms = federation.inner.rooms.clone();
        let room_id = rooms.room_id(room).ok_or(rooms::Error::NotFound)?;
        let published = rooms.published(room).ok_or(rooms::Error::NotFound)?;
        let rules = RoomVersionId::try_from(published.head.version.as_str())
            .ok()
            .and_then(|version| version::rules(&version))
            .ok_or(rooms::Error::UnsupportedVersion)?;
        let first = first.to_vec();
        let is_allowed = federation.clone();
        let find = move |snapshot: &Snapshot| -> Result<_, Error> {
            let joined = rooms.servers(snapshot, room)?;
            let mut servers: Vec<OwnedServerName> = Vec::new();
            for server in first.into_iter().chain(joined) {
                if servers.len() == MAX_SERVERS {
                    break;
                }
                if !servers.contains(&server)
                    && server != rooms.own_name()
                    && is_allowed.is_allowed(&server)
                    && rooms.acl_allows(snapshot, room, &server)?
                {
                    servers.push(server);
                }
            }
            Ok(servers)
        };
        Ok(Self {
            federation,
            room,
            room_id,
            rules,
            servers: federation.inner.store.read(find).await?,
            left: MAX_FETCHED_EVENTS,
            is_policy_server_away: false,
        })
    }

    pub(super) fn client(&self) -> &'a Client {
        &self.federation.inner.client
    }

    pub(super) fn room_id(&self) -> &RoomId {
        &self.room_id
    }

    /// Who is asked, the best first.
    pub(super) fn servers(&self) -> Vec<OwnedServerName> {
        self.servers.clone()
    }

    /// Whether it is time to ask for an event that could not be had.
    pub(super) fn may_try(&self, event_id: &EventId) -> bool {
        self.federation.inner.fetching.backoff.may_try(event_id)
    }

    /// An event could not be had.
    pub(super) fn failed(&self, event_id: &EventId) {
        self.federation.inner.fetching.backoff.failed(event_id);
    }

    /// Those of `ids` that are not here, not even as outliers.
    pub(super) async fn unknown(&self, ids: Vec<OwnedEventId>) -> Result<Vec<OwnedEventId>, Error> {
        let (rooms, room) = (self.federation.inner.rooms.clone(), self.room);
        let find = move |snapshot: &Snapshot| Ok(rooms.unknown(snapshot, room, &ids)?);
        self.federation.inner.store.read(find).await
    }

    /// The PDUs that belong to the room and pass the checks that need no state, in their order.
    pub(super) async fn verified(
        &mut self,
        pdus: Vec<Box<RawValue>>,
    ) -> Result<Vec<Verified>, Error> {
        let parsed = self.parsed(pdus).await?;
        Ok(self.checked(parsed).await)
    }

    /// The PDUs that belong to the room and are of sound format.
    async fn parsed(&mut self, mut pdus: Vec<Box<RawValue>>) -> Result<Vec<Parsed>, Error> {
        pdus.truncate(self.left);
        self.left -= pdus.len();
        let (room_id, rules) = (self.room_id.clone(), self.rules);
        let read = move |pdus: &[Box<RawValue>]| -> Vec<Parsed> {
            let parse = |pdu: &RawValue| parse_of_room(pdu, &room_id, rules);
            pdus.iter().filter_map(|pdu| parse(pdu)).collect()
        };
        if pdus.len() <= READ_AT_ONCE {
            return Ok(read(&pdus));
        }
        let store = &self.federation.inner.store;
        store.read(move |_snapshot| Ok(read(&pdus))).await
    }

    /// Those of the events whose signatures are right.
    async fn checked(&self, parsed: Vec<Parsed>) -> Vec<Verified> {
        let keys = &self.federation.inner.keys;
        let verified = keys.verify_pdus(self.rules, parsed).await;
        let sound = verified.into_iter().filter_map(|event| {
            event
                .inspect_err(|error| tracing::debug!(%error, "another server has sent a bad event"))
                .ok()
        });
        sound.collect()
    }

    /// The events of these IDs, as far as they can be had.
    async fn events(&mut self, ids: Vec<OwnedEventId>) -> Result<Vec<Verified>, Error> {
        let backoff = &self.federation.inner.fetching.backoff;
        let wanted: Vec<_> = ids
            .into_iter()
            .filter(|id| backoff.may_try(id))
            .take(self.left)
            .collect();
        let this = &*self;
        let pdus: Vec<_> = stream::iter(wanted.clone())
            .map(|event_id| async move { this.pdu(event_id).await })
            .buffer_unordered(CONCURRENT_EVENTS)
            .filter_map(std::future::ready)
            .collect()
            .await;
        let wanted: BTreeSet<_> = wanted.into_iter().collect();
        let mut found = self.verified(pdus).await?;
        found.retain(|event| wanted.contains(&event.event_id));
        let had: BTreeSet<_> = found.iter().map(|event| &event.event_id).collect();
        for event_id in &wanted {
            match had.contains(event_id) {
                true => backoff.succeeded(event_id),
                false => backoff.failed(event_id),
            }
        }
        Ok(found)
    }

    /// What the first server says that knows the event.
    async fn pdu(&self, event_id: OwnedEventId) -> Option<Box<RawValue>> {
        for server in &self.servers {
            let request = get_event::v1::Request::new(event_id.clone());
            let client = &self.federation.inner.client;
            match client.send_within(server, request, FEW).await {
                Ok(answer) => return Some(answer.pdu),
                Err(error) => tracing::debug!(%error, %event_id, "an event cannot be had"),
            }
        }
        None
    }

    /// Keeps events that have no place in the timeline.
    async fn keep(&self, events: Vec<Verified>) -> Result<(), Error> {
        if events.is_empty() {
            return Ok(());
        }
        let mut writer = self.federation.inner.rooms.write(self.room).await?;
        let left_out = writer.receive_outliers(events).await?;
        if !left_out.is_empty() {
            tracing::debug!(room_id = %self.room_id, ?left_out, "auth events of events are missing");
        }
        drop(writer);
        self.published().await
    }

    /// Waits until snapshots show all that has been written.
    pub(super) async fn published(&self) -> Result<(), Error> {
        self.federation.inner.store.submit(Batch::new()).await?;
        Ok(())
    }

    /// Gets the auth events that `event` lacks, with all that they need. True if none is missing any more.
    pub(super) async fn fetch_auth(
        &mut self,
        event: &Verified,
        missing: &[OwnedEventId],
    ) -> Result<bool, Error> {
        let backoff = &self.federation.inner.fetching.backoff;
        if !missing.iter().all(|id| backoff.may_try(id)) {
            return Ok(false);
        }
        let mut got: Vec<Verified> = Vec::new();
        let mut wanted = missing.to_vec();
        while !wanted.is_empty() && got.len() + wanted.len() <= MAX_SINGLE_AUTH_EVENTS {
            let found = self.events(wanted.clone()).await?;
            if found.len() < wanted.len() {
                break;
            }
            let cited = found.iter().flat_map(|event| event.auth_events.clone());
            let cited: BTreeSet<_> = cited.collect();
            got.extend(found);
            let is_new = |id: &OwnedEventId| got.iter().all(|event| event.event_id != *id);
            wanted = self
                .unknown(cited.into_iter().filter(is_new).collect())
                .await?;
        }
        if !wanted.is_empty() {
            got.extend(self.auth_chain(event).await?);
        }
        self.keep(got).await?;
        let rest = self.unknown(missing.to_vec()).await?;
        rest.iter().for_each(|id| backoff.failed(id));
        Ok(rest.is_empty())
    }

    /// The whole auth chain of an event, as the first server tells it that knows the event.
    async fn auth_chain(&mut self, event: &Verified) -> Result<Vec<Verified>, Error> {
        for server in self.servers.clone() {
            let request = get_event_authorization::v1::Request::new(
                self.room_id.clone(),
                event.event_id.clone(),
            );
            let client = &self.federation.inner.client;
            match client.send_within(&server, request, MANY).await {
                Ok(answer) => {
                    let mut chain = self.parsed(answer.auth_chain).await?;
                    let ids = chain.iter().map(|event| event.event_id.clone()).collect();
                    let unknown: BTreeSet<_> = self.unknown(ids).await?.into_iter().collect();
                    chain.retain(|event| unknown.contains(&event.event_id));
                    return Ok(self.checked(chain).await);
                }
                Err(error) => tracing::debug!(%error, "an auth chain cannot be had"),
            }
        }
        Ok(Vec::new())
    }
}

/// Reads a PDU that should be of this room.
pub(super) fn parse_of_room(
    pdu: &RawValue,
    room_id: &RoomId,
    rules: &'static RoomVersionRules,
) -> Option<Parsed> {
    let parsed = match format::parse(pdu.get().as_bytes(), rules) {
        Ok(parsed) => parsed,
        Err(error) => {
            tracing::debug!(%room_id, %error, "another server has sent a malformed event");
            return None;
        }
    };
    let is_of_room = match parsed.object.get("room_id") {
        Some(CanonicalJsonValue::String(id)) => id == room_id.as_str(),
        Some(_) => false,
        None => version::implicit_create(room_id, rules).as_ref() == Some(&parsed.event_id),
    };
    is_of_room.then_some(parsed)
}

#[cfg(test)]
mod tests;

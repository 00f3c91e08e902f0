//! History from before this server was in a room, and across gaps: fetched when somebody reads that far.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ruma::{EventId, OwnedEventId, OwnedServerName, UInt, api::federation::backfill::get_backfill};

use super::{
    Error, Federation,
    fetch::{FEW, Session, in_order},
};
use crate::{
    events::Verified,
    rooms::{Gap, HistoryEvent, RoomNumber, flag},
    storage::{Locks, Order, Snapshot},
};

/// Events of one answer.
const MAX_EVENTS: usize = 100;
/// Events that a question names: its URL must not grow too long.
const MAX_NAMED: usize = 20;
/// Events of one answer for which the state before them is asked for.
const MAX_STATES: usize = 10;
/// The longest wait of somebody who reads.
const DEADLINE: Duration = Duration::from_secs(30);

/// Answers that are asked for on the way to one event.
const MAX_ROUNDS: usize = 10;

/// What backfilling shares.
#[derive(Default)]
pub(super) struct Backfilling {
    /// One at a time in a room: who comes second finds what the first has fetched.
    turns: Locks<RoomNumber>,
}

impl Federation {
    /// Fetches up to `limit` events that lie in the gap. True if there may be more to read now.
    ///
    /// # Errors
    /// The store fails. That no server answers is no error: then there is nothing new.
    ///
    /// Spec: s2s, "Backfilling and retrieving missing events".
    pub async fn backfill(&self, gap: &Gap, limit: usize) -> Result<bool, Error> {
        let filled = Box::pin(self.fill(gap, limit));
        let filled = self.inner.clock.within(DEADLINE, filled);
        filled.await.unwrap_or(Ok(false))
    }

    /// Fetches history until `event_id` is here. False if it cannot be had, or lies too far back.
    ///
    /// # Errors
    /// As [`Federation::backfill`].
    pub async fn backfill_to(&self, room: RoomNumber, event_id: &EventId) -> Result<bool, Error> {
        for _round in 0..MAX_ROUNDS {
            let (rooms, event_id) = (self.inner.rooms.clone(), event_id.to_owned());
            let look = move |snapshot: &Snapshot| -> Result<_, Error> {
                let event = rooms.event_in_room(snapshot, room, &event_id)?;
                let is_here =
                    event.is_some_and(|event| !event.meta.has(flag::OUTLIER | flag::STUB));
                Ok((is_here, rooms.gap_at_or_below(snapshot, room, i64::MAX)?))
            };
            match self.inner.store.read(look).await? {
                (true, _) => return Ok(true),
                (false, None) => return Ok(false),
                (false, Some(gap)) => {
                    if !self.backfill(&gap, MAX_EVENTS).await? {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(false)
    }

    async fn fill(&self, gap: &Gap, limit: usize) -> Result<bool, Error> {
        let _turn = self.inner.backfilling.turns.lock(gap.room).await;
        let first = self.likely_servers(gap).await?;
        let mut session = Session::new(self, gap.room, &first).await?;
        let missing = session.without_place(gap.missing.clone()).await?;
        if missing.is_empty() {
            // They have come meanwhile. The room finds that there is no gap any more.
            let mut writer = self.inner.rooms.write(gap.room).await?;
            return Ok(writer.receive_history(gap, Vec::new()).await?.as_ref() != Some(gap));
        }
        if !missing.iter().any(|id| session.may_try(id)) {
            return Ok(false);
        }
        for server in session.servers() {
            let Some(events) = session.history(&server, &missing, limit).await? else {
                continue;
            };
            let events = session.complete(events).await?;
            if events.is_empty() {
                continue;
            }
            let mut writer = self.inner.rooms.write(gap.room).await?;
            let left = writer.receive_history(gap, events).await?;
            drop(writer);
            session.published().await?;
            if left.as_ref() != Some(gap) {
                return Ok(true);
            }
        }
        missing.iter().for_each(|id| session.failed(id));
        Ok(false)
    }

    /// The server of who sent the event after the gap: it knew what it cited.
    async fn likely_servers(&self, gap: &Gap) -> Result<Vec<OwnedServerName>, Error> {
        let (rooms, room, index) = (self.inner.rooms.clone(), gap.room, gap.index);
        let look = move |snapshot: &Snapshot| -> Result<_, Error> {
            let after =
                rooms.timeline(snapshot, room, index.saturating_sub(1), Order::Forward, 1)?;
            let servers = after
                .iter()
                .map(|placed| placed.event.pdu.sender.server_name().to_owned());
            Ok(servers.collect())
        };
        self.inner.store.read(look).await
    }
}

impl Session<'_> {
    /// What `server` tells of the events before and with `missing`, oldest first; `None` if it tells nothing of use.
    async fn history(
        &mut self,
        server: &OwnedServerName,
        missing: &[OwnedEventId],
        limit: usize,
    ) -> Result<Option<Vec<Verified>>, Error> {
        let named = missing.iter().take(MAX_NAMED).cloned().collect();
        let limit = u32::try_from(limit.clamp(1, MAX_EVENTS)).unwrap_or(u32::MAX);
        let request =
            get_backfill::v1::Request::new(self.room_id().to_owned(), named, UInt::from(limit));
        let answer = match self.client().send_within(server, request, FEW).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::debug!(%error, "history cannot be had");
                return Ok(None);
            }
        };
        let events = self.verified(answer.pdus).await?;
        let events = connected(events, missing);
        let ids = events.iter().map(|event| event.event_id.clone()).collect();
        let absent: BTreeSet<_> = self.without_place(ids).await?.into_iter().collect();
        let mut events = in_order(events);
        events.retain(|event| absent.contains(&event.event_id));
        if events.is_empty() {
            return Ok(None);
        }
        self.trim(events).await.map(Some)
    }

    /// The newest of the events, so many that the state before them has to be asked for at few of them only.
    async fn trim(&self, mut events: Vec<Verified>) -> Result<Vec<Verified>, Error> {
        let cited = events.iter().flat_map(|event| event.prev_events.clone());
        let cited: BTreeSet<_> = cited.collect();
        let absent = self.without_place(cited.into_iter().collect()).await?;
        let absent: BTreeSet<_> = absent.into_iter().collect();
        loop {
            let here: BTreeSet<_> = events.iter().map(|event| &event.event_id).collect();
            let is_edge = |event: &&Verified| {
                let mut prevs = event.prev_events.iter();
                prevs.any(|id| absent.contains(id) && !here.contains(id))
            };
            if events.iter().filter(is_edge).count() <= MAX_STATES || events.len() == 1 {
                return Ok(events);
            }
            events.drain(..events.len() / 2);
        }
    }

    /// The events with what each needs to have its place; what cannot be given one is left out.
    async fn complete(&mut self, events: Vec<Verified>) -> Result<Vec<HistoryEvent>, Error> {
        let mut complete: Vec<HistoryEvent> = Vec::with_capacity(events.len());
        let mut here: BTreeSet<OwnedEventId> = BTreeSet::new();
        let mut states = 0;
        for event in events {
            let is_absent = |id: &&OwnedEventId| !here.contains(*id);
            let prevs = event.prev_events.iter().filter(is_absent).cloned();
            let auth: Vec<_> = event
                .auth_events
                .iter()
                .filter(is_absent)
                .cloned()
                .collect();
            let open = self.without_place(prevs.collect()).await?;
            let mut state_before = None;
            if !open.is_empty() {
                states += 1;
                if states > 2 * MAX_STATES {
                    continue;
                }
                state_before = self.state_before(&event.event_id).await?;
                if state_before.is_none() {
                    continue;
                }
            }
            let auth = self.unknown(auth).await?;
            if !auth.is_empty() && !self.fetch_auth(&event, &auth).await? {
                continue;
            }
            here.insert(event.event_id.clone());
            complete.push(HistoryEvent {
                event,
                state_before,
            });
        }
        Ok(complete)
    }
}

/// Those of the events that `from` names, or that are reached from them through prev events.
fn connected(events: Vec<Verified>, from: &[OwnedEventId]) -> Vec<Verified> {
    let mut events: BTreeMap<OwnedEventId, Verified> = events
        .into_iter()
        .map(|event| (event.event_id.clone(), event))
        .collect();
    let mut wanted = from.to_vec();
    let mut connected = Vec::with_capacity(events.len());
    while let Some(id) = wanted.pop() {
        if let Some(event) = events.remove(&id) {
            wanted.extend(event.prev_events.iter().cloned());
            connected.push(event);
        }
    }
    connected
}

#[cfg(test)]
mod tests;

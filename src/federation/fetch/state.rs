//! The state of a room at an event that is not here, as another server tells it.

use std::collections::BTreeSet;

use ruma::{
    EventId, OwnedEventId, OwnedServerName,
    api::federation::event::{get_room_state, get_room_state_ids},
};

use super::{MANY, Session};
use crate::{events::Verified, federation::Error, storage::Snapshot};

/// IDs that a state and its auth chain may have: a room of 100,000 members has some 400,000.
const MAX_STATE_IDS: usize = 500_000;
/// If more than this part of a state and its auth chain is unknown, all of it is asked for at once.
const UNKNOWN_PART: usize = 10;
/// As few events as these are always asked for one by one.
const FEW_EVENTS: usize = 10;

impl Session<'_> {
    /// The state before `event`, which follows events that are missing, as far as they make it.
    ///
    /// A server is asked for the state at the missing event itself; where that cannot be had, or there are several, for the
    /// state before `event`. `None` if nobody tells: to place the event after an empty state would reject it for good.
    pub(super) async fn state_for(
        &mut self,
        event: &Verified,
        missing: &[OwnedEventId],
    ) -> Result<Option<Vec<OwnedEventId>>, Error> {
        if let [prev] = missing
            && let Some(state) = self.state_after(prev).await?
        {
            return Ok(Some(state));
        }
        self.state_before(&event.event_id).await
    }

    /// The state after an event that is not here, which is fetched too. What is told of the state and cannot be had is
    /// left out: a room may hold events whose servers are gone with their keys.
    async fn state_after(
        &mut self,
        event_id: &OwnedEventId,
    ) -> Result<Option<Vec<OwnedEventId>>, Error> {
        let Some(mut state) = self.state_before(event_id).await? else {
            return Ok(None);
        };
        if !self.unknown(vec![event_id.clone()]).await?.is_empty() {
            let event = self.events(vec![event_id.clone()]).await?;
            let Some(event) = event.into_iter().next() else {
                return Ok(None);
            };
            let missing = self.unknown(event.auth_events.clone()).await?;
            if !missing.is_empty() && !self.fetch_auth(&event, &missing).await? {
                return Ok(Some(state));
            }
            self.keep(vec![event]).await?;
        }
        if self.is_state(event_id).await? {
            // It replaces what the state had of its type and state key.
            state.push(event_id.clone());
        }
        Ok(Some(state))
    }

    /// The state before an event, all of it here now; `None` if no server tells it.
    pub(in crate::federation) async fn state_before(
        &mut self,
        event_id: &EventId,
    ) -> Result<Option<Vec<OwnedEventId>>, Error> {
        let _memory = self.federation.inner.fetching.states.acquire().await;
        for server in self.servers.clone() {
            let request =
                get_room_state_ids::v1::Request::new(event_id.to_owned(), self.room_id.clone());
            let client = &self.federation.inner.client;
            let answer = match client.send_within(&server, request, MANY).await {
                Ok(answer) => answer,
                Err(error) => {
                    tracing::debug!(%error, "a state cannot be had");
                    continue;
                }
            };
            let (state, chain) = (answer.pdu_ids, answer.auth_chain_ids);
            let total = state.len() + chain.len();
            if total > MAX_STATE_IDS {
                tracing::info!(%server, total, "the state of a room is larger than any");
                continue;
            }
            let all: BTreeSet<_> = state.iter().chain(&chain).cloned().collect();
            let unknown = self.unknown(all.into_iter().collect()).await?;
            self.fetch_state(&server, event_id, unknown, total).await?;
            let absent: BTreeSet<_> = self.unknown(state.clone()).await?.into_iter().collect();
            let is_here = |id: &OwnedEventId| !absent.contains(id);
            return Ok(Some(state.into_iter().filter(is_here).collect()));
        }
        Ok(None)
    }

    /// Fetches what is unknown of a state.
    async fn fetch_state(
        &mut self,
        server: &OwnedServerName,
        event_id: &EventId,
        unknown: Vec<OwnedEventId>,
        total: usize,
    ) -> Result<(), Error> {
        if unknown.is_empty() {
            return Ok(());
        }
        if unknown.len() > FEW_EVENTS && unknown.len() * UNKNOWN_PART >= total {
            let request =
                get_room_state::v1::Request::new(event_id.to_owned(), self.room_id.clone());
            let client = &self.federation.inner.client;
            match client.send_within(server, request, MANY).await {
                Ok(answer) => {
                    let wanted: BTreeSet<_> = unknown.into_iter().collect();
                    let mut pdus = answer.auth_chain;
                    pdus.extend(answer.pdus);
                    let mut events = self.parsed(pdus).await?;
                    events.retain(|event| wanted.contains(&event.event_id));
                    let events = self.checked(events).await;
                    return self.keep(events).await;
                }
                Err(error) => tracing::debug!(%error, "a state cannot be had at once"),
            }
        }
        let events = self.events(unknown).await?;
        self.keep(events).await
    }

    /// Whether an event that is here is a state event that its own auth events allow.
    async fn is_state(&self, event_id: &EventId) -> Result<bool, Error> {
        let (rooms, room) = (self.federation.inner.rooms.clone(), self.room);
        let event_id = event_id.to_owned();
        let look = move |snapshot: &Snapshot| -> Result<_, Error> {
            let event = rooms.event_in_room(snapshot, room, &event_id)?;
            Ok(event.is_some_and(|event| event.pdu.is_state() && !event.pdu.rejected))
        };
        self.federation.inner.store.read(look).await
    }
}

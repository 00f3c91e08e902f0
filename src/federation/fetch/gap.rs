//! Closing the gap between a received event and what is known of its room.

use std::collections::{BTreeMap, BTreeSet};

use ruma::{
    OwnedEventId, OwnedServerName, UInt, UserId, api::federation::event::get_missing_events,
    events::TimelineEventType,
};

use super::{FETCH_DEADLINE, FEW, Session, in_order};
use crate::{
    events::{Pdu, Verified},
    federation::{
        Error, Federation,
        inbox::{Entry, Inbox, label},
        policy,
    },
    rooms::{self, Class, Intake, Received, RoomNumber, class_of, flag},
    storage::{Batch, Commit, Snapshot},
};

/// Questions for missing events, for one received event.
const MAX_ROUNDS: usize = 20;
/// Events asked for in one round: other servers answer no more.
const EVENTS_OF_ROUND: usize = 20;
/// A server that answers less than this of what was asked has no more, or gives no more.
const FULL_ROUND: usize = EVENTS_OF_ROUND / 2;
/// Events that a question names on either side.
const MAX_NAMED: usize = 20;
/// Attempts to put one event into its room, each after something that it lacked was fetched.
const MAX_ATTEMPTS: usize = 4;

/// How the prev events of an event may be replaced.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Edge {
    /// They must be known: a server that sends an event has to tell what it follows.
    Closed,
    /// The state after them is asked for: the event was fetched on the way to a gap, or puts this server out of the room.
    Open,
}

impl Federation {
    /// Gets what a received event lacks and puts it into its room. False if it must be dropped.
    ///
    /// # Errors
    /// The store fails, or the room refuses the event for good.
    pub(in crate::federation) async fn fetch_for(
        &self,
        room: RoomNumber,
        entry: &Entry,
        event: Verified,
    ) -> Result<bool, Error> {
        let mut session = Session::new(self, room, std::slice::from_ref(&entry.origin)).await?;
        let removal = || Inbox::removal(room, entry);
        let work = async {
            let Some(_turn) = self.inner.fetching.turn(&entry.origin).await else {
                return Ok(false);
            };
            session.close_gap_before(event.clone(), &removal).await
        };
        match self
            .inner
            .clock
            .within(FETCH_DEADLINE, Box::pin(work))
            .await
        {
            Some(Ok(true)) => Ok(true),
            Some(Err(error)) => Err(error),
            Some(Ok(false)) | None if self.puts_out(&event) => {
                session.append_to_own_state(event, &removal).await
            }
            Some(Ok(false)) | None => Ok(false),
        }
    }

    /// Whether the event ends a membership of a user of this server. After it other servers may tell nothing any more, and
    /// without it this server would take itself to be in the room for ever.
    fn puts_out(&self, event: &Pdu) -> bool {
        let user = event.state_key.as_deref().map(<&UserId>::try_from);
        let own_name = self.inner.rooms.own_name();
        event.event_type == TimelineEventType::RoomMember
            && user.is_some_and(|user| user.is_ok_and(|user| user.server_name() == own_name))
            && matches!(class_of(event), Class::Leave | Class::Ban)
    }
}

impl Session<'_> {
    /// Fetches what lies between the room and `event`, and appends all of it.
    async fn close_gap_before(
        &mut self,
        event: Verified,
        batch: &impl Fn() -> Batch,
    ) -> Result<bool, Error> {
        let edge = match self.federation.puts_out(&event) {
            true => Edge::Open,
            false => Edge::Closed,
        };
        // What was appended just now counts as known.
        self.published().await?;
        if !self.missing_prevs(&event).await?.is_empty() {
            let between = in_order(self.events_before(&event).await?);
            // What was missing may have come in another way meanwhile.
            if between.is_empty()
                && edge == Edge::Closed
                && !self.missing_prevs(&event).await?.is_empty()
            {
                return Ok(false);
            }
            for earlier in between {
                let event_id = earlier.event_id.clone();
                if !self.append(earlier, Edge::Open, &Batch::new).await? {
                    tracing::debug!(%event_id, "a fetched event cannot be placed");
                }
            }
        }
        self.append(event, edge, batch).await
    }

    /// Puts an event into the room of which nobody tells what came before it: after what this server knows, and after what
    /// the event itself cites. The rules of the current state apply to it as to any other.
    async fn append_to_own_state(
        &mut self,
        event: Verified,
        batch: &impl Fn() -> Batch,
    ) -> Result<bool, Error> {
        let (rooms, room) = (self.federation.inner.rooms.clone(), self.room);
        let read = move |snapshot: &Snapshot| -> Result<_, Error> {
            let head = rooms.head(snapshot, room)?.ok_or(rooms::Error::NotFound)?;
            let mut state = rooms.core_state(snapshot, room, head.root)?;
            state.extend(rooms.member_state(snapshot, room, head.root)?);
            let ids = state.iter().map(|event| event.pdu.event_id.clone());
            Ok(ids.collect::<Vec<_>>())
        };
        let mut state = self.federation.inner.store.read(read).await?;
        // They replace what the state has of their types and state keys.
        state.extend(event.auth_events.iter().cloned());
        let (event, intake) = self.recommended(event).await?;
        let mut writer = self.federation.inner.rooms.write(self.room).await?;
        let received = writer
            .receive_after_gap(event, &state, intake, batch())
            .await?;
        drop(writer);
        let Received::Settled {
            outcome, commit, ..
        } = received
        else {
            return Ok(false);
        };
        self.federation.inner.inbox.count(label(outcome));
        self.settled(commit, batch()).await?;
        Ok(true)
    }

    /// Events before `event` that are not here, from the first server that gives any.
    async fn events_before(&mut self, event: &Verified) -> Result<Vec<Verified>, Error> {
        for server in self.servers.clone() {
            let events = self.events_before_by(&server, event).await?;
            if !events.is_empty() {
                return Ok(events);
            }
        }
        Ok(Vec::new())
    }

    async fn events_before_by(
        &mut self,
        server: &OwnedServerName,
        event: &Verified,
    ) -> Result<Vec<Verified>, Error> {
        let earliest = self.extremities().await?;
        let mut latest = vec![event.event_id.clone()];
        let mut found: BTreeMap<OwnedEventId, Verified> = BTreeMap::new();
        for _round in 0..MAX_ROUNDS {
            let mut request = get_missing_events::v1::Request::new(
                self.room_id.clone(),
                earliest.clone(),
                latest,
            );
            request.limit = UInt::new_saturating(EVENTS_OF_ROUND as u64);
            let client = &self.federation.inner.client;
            let answer = match client.send_within(server, request, FEW).await {
                Ok(answer) => answer,
                Err(error) => {
                    tracing::debug!(%error, "missing events cannot be had");
                    break;
                }
            };
            let before = found.len();
            for earlier in self.verified(answer.events).await? {
                if earlier.event_id != event.event_id {
                    found.insert(earlier.event_id.clone(), earlier);
                }
            }
            latest = self.open_among(&found).await?;
            if latest.is_empty() || found.len() - before < FULL_ROUND || self.left == 0 {
                break;
            }
        }
        let ids = found.keys().cloned().collect();
        let absent: BTreeSet<_> = self.without_place(ids).await?.into_iter().collect();
        found.retain(|id, _| absent.contains(id));
        let needed = self.needed(event, &found).await?;
        found.retain(|id, _| needed.contains(id));
        Ok(found.into_values().collect())
    }

    /// Those of the fetched events that `event` follows. What comes before an event that a gap of the timeline names is
    /// history, and would stand in the timeline as if it had just happened.
    async fn needed(
        &self,
        event: &Verified,
        found: &BTreeMap<OwnedEventId, Verified>,
    ) -> Result<BTreeSet<OwnedEventId>, Error> {
        let named = self.named_by_gaps(found).await?;
        let mut needed = BTreeSet::new();
        let mut front: Vec<&OwnedEventId> = event.prev_events.iter().collect();
        while let Some(id) = front.pop() {
            let Some(earlier) = found.get(id) else {
                continue;
            };
            if needed.insert(id.clone()) && !named.contains(id) {
                front.extend(&earlier.prev_events);
            }
        }
        Ok(needed)
    }

    /// Those of the fetched events that gaps of the timeline name.
    async fn named_by_gaps(
        &self,
        found: &BTreeMap<OwnedEventId, Verified>,
    ) -> Result<BTreeSet<OwnedEventId>, Error> {
        let (rooms, room) = (self.federation.inner.rooms.clone(), self.room);
        let ids: Vec<_> = found.keys().cloned().collect();
        let find = move |snapshot: &Snapshot| -> Result<_, Error> {
            let named = rooms.named_by_gaps(snapshot, room, &ids)?;
            Ok(named.into_iter().collect())
        };
        self.federation.inner.store.read(find).await
    }

    /// The forward extremities of the room.
    async fn extremities(&self) -> Result<Vec<OwnedEventId>, Error> {
        let (rooms, room) = (self.federation.inner.rooms.clone(), self.room);
        let find = move |snapshot: &Snapshot| -> Result<_, Error> {
            let Some(head) = rooms.head(snapshot, room)? else {
                return Ok(Vec::new());
            };
            let newest = head.extremities.len().saturating_sub(MAX_NAMED);
            let extremities = head.extremities.get(newest..).unwrap_or_default();
            let events = rooms.events(snapshot, room, extremities)?;
            let ids = events.iter().flatten();
            Ok(ids.map(|event| event.pdu.event_id.clone()).collect())
        };
        self.federation.inner.store.read(find).await
    }

    /// Those of the fetched events that cite what is neither among them nor here.
    async fn open_among(
        &self,
        found: &BTreeMap<OwnedEventId, Verified>,
    ) -> Result<Vec<OwnedEventId>, Error> {
        let named = self.named_by_gaps(found).await?;
        let after_gaps = || {
            let events = found.values();
            events.filter(|event| !named.contains(&event.event_id))
        };
        let cited: BTreeSet<_> = after_gaps()
            .flat_map(|event| &event.prev_events)
            .filter(|id| !found.contains_key(*id))
            .cloned()
            .collect();
        let missing = self.without_place(cited.into_iter().collect()).await?;
        let missing: BTreeSet<_> = missing.into_iter().collect();
        let is_open = |event: &&Verified| event.prev_events.iter().any(|id| missing.contains(id));
        let open = after_gaps().filter(is_open);
        Ok(open
            .map(|event| event.event_id.clone())
            .take(MAX_NAMED)
            .collect())
    }

    async fn missing_prevs(&self, event: &Verified) -> Result<Vec<OwnedEventId>, Error> {
        self.without_place(event.prev_events.clone()).await
    }

    /// Those of `ids` that have no place in the graph of the room: outliers too have none.
    pub(in crate::federation) async fn without_place(
        &self,
        ids: Vec<OwnedEventId>,
    ) -> Result<Vec<OwnedEventId>, Error> {
        if ids.is_empty() {
            return Ok(ids);
        }
        let (rooms, room) = (self.federation.inner.rooms.clone(), self.room);
        let find = move |snapshot: &Snapshot| -> Result<_, Error> {
            let mut missing = Vec::new();
            for id in ids {
                let event = rooms.event_in_room(snapshot, room, &id)?;
                let has_place =
                    event.is_some_and(|event| !event.meta.has(flag::OUTLIER | flag::STUB));
                if !has_place {
                    missing.push(id);
                }
            }
            Ok(missing)
        };
        self.federation.inner.store.read(find).await
    }

    /// Puts an event into the room, fetching what it lacks. False if that cannot be had.
    async fn append(
        &mut self,
        event: Verified,
        edge: Edge,
        batch: &impl Fn() -> Batch,
    ) -> Result<bool, Error> {
        let (event, intake) = self.recommended(event).await?;
        let mut state: Option<Vec<OwnedEventId>> = None;
        for _attempt in 0..MAX_ATTEMPTS {
            let mut writer = self.federation.inner.rooms.write(self.room).await?;
            let received = match &state {
                None => writer.receive(event.clone(), intake, batch()).await?,
                Some(state) => {
                    writer
                        .receive_after_gap(event.clone(), state, intake, batch())
                        .await?
                }
            };
            drop(writer);
            let missing_auth = match received {
                Received::Settled {
                    outcome, commit, ..
                } => {
                    self.federation.inner.inbox.count(label(outcome));
                    self.settled(commit, batch()).await?;
                    return Ok(true);
                }
                Received::MissingAuth(missing) => missing,
                Received::MissingPrev(_) => Vec::new(),
            };
            // The state before the event brings most of its auth events.
            if state.is_none() && edge == Edge::Open {
                let missing = self.missing_prevs(&event).await?;
                if !missing.is_empty() {
                    state = self.state_for(&event, &missing).await?;
                    match state {
                        Some(_) => continue,
                        None => return Ok(false),
                    }
                }
            }
            if missing_auth.is_empty() || !self.fetch_auth(&event, &missing_auth).await? {
                return Ok(false);
            }
        }
        Ok(false)
    }

    /// The event with the signature of the room's policy server, if the room has one and it gives it. One that does not
    /// answer is asked once.
    async fn recommended(&mut self, event: Verified) -> Result<(Verified, Intake), Error> {
        let federation = self.federation;
        let mut writer = federation.inner.rooms.write(self.room).await?;
        let policy = writer.policy_server().await?;
        drop(writer);
        let Some(policy) = policy else {
            return Ok((event, Intake::Live));
        };
        if policy::is_recommended(&policy, &event, self.rules) {
            return Ok((event, Intake::Live));
        }
        if self.is_policy_server_away {
            return Ok((event, Intake::Unsigned));
        }
        let signed = federation.recommended(&policy, &event, self.rules).await;
        match signed {
            Ok(signed) => Ok((signed, Intake::Live)),
            Err(error) => {
                tracing::info!(event_id = %event.event_id, %error, "the policy server does not recommend an event");
                self.is_policy_server_away = error.is_temporary();
                Ok((event, Intake::Unsigned))
            }
        }
    }

    /// What comes next reads what has been written.
    async fn settled(&self, commit: Option<Commit>, batch: Batch) -> Result<(), Error> {
        let commit = match commit {
            Some(commit) => commit,
            None => self.federation.inner.store.submit(batch),
        };
        commit.await?;
        Ok(())
    }
}

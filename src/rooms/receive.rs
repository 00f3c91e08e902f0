//! Taking in events of other servers.
//!
//! Nothing here waits for the network: where the room lacks an event it says which, and the caller asks again once it is
//! there. An event that is settled has an outcome that is stored with it and never guessed again. engine.md section 6.3.
//!
//! Spec: s2s, "Checks performed on receipt of a PDU".

mod history;
pub(super) mod judge;
mod outliers;
pub(super) mod told;

use std::sync::Arc;

use ruma::{EventId, OwnedEventId};

pub use self::history::HistoryEvent;
use self::judge::{Arrival, Place, Verdict};
pub(super) use self::{
    history::move_on,
    judge::{Again, again},
};
use super::{
    Error, RoomNumber, RoomWriter, Rooms, StoredEvent,
    event::{self, EventKey, flag},
    gaps::{self, Gap},
    state,
    writer::place::Prepared,
};
use crate::{
    events::{AuthError, EventNumber, Pdu, Verified, redact, sign::reference_hash},
    storage::{Batch, Commit, Snapshot},
};

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was settled before.
    Known,
    Accepted,
    /// A part of the graph, but not shown, and not cited by events of ours.
    SoftFailed,
    /// Refused by the rules: stored, without effect on the state.
    Rejected,
}

/// How far an event was taken in.
pub enum Received {
    /// The batch of the caller was used.
    Settled {
        outcome: Outcome,
        event: Arc<StoredEvent>,
        /// `None`: there was nothing to write.
        commit: Option<Commit>,
    },
    /// These auth events are not known. Nothing has changed.
    MissingAuth(Vec<OwnedEventId>),
    /// All auth events are known; these previous events are not. Nothing has changed.
    MissingPrev(Vec<OwnedEventId>),
}

/// How an event came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intake {
    /// By the servers that take part in the room.
    Live,
    /// The same, and the room's policy server has not signed it: soft-failed if it is not rejected.
    Unsigned,
    /// A join, leave or knock that its server gave to this one to be sent on: taken only if it is allowed.
    Vouched,
    /// A join of a user of this server that another server has accepted: taken only if it is allowed.
    Answered,
}

/// Nodes of a state that one batch writes.
const NODES_PER_BATCH: usize = 1_000;

impl RoomWriter {
    /// Takes in a verified event of this room.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it belongs to another room, [`Error::NotAllowed`] for a vouched event that is refused: then
    /// nothing has changed.
    pub async fn receive(
        &mut self,
        event: Verified,
        intake: Intake,
        batch: Batch,
    ) -> Result<Received, Error> {
        let arrival = self.arrival(event.into_pdu(), intake, None).await?;
        match self.gap_naming(&arrival).await? {
            Some(gap) => self.take_into_gap(&gap, arrival, batch).await,
            None => self.take_in(arrival, batch).await,
        }
    }

    /// Takes in an event some of whose previous events cannot be had, after the state that another server says was before
    /// it. All events of that state must be known. The place is marked as a gap.
    ///
    /// # Errors
    /// As [`Self::receive`]; [`Error::Invalid`] if an event of the state is not known.
    pub async fn receive_after_gap(
        &mut self,
        event: Verified,
        state_before: &[OwnedEventId],
        intake: Intake,
        batch: Batch,
    ) -> Result<Received, Error> {
        let told = Some(state_before.to_vec());
        let arrival = self.arrival(event.into_pdu(), intake, told).await?;
        match self.gap_naming(&arrival).await? {
            Some(gap) => self.take_into_gap(&gap, arrival, batch).await,
            None => self.take_in(arrival, batch).await,
        }
    }

    /// The gap in which an event is missing. Only what was mentioned before can be.
    async fn gap_naming(&mut self, arrival: &Arrival) -> Result<Option<Gap>, Error> {
        let Some(own) = arrival.own.filter(|_| arrival.intake != Intake::Vouched) else {
            return Ok(None);
        };
        self.settled().await?;
        let (rooms, room, id) = (self.rooms().clone(), self.room(), arrival.id.clone());
        self.rooms()
            .store
            .read(move |snapshot| {
                let known = rooms.event(snapshot, room, own)?;
                match known.is_none_or(|event| event.meta.has(flag::OUTLIER)) {
                    true => gaps::naming(snapshot, room, &id),
                    false => Ok(None),
                }
            })
            .await
    }

    /// Takes in an event that others which are here have come after: it belongs to the history.
    async fn take_into_gap(
        &mut self,
        gap: &Gap,
        mut arrival: Arrival,
        batch: Batch,
    ) -> Result<Received, Error> {
        let event = HistoryEvent {
            event: Verified::from_stored((*arrival.pdu).clone()),
            state_before: arrival.told.clone(),
        };
        arrival.place = Place::Past {
            index: gap.index,
            ord_all: 0,
            ord_room: 0,
        };
        let (id, intake) = (arrival.pdu.event_id.clone(), arrival.intake);
        let verdict = self
            .with_source(move |head, source| judge::judge(head, source, &arrival))
            .await?;
        match verdict {
            Verdict::MissingAuth(missing) => return Ok(Received::MissingAuth(missing)),
            Verdict::MissingPrev(missing) => return Ok(Received::MissingPrev(missing)),
            Verdict::Known(_) | Verdict::Settled(..) => {}
        }
        self.fill(gap, vec![event], intake).await?;
        let (rooms, room) = (self.rooms().clone(), self.room());
        let read = move |snapshot: &Snapshot| rooms.event_in_room(snapshot, room, &id);
        let event = self.rooms().store.read(read).await?;
        let event = event.ok_or_else(|| Error::corrupt("bodies", "history was not stored"))?;
        Ok(Received::Settled {
            outcome: outcome(&event),
            event,
            commit: (!batch.is_empty()).then(|| self.rooms().store.submit(batch)),
        })
    }

    pub(super) async fn take_in(
        &mut self,
        arrival: Arrival,
        batch: Batch,
    ) -> Result<Received, Error> {
        let intake = arrival.intake;
        let verdict = self
            .with_source(move |head, source| judge::judge(head, source, &arrival))
            .await?;
        let (mut prepared, refused) = match verdict {
            Verdict::Known(event) => {
                let commit = (!batch.is_empty()).then(|| self.rooms().store.submit(batch));
                return Ok(Received::Settled {
                    outcome: Outcome::Known,
                    event,
                    commit,
                });
            }
            Verdict::MissingAuth(missing) => return Ok(Received::MissingAuth(missing)),
            Verdict::MissingPrev(missing) => return Ok(Received::MissingPrev(missing)),
            Verdict::Settled(prepared, refused) => (prepared, refused),
        };
        if let (Intake::Vouched | Intake::Answered, Some(error)) = (intake, refused) {
            return Err(Error::NotAllowed(error));
        }
        self.write_ahead(&mut prepared);
        let number = prepared.event.number;
        let outcome = outcome(&prepared.event);
        let batch = self.append(*prepared, batch);
        let commit = Some(self.submit(batch));
        self.rooms().note_ends(self.head().extremities.len());
        let event = self.head().fresh.iter();
        let event = event.filter_map(|fresh| fresh.events.get(&number)).next();
        let event = Arc::clone(event.expect("what was appended is in flight"));
        Ok(Received::Settled {
            outcome,
            event,
            commit,
        })
    }

    /// Writes most nodes of a very different state in batches of their own. Nothing refers to them yet.
    fn write_ahead(&mut self, prepared: &mut Prepared) {
        let room = self.room();
        let Some(turn) = &mut prepared.turn else {
            return;
        };
        while turn.made.nodes.len() > NODES_PER_BATCH {
            let rest = turn.made.nodes.split_off(NODES_PER_BATCH);
            let mut batch = Batch::new();
            let [newer, _] = &mut self.head_mut().fresh;
            for (number, node) in std::mem::replace(&mut turn.made.nodes, rest) {
                state::insert_node(&mut batch, room, number, &node);
                newer.nodes.insert(number, node);
            }
            drop(self.rooms().store.submit(batch));
        }
    }

    /// An event with its numbers, as far as it has any.
    pub(super) async fn arrival(
        &mut self,
        pdu: Pdu,
        intake: Intake,
        told: Option<Vec<OwnedEventId>>,
    ) -> Result<Arrival, Error> {
        self.check_room(&pdu)?;
        let own = self.own_number(&pdu.event_id)?;
        let pdu = self.first_of_its_id(pdu, own)?;
        let target = redact::target(&pdu, &self.rules().redaction);
        if target.is_some_and(|target| self.head().is_fresh(&target)) {
            // Its rows are written again, with the position that it does not have yet.
            self.settled().await?;
        }
        let key = pdu.state_key.as_deref();
        let numbers = self.numbers_of(&pdu.sender, &pdu.event_type, key).await?;
        Ok(Arrival {
            id: EventKey::of(&pdu.event_id),
            own,
            pdu: Arc::new(pdu),
            numbers,
            intake,
            told,
            lacks_members: false,
            place: Place::Live,
        })
    }

    fn check_room(&self, pdu: &Pdu) -> Result<(), Error> {
        let head = self.head();
        let is_here = match &pdu.room_id {
            Some(room_id) => *room_id == head.room_id,
            None => super::resolution::create_event_id(&head.room_id)
                .is_some_and(|create| create == pdu.event_id),
        };
        match is_here && !self.is_elsewhere(&pdu.event_id)? {
            true => Ok(()),
            false => Err(Error::Invalid("the event belongs to another room".into())),
        }
    }

    /// Whether another room has an event of this ID. Hashes do not repeat, but in versions 1 and 2 servers choose the IDs.
    fn is_elsewhere(&self, event_id: &EventId) -> Result<bool, Error> {
        let id = EventKey::of(event_id);
        if matches!(id, EventKey::Hash(_)) {
            return Ok(false);
        }
        let place = event::place(&self.rooms().store.snapshot()?, &id)?;
        Ok(place.is_some_and(|place| place.room != self.room()))
    }

    /// The event, or the one of the same ID that came before. In versions 1 and 2 a server may give one ID to several events, and what is
    /// known of the first must not be taken for known of another.
    fn first_of_its_id(&self, pdu: Pdu, own: Option<EventNumber>) -> Result<Pdu, Error> {
        let Some(own) = own.filter(|_| pdu.is_named()) else {
            return Ok(pdu);
        };
        let snapshot = self.rooms().store.snapshot()?;
        let source = self.head().source(self.rooms(), Some(&snapshot));
        let Some(known) = source.event(own)? else {
            return Ok(pdu);
        };
        let hash = |pdu: &Pdu| {
            reference_hash(pdu, self.rules())
                .map_err(|damaged| Error::corrupt("bodies", &damaged.to_string()))
        };
        match hash(&pdu)? == hash(&known.pdu)? {
            true => Ok(pdu),
            false => Ok((*known.pdu).clone()),
        }
    }

    /// The number of an event of this room, if it was ever mentioned. A filter in memory answers for most that are new.
    fn own_number(&self, event_id: &EventId) -> Result<Option<EventNumber>, Error> {
        let snapshot = self.rooms().store.snapshot()?;
        let source = self.head().source(self.rooms(), Some(&snapshot));
        source.event_number(event_id)
    }
}

/// What became of an event when it was stored.
fn outcome(event: &StoredEvent) -> Outcome {
    if event.meta.is_rejected() {
        Outcome::Rejected
    } else if event.meta.has(flag::SOFT_FAILED) {
        Outcome::SoftFailed
    } else {
        Outcome::Accepted
    }
}

impl Rooms {
    /// Those of the events that are not stored here.
    pub fn unknown(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        event_ids: &[OwnedEventId],
    ) -> Result<Vec<OwnedEventId>, Error> {
        let keys: Vec<_> = event_ids.iter().map(|id| EventKey::of(id)).collect();
        let places = event::places(snapshot, &keys)?;
        let mut unknown = Vec::new();
        for (id, place) in event_ids.iter().zip(places) {
            if place.is_none_or(|place| place.room != room) {
                unknown.push(id.clone());
            }
        }
        Ok(unknown)
    }

    /// The version rules of a room that is here.
    pub fn rules_of(
        &self,
        room: RoomNumber,
    ) -> Result<&'static ruma::room_version_rules::RoomVersionRules, Error> {
        let published = self.published(room).ok_or(Error::NotFound)?;
        let version = ruma::RoomVersionId::try_from(published.head.version.as_str());
        let version = version.map_err(|_invalid| Error::UnsupportedVersion)?;
        crate::events::version::rules(&version).ok_or(Error::UnsupportedVersion)
    }
}

/// A refusal, in the words of the authorization rules.
fn refused(text: &str) -> AuthError {
    AuthError::Refused(text.to_owned())
}

#[cfg(test)]
mod tests;

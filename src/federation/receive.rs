//! Transactions of other servers.
//!
//! The checks that need no state are made at once; what passes them lies in the inbox, durable together with the answer,
//! before the answer is sent. Nothing here waits for a room. engine.md section 6.2.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use ruma::{
    EventId, OwnedEventId, OwnedRoomId, OwnedServerName, OwnedTransactionId, RoomId, RoomVersionId,
    ServerName, TransactionId, api::federation::transactions::edu::Edu,
    room_version_rules::RoomVersionRules, serde::Raw,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Error, Federation, inbox};
use crate::{
    events::{Verified, format, format::Parsed, version},
    rooms::{RoomNumber, flag},
    storage::{Batch, Expiring, Family, Millis48, Snapshot, Table},
};

/// Most PDUs of a transaction.
///
/// Spec: s2s, "Transactions".
pub const MAX_PDUS: usize = 50;

/// Most EDUs of a transaction.
///
/// Spec: s2s, "Transactions".
pub const MAX_EDUS: usize = 100;

/// How long the answer to a transaction is kept for a server that asks again.
const ANSWER_KEPT: Duration = Duration::from_hours(24);

/// Longest text that tells another server what is wrong with an event.
const MAX_ERROR_CHARS: usize = 200;

static ANSWERS: Table<([u8; 32],), Expiring<AnswerRow>> =
    Table::new("transaction_answers", Family::Temporary, b'f');

/// The answer to a transaction, by the hash of origin and ID.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct AnswerRow {
    /// Event IDs, and what was wrong with the event.
    pdus: Vec<(OwnedEventId, Option<String>)>,
}

/// What another server sends at once.
pub struct Transaction {
    pub id: OwnedTransactionId,
    pub pdus: Vec<Box<RawValue>>,
    pub edus: Vec<Raw<Edu>>,
}

/// What became of each PDU whose ID could be calculated.
pub type Answer = BTreeMap<OwnedEventId, Result<(), String>>;

/// Why a transaction is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("a transaction has at most {MAX_PDUS} PDUs and {MAX_EDUS} EDUs")]
    TooMany,
    /// So much waits to be put into rooms that the sender shall come again later.
    #[error("too many events wait")]
    Busy,
    #[error(transparent)]
    Failed(#[from] Error),
}

/// What a PDU is before its signatures are looked at.
enum Sorted {
    /// Not even its ID is known, as it is malformed.
    Ignored,
    /// It is for a room that this server is not in.
    Outside(Box<RawValue>),
    /// It needs no more work; the error is for the sender.
    Done(OwnedEventId, Result<(), String>),
    /// Its signatures are to be checked.
    Fresh(Fresh),
}

struct Fresh {
    room: RoomNumber,
    rules: &'static RoomVersionRules,
    parsed: Parsed,
}

/// What tells the room of a PDU.
#[derive(Deserialize)]
struct Place {
    room_id: Option<OwnedRoomId>,
}

impl Federation {
    /// Takes in a transaction of `origin`. What is answered as fine is durable; it is in its room a moment later.
    ///
    /// # Errors
    /// [`Refused`]; the sender has to send the transaction again.
    ///
    /// Spec: s2s, "Transactions" and "Checks performed on receipt of a PDU".
    pub async fn receive_transaction(
        &self,
        origin: &ServerName,
        transaction: Transaction,
    ) -> Result<Answer, Refused> {
        let Transaction { id, pdus, edus } = transaction;
        if pdus.len() > MAX_PDUS || edus.len() > MAX_EDUS {
            return Err(Refused::TooMany);
        }
        // A server has one transaction under way; the repeat of one that is being worked on waits for its answer.
        let _turn = self.inner.origins.lock(origin.to_owned()).await;
        let key = answer_key(origin, &id);
        if let Some(answer) = self.known_answer(key).await? {
            return Ok(answer);
        }
        if !pdus.is_empty() && self.inner.inbox.is_full() {
            return Err(Refused::Busy);
        }
        for edu in edus {
            self.receive_edu(origin, edu).await;
        }
        let sorted = self.sort(origin, pdus).await?;
        let (answer, events) = self.verify(origin, sorted).await;
        let mut last = Batch::new();
        if events.is_empty() {
            // If this is lost, nothing is lost.
            last.relaxed();
        }
        let row = AnswerRow::new(&answer);
        let expires = self.inner.clock.now_ms() + millis(ANSWER_KEPT);
        last.put(&ANSWERS, &(key,), &Expiring(Millis48(expires), row));
        for commit in self.inner.inbox.put(self, origin, events, last) {
            commit.await.map_err(Error::from)?;
        }
        Ok(answer)
    }

    async fn known_answer(&self, key: [u8; 32]) -> Result<Option<Answer>, Error> {
        let now = Millis48(self.inner.clock.now_ms());
        let row = self
            .inner
            .store
            .read(move |snapshot| snapshot.get(&ANSWERS, &(key,)))
            .await?;
        Ok(row
            .filter(|Expiring(expires, _)| *expires > now)
            .map(|Expiring(_, row)| row.answer()))
    }

    /// Reads the PDUs and makes the checks before signatures, on the blocking pool: hashing takes its time.
    async fn sort(
        &self,
        origin: &ServerName,
        pdus: Vec<Box<RawValue>>,
    ) -> Result<Vec<Sorted>, Error> {
        if pdus.is_empty() {
            return Ok(Vec::new());
        }
        let mut sorter = Sorter {
            federation: self.clone(),
            origin: origin.to_owned(),
            rooms: HashMap::new(),
        };
        let sort = move |snapshot: &Snapshot| -> Result<_, Error> {
            pdus.into_iter()
                .map(|pdu| sorter.sort(snapshot, pdu))
                .collect()
        };
        self.inner.store.read(sort).await
    }

    /// Checks the signatures. The events go to the inbox in the order in which they were sent.
    async fn verify(
        &self,
        origin: &ServerName,
        sorted: Vec<Sorted>,
    ) -> (Answer, Vec<(RoomNumber, Verified)>) {
        let mut answer = Answer::new();
        let mut events = Vec::new();
        let mut rest = sorted.into_iter().peekable();
        while let Some(next) = rest.next() {
            let first = match next {
                Sorted::Ignored => continue,
                Sorted::Outside(pdu) => {
                    self.take_outside_of_rooms(origin, &pdu).await;
                    continue;
                }
                Sorted::Done(event_id, outcome) => {
                    answer.insert(event_id, outcome);
                    continue;
                }
                Sorted::Fresh(first) => first,
            };
            let rules = first.rules;
            let mut rooms = vec![(first.room, first.parsed.event_id.clone())];
            let mut parsed = vec![first.parsed];
            // As many at once as follow the same rules: their keys are fetched together.
            let is_alike = |next: &Sorted| matches!(next, Sorted::Fresh(fresh) if std::ptr::eq(fresh.rules, rules));
            while let Some(Sorted::Fresh(fresh)) = rest.next_if(is_alike) {
                rooms.push((fresh.room, fresh.parsed.event_id.clone()));
                parsed.push(fresh.parsed);
            }
            let verified = self.inner.keys.verify_pdus(rules, parsed).await;
            for ((room, event_id), verified) in rooms.into_iter().zip(verified) {
                let outcome = match verified {
                    Ok(event) => {
                        events.push((room, event));
                        Ok(())
                    }
                    Err(error) => {
                        self.inner.inbox.count("refused");
                        Err(bounded(error.to_string()))
                    }
                };
                answer.insert(event_id, outcome);
            }
        }
        (answer, events)
    }

    /// The end of an invite may come from a room that this server is not in. Everything else is passed over.
    async fn take_outside_of_rooms(&self, origin: &ServerName, pdu: &RawValue) {
        if let Err(error) = self.receive_outside(origin, pdu).await {
            tracing::debug!(%origin, %error, "passed over an event of a room that is not here");
        }
    }
}

/// Makes the checks before signatures.
struct Sorter {
    federation: Federation,
    origin: OwnedServerName,
    /// What was found out of the rooms that the transaction names.
    rooms: HashMap<OwnedRoomId, Entrance>,
}

/// What a room has for the events of a server.
#[derive(Clone, Copy)]
enum Entrance {
    /// This server is not in the room, or does not know its version.
    Outside,
    Denied(&'static RoomVersionRules),
    Crowded(&'static RoomVersionRules),
    Open(RoomNumber, &'static RoomVersionRules),
}

impl Sorter {
    fn sort(&mut self, snapshot: &Snapshot, pdu: Box<RawValue>) -> Result<Sorted, Error> {
        let Ok(Place {
            room_id: Some(room_id),
        }) = serde_json::from_str(pdu.get())
        else {
            return Ok(Sorted::Ignored);
        };
        let entrance = self.entrance(snapshot, &room_id)?;
        let rules = match entrance {
            Entrance::Outside => return Ok(Sorted::Outside(pdu)),
            Entrance::Denied(rules) | Entrance::Crowded(rules) | Entrance::Open(_, rules) => rules,
        };
        let parsed = match format::parse(pdu.get().as_bytes(), rules) {
            Ok(parsed) => parsed,
            Err(error) => {
                tracing::debug!(origin = %self.origin, %room_id, %error, "dropped a malformed PDU");
                return Ok(Sorted::Ignored);
            }
        };
        let refusal = match entrance {
            Entrance::Open(room, rules) => {
                if self.is_known(snapshot, &parsed.event_id)? {
                    return Ok(Sorted::Done(parsed.event_id, Ok(())));
                }
                return Ok(Sorted::Fresh(Fresh {
                    room,
                    rules,
                    parsed,
                }));
            }
            Entrance::Crowded(_) => "too many events of this room wait",
            Entrance::Denied(_) | Entrance::Outside => {
                "the access control list of the room denies your server"
            }
        };
        Ok(Sorted::Done(parsed.event_id, Err(refusal.to_owned())))
    }

    fn entrance(&mut self, snapshot: &Snapshot, room_id: &RoomId) -> Result<Entrance, Error> {
        if let Some(entrance) = self.rooms.get(room_id) {
            return Ok(*entrance);
        }
        let entrance = self.find_entrance(snapshot, room_id)?;
        self.rooms.insert(room_id.to_owned(), entrance);
        Ok(entrance)
    }

    fn find_entrance(&self, snapshot: &Snapshot, room_id: &RoomId) -> Result<Entrance, Error> {
        let inner = &self.federation.inner;
        let Some(room) = inner.rooms.number(room_id) else {
            return Ok(Entrance::Outside);
        };
        let Some(published) = inner.rooms.published(room) else {
            return Ok(Entrance::Outside);
        };
        let rules = RoomVersionId::try_from(published.head.version.as_str())
            .ok()
            .and_then(|version| version::rules(&version));
        let Some(rules) = rules.filter(|_| published.head.local > 0) else {
            return Ok(Entrance::Outside);
        };
        if !inner.rooms.acl_allows(snapshot, room, &self.origin)? {
            return Ok(Entrance::Denied(rules));
        }
        if inner.inbox.waiting(room) >= inbox::MAX_ROOM_EVENTS {
            return Ok(Entrance::Crowded(rules));
        }
        Ok(Entrance::Open(room, rules))
    }

    /// Whether the event is here with its place in the graph. An outlier may still come as an event of its own.
    fn is_known(&self, snapshot: &Snapshot, event_id: &EventId) -> Result<bool, Error> {
        let found = self
            .federation
            .inner
            .rooms
            .event_by_id(snapshot, event_id)?;
        Ok(found.is_some_and(|(_, event)| !event.meta.has(flag::OUTLIER | flag::STUB)))
    }
}

/// The ID of an event that says which room it is of.
pub(super) fn event_id_of(
    pdu: &RawValue,
    rules: &'static RoomVersionRules,
) -> Option<OwnedEventId> {
    let place: Place = serde_json::from_str(pdu.get()).ok()?;
    place.room_id?;
    let parsed = format::parse(pdu.get().as_bytes(), rules).ok()?;
    Some(parsed.event_id)
}

impl AnswerRow {
    fn new(answer: &Answer) -> Self {
        let pdus = answer
            .iter()
            .map(|(event_id, outcome)| (event_id.clone(), outcome.clone().err()));
        Self {
            pdus: pdus.collect(),
        }
    }

    fn answer(self) -> Answer {
        let outcome = |error: Option<String>| error.map_or(Ok(()), Err);
        self.pdus
            .into_iter()
            .map(|(event_id, error)| (event_id, outcome(error)))
            .collect()
    }
}

fn answer_key(origin: &ServerName, id: &TransactionId) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(origin.as_bytes());
    // No server name holds this byte.
    hasher.update(&[0]);
    hasher.update(id.as_bytes());
    *hasher.finalize().as_bytes()
}

/// An error as it goes into an answer: some come with text of others.
fn bounded(error: String) -> String {
    match error.char_indices().nth(MAX_ERROR_CHARS) {
        Some((end, _)) => error.get(..end).unwrap_or_default().to_owned(),
        None => error,
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;

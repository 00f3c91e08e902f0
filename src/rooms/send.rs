//! Sending: an event of a local user, from its content to its ID.

use ruma::{
    CanonicalJsonObject, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedTransactionId, OwnedUserId,
    RoomId, events::TimelineEventType,
};

use super::{
    Error, RoomNumber, Rooms, StoredEvent,
    event::{EventKey, Reader, put_u48},
};
use crate::{
    accounts::UserNumber,
    events::EventNumber,
    storage::{Batch, Family, Record, Snapshot, Table},
};

static TRANSACTIONS: Table<TransactionKey, TransactionRow> =
    Table::new("transactions", Family::Temporary, b't');

static SENT_WITH: Table<(RoomNumber, EventNumber), SentWith> =
    Table::new("sent_transactions", Family::Temporary, b'v');

/// User, hash of the device, hash of the transaction ID and what it was used for.
pub(super) type TransactionKey = (UserNumber, u64, [u8; 32]);

/// How long a transaction ID is remembered, in milliseconds.
const TRANSACTION_TTL_MS: u64 = 24 * 60 * 60 * 1_000;

/// The event that a client's transaction ID led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TransactionRow {
    expires_ms: u64,
    id: EventKey,
}

impl Record for TransactionRow {
    fn encode(&self, to: &mut Vec<u8>) {
        put_u48(to, self.expires_ms);
        self.id.put_last(to);
    }
    fn decode(from: &[u8]) -> Result<Self, String> {
        let mut reader = Reader(from);
        let expires_ms = reader.u48()?;
        let id = EventKey::take_last(reader.0)?;
        Ok(Self { expires_ms, id })
    }
}

/// With what transaction ID, and from which device, an event was sent: shown to that device in `unsigned`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SentWith {
    expires_ms: u64,
    pub user: UserNumber,
    pub device: u64,
    pub transaction_id: String,
}

impl Record for SentWith {
    fn encode(&self, to: &mut Vec<u8>) {
        put_u48(to, self.expires_ms);
        to.extend_from_slice(&self.user.0.to_be_bytes());
        to.extend_from_slice(&self.device.to_be_bytes());
        to.extend_from_slice(self.transaction_id.as_bytes());
    }
    fn decode(from: &[u8]) -> Result<Self, String> {
        let mut reader = Reader(from);
        Ok(Self {
            expires_ms: reader.u48()?,
            user: UserNumber(reader.u32()?),
            device: reader.u64()?,
            transaction_id: std::str::from_utf8(reader.0)
                .map_err(|invalid| invalid.to_string())?
                .to_owned(),
        })
    }
}

/// The transaction ID of a client's request.
#[derive(Clone, Debug)]
pub struct Transaction {
    pub user: UserNumber,
    /// A hash of the device ID.
    pub device: u64,
    pub id: OwnedTransactionId,
}

impl Transaction {
    /// The same ID on another path is another transaction.
    ///
    /// Spec: c2s, "Transaction identifiers".
    fn key(&self, room: RoomNumber, event: &NewEvent) -> TransactionKey {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&room.0.to_be_bytes());
        hasher.update(event.event_type.to_string().as_bytes());
        hasher.update(&[0]);
        // The event to be redacted stands in the path.
        if let Some(redacts) = &event.redacts {
            hasher.update(redacts.as_bytes());
        }
        hasher.update(&[0]);
        hasher.update(self.id.as_bytes());
        (self.user, self.device, *hasher.finalize().as_bytes())
    }
}

/// An event that a local user wants to send.
#[derive(Clone, Debug)]
pub struct NewEvent {
    pub sender: OwnedUserId,
    pub event_type: TimelineEventType,
    pub state_key: Option<String>,
    pub content: CanonicalJsonObject,
    pub redacts: Option<OwnedEventId>,
    pub transaction: Option<Transaction>,
    /// `None`: now.
    pub timestamp: Option<MilliSecondsSinceUnixEpoch>,
}

impl NewEvent {
    /// A state event.
    pub fn state(
        sender: OwnedUserId,
        event_type: impl Into<TimelineEventType>,
        state_key: impl Into<String>,
        content: CanonicalJsonObject,
    ) -> Self {
        Self {
            sender,
            event_type: event_type.into(),
            state_key: Some(state_key.into()),
            content,
            redacts: None,
            transaction: None,
            timestamp: None,
        }
    }
}

impl Rooms {
    /// Sends an event and waits until it is durable. A repeated transaction ID answers with the first event. If the room has
    /// a policy server, this asks it to sign the event.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown room, [`Error::NotAllowed`], [`Error::Build`].
    pub async fn send(&self, room_id: &RoomId, event: NewEvent) -> Result<OwnedEventId, Error> {
        let writer = self.write(self.resident(room_id)?).await?;
        self.send_in_turn(writer, event).await?.durable().await
    }

    /// The event that a transaction has led to, published or in flight.
    pub(super) fn known_transaction(
        &self,
        in_flight: &[std::collections::HashMap<TransactionKey, OwnedEventId>],
        key: &TransactionKey,
    ) -> Result<Option<OwnedEventId>, Error> {
        if let Some(event_id) = in_flight.iter().find_map(|generation| generation.get(key)) {
            return Ok(Some(event_id.clone()));
        }
        // A point look-up that a filter in memory answers nearly always: cheaper here than a move to another thread.
        let row = self.store.snapshot()?.get(&TRANSACTIONS, key)?;
        let now = self.clock.now_ms();
        Ok(row
            .filter(|row| row.expires_ms > now)
            .map(|row| row.id.id()))
    }

    /// The key of an event's transaction, if it has one.
    pub(super) fn transaction_key(
        &self,
        room: RoomNumber,
        event: &NewEvent,
    ) -> Option<TransactionKey> {
        event
            .transaction
            .as_ref()
            .map(|transaction| transaction.key(room, event))
    }

    /// Adds the rows of a transaction.
    pub(super) fn insert_transaction(
        &self,
        batch: &mut Batch,
        (key, transaction): (&TransactionKey, &Transaction),
        (room, event): (RoomNumber, EventNumber),
        event_id: &ruma::EventId,
    ) {
        let expires_ms = self.clock.now_ms() + TRANSACTION_TTL_MS;
        let id = EventKey::of(event_id);
        batch.put(&TRANSACTIONS, key, &TransactionRow { expires_ms, id });
        let sent_with = SentWith {
            expires_ms,
            user: transaction.user,
            device: transaction.device,
            transaction_id: transaction.id.to_string(),
        };
        batch.put(&SENT_WITH, &(room, event), &sent_with);
    }

    /// Whether it may still be known with which transaction ID an event was sent.
    pub(super) fn remembers_transaction(&self, event: &StoredEvent) -> bool {
        event.meta.received + TRANSACTION_TTL_MS > self.clock.now_ms()
    }

    /// With which transaction IDs events were sent, in their order.
    pub(super) fn sent_with(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        events: &[EventNumber],
    ) -> Result<Vec<Option<SentWith>>, Error> {
        if events.is_empty() {
            return Ok(Vec::new());
        }
        let keys: Vec<_> = events.iter().map(|event| (room, *event)).collect();
        Ok(snapshot.get_many(&SENT_WITH, &keys)?)
    }
}

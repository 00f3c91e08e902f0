//! Messages from device to device: stored for each recipient until its next sync token says that it has them.
//!
//! What one request or EDU sends, a [`Letter`], is stored once, whatever happens: each batch of its messages notes how many
//! there are by now, so that a repetition goes on where a crash has cut it short. engine.md section 12.
//!
//! Spec: c2s, "Send-to-device messaging"; s2s, "Send-to-device messaging".

mod queues;

use std::time::Duration;

use bytes::Bytes;
use ruma::{DeviceId, OwnedUserId, ServerName, UserId, to_device::DeviceIdOrAllDevices};

use self::queues::{Known, Queues};
use super::{Encryption, Error};
use crate::{
    accounts::{UserNumber, device_hash},
    events::canonical,
    storage::{
        Batch, Expiring, Family, Locks, Millis48, Order, Position, PositionAt, Snapshot, Table,
        Topic,
    },
};

/// By user, hash of the device ID, position, and a number that tells apart what is written at one position: the event as
/// clients get it.
static MESSAGES: Table<MessageKey, Bytes> = Table::new("to_device", Family::ToDevice, b'q');
/// How much of a letter is stored.
static LETTERS: Table<(LetterId,), Expiring<u32>> = Table::new("letters", Family::Temporary, b'e');

type MessageKey = (UserNumber, u64, Position, u32);
/// Where the position stands in a [`MessageKey`].
const POSITION_AT: PositionAt = PositionAt::Key(12);

/// The longest content of a message: as long as an event.
pub const MAX_CONTENT_BYTES: usize = 65_536;
/// The longest type of a message, as that of an event.
pub const MAX_TYPE_BYTES: usize = 255;
/// Recipients of one letter.
pub const MAX_RECIPIENTS: usize = 10_000;
/// Messages of one answer to a sync.
const MAX_TOLD: usize = 100;
/// With so many bytes of them an answer holds fewer.
const MAX_TOLD_BYTES: usize = 1 << 20;
/// A letter is stored in batches of about this size.
const BATCH_BYTES: usize = 256 << 10;
/// Messages that are deleted at once when a device says that it has them.
const MAX_DELETED: usize = 1_000;
/// How long a letter of one of our clients is known. Spec: c2s, "Transaction identifiers".
const KEPT_FOR_CLIENTS: Duration = Duration::from_secs(24 * 60 * 60);
/// How long one of another server is: longer than servers try to send it again.
const KEPT_FOR_SERVERS: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// All of a letter is stored.
const ALL: u32 = u32::MAX;

/// What tells one letter from all others.
pub type LetterId = [u8; 32];

/// What one request or EDU sends.
pub struct Letter {
    pub id: LetterId,
    /// How long a repetition is recognized.
    pub kept_for: Duration,
    pub sender: OwnedUserId,
    pub event_type: String,
    /// Those of this server; the others are skipped.
    pub recipients: Vec<Recipient>,
    /// What is stored along with it, for other servers.
    pub outgoing: Vec<Batch>,
}

/// One message of a letter.
pub struct Recipient {
    pub user: OwnedUserId,
    pub device: DeviceIdOrAllDevices,
    /// An object in canonical JSON.
    pub content: Vec<u8>,
}

impl Letter {
    /// A letter of a client: a repetition of its request is the same letter.
    pub fn of_client(
        (sender, number, device): (OwnedUserId, UserNumber, u64),
        event_type: String,
        transaction: &str,
    ) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"client\0");
        hasher.update(&number.0.to_be_bytes());
        hasher.update(&device.to_be_bytes());
        // The same ID on another path is another transaction.
        hasher.update(event_type.as_bytes());
        hasher.update(&[0]);
        hasher.update(transaction.as_bytes());
        Self {
            id: *hasher.finalize().as_bytes(),
            kept_for: KEPT_FOR_CLIENTS,
            sender,
            event_type,
            recipients: Vec::new(),
            outgoing: Vec::new(),
        }
    }

    /// A letter of another server, which gives it an ID.
    pub fn of_server(
        origin: &ServerName,
        sender: OwnedUserId,
        event_type: String,
        message_id: &str,
    ) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"server\0");
        hasher.update(origin.as_bytes());
        hasher.update(&[0]);
        hasher.update(message_id.as_bytes());
        Self {
            id: *hasher.finalize().as_bytes(),
            kept_for: KEPT_FOR_SERVERS,
            sender,
            event_type,
            recipients: Vec::new(),
            outgoing: Vec::new(),
        }
    }
}

/// What a device is told.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Messages {
    /// As clients get them, oldest first.
    pub events: Vec<Bytes>,
    /// There are more after this position.
    pub upto: Option<Position>,
}

/// A message for one device.
struct Message {
    device: (UserNumber, u64),
    event: Bytes,
}

/// One thing that a letter stores.
enum Piece {
    Message(Message),
    Outgoing(Batch),
}

#[derive(Default)]
pub(super) struct State {
    turns: Locks<LetterId>,
    queues: Queues,
}

impl Encryption {
    /// Stores what a letter sends. A repetition does nothing.
    ///
    /// # Errors
    /// The store failed.
    pub async fn deliver(&self, letter: Letter) -> Result<(), Error> {
        let turn = self.inner.to_device.turns.lock(letter.id).await;
        let Letter {
            id,
            kept_for,
            sender,
            event_type,
            recipients,
            outgoing,
        } = letter;
        let (this, now_ms) = (self.clone(), self.inner.clock.now_ms());
        let read = move |snapshot: &Snapshot| -> Result<_, Error> {
            let known = snapshot.get(&LETTERS, &(id,))?;
            let known = known.filter(|Expiring(expiry, _)| expiry.0 > now_ms);
            let stored = known.map_or(0, |Expiring(_, stored)| stored);
            let messages = match stored {
                ALL => Vec::new(),
                _ => this.address(snapshot, (&sender, &event_type), recipients)?,
            };
            Ok((stored, messages))
        };
        let (stored, messages) = self.inner.store.read(read).await?;
        if stored == ALL {
            return Ok(());
        }
        let kept_ms = u64::try_from(kept_for.as_millis()).unwrap_or(u64::MAX);
        let expiry = Millis48(now_ms.saturating_add(kept_ms));
        let messages = messages.into_iter().map(Piece::Message);
        let pieces = messages.chain(outgoing.into_iter().map(Piece::Outgoing));
        let mut batch = Batch::new();
        for (number, piece) in (0..ALL).zip(pieces).skip(stored as usize) {
            self.put(&mut batch, number, piece);
            if batch.bytes() >= BATCH_BYTES {
                batch.put(&LETTERS, &(id,), &Expiring(expiry, number + 1));
                // What comes after it is durable after it.
                drop(self.inner.store.submit(std::mem::take(&mut batch)));
            }
        }
        batch.put(&LETTERS, &(id,), &Expiring(expiry, ALL));
        batch.hold(turn);
        self.inner.store.submit(batch).await?;
        Ok(())
    }

    /// The messages of a letter for each of the devices that there are, always in the same order.
    fn address(
        &self,
        snapshot: &Snapshot,
        (sender, event_type): (&UserId, &str),
        recipients: Vec<Recipient>,
    ) -> Result<Vec<Message>, Error> {
        let accounts = &self.inner.accounts;
        let mut messages = Vec::with_capacity(recipients.len());
        for Recipient {
            user,
            device,
            content,
        } in recipients
        {
            if !accounts.is_local(&user) {
                continue;
            }
            let Some(number) = accounts.user_number(snapshot, &user)? else {
                continue;
            };
            let devices = match device {
                DeviceIdOrAllDevices::AllDevices => accounts.device_ids(snapshot, number)?,
                DeviceIdOrAllDevices::DeviceId(id) => {
                    let is_there = accounts.has_device(snapshot, number, &id)?;
                    is_there.then_some(id).into_iter().collect()
                }
            };
            let event = event(sender, event_type, &content);
            messages.extend(devices.iter().map(|device| Message {
                device: (number, device_hash(device)),
                event: event.clone(),
            }));
        }
        Ok(messages)
    }

    fn put(&self, batch: &mut Batch, number: u32, piece: Piece) {
        let message = match piece {
            Piece::Outgoing(outgoing) => return batch.append(outgoing),
            Piece::Message(message) => message,
        };
        let (user, device) = message.device;
        let key = (user, device, Position::default(), number);
        batch.put_stamped(&MESSAGES, &key, &message.event, POSITION_AT);
        batch.wake(Topic::Device(user.0, device));
        let this = self.clone();
        batch.before_publish(move |position| {
            let queues = &this.inner.to_device.queues;
            queues.added((user, device), position);
        });
    }

    /// What a device is told that has everything up to `since`, which is forgotten herewith.
    ///
    /// # Errors
    /// The store failed.
    pub fn messages(
        &self,
        snapshot: &Snapshot,
        device: (UserNumber, u64),
        since: Option<Position>,
    ) -> Result<Messages, Error> {
        let queues = &self.inner.to_device.queues;
        let known = queues.get(device);
        if known.is_some_and(|known| known.is_empty()) {
            return Ok(Messages::default());
        }
        let mut known = known.unwrap_or_default();
        if let Some(since) = since.filter(|since| *since > known.deleted_to) {
            known.deleted_to = self.delete(snapshot, device, (known.deleted_to, since))?;
        }
        let since = since.unwrap_or_default().max(known.deleted_to);
        let mut messages = Messages::default();
        if known.last > since {
            (messages, known.last) = read(snapshot, device, since)?;
        }
        queues.fill(device, known, snapshot.position());
        Ok(messages)
    }

    /// Deletes what stands after the first and up to the second position; up to where nothing is left.
    fn delete(
        &self,
        snapshot: &Snapshot,
        (user, device): (UserNumber, u64),
        (after, upto): (Position, Position),
    ) -> Result<Position, Error> {
        let mut batch = Batch::new();
        let mut deleted_to = upto;
        let range = MESSAGES.after(&(user, device, after), &(user, device));
        for (count, row) in snapshot.scan(range, Order::Forward).enumerate() {
            let (key, _) = row?;
            let position = key.2;
            if position > upto {
                break;
            }
            if count == MAX_DELETED {
                // The rest goes with the next token.
                deleted_to = Position(position.0.saturating_sub(1));
                break;
            }
            batch.delete(&MESSAGES, &key);
        }
        if !batch.is_empty() {
            // Lost in a crash, it is deleted with the next token.
            batch.relaxed();
            drop(self.inner.store.submit(batch));
        }
        Ok(deleted_to)
    }
}

/// Adds the end of what waits for a device, before a position: the device is gone, or another one has taken its name.
pub(super) fn forget_device(
    batch: &mut Batch,
    (user, device): (UserNumber, &DeviceId),
    before: Position,
) {
    let device = device_hash(device);
    batch.delete_range(MESSAGES.range(&(user, device), &(user, device, before)));
}

/// The first messages after `since`, and the position of the last one that is known of.
fn read(
    snapshot: &Snapshot,
    (user, device): (UserNumber, u64),
    since: Position,
) -> Result<(Messages, Position), Error> {
    let mut messages = Messages::default();
    let mut last = since;
    let mut bytes = 0;
    let range = MESSAGES.after(&(user, device, since), &(user, device));
    for row in snapshot.scan(range, Order::Forward) {
        let ((_, _, position, _), event) = row?;
        // What was sent at one position is told at once: a token names whole positions.
        let is_full = messages.events.len() >= MAX_TOLD || bytes >= MAX_TOLD_BYTES;
        if is_full && position > last {
            messages.upto = Some(last);
            return Ok((messages, position));
        }
        bytes += event.len();
        messages.events.push(event);
        last = position;
    }
    Ok((messages, last))
}

/// The event as clients get it.
fn event(sender: &UserId, event_type: &str, content: &[u8]) -> Bytes {
    let mut event = Vec::with_capacity(content.len() + event_type.len() + 300);
    event.extend_from_slice(b"{\"content\":");
    event.extend_from_slice(content);
    event.extend_from_slice(b",\"sender\":");
    canonical::write_string(sender.as_str(), &mut event);
    event.extend_from_slice(b",\"type\":");
    canonical::write_string(event_type, &mut event);
    event.push(b'}');
    event.into()
}

impl Default for Known {
    /// A queue of which nothing is known may hold anything.
    fn default() -> Self {
        Self {
            deleted_to: Position::default(),
            last: Position(u64::MAX),
        }
    }
}

#[cfg(test)]
pub(super) mod tests;

//! Whose list of devices has changed: a stream of users by the position of their last change.
//!
//! What becomes of devices is told by the log of `accounts`, which this part follows; what becomes of those of other servers
//! is told by these. Each user stands in the stream once, at the last change: who knows the stream up to any moment finds
//! there everybody who has changed since. engine.md section 12.
//!
//! Spec: c2s, "Tracking the device list for a user"; s2s, "Device Management".

mod shared;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use ruma::{DeviceId, OwnedDeviceId};
use serde::{Deserialize, Serialize};

pub use self::shared::{Asker, DeviceLists};
use super::{Encryption, Error, one_time_keys, to_device};
use crate::{
    accounts::{DeviceChange, DeviceFate, UserNumber},
    rooms::Class,
    storage::{
        Batch, Family, Guard, Locks, LogEntry, LogPage, Order, Position, PositionAt, Snapshot,
        Stamped, Store, Table, Topic,
    },
    tasks::Stop,
};

/// Each user at the position of the last change.
static CHANGES: Table<(Position, UserNumber), ()> =
    Table::new("device_list_changes", Family::Keys, b'c');
/// The last change of each user.
static LAST: Table<(UserNumber,), Stamped<LastChange>> =
    Table::new("device_lists", Family::Keys, b'C');

/// Kind of the log entry of a changed list of a user of this server: [`ListChange`].
pub const LOG_DEVICE_LIST: u8 = 5;
const FOLLOWER: &str = "devices";
/// Entries of the log that are looked at in one go.
const PAGE: usize = 1_000;
/// Without a change the follower looks after this time.
const PAUSE: Duration = Duration::from_secs(60);
/// Accounts that are read in one go when the log does not reach back to the cursor.
const ACCOUNTS: usize = 500;

/// The last change of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LastChange {
    /// Of a user of this server: how many changes there have been. Other servers tell by it what they have missed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stream_id: Option<u64>,
}

/// A change of the list of a user of this server, as other servers are to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListChange {
    pub user: UserNumber,
    pub stream_id: u64,
    /// `None`: nobody knows which.
    pub device: Option<OwnedDeviceId>,
    pub is_deleted: bool,
}

impl ListChange {
    /// The change that an entry of the log tells of, if it does.
    pub fn logged(entry: &LogEntry) -> Option<Self> {
        let payload = (entry.kind == LOG_DEVICE_LIST).then_some(&*entry.payload)?;
        let (user, rest) = payload.split_first_chunk()?;
        let (stream_id, rest) = rest.split_first_chunk()?;
        let (is_deleted, device) = rest.split_first()?;
        let device = std::str::from_utf8(device).ok()?;
        Some(Self {
            user: UserNumber(u32::from_be_bytes(*user)),
            stream_id: u64::from_be_bytes(*stream_id),
            device: (!device.is_empty()).then(|| device.into()),
            is_deleted: *is_deleted != 0,
        })
    }

    fn log(&self, batch: &mut Batch) {
        let mut payload = self.user.0.to_be_bytes().to_vec();
        payload.extend_from_slice(&self.stream_id.to_be_bytes());
        payload.push(self.is_deleted.into());
        if let Some(device) = &self.device {
            payload.extend_from_slice(device.as_bytes());
        }
        batch.log(LOG_DEVICE_LIST, &payload);
    }
}

pub(super) struct State {
    /// One change of a list at a time.
    turns: Locks<UserNumber>,
    /// Nobody's list has changed after this.
    last: AtomicU64,
}

impl State {
    pub(super) fn new(store: &Store) -> Result<Self, Error> {
        let snapshot = store.snapshot()?;
        let last = snapshot.first(CHANGES.all(), Order::Backward)?;
        let last = last.map_or(0, |((position, _), ())| position.0);
        Ok(Self {
            turns: Locks::new(),
            last: AtomicU64::new(last),
        })
    }

    fn may_have_since(&self, since: Position) -> bool {
        self.last.load(Ordering::Acquire) > since.0
    }
}

/// Something that has become of a device of this server.
struct Local {
    user: UserNumber,
    device: Option<OwnedDeviceId>,
    fate: DeviceFate,
    position: Position,
}

impl Encryption {
    /// Follows what becomes of the devices of this server until it is told to stop.
    ///
    /// # Errors
    /// The store failed.
    pub async fn follow_devices(&self, stop: Stop) -> Result<(), Error> {
        let store = &self.inner.store;
        let read = |snapshot: &Snapshot| snapshot.cursor(FOLLOWER).map_err(Error::from);
        let mut after = store.read(read).await?.unwrap_or_default();
        while !stop.is_requested() {
            let tick = store.tick();
            let page = store.log(after, PAGE).await?;
            self.follow_page(&page).await?;
            if page.entries.is_empty() {
                tokio::select! {
                    _woken = store.wait(&[Topic::Devices], tick, PAUSE) => {}
                    () = stop.requested() => {}
                }
            }
            after = page.upto;
        }
        Ok(())
    }

    async fn follow_page(&self, page: &LogPage) -> Result<(), Error> {
        if page.has_gap {
            self.change_all(page.upto).await?;
        }
        let changes = page.entries.iter().filter_map(|entry| {
            let DeviceChange { user, device, fate } = DeviceChange::logged(entry)?;
            Some(Local {
                user,
                device: Some(device),
                fate,
                position: entry.position,
            })
        });
        let changes: Vec<Local> = changes.collect();
        if changes.is_empty() {
            return Ok(());
        }
        self.change(changes, page.upto).await
    }

    /// The log does not reach back to what was seen last: any list may have changed.
    async fn change_all(&self, upto: Position) -> Result<(), Error> {
        let mut after = UserNumber(0);
        loop {
            let accounts = self.inner.accounts.clone();
            let read = move |snapshot: &Snapshot| accounts.accounts(snapshot, after, ACCOUNTS);
            let page = self.inner.store.read(read).await?;
            let Some(last) = page.last() else {
                return Ok(());
            };
            after = last.number;
            let changes = page.iter().map(|account| Local {
                user: account.number,
                device: None,
                fate: DeviceFate::Renamed,
                position: upto,
            });
            self.change(changes.collect(), Position::default()).await?;
        }
    }

    /// Writes changes, and that the log is dealt with up to a position, if it is one.
    async fn change(&self, changes: Vec<Local>, upto: Position) -> Result<(), Error> {
        let turns = self.turns(changes.iter().map(|change| change.user)).await;
        let this = self.clone();
        let read = move |snapshot: &Snapshot| this.changed(snapshot, &changes);
        let mut batch = self.inner.store.read(read).await?;
        if upto > Position::default() {
            batch.cursor(FOLLOWER, upto);
        }
        batch.hold(turns);
        self.inner.store.submit(batch).await?;
        Ok(())
    }

    /// The turns of users, in the order of their numbers: who takes several never waits in a circle. Who has a user's turn may
    /// change the user's list and keys.
    pub(super) async fn turns(
        &self,
        users: impl Iterator<Item = UserNumber>,
    ) -> Vec<Guard<UserNumber>> {
        let users: std::collections::BTreeSet<UserNumber> = users.collect();
        let mut turns = Vec::with_capacity(users.len());
        for user in users {
            turns.push(self.inner.device_lists.turns.lock(user).await);
        }
        turns
    }

    fn changed(&self, snapshot: &Snapshot, changes: &[Local]) -> Result<Batch, Error> {
        let mut batch = Batch::new();
        let mut users: BTreeMap<UserNumber, (Option<Position>, u64)> = BTreeMap::new();
        for change in changes {
            let user = change.user;
            let (_, stream_id) = match users.entry(user) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => new.insert(last_change(snapshot, user)?),
            };
            *stream_id += 1;
            let told = ListChange {
                user,
                stream_id: *stream_id,
                device: change.device.clone(),
                is_deleted: change.fate == DeviceFate::Ended,
            };
            told.log(&mut batch);
            match (&change.device, change.fate) {
                (Some(device), DeviceFate::Made | DeviceFate::Ended) => {
                    to_device::forget_device(&mut batch, (user, device), change.position);
                    self.forget_keys(snapshot, &mut batch, (user, device), change.position)?;
                }
                (Some(_), DeviceFate::Renamed) => {}
                (None, _) => self.forget_keys_of_strangers(snapshot, &mut batch, user)?,
            }
        }
        for (user, (before, stream_id)) in users {
            let stream_id = Some(stream_id);
            self.put_change(&mut batch, user, before, LastChange { stream_id });
            let rooms = self.inner.rooms.rooms_of(snapshot, user)?;
            let joined = rooms.iter().filter(|room| room.class == Class::Join);
            for room in joined {
                batch.wake(Topic::Room(room.room.0));
            }
        }
        Ok(batch)
    }

    /// The change of the list of a user of this server, one of whose devices has other keys now. Who calls has the user's turn.
    pub(super) fn renewed(
        &self,
        snapshot: &Snapshot,
        user: UserNumber,
        device: &DeviceId,
    ) -> Result<Batch, Error> {
        let change = Local {
            user,
            device: Some(device.to_owned()),
            fate: DeviceFate::Renamed,
            position: Position::default(),
        };
        self.changed(snapshot, &[change])
    }

    /// Moves a user to the end of the stream.
    pub(super) fn put_change(
        &self,
        batch: &mut Batch,
        user: UserNumber,
        before: Option<Position>,
        last: LastChange,
    ) {
        if let Some(before) = before {
            batch.delete(&CHANGES, &(before, user));
        }
        let now = Position::default();
        batch.put_stamped(&CHANGES, &(now, user), &(), PositionAt::Key(0));
        batch.put_stamped(&LAST, &(user,), &Stamped(now, last), PositionAt::Value(0));
        batch.wake(Topic::User(user.0));
        let this = self.clone();
        batch.before_publish(move |position| {
            let last = &this.inner.device_lists.last;
            last.fetch_max(position.0, Ordering::AcqRel);
        });
    }

    /// How many changes the list of a user of this server has had.
    ///
    /// # Errors
    /// The store failed.
    pub fn stream_id(&self, snapshot: &Snapshot, user: UserNumber) -> Result<u64, Error> {
        Ok(last_change(snapshot, user)?.1)
    }

    /// The users of this server whose lists have changed after a position.
    ///
    /// # Errors
    /// The store failed.
    pub fn local_changes(
        &self,
        snapshot: &Snapshot,
        since: Position,
    ) -> Result<Vec<ListChange>, Error> {
        let mut changes = Vec::new();
        for user in changed_users(snapshot, since)? {
            let last = snapshot.get(&LAST, &(user,))?;
            let stream_id = last.and_then(|Stamped(_, last)| last.stream_id);
            changes.extend(stream_id.map(|stream_id| ListChange {
                user,
                stream_id,
                device: None,
                is_deleted: false,
            }));
        }
        Ok(changes)
    }

    /// What of the stream contradicts itself, and what of the counts of one-time keys is not so.
    ///
    /// # Errors
    /// The store failed.
    pub fn verify(&self, snapshot: &Snapshot) -> Result<Vec<String>, Error> {
        let mut found = Vec::new();
        let mut changes = 0_u64;
        for row in snapshot.scan(CHANGES.all(), Order::Forward) {
            let ((position, user), ()) = row?;
            changes += 1;
            let last = snapshot.get(&LAST, &(user,))?;
            if last.is_none_or(|Stamped(last, _)| last != position) {
                found.push(format!(
                    "user {} stands in the stream of device lists at {}, which is not the last change",
                    user.0, position.0
                ));
            }
        }
        let lasts = snapshot.scan(LAST.all(), Order::Forward).count() as u64;
        if lasts != changes && found.is_empty() {
            found.push(format!(
                "{lasts} users have a last change of their devices, and {changes} stand in the stream of them"
            ));
        }
        found.extend(one_time_keys::verify(snapshot)?);
        Ok(found)
    }
}

/// Where a user stands in the stream, and how many changes there have been.
pub(super) fn last_change(
    snapshot: &Snapshot,
    user: UserNumber,
) -> Result<(Option<Position>, u64), Error> {
    let last = snapshot.get(&LAST, &(user,))?;
    Ok(last.map_or((None, 0), |Stamped(position, last)| {
        (Some(position), last.stream_id.unwrap_or_default())
    }))
}

/// Everybody whose list has changed after a position.
fn changed_users(snapshot: &Snapshot, since: Position) -> Result<Vec<UserNumber>, Error> {
    let rows = snapshot.scan(CHANGES.after(&(since,), &()), Order::Forward);
    rows.map(|row| Ok(row?.0.1)).collect()
}

#[cfg(test)]
mod tests;

//! One-time keys, of which each is given out once, and fallback keys, which stand in when there are none left.
//!
//! A claim takes its key away in the batch that must be durable before anybody gets to see the key: neither a second claim nor
//! a crash gives it twice. How many are left stands in one row a device, with the position of its last change, so that a sync
//! costs one look. engine.md section 12.
//!
//! Spec: c2s, "One-time and fallback keys", "POST /_matrix/client/v3/keys/claim".

mod counts;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ruma::{OneTimeKeyAlgorithm, OwnedDeviceId, OwnedUserId};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

pub(super) use self::counts::Counts;
pub use self::counts::KeyCounts;
use super::{Encryption, Error};
use crate::{
    accounts::{UserNumber, device_hash},
    storage::{Batch, Family, Order, Position, PositionAt, Snapshot, Stamped, Table, Text, Topic},
};

/// By user, hash of the device ID, algorithm and a number in the order of the uploads.
static ONE_TIME: Table<(UserNumber, u64, Text, u64), Stamped<KeyRow>> =
    Table::new("one_time_keys", Family::Keys, b'o');
/// By user, hash of the device ID and algorithm.
static FALLBACK: Table<(UserNumber, u64, Text), Stamped<FallbackRow>> =
    Table::new("fallback_keys", Family::Keys, b'f');

/// The longest ID of a key, with its algorithm.
pub const MAX_KEY_ID_BYTES: usize = 255;
/// The longest one-time or fallback key, in canonical JSON.
pub const MAX_KEY_BYTES: usize = 8 << 10;
/// One-time keys that are held for a device. Clients keep about a hundred.
const MAX_ONE_TIME_KEYS: usize = 500;
/// Algorithms of which a device has a fallback key.
const MAX_FALLBACK_KEYS: usize = 16;
/// Users whose keys are claimed in one go.
const USERS_AT_ONCE: usize = 100;

/// A device: user, and hash of the device ID.
pub(super) type Place = (UserNumber, u64);

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct KeyRow {
    /// With the algorithm.
    id: String,
    /// Canonical JSON.
    json: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct FallbackRow {
    id: String,
    json: String,
    /// It has been given out.
    is_used: bool,
}

/// A one-time or fallback key that a device publishes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewKey {
    pub algorithm: String,
    /// With the algorithm.
    pub id: String,
    /// Canonical JSON.
    pub json: String,
}

/// What a device publishes.
#[derive(Debug, Default)]
pub(super) struct NewKeys {
    pub(super) one_time: Vec<NewKey>,
    pub(super) fallback: Vec<NewKey>,
    /// Nothing that was published before counts any more.
    pub(super) replaces_all: bool,
}

/// For which devices a key of which algorithm is wanted.
pub type Claims = BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, OneTimeKeyAlgorithm>>;
/// Keys of devices by their IDs.
pub type Claimed = BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, BTreeMap<String, Box<RawValue>>>>;

/// What is held for a device.
struct Held {
    one_time: Vec<((UserNumber, u64, Text, u64), KeyRow)>,
    fallback: BTreeMap<String, FallbackRow>,
}

impl Held {
    fn read(snapshot: &Snapshot, place: Place) -> Result<Self, Error> {
        let rows = snapshot.scan(ONE_TIME.prefix(&place), Order::Forward);
        let rows = rows.map(|row| row.map(|(key, Stamped(_, row))| (key, row)));
        let one_time = rows.collect::<Result<_, _>>()?;
        let rows = snapshot.scan(FALLBACK.prefix(&place), Order::Forward);
        let rows = rows.map(|row| row.map(|((.., name), Stamped(_, row))| (name.0.into(), row)));
        let fallback = rows.collect::<Result<_, _>>()?;
        Ok(Self { one_time, fallback })
    }

    fn counts(&self) -> KeyCounts {
        let mut counts = KeyCounts::default();
        for ((_, _, algorithm, _), _) in &self.one_time {
            *counts.one_time.entry(algorithm.to_string()).or_default() += 1;
        }
        let unused = self.fallback.iter().filter(|(_, row)| !row.is_used);
        counts.unused_fallback = unused.map(|(algorithm, _)| algorithm.clone()).collect();
        counts
    }
}

impl Encryption {
    /// Adds the keys that a device publishes to a batch. The counts are those afterwards.
    pub(super) fn put_one_time_keys(
        &self,
        snapshot: &Snapshot,
        batch: &mut Batch,
        place: Place,
        new: NewKeys,
    ) -> Result<Arc<KeyCounts>, Error> {
        if new.one_time.is_empty() && new.fallback.is_empty() && !new.replaces_all {
            return self.key_counts(snapshot, place);
        }
        let mut held = Held::read(snapshot, place)?;
        let before = held.counts();
        if new.replaces_all {
            forget(batch, &held, place);
            held.one_time.clear();
            held.fallback.clear();
        }
        let is_new = put_new(batch, &mut held, place, new.one_time)?
            | put_fallback(batch, &mut held, place, new.fallback)?;
        let counts = held.counts();
        if is_new || counts != before {
            self.put_counts(batch, place, &counts);
        }
        Ok(Arc::new(counts))
    }

    /// Takes a one-time key for each of these devices of this server, or its fallback key where it has none left. Nobody else
    /// gets them. Devices without keys are left out.
    ///
    /// # Errors
    /// The store failed.
    pub async fn claim_keys(&self, claims: Claims) -> Result<Claimed, Error> {
        let mut claimed = Claimed::new();
        let mut claims = claims.into_iter().peekable();
        while claims.peek().is_some() {
            let part: Vec<_> = claims.by_ref().take(USERS_AT_ONCE).collect();
            claimed.extend(self.claim_part(part).await?);
        }
        Ok(claimed)
    }

    async fn claim_part(
        &self,
        claims: Vec<(OwnedUserId, BTreeMap<OwnedDeviceId, OneTimeKeyAlgorithm>)>,
    ) -> Result<Claimed, Error> {
        let accounts = self.inner.accounts.clone();
        let read = move |snapshot: &Snapshot| -> Result<_, Error> {
            let mut numbered = Vec::with_capacity(claims.len());
            for (user, devices) in claims
                .into_iter()
                .filter(|(user, _)| accounts.is_local(user))
            {
                if let Some(number) = accounts.user_number(snapshot, &user)? {
                    numbered.push((number, user, devices));
                }
            }
            Ok(numbered)
        };
        let numbered = self.inner.store.read(read).await?;
        let turns = self.turns(numbered.iter().map(|(user, ..)| *user)).await;
        let this = self.clone();
        let read = move |snapshot: &Snapshot| -> Result<_, Error> {
            let (mut batch, mut claimed) = (Batch::new(), Claimed::new());
            for (number, user, devices) in numbered {
                for (device, algorithm) in devices {
                    if !this.inner.accounts.has_device(snapshot, number, &device)? {
                        continue;
                    }
                    let place = (number, device_hash(&device));
                    let key = this.take(snapshot, &mut batch, place, algorithm.as_str())?;
                    if let Some((id, key)) = key {
                        let of_user = claimed.entry(user.clone()).or_default();
                        of_user.entry(device).or_default().insert(id, key);
                    }
                }
            }
            Ok((batch, claimed))
        };
        let (mut batch, claimed) = self.inner.store.read(read).await?;
        if !batch.is_empty() {
            batch.hold(turns);
            // What is answered must not come back after a crash.
            self.inner.store.submit(batch).await?;
        }
        Ok(claimed)
    }

    /// Takes a key of a device away.
    fn take(
        &self,
        snapshot: &Snapshot,
        batch: &mut Batch,
        place: Place,
        algorithm: &str,
    ) -> Result<Option<(String, Box<RawValue>)>, Error> {
        if algorithm.len() > MAX_KEY_ID_BYTES {
            return Ok(None);
        }
        let (user, device) = place;
        let name = Text::from(algorithm);
        let mut counts = KeyCounts::clone(&*self.key_counts(snapshot, place)?);
        let range = ONE_TIME.prefix(&(user, device, name.clone()));
        let (id, json) = match snapshot.first(range, Order::Forward)? {
            Some((key, Stamped(_, row))) => {
                batch.delete(&ONE_TIME, &key);
                counts.take(algorithm);
                (row.id, row.json)
            }
            None => {
                let key = (user, device, name);
                let Some(Stamped(position, mut row)) = snapshot.get(&FALLBACK, &key)? else {
                    return Ok(None);
                };
                if row.is_used {
                    return Ok(Some((row.id, raw(row.json)?)));
                }
                row.is_used = true;
                batch.put(&FALLBACK, &key, &Stamped(position, row.clone()));
                counts.unused_fallback.remove(algorithm);
                (row.id, row.json)
            }
        };
        self.put_counts(batch, place, &counts);
        batch.wake(Topic::Device(user.0, device));
        Ok(Some((id, raw(json)?)))
    }

    /// Adds the end of the keys of a device that were published before a position.
    pub(super) fn forget_one_time_keys(
        &self,
        snapshot: &Snapshot,
        batch: &mut Batch,
        place: Place,
        before: Position,
    ) -> Result<(), Error> {
        let mut left = Held {
            one_time: Vec::new(),
            fallback: BTreeMap::new(),
        };
        for row in snapshot.scan(ONE_TIME.prefix(&place), Order::Forward) {
            let (key, Stamped(position, row)) = row?;
            match position < before {
                true => batch.delete(&ONE_TIME, &key),
                false => left.one_time.push((key, row)),
            }
        }
        for row in snapshot.scan(FALLBACK.prefix(&place), Order::Forward) {
            let (key, Stamped(position, row)) = row?;
            match position < before {
                true => batch.delete(&FALLBACK, &key),
                false => drop(left.fallback.insert(key.2.0.into(), row)),
            }
        }
        self.put_left(snapshot, batch, place, &left.counts())
    }

    /// Adds the end of the keys of all devices of a user but these.
    pub(super) fn forget_one_time_keys_but(
        &self,
        snapshot: &Snapshot,
        batch: &mut Batch,
        user: UserNumber,
        kept: &BTreeSet<u64>,
    ) -> Result<(), Error> {
        for device in counts::devices(snapshot, user)? {
            if !kept.contains(&device) {
                let all = Position(u64::MAX);
                self.forget_one_time_keys(snapshot, batch, (user, device), all)?;
            }
        }
        Ok(())
    }
}

/// What of the counts is not as the keys are.
pub(super) fn verify(snapshot: &Snapshot) -> Result<Vec<String>, Error> {
    let mut found = Vec::new();
    for (place, told) in counts::all(snapshot)? {
        let held = Held::read(snapshot, place)?.counts();
        let told = (&told.one_time, &told.unused_fallback);
        if told != (&held.one_time, &held.unused_fallback) {
            let (user, device) = place;
            found.push(format!(
                "user {} has other one-time keys for device {device:016x} than are counted",
                user.0
            ));
        }
    }
    Ok(found)
}

/// Adds the end of everything that is held.
fn forget(batch: &mut Batch, held: &Held, (user, device): Place) {
    for (key, _) in &held.one_time {
        batch.delete(&ONE_TIME, key);
    }
    for algorithm in held.fallback.keys() {
        batch.delete(&FALLBACK, &(user, device, Text::from(algorithm.as_str())));
    }
}

/// Adds one-time keys. True if any of them was not there.
fn put_new(
    batch: &mut Batch,
    held: &mut Held,
    (user, device): Place,
    keys: Vec<NewKey>,
) -> Result<bool, Error> {
    let last = held.one_time.iter().map(|((.., number), _)| *number).max();
    let mut next = last.map_or(0, |last| last + 1);
    let known: BTreeMap<String, String> = held
        .one_time
        .iter()
        .map(|(_, row)| (row.id.clone(), row.json.clone()))
        .collect();
    let mut is_new = false;
    for NewKey {
        algorithm,
        id,
        json,
    } in keys
    {
        match known.get(&id) {
            Some(known) if *known == json => continue,
            Some(_) => return Err(Error::KeyInUse(id)),
            None => {}
        }
        let key = (user, device, Text::from(algorithm.as_str()), next);
        let row = KeyRow { id, json };
        let stamped = Stamped(Position::default(), row.clone());
        batch.put_stamped(&ONE_TIME, &key, &stamped, PositionAt::Value(0));
        held.one_time.push((key, row));
        next += 1;
        is_new = true;
    }
    match held.one_time.len() > MAX_ONE_TIME_KEYS {
        true => Err(Error::TooManyKeys),
        false => Ok(is_new),
    }
}

/// Adds fallback keys, each of which takes the place of the one of its algorithm. True if any of them was not there.
fn put_fallback(
    batch: &mut Batch,
    held: &mut Held,
    (user, device): Place,
    keys: Vec<NewKey>,
) -> Result<bool, Error> {
    let mut is_new = false;
    for NewKey {
        algorithm,
        id,
        json,
    } in keys
    {
        let known = held.fallback.get(&algorithm);
        if known.is_some_and(|known| known.id == id && known.json == json) {
            continue;
        }
        let row = FallbackRow {
            id,
            json,
            is_used: false,
        };
        let key = (user, device, Text::from(algorithm.as_str()));
        let stamped = Stamped(Position::default(), row.clone());
        batch.put_stamped(&FALLBACK, &key, &stamped, PositionAt::Value(0));
        held.fallback.insert(algorithm, row);
        is_new = true;
    }
    match held.fallback.len() > MAX_FALLBACK_KEYS {
        true => Err(Error::TooManyKeys),
        false => Ok(is_new),
    }
}

fn raw(json: String) -> Result<Box<RawValue>, Error> {
    RawValue::from_string(json).map_err(|error| Error::corrupt("one_time_keys", &error))
}

#[cfg(test)]
mod tests;

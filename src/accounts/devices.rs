//! Devices of local users: what they are called, when they were seen, and how they end.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::PoisonError,
    time::Duration,
};

use ruma::{DeviceId, OwnedDeviceId};

use super::{
    Accounts, DEVICE_CHANGED, Error, Issued, Refreshable, Session, UserNumber, device_hash,
    rows::{DEVICES, Device, SEEN, Seen},
    tokens::device_key,
};
use crate::{
    storage::{Batch, Cbor, Guard, LogEntry, Order, Snapshot, Topic},
    tasks::Stop,
};

/// Longer device IDs are refused: they are parts of keys.
const MAX_DEVICE_ID_BYTES: usize = 255;
const MAX_DISPLAY_NAME_BYTES: usize = 1_000;
const GENERATED_DEVICE_ID_CHARS: usize = 10;
/// Sightings kept in memory until they are written; more are dropped, as they only inform.
const MAX_SIGHTINGS: usize = 50_000;
const SIGHTINGS_PER_BATCH: usize = 1_000;
/// How long memory of passwords is kept after the last of them, or up to twice that.
const TRIM_INTERVAL: Duration = Duration::from_secs(10);
/// After so many of these, sightings are written.
const TRIMS_PER_WRITE: u32 = 6;

/// What a sign-in says about its device.
#[derive(Clone, Debug)]
pub struct NewDevice {
    /// Absent: a new one is made up. Of a known device the old tokens end.
    pub id: Option<OwnedDeviceId>,
    pub display_name: Option<String>,
    pub refreshable: Refreshable,
}

/// A device as its owner sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    pub id: OwnedDeviceId,
    pub display_name: Option<String>,
    /// Milliseconds since the Unix epoch.
    pub created_ms: u64,
    pub last_seen_ip: Option<String>,
    /// Milliseconds since the Unix epoch.
    pub last_seen_ms: Option<u64>,
}

/// What became of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum DeviceFate {
    Made = 1,
    Renamed = 2,
    Ended = 3,
}

/// A device that has come, changed or gone, as the log tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceChange {
    pub user: UserNumber,
    pub device: OwnedDeviceId,
    pub fate: DeviceFate,
}

impl DeviceChange {
    /// The change that an entry of the log tells of, if it does.
    pub fn logged(entry: &LogEntry) -> Option<Self> {
        let payload = (entry.kind == DEVICE_CHANGED).then_some(&*entry.payload)?;
        let (user, rest) = payload.split_first_chunk()?;
        let (fate, device) = rest.split_first()?;
        let fate = match fate {
            1 => DeviceFate::Made,
            2 => DeviceFate::Renamed,
            _ => DeviceFate::Ended,
        };
        Some(Self {
            user: UserNumber(u32::from_be_bytes(*user)),
            device: std::str::from_utf8(device).ok()?.into(),
            fate,
        })
    }
}

/// Notes in the log what becomes of a device.
fn log(batch: &mut Batch, (user, device): (UserNumber, &DeviceId), fate: DeviceFate) {
    let mut payload = user.0.to_be_bytes().to_vec();
    payload.push(fate as u8);
    payload.extend_from_slice(device.as_bytes());
    batch.log(DEVICE_CHANGED, &payload);
    batch.wake(Topic::Devices);
}

/// Sightings that are not written yet.
pub(super) type Sightings = BTreeMap<(UserNumber, OwnedDeviceId), Seen>;

impl Accounts {
    /// Signs `user` in on a device, whose earlier tokens end.
    ///
    /// # Errors
    /// [`Error::InvalidDevice`].
    pub async fn sign_in(&self, user: UserNumber, device: NewDevice) -> Result<Issued, Error> {
        let turn = self.inner.turns.lock(user).await;
        let id = self.device_id(device.id.clone())?;
        let key = (user, device_key(id.as_str()));
        let before = self
            .inner
            .store
            .read(move |snapshot| Ok::<_, Error>(snapshot.get(&DEVICES, &key)?))
            .await?;
        let mut batch = Batch::new();
        let issued =
            self.put_device(&mut batch, (user, &id), before.map(|Cbor(row)| row), device)?;
        batch.hold(turn);
        self.inner.store.submit(batch).await?;
        self.inner.counters.logins.inc();
        Ok(issued)
    }

    /// A device ID that can be part of keys: the given one, or a new one.
    pub(super) fn device_id(&self, wanted: Option<OwnedDeviceId>) -> Result<OwnedDeviceId, Error> {
        let Some(id) = wanted else {
            return Ok(self.random_device_id());
        };
        let text = id.as_str();
        match text.is_empty()
            || text.len() > MAX_DEVICE_ID_BYTES
            || text.chars().any(char::is_control)
        {
            true => Err(Error::InvalidDevice(
                "A device ID has 1 to 255 bytes and no control characters",
            )),
            false => Ok(id),
        }
    }

    pub(super) fn put_device(
        &self,
        batch: &mut Batch,
        (user, id): (UserNumber, &DeviceId),
        before: Option<Device>,
        new: NewDevice,
    ) -> Result<Issued, Error> {
        check_display_name(new.display_name.as_deref())?;
        let (issued, tokens) = self.issue(batch, user, id, new.refreshable);
        let fate = match &before {
            None => Some(DeviceFate::Made),
            Some(before)
                if new.display_name.is_some() && new.display_name != before.display_name =>
            {
                Some(DeviceFate::Renamed)
            }
            Some(_) => None,
        };
        if let Some(fate) = fate {
            log(batch, (user, id), fate);
        }
        let mut row = before.unwrap_or_else(|| Device {
            created_ms: self.inner.clock.now_ms(),
            ..Device::default()
        });
        self.end_tokens(batch, &row.tokens);
        row.tokens = tokens;
        row.display_name = new.display_name.or(row.display_name);
        batch.put(&DEVICES, &(user, device_key(id.as_str())), &Cbor(row));
        Ok(issued)
    }

    /// The devices of `user` by ID.
    pub fn devices(&self, snapshot: &Snapshot, user: UserNumber) -> Result<Vec<DeviceInfo>, Error> {
        let mut seen = BTreeMap::new();
        for row in snapshot.scan(SEEN.prefix(&(user,)), Order::Forward) {
            let ((_, id), Cbor(row)) = row?;
            seen.insert(id.0, row);
        }
        let mut devices = Vec::new();
        for row in snapshot.scan(DEVICES.prefix(&(user,)), Order::Forward) {
            let ((_, id), Cbor(row)) = row?;
            let seen = seen.remove(&id.0);
            devices.push(self.device_info(user, (&*id.0).into(), row, seen));
        }
        Ok(devices)
    }

    /// The device `id` of `user`.
    pub fn device(
        &self,
        snapshot: &Snapshot,
        user: UserNumber,
        id: &DeviceId,
    ) -> Result<Option<DeviceInfo>, Error> {
        let key = (user, device_key(id.as_str()));
        let Some(Cbor(row)) = snapshot.get(&DEVICES, &key)? else {
            return Ok(None);
        };
        let seen = snapshot.get(&SEEN, &key)?.map(|Cbor(seen)| seen);
        Ok(Some(self.device_info(user, id.to_owned(), row, seen)))
    }

    /// The IDs of the devices of `user`.
    pub fn device_ids(
        &self,
        snapshot: &Snapshot,
        user: UserNumber,
    ) -> Result<Vec<OwnedDeviceId>, Error> {
        let rows = snapshot.scan(DEVICES.prefix(&(user,)), Order::Forward);
        rows.map(|row| row.map(|((_, id), _)| (&*id.0).into()))
            .collect::<Result<_, _>>()
            .map_err(Error::from)
    }

    /// Whether `user` has a device of this ID.
    pub fn has_device(
        &self,
        snapshot: &Snapshot,
        user: UserNumber,
        id: &DeviceId,
    ) -> Result<bool, Error> {
        let is_possible = id.as_str().len() <= MAX_DEVICE_ID_BYTES;
        Ok(is_possible && snapshot.has(&DEVICES, &(user, device_key(id.as_str())))?)
    }

    fn device_info(
        &self,
        user: UserNumber,
        id: OwnedDeviceId,
        row: Device,
        seen: Option<Seen>,
    ) -> DeviceInfo {
        let sightings = self
            .inner
            .sightings
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let key = (user, id);
        let seen = sightings.get(&key).cloned().or(seen);
        DeviceInfo {
            id: key.1,
            display_name: row.display_name,
            created_ms: row.created_ms,
            last_seen_ms: seen.as_ref().map(|seen| seen.at_ms),
            last_seen_ip: seen.and_then(|seen| seen.ip),
        }
    }

    /// Gives a device another name; without one it stays as it is.
    ///
    /// # Errors
    /// [`Error::UnknownDevice`]; [`Error::InvalidDevice`].
    pub async fn rename_device(
        &self,
        user: UserNumber,
        id: &DeviceId,
        name: Option<String>,
    ) -> Result<(), Error> {
        check_display_name(name.as_deref())?;
        let turn = self.inner.turns.lock(user).await;
        let key = (user, device_key(id.as_str()));
        let read = key.clone();
        let row = self
            .inner
            .store
            .read(move |snapshot| Ok::<_, Error>(snapshot.get(&DEVICES, &read)?))
            .await?;
        let Cbor(mut row) = row.ok_or(Error::UnknownDevice)?;
        if name.is_none() || name == row.display_name {
            return Ok(());
        }
        row.display_name = name;
        let mut batch = Batch::new();
        log(&mut batch, (user, id), DeviceFate::Renamed);
        batch.put(&DEVICES, &key, &Cbor(row));
        batch.hold(turn);
        self.inner.store.submit(batch).await?;
        Ok(())
    }

    /// Ends devices of `user` with their tokens; those that do not exist are done already.
    pub async fn delete_devices(
        &self,
        user: UserNumber,
        ids: &[OwnedDeviceId],
    ) -> Result<(), Error> {
        let turn = self.inner.turns.lock(user).await;
        let wanted: BTreeSet<OwnedDeviceId> = ids.iter().cloned().collect();
        self.end_devices(turn, user, move |id| wanted.contains(id))
            .await
    }

    /// Ends all devices of `user`, but for `kept`.
    pub async fn log_out_all(
        &self,
        user: UserNumber,
        kept: Option<OwnedDeviceId>,
    ) -> Result<(), Error> {
        let turn = self.inner.turns.lock(user).await;
        self.end_devices(turn, user, move |id| Some(id) != kept.as_deref())
            .await
    }

    /// Ends one device.
    pub(super) async fn end_device(
        &self,
        turn: Guard<UserNumber>,
        user: UserNumber,
        device: &str,
    ) -> Result<(), Error> {
        let device = device.to_owned();
        self.end_devices(turn, user, move |id| id.as_str() == device)
            .await
    }

    async fn end_devices(
        &self,
        turn: Guard<UserNumber>,
        user: UserNumber,
        ends: impl Fn(&DeviceId) -> bool + Send + 'static,
    ) -> Result<(), Error> {
        let rows = self
            .inner
            .store
            .read(move |snapshot| devices_to_end(snapshot, user, ends))
            .await?;
        if rows.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new();
        self.put_end_of_devices(&mut batch, user, &rows);
        batch.hold(turn);
        self.inner.store.submit(batch).await?;
        Ok(())
    }

    /// Adds the end of `devices` to `batch`.
    pub(super) fn put_end_of_devices(
        &self,
        batch: &mut Batch,
        user: UserNumber,
        devices: &[(OwnedDeviceId, Device)],
    ) {
        for (id, row) in devices {
            let key = (user, device_key(id.as_str()));
            self.end_tokens(batch, &row.tokens);
            batch.delete(&DEVICES, &key);
            batch.delete(&SEEN, &key);
            log(batch, (user, id), DeviceFate::Ended);
            batch.wake(Topic::Device(user.0, device_hash(id)));
            let mut sightings = self
                .inner
                .sightings
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            sightings.remove(&(user, id.clone()));
        }
        batch.wake(Topic::User(user.0));
    }

    /// Notes that `session` was used from `ip`. In memory; [`Accounts::write_sightings`] writes it down.
    pub fn note_seen(&self, session: &Session, ip: Option<IpAddr>) {
        if !self.is_seen_again(session) {
            return;
        }
        let Some(device) = &session.device else {
            return;
        };
        let seen = Seen {
            at_ms: self.inner.clock.now_ms(),
            ip: ip.map(|ip| ip.to_string()),
        };
        let mut sightings = self
            .inner
            .sightings
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if sightings.len() < MAX_SIGHTINGS {
            sightings.insert((session.user_number, device.clone()), seen);
        }
    }

    /// What is done now and then, and at the end: writes down when devices were seen, gives back memory.
    ///
    /// # Errors
    /// The store failed.
    pub async fn keep_house(&self, stop: Stop) -> Result<(), Error> {
        while !stop.is_requested() {
            for _ in 0..TRIMS_PER_WRITE {
                // What the time-out says is only that nobody stops.
                let _waited = tokio::time::timeout(TRIM_INTERVAL, stop.requested())
                    .await
                    .is_ok();
                self.inner.passwords.trim();
            }
            self.write_sightings().await?;
        }
        Ok(())
    }

    /// Writes down when devices were seen.
    pub async fn write_sightings(&self) -> Result<(), Error> {
        let sightings = std::mem::take(
            &mut *self
                .inner
                .sightings
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        let sightings: Vec<_> = sightings.into_iter().collect();
        for part in sightings.chunks(SIGHTINGS_PER_BATCH) {
            let mut batch = Batch::new();
            for ((user, device), seen) in part {
                batch.put(
                    &SEEN,
                    &(*user, device_key(device.as_str())),
                    &Cbor(seen.clone()),
                );
            }
            self.inner.store.submit(batch).await?;
        }
        Ok(())
    }

    fn random_device_id(&self) -> OwnedDeviceId {
        let random: [u8; GENERATED_DEVICE_ID_CHARS] = self.inner.clock.random_bytes();
        let id: String = random
            .iter()
            .map(|byte| char::from(b'A' + byte % 26))
            .collect();
        id.as_str().into()
    }
}

/// The devices of `user` that `ends` names.
pub(super) fn devices_to_end(
    snapshot: &Snapshot,
    user: UserNumber,
    ends: impl Fn(&DeviceId) -> bool,
) -> Result<Vec<(OwnedDeviceId, Device)>, Error> {
    let mut devices = Vec::new();
    for row in snapshot.scan(DEVICES.prefix(&(user,)), Order::Forward) {
        let ((_, id), Cbor(row)) = row?;
        let id = OwnedDeviceId::from(&*id.0);
        if ends(&id) {
            devices.push((id, row));
        }
    }
    Ok(devices)
}

fn check_display_name(name: Option<&str>) -> Result<(), Error> {
    match name.is_some_and(|name| name.len() > MAX_DISPLAY_NAME_BYTES) {
        true => Err(Error::InvalidDevice(
            "A device's name has at most 1000 bytes",
        )),
        false => Ok(()),
    }
}

//! Pushers: where a user's devices want to be told of news.
//!
//! A pusher belongs to the device that set it and ends with it: it counts only as long as that very device exists.
//!
//! Spec: c2s, "Push Notifications".

use std::sync::Arc;

use ruma::{
    DeviceId, OwnedDeviceId,
    api::client::push::{Pusher, PusherIds, PusherKind},
};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::{
    accounts::{self, Accounts, UserNumber},
    storage::{self, Batch, Family, Json, Order, Snapshot, Store, Table},
};

static PUSHERS: Table<(UserNumber, Key), Json<Row>> = Table::new("pushers", Family::Users, b'p');
/// Who has a pusher of this key: somebody else on the same phone.
static BY_KEY: Table<(Key, UserNumber), ()> = Table::new("pushers_by_key", Family::Users, b'k');

/// Spec: c2s, "Push Notifications".
const MAX_PUSHKEY_BYTES: usize = 512;
const MAX_APP_ID_CHARS: usize = 64;
const MAX_PUSHER_BYTES: usize = 16_384;
const MAX_PUSHERS: usize = 100;
/// The path that a gateway must have, so that a pusher cannot make the server call anything else.
const GATEWAY_PATH: &str = "/_matrix/push/v1/notify";

/// The BLAKE3 of an application's ID and a pushkey.
type Key = [u8; 32];

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Row {
    pusher: Pusher,
    device: OwnedDeviceId,
    /// Tells the device from a later one of the same ID.
    device_created_ms: u64,
}

/// Why a pusher is not set.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Storage(#[from] storage::Error),
    #[error(transparent)]
    Accounts(#[from] accounts::Error),
    #[error("{0}")]
    Invalid(&'static str),
}

/// What becomes of the pushers of other users with the same key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    Keep,
    Remove,
}

/// The pushers of all users. Cheap to clone.
#[derive(Clone)]
pub struct Push {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    accounts: Accounts,
    /// One change at a time: it may concern several users.
    turn: Arc<Mutex<()>>,
}

impl Push {
    pub fn new(store: Store, accounts: Accounts) -> Self {
        let turn = Arc::default();
        Self {
            inner: Arc::new(Inner {
                store,
                accounts,
                turn,
            }),
        }
    }

    /// The pushers of `user` whose devices exist.
    ///
    /// # Errors
    /// The store failed.
    pub fn pushers(&self, snapshot: &Snapshot, user: UserNumber) -> Result<Vec<Pusher>, Error> {
        let mut pushers = Vec::new();
        for row in snapshot.scan(PUSHERS.prefix(&(user,)), Order::Forward) {
            let (_, Json(row)) = row?;
            if self.is_alive(snapshot, user, &row)? {
                pushers.push(row.pusher);
            }
        }
        Ok(pushers)
    }

    /// Sets a pusher of `user` for `device`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is no pusher that the server could serve.
    pub async fn set(
        &self,
        user: UserNumber,
        device: &DeviceId,
        pusher: Pusher,
        others: Others,
    ) -> Result<(), Error> {
        check(&pusher)?;
        let turn = Arc::clone(&self.inner.turn).lock_owned().await;
        let (this, device, key) = (self.clone(), device.to_owned(), key(&pusher.ids));
        let read =
            move |snapshot: &Snapshot| this.batch(snapshot, user, (device, pusher, key), others);
        let mut batch = self.inner.store.read(read).await?;
        batch.hold(turn);
        self.inner.store.submit(batch).await?;
        Ok(())
    }

    fn batch(
        &self,
        snapshot: &Snapshot,
        user: UserNumber,
        (device, pusher, key): (OwnedDeviceId, Pusher, Key),
        others: Others,
    ) -> Result<Batch, Error> {
        let info = self.inner.accounts.device(snapshot, user, &device)?;
        let device_created_ms = info.ok_or(accounts::Error::UnknownDevice)?.created_ms;
        let mut batch = Batch::new();
        let mut alive = 0;
        for row in snapshot.scan(PUSHERS.prefix(&(user,)), Order::Forward) {
            let ((_, old), Json(row)) = row?;
            match self.is_alive(snapshot, user, &row)? {
                true => alive += usize::from(old != key),
                false => remove(&mut batch, user, old),
            }
        }
        if alive >= MAX_PUSHERS {
            return Err(Error::Invalid("There are too many pushers"));
        }
        if others == Others::Remove {
            for row in snapshot.scan(BY_KEY.prefix(&(key,)), Order::Forward) {
                let ((_, other), ()) = row?;
                remove(&mut batch, other, key);
            }
        }
        let row = Row {
            pusher,
            device,
            device_created_ms,
        };
        batch.put(&PUSHERS, &(user, key), &Json(row));
        batch.put(&BY_KEY, &(key, user), &());
        Ok(batch)
    }

    /// Takes a pusher of `user` away, if there is one.
    ///
    /// # Errors
    /// The store failed.
    pub async fn delete(&self, user: UserNumber, ids: &PusherIds) -> Result<(), Error> {
        let turn = Arc::clone(&self.inner.turn).lock_owned().await;
        let mut batch = Batch::new();
        remove(&mut batch, user, key(ids));
        batch.hold(turn);
        self.inner.store.submit(batch).await?;
        Ok(())
    }

    fn is_alive(&self, snapshot: &Snapshot, user: UserNumber, row: &Row) -> Result<bool, Error> {
        let device = self.inner.accounts.device(snapshot, user, &row.device)?;
        Ok(device.is_some_and(|device| device.created_ms == row.device_created_ms))
    }
}

fn remove(batch: &mut Batch, user: UserNumber, key: Key) {
    batch.delete(&PUSHERS, &(user, key));
    batch.delete(&BY_KEY, &(key, user));
}

fn key(ids: &PusherIds) -> Key {
    let mut hasher = blake3::Hasher::new();
    hasher.update(ids.app_id.as_bytes());
    hasher.update(b"\0");
    hasher.update(ids.pushkey.as_bytes());
    *hasher.finalize().as_bytes()
}

fn check(pusher: &Pusher) -> Result<(), Error> {
    if pusher.ids.pushkey.len() > MAX_PUSHKEY_BYTES {
        return Err(Error::Invalid("A pushkey has at most 512 bytes"));
    }
    if pusher.ids.app_id.chars().count() > MAX_APP_ID_CHARS || pusher.ids.app_id.contains('\0') {
        return Err(Error::Invalid(
            "The ID of an application has at most 64 characters",
        ));
    }
    if serde_json::to_vec(pusher).map_or(usize::MAX, |json| json.len()) > MAX_PUSHER_BYTES {
        return Err(Error::Invalid("The pusher is larger than 16 KiB"));
    }
    match &pusher.kind {
        PusherKind::Http(data) if is_gateway(&data.url) => Ok(()),
        PusherKind::Http(_) => Err(Error::Invalid(
            "The URL must be https and end in /_matrix/push/v1/notify",
        )),
        PusherKind::Email(_) => Err(Error::Invalid("This server does not send mail")),
        _ => Err(Error::Invalid("The kind of a pusher is \"http\"")),
    }
}

/// Plain HTTP is for gateways beside the server, which the rules for outgoing connections must allow.
fn is_gateway(url: &str) -> bool {
    let rest = url
        .strip_prefix("https://")
        .or_else(|| url.strip_prefix("http://"));
    let path = rest
        .and_then(|rest| rest.split_once('/'))
        .map(|(_, path)| path);
    path.is_some_and(|path| GATEWAY_PATH.strip_prefix('/') == Some(path))
}

#[cfg(test)]
mod tests;

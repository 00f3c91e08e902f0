//! What devices need to talk to each other in secret, as far as a server sees it: their keys, messages from device to device,
//! and whose devices have changed.
//!
//! The server reads none of it. What it owes is that a message comes once and is not lost, that a one-time key is given out
//! once, and that nobody goes on with a list of devices that is no more true.

mod device_keys;
mod device_lists;
mod one_time_keys;
mod remote_lists;
mod to_device;

use std::sync::Arc;

pub use self::device_keys::{
    DeviceWithKeys, MAX_DEVICE_KEYS_BYTES, Publisher, Upload, name_device,
};
pub use self::device_lists::{Asker, DeviceLists, LOG_DEVICE_LIST, ListChange};
pub use self::one_time_keys::{
    Claimed, Claims, KeyCounts, MAX_KEY_BYTES, MAX_KEY_ID_BYTES, NewKey,
};
pub use self::remote_lists::{DeviceList, RemoteChange, RemoteDeviceChange, RemoteKeys, Ticket};
pub use self::to_device::{
    Letter, LetterId, MAX_CONTENT_BYTES, MAX_RECIPIENTS, MAX_TYPE_BYTES, Messages, Recipient,
};
use crate::{
    accounts::{self, Accounts},
    clock::Clock,
    rooms::{self, Rooms},
    storage::{self, Store},
};

/// What went wrong here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device has ended meanwhile.
    #[error("there is no such device")]
    UnknownDevice,
    /// Another key of this ID waits to be claimed.
    #[error("there is another key of the ID {0}")]
    KeyInUse(String),
    #[error(
        "a device has no more one-time keys than 500, and fallback keys of no more than 16 algorithms"
    )]
    TooManyKeys,
    #[error(transparent)]
    Accounts(#[from] accounts::Error),
    #[error(transparent)]
    Rooms(#[from] rooms::Error),
    #[error(transparent)]
    Storage(#[from] storage::Error),
}

impl Error {
    fn corrupt(table: &'static str, reason: &dyn std::fmt::Display) -> Self {
        let reason = reason.to_string();
        storage::Error::Corrupt { table, reason }.into()
    }
}

/// What devices of this server are told about each other and about those of other servers. Cheap to clone.
#[derive(Clone)]
pub struct Encryption {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    clock: Clock,
    accounts: Accounts,
    rooms: Rooms,
    to_device: to_device::State,
    device_lists: device_lists::State,
    counts: one_time_keys::Counts,
}

impl Encryption {
    /// # Errors
    /// The store cannot be read.
    pub fn new(
        store: Store,
        clock: Clock,
        accounts: Accounts,
        rooms: Rooms,
    ) -> Result<Self, Error> {
        let inner = Inner {
            device_lists: device_lists::State::new(&store)?,
            to_device: to_device::State::default(),
            counts: one_time_keys::Counts::default(),
            store,
            clock,
            accounts,
            rooms,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }
}

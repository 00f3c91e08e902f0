//! What devices need to talk to each other in secret, as far as a server sees it: messages from device to device, and
//! whose devices have changed.
//!
//! The server reads none of it. What it owes is that a message comes once and is not lost, and that nobody goes on with a list
//! of devices that is no more true.

mod device_lists;
mod to_device;

use std::sync::Arc;

pub use self::device_lists::{Asker, DeviceLists, LOG_DEVICE_LIST, ListChange, RemoteChange};
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
    #[error(transparent)]
    Accounts(#[from] accounts::Error),
    #[error(transparent)]
    Rooms(#[from] rooms::Error),
    #[error(transparent)]
    Storage(#[from] storage::Error),
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

//! Which servers get an event.
//!
//! Those with users in the room after it; and when somebody is moved out, the server of that user. Nothing goes back to the
//! server that gave it to us.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
};

use lru::LruCache;
use serde::{Deserialize, de::IgnoredAny};

use crate::{
    events::{NodeNumber, RootNumber},
    federation::{Error, Federation},
    rooms::{RoomNumber, ServerNumber, StoredEvent, flag},
    storage::Snapshot,
};

/// Rooms whose servers are remembered.
const MAX_ROOMS: NonZeroUsize = NonZeroUsize::new(4_096).expect("it is above zero");

/// The servers of each room as of the memberships asked for last.
pub(super) struct Routes {
    rooms: Mutex<LruCache<RoomNumber, Route>>,
}

/// The servers of a room, and the memberships by which they are in it; whether others were told of besides.
type Route = ((NodeNumber, bool), Arc<[ServerNumber]>);

impl Default for Routes {
    fn default() -> Self {
        Self {
            rooms: Mutex::new(LruCache::new(MAX_ROOMS)),
        }
    }
}

/// Who gets an event.
pub(super) struct Targets {
    servers: Arc<[ServerNumber]>,
    moved_out: Option<ServerNumber>,
    origin: Option<ServerNumber>,
}

impl Targets {
    /// Each server, and whether the event moves a user of it out. Such an event is kept for the server by itself: it may be
    /// that nobody of it is in the room when it can be reached again, and then nothing else leads to the event.
    pub(super) fn iter(&self) -> impl Iterator<Item = (ServerNumber, bool)> + '_ {
        let moved_out = self.moved_out;
        let is_apart = move |server: &ServerNumber| !self.servers.contains(server);
        let staying = self.servers.iter().copied();
        staying
            .chain(moved_out.filter(is_apart))
            .map(move |server| (server, Some(server) == moved_out))
            .filter(|(server, _)| Some(*server) != self.origin)
    }
}

impl Federation {
    /// The servers that get `event`; `None` if it does not go out.
    pub(super) fn targets(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        event: &StoredEvent,
    ) -> Result<Option<Targets>, Error> {
        if !event.meta.goes_out() {
            return Ok(None);
        }
        let rooms = &self.inner.rooms;
        let origin = event.meta.has(flag::RELAYED) && !is_bound_invite(event);
        Ok(Some(Targets {
            servers: self.servers_of(snapshot, (room, event.meta.root_after))?,
            moved_out: rooms.server_moved_out(snapshot, room, event)?,
            origin: origin.then(|| rooms.server_number(event.pdu.sender.server_name())),
        }))
    }

    /// The other servers with users in a room at a state, of those that we talk to.
    pub(in crate::federation) fn servers_of(
        &self,
        snapshot: &Snapshot,
        (room, root): (RoomNumber, RootNumber),
    ) -> Result<Arc<[ServerNumber]>, Error> {
        let rooms = &self.inner.rooms;
        let members = rooms.root(snapshot, room, root)?.members;
        let known_by = (members, rooms.is_partial(room));
        let routes = &self.inner.sender.routes.rooms;
        if let Some((known, servers)) = lock(routes).get(&room)
            && *known == known_by
        {
            return Ok(Arc::clone(servers));
        }
        let names = rooms.servers_at(snapshot, (room, root))?;
        let names = names.iter().filter(|server| self.is_allowed(server));
        let servers: Arc<[ServerNumber]> =
            names.map(|server| rooms.server_number(server)).collect();
        lock(routes).put(room, (known_by, Arc::clone(&servers)));
        Ok(servers)
    }

    /// The other servers with users in a room now.
    pub(in crate::federation) fn servers_now(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
    ) -> Result<Arc<[ServerNumber]>, Error> {
        match self.inner.rooms.head(snapshot, room)? {
            Some(head) => self.servers_of(snapshot, (room, head.root)),
            None => Ok(Arc::default()),
        }
    }
}

/// Whether an event is the invite of an address whose owner has been found. The server of the invited user makes it in the name
/// of whoever invited the address, whose server learns of it like all others.
fn is_bound_invite(event: &StoredEvent) -> bool {
    #[derive(Default, Deserialize)]
    struct Content {
        third_party_invite: Option<IgnoredAny>,
    }
    let content: Content = event.pdu.content_as().unwrap_or_default();
    content.third_party_invite.is_some()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

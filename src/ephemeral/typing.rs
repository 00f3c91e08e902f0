//! Who is typing, by room; in memory.
//!
//! A room whose typing has ended stays known, so that a token from before is told of the end.
//!
//! Spec: c2s, "Typing Notifications".

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ruma::{OwnedUserId, RoomId};

use super::{Ephemeral, Error, Volatile, Who};
use crate::{rooms::RoomNumber, storage::Topic};

/// The longest that a client can ask for.
const MAX_TIMEOUT: Duration = Duration::from_secs(120);
/// Rooms that are remembered after typing has ended there.
const MAX_ROOMS: usize = 10_000;

#[derive(Default)]
pub(super) struct State {
    rooms: Mutex<HashMap<RoomNumber, Typing>>,
}

#[derive(Default)]
struct Typing {
    /// Each with the moment at which it ends, in milliseconds since the Unix epoch.
    users: BTreeMap<OwnedUserId, u64>,
    /// The last change.
    changed: u64,
}

impl State {
    fn lock(&self) -> MutexGuard<'_, HashMap<RoomNumber, Typing>> {
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ephemeral {
    /// Notes that `user` is typing for so long, or has stopped (`None`).
    ///
    /// # Errors
    /// [`Error::NotJoined`].
    pub async fn set_typing(
        &self,
        user: &Who,
        room_id: &RoomId,
        timeout: Option<Duration>,
    ) -> Result<(), Error> {
        let (this, number, id) = (self.clone(), user.number, room_id.to_owned());
        let room = self
            .inner
            .store
            .read(move |snapshot| this.joined_room(snapshot, number, &id))
            .await?;
        let now = self.inner.clock.now_ms();
        let ends = timeout.map(|timeout| {
            let timeout = timeout.min(MAX_TIMEOUT).as_millis();
            now.saturating_add(u64::try_from(timeout).unwrap_or(0))
        });
        if self.note_typing(room, &user.id, ends) {
            self.inner.store.touch(&[Topic::Room(room.0)]);
            self.inner.pending.notify_one();
        }
        Ok(())
    }

    /// True if others can see the change.
    fn note_typing(&self, room: RoomNumber, user: &OwnedUserId, ends: Option<u64>) -> bool {
        let mut rooms = self.inner.typing.lock();
        if rooms.len() > MAX_ROOMS {
            rooms.retain(|_, typing| !typing.users.is_empty());
        }
        let typing = rooms.entry(room).or_default();
        let is_new = match ends {
            Some(ends) => typing.users.insert(user.clone(), ends).is_none(),
            None => typing.users.remove(user).is_some(),
        };
        if is_new {
            typing.changed = self.inner.counter.next();
        }
        is_new
    }

    /// Who is typing in a room, if that has changed since. Without a moment (or with one of another process) whoever is
    /// typing now, if anybody is.
    pub fn typing_since(
        &self,
        room: RoomNumber,
        since: Option<Volatile>,
    ) -> Option<Vec<OwnedUserId>> {
        let rooms = self.inner.typing.lock();
        let typing = rooms.get(&room)?;
        let is_new = match since.and_then(|since| self.inner.counter.known(since)) {
            Some(since) => typing.changed > since,
            None => !typing.users.is_empty(),
        };
        is_new.then(|| typing.users.keys().cloned().collect())
    }

    /// Ends what is over. The time until the next end, if anybody is typing.
    pub(super) fn end_typing(&self) -> Option<Duration> {
        let now = self.inner.clock.now_ms();
        let mut ended = Vec::new();
        let mut next: Option<u64> = None;
        let mut rooms = self.inner.typing.lock();
        for (room, typing) in rooms
            .iter_mut()
            .filter(|(_, typing)| !typing.users.is_empty())
        {
            let before = typing.users.len();
            typing.users.retain(|_, ends| *ends > now);
            if typing.users.len() < before {
                typing.changed = self.inner.counter.next();
                ended.push(Topic::Room(room.0));
            }
            next = next.into_iter().chain(typing.users.values().copied()).min();
        }
        drop(rooms);
        self.inner.store.touch(&ended);
        next.map(|next| Duration::from_millis(next.saturating_sub(now)))
    }
}

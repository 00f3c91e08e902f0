//! Who is typing, by room; in memory.
//!
//! A room whose typing has ended stays known, so that a token from before is told of the end.
//!
//! Spec: c2s, "Typing Notifications"; s2s, "Typing Notifications".

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ruma::{OwnedUserId, RoomId};

use super::{Ephemeral, Error, LocalTyping, Volatile, Who};
use crate::{rooms::RoomNumber, storage::Topic};

/// The longest that a client can ask for.
const MAX_TIMEOUT: Duration = Duration::from_secs(120);
/// Rooms that are remembered after typing has ended there.
const MAX_ROOMS: usize = 10_000;
/// So long a user of another server is typing when that server says nothing more.
const REMOTE_TIMEOUT_MS: u64 = 60_000;
/// After so long other servers are told again of somebody who goes on typing: sooner than they give up.
const TOLD_AGAIN_MS: u64 = 40_000;
/// Users of other servers who are typing in one room at a time; more are not told of.
const MAX_TYPISTS: usize = 100;

#[derive(Default)]
pub(super) struct State {
    rooms: Mutex<HashMap<RoomNumber, Typing>>,
}

#[derive(Default)]
struct Typing {
    users: BTreeMap<OwnedUserId, Typist>,
    /// The last change.
    changed: u64,
}

/// Moments are in milliseconds since the Unix epoch.
#[derive(Clone, Copy)]
struct Typist {
    ends: u64,
    /// When other servers were told of it last.
    told: u64,
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
        self.change_typing(room, &user.id, ends);
        Ok(())
    }

    /// Notes that a user of another server is typing, or has stopped. The caller has seen that the user is in the room.
    ///
    /// Spec: s2s, "Typing Notifications".
    pub fn remote_typing(&self, room: RoomNumber, user: &OwnedUserId, is_typing: bool) {
        let now = self.inner.clock.now_ms();
        let ends = is_typing.then(|| now.saturating_add(REMOTE_TIMEOUT_MS));
        let is_full = || {
            let rooms = self.inner.typing.lock();
            let typing = rooms.get(&room);
            typing.is_some_and(|typing| {
                typing.users.len() >= MAX_TYPISTS && !typing.users.contains_key(user)
            })
        };
        if !is_typing || !is_full() {
            self.change_typing(room, user, ends);
        }
    }

    fn change_typing(&self, room: RoomNumber, user: &OwnedUserId, ends: Option<u64>) {
        let is_typing = ends.is_some();
        let is_new = self.note_typing(room, user, ends);
        if is_new {
            self.inner.store.touch(&[Topic::Room(room.0)]);
            self.inner.pending.notify_one();
        }
        if self.inner.accounts.is_local(user) && (is_new || self.is_to_be_told_again(room, user)) {
            self.tell_typing([LocalTyping {
                room,
                user: user.clone(),
                is_typing,
            }]);
        }
    }

    /// Whether other servers are about to give up on somebody who is typing; if so they count as told.
    fn is_to_be_told_again(&self, room: RoomNumber, user: &OwnedUserId) -> bool {
        let now = self.inner.clock.now_ms();
        let mut rooms = self.inner.typing.lock();
        let typist = rooms
            .get_mut(&room)
            .and_then(|typing| typing.users.get_mut(user));
        match typist {
            Some(typist) if now >= typist.told.saturating_add(TOLD_AGAIN_MS) => {
                typist.told = now;
                true
            }
            _ => false,
        }
    }

    /// True if others can see the change.
    fn note_typing(&self, room: RoomNumber, user: &OwnedUserId, ends: Option<u64>) -> bool {
        let now = self.inner.clock.now_ms();
        let mut rooms = self.inner.typing.lock();
        if rooms.len() > MAX_ROOMS {
            rooms.retain(|_, typing| !typing.users.is_empty());
        }
        let typing = rooms.entry(room).or_default();
        let is_new = match ends {
            Some(ends) => {
                let before = typing.users.get(user).map(|typist| typist.told);
                let told = before.unwrap_or(now);
                typing.users.insert(user.clone(), Typist { ends, told });
                before.is_none()
            }
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
        let mut told = Vec::new();
        let mut next: Option<u64> = None;
        let mut rooms = self.inner.typing.lock();
        for (room, typing) in rooms
            .iter_mut()
            .filter(|(_, typing)| !typing.users.is_empty())
        {
            let before = typing.users.len();
            typing.users.retain(|user, typist| {
                let goes_on = typist.ends > now;
                if !goes_on && self.inner.accounts.is_local(user) {
                    told.push(LocalTyping {
                        room: *room,
                        user: user.clone(),
                        is_typing: false,
                    });
                }
                goes_on
            });
            if typing.users.len() < before {
                typing.changed = self.inner.counter.next();
                ended.push(Topic::Room(room.0));
            }
            let ends = typing.users.values().map(|typist| typist.ends);
            next = next.into_iter().chain(ends).min();
        }
        drop(rooms);
        self.inner.store.touch(&ended);
        self.tell_typing(told);
        next.map(|next| Duration::from_millis(next.saturating_sub(now)))
    }
}

//! Who is online; in memory.
//!
//! A user is here from the first request that says something about the presence. Others are told of a change when the task
//! of [`Ephemeral::run`] has given it a number, so that many changes at once are one answer to each who waits.
//!
//! Users of other servers are here as those servers tell of them, each with the rooms that they shared with users of this
//! server at that time.
//!
//! Spec: c2s, "Presence"; s2s, "Presence". `busy` is MSC3026.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ruma::{OwnedUserId, UserId, presence::PresenceState};
use serde::Serialize;

use super::{Ephemeral, Error, LocalPresence, Volatile, Who};
use crate::{
    accounts::UserNumber,
    rooms::{Class, RoomNumber},
    storage::{self, Snapshot, Topic},
};

/// The name that clients give to a state that is not in the specification yet.
const BUSY: &str = "org.matrix.msc3026.busy";
/// So long after the last request a user counts as active.
const ACTIVE_MS: u64 = 60_000;
const MAX_STATUS_BYTES: usize = 1_024;
/// A user of another server of whom nothing was heard for so long counts as offline.
const REMOTE_TIMEOUT_MS: u64 = 30 * 60_000;
/// So often other servers are told of somebody whose presence stays as it is.
const TOLD_AGAIN_MS: u64 = 25 * 60_000;
/// Users that are remembered; beyond them nobody of another server is added.
const MAX_USERS: usize = 100_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    Online,
    Unavailable,
    Busy,
    Offline,
}

impl Presence {
    fn parse(state: &PresenceState) -> Option<Self> {
        match state.as_str() {
            "online" => Some(Self::Online),
            "unavailable" => Some(Self::Unavailable),
            "busy" | BUSY => Some(Self::Busy),
            "offline" => Some(Self::Offline),
            _ => None,
        }
    }

    /// The state that servers tell each other: the specification has three.
    const fn federated(self) -> &'static str {
        match self {
            Self::Busy => Self::Online.name(),
            other => other.name(),
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Unavailable => "unavailable",
            Self::Busy => BUSY,
            Self::Offline => "offline",
        }
    }
}

#[derive(Default)]
pub(super) struct State {
    users: Mutex<Users>,
}

#[derive(Default)]
struct Users {
    entries: HashMap<UserNumber, Entry>,
    /// By the number of the last change that was told.
    told: BTreeMap<u64, UserNumber>,
    /// Changed, and not told yet.
    untold: Vec<UserNumber>,
}

struct Entry {
    id: OwnedUserId,
    presence: Presence,
    status: Option<String>,
    /// The last request that showed somebody to be there, in milliseconds since the Unix epoch.
    active: u64,
    /// Syncs that wait now.
    syncs: u32,
    /// The end of the last sync, in milliseconds since the Unix epoch.
    synced: u64,
    /// The last change that was told; 0: none.
    told: u64,
    is_untold: bool,
    /// The last change that the user made by hand: other devices of the user are told of those only.
    by_hand: u64,
    is_untold_by_hand: bool,
    /// When other servers were told of it last, in milliseconds since the Unix epoch.
    told_out: u64,
    /// Of users of other servers.
    remote: Option<Remote>,
}

/// What is known of a user of another server.
#[derive(Debug, Default)]
struct Remote {
    /// The last word of the server about the user, in milliseconds since the Unix epoch.
    heard: u64,
    /// Rooms with users of this server, in order.
    rooms: Vec<RoomNumber>,
}

/// What another server tells of one of its users.
#[derive(Clone, Debug)]
pub struct RemotePresence {
    pub user: Who,
    pub state: PresenceState,
    pub status: Option<String>,
    /// Milliseconds.
    pub active_ago_ms: u64,
    /// The rooms that the user is in.
    pub rooms: Vec<RoomNumber>,
}

/// What others see of a user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PresenceContent {
    pub presence: &'static str,
    /// Milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_active_ago: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status_msg: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub currently_active: Option<bool>,
}

/// `m.presence`, as it stands in an answer to a sync.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename = "m.presence")]
pub struct PresenceEvent {
    pub sender: OwnedUserId,
    pub content: PresenceContent,
}

/// Held while a sync is served: the user is there so long.
#[must_use = "the user is there as long as this is held"]
pub struct Syncing {
    ephemeral: Ephemeral,
    user: UserNumber,
}

impl Drop for Syncing {
    fn drop(&mut self) {
        let now = self.ephemeral.inner.clock.now_ms();
        let mut users = self.ephemeral.inner.presence.lock();
        if let Some(entry) = users.entries.get_mut(&self.user) {
            entry.syncs = entry.syncs.saturating_sub(1);
            entry.synced = now;
        }
    }
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Users> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Users {
    fn entry(&mut self, user: &Who) -> &mut Entry {
        self.entries.entry(user.number).or_insert_with(|| Entry {
            id: user.id.clone(),
            presence: Presence::Offline,
            status: None,
            active: 0,
            syncs: 0,
            synced: 0,
            told: 0,
            is_untold: false,
            by_hand: 0,
            is_untold_by_hand: false,
            told_out: 0,
            remote: None,
        })
    }

    fn note_remote(&mut self, told: RemotePresence, now: u64) {
        let number = told.user.number;
        let is_known = self.entries.contains_key(&number);
        let Some(presence) = Presence::parse(&told.state) else {
            return;
        };
        if !is_known && (self.entries.len() >= MAX_USERS || presence == Presence::Offline) {
            return;
        }
        let fits = |status: &String| status.len() <= MAX_STATUS_BYTES;
        let status = told.status.filter(fits);
        let entry = self.entry(&told.user);
        entry.active = now.saturating_sub(told.active_ago_ms);
        let is_changed = entry.presence != presence || entry.status != status;
        entry.presence = presence;
        entry.status = status;
        let rooms = told.rooms;
        entry.remote = Some(Remote { heard: now, rooms });
        if is_changed {
            self.changed(number);
        }
    }

    /// Queues a change to be told.
    fn changed(&mut self, user: UserNumber) {
        if let Some(entry) = self.entries.get_mut(&user)
            && !entry.is_untold
        {
            entry.is_untold = true;
            self.untold.push(user);
        }
    }
}

impl Entry {
    fn content(&self, now: u64) -> PresenceContent {
        let ago = now.saturating_sub(self.active);
        PresenceContent {
            presence: self.presence.name(),
            last_active_ago: (self.active > 0).then_some(ago),
            status_msg: self.status.clone(),
            currently_active: (self.presence == Presence::Online).then_some(ago < ACTIVE_MS),
        }
    }

    /// As other servers are told of it; they count as told.
    fn tell_out(&mut self, number: UserNumber, now: u64) -> LocalPresence {
        self.told_out = now;
        let content = self.content(now);
        LocalPresence {
            number,
            user: self.id.clone(),
            state: self.presence.federated(),
            status: content.status_msg,
            active_ago_ms: content.last_active_ago.unwrap_or(0),
            is_active: content.currently_active.unwrap_or(false),
        }
    }

    fn event(&self, now: u64) -> PresenceEvent {
        PresenceEvent {
            sender: self.id.clone(),
            content: self.content(now),
        }
    }
}

impl Ephemeral {
    /// Sets the presence of `user` by hand.
    ///
    /// # Errors
    /// [`Error::UnknownState`], [`Error::StatusTooLong`].
    pub fn set_presence(
        &self,
        user: &Who,
        state: &PresenceState,
        status: Option<String>,
    ) -> Result<(), Error> {
        let presence = Presence::parse(state).ok_or(Error::UnknownState)?;
        if status
            .as_ref()
            .is_some_and(|status| status.len() > MAX_STATUS_BYTES)
        {
            return Err(Error::StatusTooLong);
        }
        if !self.inner.config.enabled {
            return Ok(());
        }
        let now = self.inner.clock.now_ms();
        let mut users = self.inner.presence.lock();
        let entry = users.entry(user);
        if presence != Presence::Offline {
            entry.active = now;
        }
        if entry.presence != presence || entry.status != status {
            entry.presence = presence;
            entry.status = status;
            entry.is_untold_by_hand = true;
            users.changed(user.number);
            self.inner.pending.notify_one();
        }
        Ok(())
    }

    /// Notes what another server tells of its users. The caller has seen that they are its users and that they are in the
    /// rooms.
    ///
    /// Spec: s2s, "Presence".
    pub fn remote_presence(&self, told: Vec<RemotePresence>) {
        if !self.inner.config.enabled || !self.inner.config.federate_in {
            return;
        }
        let now = self.inner.clock.now_ms();
        let mut users = self.inner.presence.lock();
        for presence in told {
            users.note_remote(presence, now);
        }
        drop(users);
        self.inner.pending.notify_one();
    }

    /// What other servers are told of those of `users` who are of this server and not offline; nothing if they are told
    /// nothing at all.
    pub fn local_presence(&self, users: &[UserNumber]) -> Vec<LocalPresence> {
        if !self.tells_presence() {
            return Vec::new();
        }
        let now = self.inner.clock.now_ms();
        let mut all = self.inner.presence.lock();
        let mut found = Vec::new();
        for user in users {
            let entry = all.entries.get_mut(user);
            let is_shown =
                |entry: &&mut Entry| entry.remote.is_none() && entry.presence != Presence::Offline;
            if let Some(entry) = entry.filter(is_shown) {
                found.push(entry.tell_out(*user, now));
            }
        }
        found
    }

    /// Whether other servers are told of the presence of users of this one.
    pub fn tells_presence(&self) -> bool {
        self.inner.config.enabled && self.inner.config.federate_out
    }

    /// Whether presence of other servers' users is taken.
    pub fn takes_presence(&self) -> bool {
        self.inner.config.enabled && self.inner.config.federate_in
    }

    /// Notes that `user` syncs, with what the client says of the presence. `None` if the sync says nothing about it.
    ///
    /// Spec: c2s, "Syncing", `set_presence`.
    pub fn syncing(&self, user: &Who, state: &PresenceState) -> Option<Syncing> {
        let presence = Presence::parse(state).filter(|presence| *presence != Presence::Offline)?;
        if !self.inner.config.enabled {
            return None;
        }
        let now = self.inner.clock.now_ms();
        let mut users = self.inner.presence.lock();
        let entry = users.entry(user);
        entry.syncs += 1;
        if presence != Presence::Unavailable {
            entry.active = now;
        }
        // Who is busy stays so while the client goes on syncing.
        let stays = entry.presence == presence
            || (entry.presence == Presence::Busy && presence == Presence::Online);
        if !stays {
            entry.presence = presence;
            users.changed(user.number);
            self.inner.pending.notify_one();
        }
        drop(users);
        Some(Syncing {
            ephemeral: self.clone(),
            user: user.number,
        })
    }

    /// What `reader` sees of the presence of `user`.
    ///
    /// # Errors
    /// [`Error::NotShared`].
    pub async fn presence_of(
        &self,
        reader: UserNumber,
        user: &UserId,
    ) -> Result<PresenceContent, Error> {
        let (this, id) = (self.clone(), user.to_owned());
        let number = move |snapshot: &Snapshot| -> Result<UserNumber, Error> {
            let number = this.inner.accounts.user_number(snapshot, &id)?;
            let number = number.ok_or(Error::NotShared)?;
            match this.may_see(snapshot, reader, number)? {
                true => Ok(number),
                false => Err(Error::NotShared),
            }
        };
        let number = self.inner.store.read(number).await?;
        let now = self.inner.clock.now_ms();
        let users = self.inner.presence.lock();
        let found = users.entries.get(&number).map(|entry| entry.content(now));
        Ok(found.unwrap_or(PresenceContent {
            presence: Presence::Offline.name(),
            last_active_ago: None,
            status_msg: None,
            currently_active: None,
        }))
    }

    /// What has changed since of the presence of those who share a room with `reader`, and all there is to say of
    /// `newly_shared` (users who have come to share a room). Without a moment, or with one of another process: everybody
    /// who is not offline.
    ///
    /// Of the reader's own presence only what was set by hand is told.
    pub fn presence_since(
        &self,
        snapshot: &Snapshot,
        reader: UserNumber,
        since: Option<Volatile>,
        newly_shared: &[UserNumber],
    ) -> Result<Vec<PresenceEvent>, Error> {
        let since = since.and_then(|since| self.inner.counter.known(since));
        let found = self.presence_changes(reader, since, newly_shared);
        let mut events = Vec::with_capacity(found.len());
        for (user, event) in found {
            if self.may_see(snapshot, reader, user)? {
                events.push(event);
            }
        }
        Ok(events)
    }

    /// Whether `reader` is in a room with `user`, who may be of another server.
    fn may_see(
        &self,
        snapshot: &Snapshot,
        reader: UserNumber,
        user: UserNumber,
    ) -> Result<bool, Error> {
        let Some(rooms) = self.rooms_of_remote(user) else {
            return self.share_room(snapshot, reader, user);
        };
        let of_reader = self.inner.rooms.rooms_of(snapshot, reader)?;
        let mut joined = of_reader
            .iter()
            .take_while(|room| room.class == Class::Join);
        Ok(joined.any(|room| rooms.binary_search(&room.room).is_ok()))
    }

    /// The rooms of a user of another server.
    fn rooms_of_remote(&self, user: UserNumber) -> Option<Vec<RoomNumber>> {
        let users = self.inner.presence.lock();
        let remote = users.entries.get(&user)?.remote.as_ref()?;
        Some(remote.rooms.clone())
    }

    fn presence_changes(
        &self,
        reader: UserNumber,
        since: Option<u64>,
        newly_shared: &[UserNumber],
    ) -> BTreeMap<UserNumber, PresenceEvent> {
        let now = self.inner.clock.now_ms();
        let users = self.inner.presence.lock();
        let mut found = BTreeMap::new();
        let mut add = |user: UserNumber, entry: &Entry| {
            if user != reader || entry.by_hand > since.unwrap_or(0) {
                found.insert(user, entry.event(now));
            }
        };
        match since {
            Some(since) => {
                for user in users.told.range(since + 1..).map(|(_, user)| *user) {
                    users.entries.get(&user).inspect(|entry| add(user, entry));
                }
            }
            None => {
                let here = users.entries.iter();
                here.filter(|(_, entry)| entry.presence != Presence::Offline)
                    .for_each(|(user, entry)| add(*user, entry));
            }
        }
        for user in newly_shared {
            users.entries.get(user).inspect(|entry| add(*user, entry));
        }
        found
    }

    /// Whom somebody could have to be told of now, without looking who shares rooms: nobody if this is false.
    pub fn has_presence_since(&self, since: Option<Volatile>) -> bool {
        let users = self.inner.presence.lock();
        match since.and_then(|since| self.inner.counter.known(since)) {
            Some(since) => users
                .told
                .last_key_value()
                .is_some_and(|(last, _)| *last > since),
            None => !users.entries.is_empty(),
        }
    }

    /// Numbers what has changed and wakes those who may see it. True if anything had changed.
    pub(crate) async fn tell_presence(&self) -> Result<bool, Error> {
        let told = self.number_changes();
        if told.is_empty() {
            return Ok(false);
        }
        let this = self.clone();
        let topics = move |snapshot: &Snapshot| -> Result<Vec<Topic>, Error> {
            let mut topics = Vec::new();
            for user in told {
                topics.push(Topic::User(user.0));
                if let Some(rooms) = this.rooms_of_remote(user) {
                    topics.extend(rooms.iter().map(|room| Topic::Room(room.0)));
                    continue;
                }
                let joined = this.inner.rooms.rooms_of(snapshot, user)?;
                let joined = joined.iter().take_while(|room| room.class == Class::Join);
                topics.extend(joined.map(|room| Topic::Room(room.room.0)));
            }
            topics.sort_unstable();
            topics.dedup();
            Ok(topics)
        };
        match self.inner.store.read(topics).await {
            Ok(topics) => self.inner.store.touch(&topics),
            Err(Error::Storage(storage::Error::Closed)) => {}
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    fn number_changes(&self) -> Vec<UserNumber> {
        let now = self.inner.clock.now_ms();
        let is_told_out = self.inner.config.federate_out && self.inner.outbox.is_watched();
        let mut out = Vec::new();
        let mut users = self.inner.presence.lock();
        let changed = std::mem::take(&mut users.untold);
        for user in &changed {
            let number = self.inner.counter.next();
            let Some(entry) = users.entries.get_mut(user) else {
                continue;
            };
            let before = std::mem::replace(&mut entry.told, number);
            entry.is_untold = false;
            if std::mem::take(&mut entry.is_untold_by_hand) {
                entry.by_hand = number;
            }
            if is_told_out && entry.remote.is_none() {
                out.push(entry.tell_out(*user, now));
            }
            users.told.remove(&before);
            users.told.insert(number, *user);
        }
        drop(users);
        self.tell_presence_out(out);
        changed
    }

    /// Makes idle or offline who has not been heard of. The time until it is worth to look again, if anybody is there.
    pub(super) fn end_presence(&self) -> Option<Duration> {
        let config = &self.inner.config;
        let millis = |period: Duration| u64::try_from(period.as_millis()).unwrap_or(u64::MAX);
        let (idle, offline) = (millis(config.idle_after.0), millis(config.offline_after.0));
        let now = self.inner.clock.now_ms();
        let is_told_out = config.federate_out && self.inner.outbox.is_watched();
        let mut out = Vec::new();
        let mut users = self.inner.presence.lock();
        let mut ended = Vec::new();
        let mut is_anybody_here = false;
        for (user, entry) in &mut users.entries {
            let seen = entry.synced.max(entry.active);
            let heard = entry.remote.as_ref().map(|remote| remote.heard);
            let is_lost = heard.is_some_and(|heard| now.saturating_sub(heard) >= REMOTE_TIMEOUT_MS);
            let after = match entry.presence {
                Presence::Offline => continue,
                _ if is_lost => Presence::Offline,
                as_it_is if heard.is_some() => as_it_is,
                _ if entry.syncs == 0 && now.saturating_sub(seen) >= offline => Presence::Offline,
                Presence::Online if now.saturating_sub(entry.active) >= idle => {
                    Presence::Unavailable
                }
                as_it_is => as_it_is,
            };
            is_anybody_here |= after != Presence::Offline;
            let is_old = now.saturating_sub(entry.told_out) >= TOLD_AGAIN_MS;
            if is_told_out && heard.is_none() && is_old && after == entry.presence {
                out.push(entry.tell_out(*user, now));
            }
            if after != entry.presence {
                entry.presence = after;
                ended.push(*user);
            }
        }
        for user in ended {
            users.changed(user);
            self.inner.pending.notify_one();
        }
        drop(users);
        self.tell_presence_out(out);
        let pause = (config.offline_after.0 / 4).max(super::PACE / 4);
        is_anybody_here.then_some(pause)
    }
}

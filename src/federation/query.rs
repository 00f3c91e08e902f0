//! What is asked of other servers for a user of ours: profiles, aliases, directories, events by time.
//!
//! Spec: s2s, "Querying for information", "Published Room Directory".

use std::{
    hash::Hash,
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use lru::LruCache;
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomAliasId, OwnedRoomId, OwnedServerName,
    OwnedUserId, RoomId, ServerName, UserId,
    api::{
        Direction,
        federation::{
            directory::get_public_rooms_filtered,
            event::get_event_by_timestamp,
            query::{get_profile_information, get_room_information},
        },
    },
};

use super::{Error, Federation, client::Limits};
use crate::accounts::Profile;

/// How long a server has to answer; somebody waits.
const TIMEOUT: Duration = Duration::from_secs(10);
const MAX_PROFILE_BYTES: usize = 128 << 10;
const MAX_ALIAS_BYTES: usize = 256 << 10;
const MAX_DIRECTORY_BYTES: usize = 8 << 20;
const MAX_TIMESTAMP_BYTES: usize = 16 << 10;

/// How long a profile is taken as it was.
const PROFILE_LIFETIME: Duration = Duration::from_secs(60);
const PROFILES: NonZeroUsize = NonZeroUsize::new(2_000).expect("two thousand is not zero");
/// Larger profiles are not remembered, so that these take a few megabytes at most.
const MAX_REMEMBERED_FIELDS_BYTES: usize = 2 << 10;
/// Servers asked for an event by time, at most.
const MAX_ASKED_BY_TIME: usize = 3;

/// Answers of other servers that are good for a short time.
pub(super) struct Answers {
    profiles: Lately<OwnedUserId, Arc<Profile>>,
    pub(super) spaces: super::space::Spaces,
}

impl Default for Answers {
    fn default() -> Self {
        Self {
            profiles: Lately::new(PROFILES, PROFILE_LIFETIME),
            spaces: super::space::Spaces::default(),
        }
    }
}

/// Values that are forgotten after a time, and the least used of them before.
pub(super) struct Lately<K: Hash + Eq, V> {
    entries: Mutex<LruCache<K, (Instant, V)>>,
    lifetime: Duration,
}

impl<K: Hash + Eq, V: Clone> Lately<K, V> {
    pub(super) fn new(entries: NonZeroUsize, lifetime: Duration) -> Self {
        Self {
            entries: Mutex::new(LruCache::new(entries)),
            lifetime,
        }
    }

    fn entries(&self) -> MutexGuard<'_, LruCache<K, (Instant, V)>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, key: &K, now: Instant) -> Option<V> {
        let mut entries = self.entries();
        let (since, value) = entries.get(key)?;
        (now.saturating_duration_since(*since) < self.lifetime).then(|| value.clone())
    }

    pub(super) fn put(&self, key: K, value: V, now: Instant) {
        self.entries().put(key, (now, value));
    }
}

impl Federation {
    /// The profile of a user of another server, from a minute ago at most.
    ///
    /// # Errors
    /// The server cannot be asked, or says that there is no such user.
    pub async fn profile(&self, user: &UserId) -> Result<Arc<Profile>, Error> {
        let (profiles, now) = (&self.inner.answers.profiles, self.inner.clock.instant());
        if let Some(profile) = profiles.get(&user.to_owned(), now) {
            return Ok(profile);
        }
        let request = get_profile_information::v1::Request::new(user.to_owned());
        let limits = within(MAX_PROFILE_BYTES);
        let client = self.client();
        let answer = client
            .send_within(user.server_name(), request, limits)
            .await?;
        let fields = answer.into_iter().filter(|(_, value)| !value.is_null());
        let profile = Arc::new(Profile {
            fields: fields.collect(),
        });
        let size: usize = profile
            .fields
            .iter()
            .map(|(name, value)| name.len() + value.to_string().len())
            .sum();
        if size <= MAX_REMEMBERED_FIELDS_BYTES {
            profiles.put(user.to_owned(), Arc::clone(&profile), now);
        }
        Ok(profile)
    }

    /// Where an alias of another server leads, and servers that know the room.
    ///
    /// # Errors
    /// The server cannot be asked, or has no such alias.
    pub async fn alias(
        &self,
        alias: OwnedRoomAliasId,
    ) -> Result<(OwnedRoomId, Vec<OwnedServerName>), Error> {
        let server = alias.server_name().to_owned();
        let request = get_room_information::v1::Request::new(alias);
        let limits = within(MAX_ALIAS_BYTES);
        let answer = self.client().send_within(&server, request, limits).await?;
        let mut servers = answer.servers;
        // It knows the room, whether it says so or not.
        if !servers.contains(&server) {
            servers.push(server);
        }
        Ok((answer.room_id, servers))
    }

    /// A page of the directory of another server.
    ///
    /// # Errors
    /// The server cannot be asked, or does not show its directory.
    pub async fn public_rooms(
        &self,
        server: &ServerName,
        request: get_public_rooms_filtered::v1::Request,
    ) -> Result<get_public_rooms_filtered::v1::Response, Error> {
        let limits = within(MAX_DIRECTORY_BYTES);
        self.client().send_within(server, request, limits).await
    }

    /// The event closest to a time that servers of a room know, asked in turn until one knows any.
    pub async fn event_at_time(
        &self,
        room_id: &RoomId,
        servers: &[OwnedServerName],
        ts: MilliSecondsSinceUnixEpoch,
        direction: Direction,
    ) -> Option<(OwnedEventId, MilliSecondsSinceUnixEpoch, OwnedServerName)> {
        let own_name = self.inner.signer.server_name();
        let others = servers.iter().filter(|server| **server != own_name);
        for server in others.take(MAX_ASKED_BY_TIME) {
            let request =
                get_event_by_timestamp::v1::Request::new(room_id.to_owned(), ts, direction);
            let limits = within(MAX_TIMESTAMP_BYTES);
            match self.client().send_within(server, request, limits).await {
                Ok(found) => {
                    return Some((found.event_id, found.origin_server_ts, server.clone()));
                }
                Err(error) => tracing::debug!(%server, %error, "no event by time"),
            }
        }
        None
    }
}

pub(super) fn within(max_bytes: usize) -> Limits {
    Limits {
        timeout: TIMEOUT,
        max_bytes,
    }
}

//! The keys of devices, of this server and of others: looked up, and claimed.
//!
//! Lists of users who share a room with somebody here are fetched whole and kept, as their servers tell every change from
//! then on; of all others each question goes to their server. Servers are asked beside each other, and one that does not
//! answer in time costs only its own users.
//!
//! Spec: s2s, "End-to-End Encryption", "Device Management"; c2s, "POST /_matrix/client/v3/keys/query".

mod answer;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream};
use http::Method;
use ruma::{OwnedDeviceId, OwnedServerName, OwnedUserId, ServerName, UserId};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{Error, Federation, client::Limits, join::escaped};
use crate::{
    accounts::UserNumber,
    encryption::{Claimed, Claims, DeviceList, DeviceWithKeys, RemoteKeys, Ticket},
    rooms::RoomNumber,
    storage::{Position, Snapshot},
};

/// Servers that are asked at the same time for one request, and lists of users of one server.
const SERVERS_AT_ONCE: usize = 50;
const LISTS_AT_ONCE: usize = 8;
/// Users that are looked up in one read.
const USERS_AT_ONCE: usize = 200;
const MAX_LIST_BYTES: usize = 4 << 20;
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// Whose keys are wanted: those of some devices, or of all where none is named.
type Wanted = BTreeMap<OwnedUserId, Vec<OwnedDeviceId>>;

/// A request for keys.
#[derive(Clone, Debug)]
pub struct KeyQuery {
    pub asker: UserNumber,
    pub wanted: Wanted,
    /// How long other servers have to answer.
    pub timeout: Duration,
}

/// The keys of devices and of users, as clients get them.
#[derive(Debug, Default, Serialize)]
pub struct FoundKeys {
    pub device_keys: BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, Box<RawValue>>>,
    pub master_keys: BTreeMap<OwnedUserId, Box<RawValue>>,
    pub self_signing_keys: BTreeMap<OwnedUserId, Box<RawValue>>,
    pub user_signing_keys: BTreeMap<OwnedUserId, Box<RawValue>>,
    /// Servers that did not answer, and why.
    pub failures: Failures,
}

/// Claimed keys, as clients get them.
#[derive(Debug, Default, Serialize)]
pub struct ClaimedKeys {
    pub one_time_keys: Claimed,
    pub failures: Failures,
}

/// Servers that did not answer.
type Failures = BTreeMap<OwnedServerName, Failure>;

/// Why a server did not answer.
#[derive(Debug, Serialize)]
pub struct Failure {
    errcode: &'static str,
    error: &'static str,
}

impl Failure {
    fn of(error: &Error) -> Self {
        let error = match error {
            Error::TimedOut(_) => "The server did not answer in time",
            Error::Denied(_) => "This server does not talk to the server",
            Error::Unreachable { .. } => "The server cannot be reached",
            _ => "The server's answer cannot be used",
        };
        Self {
            errcode: "M_UNKNOWN",
            error,
        }
    }
}

/// What is to be asked of one server.
#[derive(Default)]
struct Questions {
    /// Lists that are kept when they are known.
    lists: Vec<(OwnedUserId, Vec<OwnedDeviceId>, Ticket)>,
    others: Wanted,
}

/// What one server has answered.
#[derive(Default)]
struct Answers {
    found: FoundKeys,
    failure: Option<Error>,
}

impl FoundKeys {
    /// Adds the devices of a user's list that are wanted.
    fn add(&mut self, user: OwnedUserId, wanted: &[OwnedDeviceId], list: DeviceList) {
        let mut devices = list.devices;
        if !wanted.is_empty() {
            devices.retain(|device, _| wanted.contains(device));
        }
        let devices = devices
            .into_iter()
            .filter_map(|(id, device)| Some((id, raw(device.with_name())?)));
        let devices = devices.collect();
        let master_key = list.master_key.and_then(raw);
        let self_signing_key = list.self_signing_key.and_then(raw);
        self.master_keys
            .extend(master_key.map(|key| (user.clone(), key)));
        self.self_signing_keys
            .extend(self_signing_key.map(|key| (user.clone(), key)));
        self.device_keys.insert(user, devices);
    }

    fn append(&mut self, other: Self) {
        self.device_keys.extend(other.device_keys);
        self.master_keys.extend(other.master_keys);
        self.self_signing_keys.extend(other.self_signing_keys);
        self.user_signing_keys.extend(other.user_signing_keys);
        self.failures.extend(other.failures);
    }
}

fn raw(json: String) -> Option<Box<RawValue>> {
    RawValue::from_string(json).ok()
}

impl Federation {
    /// Whether other servers are told what devices are called.
    pub fn tells_device_names(&self) -> bool {
        self.inner.config.tell_device_names
    }

    /// The keys of users of any server.
    ///
    /// # Errors
    /// The store failed. What other servers do is in the answer.
    pub async fn query_keys(&self, query: KeyQuery) -> Result<FoundKeys, Error> {
        let deadline = self.inner.clock.instant() + query.timeout;
        let mut found = FoundKeys::default();
        let mut questions: BTreeMap<OwnedServerName, Questions> = BTreeMap::new();
        let mut wanted = query.wanted.into_iter().peekable();
        while wanted.peek().is_some() {
            let part: Vec<_> = wanted.by_ref().take(USERS_AT_ONCE).collect();
            let (federation, asker) = (self.clone(), query.asker);
            let read = move |snapshot: &Snapshot| federation.known_keys(snapshot, asker, part);
            let (known, open) = self.inner.store.read(read).await?;
            found.append(known);
            for (server, more) in open {
                let of_server = questions.entry(server).or_default();
                of_server.lists.extend(more.lists);
                of_server.others.extend(more.others);
            }
        }
        let asked = stream::iter(questions).map(|(server, questions)| async move {
            let answers = self.ask_for_keys(&server, questions, deadline).await;
            (server, answers)
        });
        let mut asked = Box::pin(asked.buffer_unordered(SERVERS_AT_ONCE));
        while let Some((server, answers)) = asked.next().await {
            let Answers {
                found: new,
                failure,
            } = answers?;
            found.append(new);
            if let Some(error) = failure {
                tracing::debug!(%server, %error, "a server does not tell keys");
                found.failures.insert(server, Failure::of(&error));
            }
        }
        Ok(found)
    }

    /// What is known here, and what other servers are to be asked.
    fn known_keys(
        &self,
        snapshot: &Snapshot,
        asker: UserNumber,
        wanted: Vec<(OwnedUserId, Vec<OwnedDeviceId>)>,
    ) -> Result<(FoundKeys, BTreeMap<OwnedServerName, Questions>), Error> {
        let inner = &self.inner;
        let mut found = FoundKeys::default();
        let mut questions: BTreeMap<OwnedServerName, Questions> = BTreeMap::new();
        let mut shared: BTreeMap<OwnedServerName, Vec<RoomNumber>> = BTreeMap::new();
        for (user, devices) in wanted {
            if inner.accounts.is_local(&user) {
                if let Some(list) = self.local_list(snapshot, &user, &devices)? {
                    found.add(user, &devices, list);
                }
                continue;
            }
            let server = user.server_name().to_owned();
            let rooms = match shared.get(&server) {
                Some(rooms) => rooms,
                None => {
                    let rooms = self.rooms_shared_with(snapshot, asker, &server)?;
                    shared.entry(server.clone()).or_insert(rooms)
                }
            };
            let keys = match inner.accounts.user_number(snapshot, &user)? {
                Some(number) => inner.encryption.remote_keys(snapshot, number, rooms)?,
                None => RemoteKeys::Untracked,
            };
            let of_server = || questions.entry(server).or_default();
            match keys {
                RemoteKeys::Kept(list) => found.add(user, &devices, list),
                RemoteKeys::Wanted(ticket) => of_server().lists.push((user, devices, ticket)),
                RemoteKeys::Untracked => drop(of_server().others.insert(user, devices)),
            }
        }
        Ok((found, questions))
    }

    fn local_list(
        &self,
        snapshot: &Snapshot,
        user: &UserId,
        wanted: &[OwnedDeviceId],
    ) -> Result<Option<DeviceList>, Error> {
        let inner = &self.inner;
        let Some(account) = inner.accounts.account_info(snapshot, user)? else {
            return Ok(None);
        };
        let encryption = &inner.encryption;
        Ok(Some(DeviceList {
            devices: encryption.devices_with_keys(snapshot, account.number, wanted)?,
            ..DeviceList::default()
        }))
    }

    /// The rooms in which users of another server are, first those of the one who asks: there the others are likely to be.
    fn rooms_shared_with(
        &self,
        snapshot: &Snapshot,
        asker: UserNumber,
        server: &ServerName,
    ) -> Result<Vec<RoomNumber>, Error> {
        let rooms = &self.inner.rooms;
        let Some(server) = rooms.known_server(server) else {
            return Ok(Vec::new());
        };
        let shared = rooms.rooms_with_server(snapshot, server, Position::default())?;
        Ok(rooms.own_first(snapshot, asker, &shared)?)
    }

    /// Asks one server until the deadline.
    ///
    /// # Errors
    /// The store failed.
    async fn ask_for_keys(
        &self,
        server: &ServerName,
        questions: Questions,
        deadline: Instant,
    ) -> Result<Answers, Error> {
        let Questions { lists, mut others } = questions;
        let mut answers = Answers::default();
        let is_away = Arc::new(AtomicBool::new(false));
        let asked = stream::iter(lists).map(|(user, devices, ticket)| {
            let is_away = Arc::clone(&is_away);
            async move {
                let fetched = match is_away.load(Ordering::Relaxed) {
                    true => Err(Error::TimedOut(server.to_owned())),
                    false => self.list_of(&user, ticket, deadline).await,
                };
                let is_temporary = fetched.as_ref().is_err_and(Error::is_temporary);
                is_away.fetch_or(is_temporary, Ordering::Relaxed);
                (user, devices, fetched)
            }
        });
        let mut asked = Box::pin(asked.buffer_unordered(LISTS_AT_ONCE));
        while let Some((user, devices, fetched)) = asked.next().await {
            match fetched {
                Ok(list) => answers.found.add(user, &devices, list),
                Err(error) if is_local(&error) => return Err(error),
                Err(error) if error.is_temporary() => {
                    answers.failure.get_or_insert(error);
                }
                // It may know the user all the same.
                Err(_) => drop(others.insert(user, devices)),
            }
        }
        if others.is_empty() {
            return Ok(answers);
        }
        if answers.failure.is_none() {
            match self.query_server(server, &others, deadline).await {
                Ok(found) => answers.found.append(found),
                Err(error) if is_local(&error) => return Err(error),
                Err(error) => answers.failure = Some(error),
            }
        }
        Ok(answers)
    }

    /// The list of a user, fetched and kept, or by now kept by somebody who was faster.
    async fn list_of(
        &self,
        user: &OwnedUserId,
        ticket: Ticket,
        deadline: Instant,
    ) -> Result<DeviceList, Error> {
        let inner = &self.inner;
        let server = user.server_name();
        let turn = inner.key_lists.lock(user.clone());
        let turn = inner.clock.within(self.left(deadline), turn).await;
        let _turn = turn.ok_or_else(|| Error::TimedOut(server.to_owned()))?;
        let (federation, whose) = (self.clone(), user.clone());
        let read = move |snapshot: &Snapshot| federation.list_by_now(snapshot, &whose);
        let ticket = match self.inner.store.read(read).await? {
            Some(RemoteKeys::Kept(list)) => return Ok(list),
            Some(RemoteKeys::Wanted(newer)) => newer,
            Some(RemoteKeys::Untracked) | None => ticket,
        };
        let limits = Limits {
            timeout: self.left(deadline),
            max_bytes: MAX_LIST_BYTES,
        };
        let path = format!(
            "/_matrix/federation/v1/user/devices/{}",
            escaped(user.as_str())
        );
        let client = self.client();
        let answer = client.request(server, Method::GET, &path, None, limits);
        let answer = answer.await?;
        let (stream_id, list) = answer::read_list(user, answer.body())?;
        inner
            .encryption
            .keep_remote_list(ticket, stream_id, &list)
            .await?;
        Ok(list)
    }

    fn list_by_now(&self, snapshot: &Snapshot, user: &UserId) -> Result<Option<RemoteKeys>, Error> {
        let inner = &self.inner;
        let (Some(number), Some(server)) = (
            inner.accounts.user_number(snapshot, user)?,
            inner.rooms.known_server(user.server_name()),
        ) else {
            return Ok(None);
        };
        let rooms = &inner.rooms;
        let rooms = rooms.rooms_with_server(snapshot, server, Position::default())?;
        Ok(Some(
            inner.encryption.remote_keys(snapshot, number, &rooms)?,
        ))
    }

    async fn query_server(
        &self,
        server: &ServerName,
        wanted: &Wanted,
        deadline: Instant,
    ) -> Result<FoundKeys, Error> {
        let body = serde_json::json!({ "device_keys": wanted });
        let path = "/_matrix/federation/v1/user/keys/query";
        let answer = self.post_for_keys(server, path, &body, deadline).await?;
        answer::read_found(server, wanted, &answer)
    }

    async fn post_for_keys(
        &self,
        server: &ServerName,
        path: &str,
        body: &serde_json::Value,
        deadline: Instant,
    ) -> Result<bytes::Bytes, Error> {
        let limits = Limits {
            timeout: self.left(deadline),
            max_bytes: MAX_ANSWER_BYTES,
        };
        let body = Some(body.to_string().into());
        let client = self.client();
        let answer = client.request(server, Method::POST, path, body, limits);
        Ok(answer.await?.into_body())
    }

    fn left(&self, deadline: Instant) -> Duration {
        deadline.saturating_duration_since(self.inner.clock.instant())
    }

    /// Claims one-time keys of users of any server.
    ///
    /// # Errors
    /// The store failed. What other servers do is in the answer.
    pub async fn claim_keys(
        &self,
        claims: Claims,
        timeout: Duration,
    ) -> Result<ClaimedKeys, Error> {
        let deadline = self.inner.clock.instant() + timeout;
        let (mut local, mut remote) = (Claims::new(), BTreeMap::<_, Claims>::new());
        for (user, devices) in claims {
            match self.inner.accounts.is_local(&user) {
                true => drop(local.insert(user, devices)),
                false => {
                    let server = user.server_name().to_owned();
                    remote.entry(server).or_default().insert(user, devices);
                }
            }
        }
        let mut claimed = ClaimedKeys {
            one_time_keys: self.inner.encryption.claim_keys(local).await?,
            ..ClaimedKeys::default()
        };
        let asked = stream::iter(remote).map(|(server, claims)| async move {
            let answer = self.claim_of_server(&server, &claims, deadline).await;
            (server, answer)
        });
        let mut asked = Box::pin(asked.buffer_unordered(SERVERS_AT_ONCE));
        while let Some((server, answer)) = asked.next().await {
            match answer {
                Ok(keys) => claimed.one_time_keys.extend(keys),
                Err(error) => {
                    tracing::debug!(%server, %error, "a server gives no keys");
                    claimed.failures.insert(server, Failure::of(&error));
                }
            }
        }
        Ok(claimed)
    }

    async fn claim_of_server(
        &self,
        server: &ServerName,
        claims: &Claims,
        deadline: Instant,
    ) -> Result<Claimed, Error> {
        let body = serde_json::json!({ "one_time_keys": claims });
        let path = "/_matrix/federation/v1/user/keys/claim";
        let answer = self.post_for_keys(server, path, &body, deadline).await?;
        answer::read_claimed(server, claims, &answer)
    }
}

/// Whether it is our own fault.
fn is_local(error: &Error) -> bool {
    matches!(
        error,
        Error::Rooms(_) | Error::Accounts(_) | Error::Storage(_) | Error::Encryption(_)
    )
}

/// A device of another server, if its keys are its own.
fn device_of(
    user: &UserId,
    device: &OwnedDeviceId,
    keys: &RawValue,
    name: Option<String>,
) -> Option<DeviceWithKeys> {
    DeviceWithKeys::of_remote((user, device), keys.get(), name)
}

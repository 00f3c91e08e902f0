//! The answer to `send_join`, read without trust: large, maybe hostile, and in part broken in honest rooms as well.
//!
//! Of the text only the places of events are taken out at first; they are parsed and verified some thousands at a time, so
//! that what is in memory at once is the text, and what has been verified.

use std::collections::{BTreeSet, HashSet};

use bytes::Bytes;
use ruma::{
    OwnedEventId, OwnedRoomId, OwnedServerName, RoomId, room_version_rules::RoomVersionRules,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    events::{
        Verified,
        format::{self, Parsed},
        version,
    },
    federation::{
        Federation,
        membership::{MembershipError, text_of},
        server_keys::on_blocking_pool,
    },
};

/// Events parsed and verified at a time.
const CHUNK: usize = 4_000;

/// What the answer must be about.
#[derive(Clone, Debug)]
pub(in crate::federation) struct Expected {
    pub(in crate::federation) server: OwnedServerName,
    pub(in crate::federation) room_id: OwnedRoomId,
    pub(in crate::federation) rules: &'static RoomVersionRules,
}

/// A verified answer. Which of the events the rules allow is not known yet.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) join: Verified,
    pub(super) state: Vec<Verified>,
    pub(super) auth_chain: Vec<Verified>,
    /// Memberships were left out of the state: the servers in the room.
    pub(super) partial: Option<Vec<OwnedServerName>>,
}

/// The answer to `send_join`, or to `state`.
#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow, alias = "pdus")]
    state: Vec<&'a RawValue>,
    #[serde(borrow)]
    auth_chain: Vec<&'a RawValue>,
    #[serde(borrow, default)]
    event: Option<&'a RawValue>,
    #[serde(default)]
    members_omitted: bool,
    #[serde(default)]
    servers_in_room: Option<Vec<String>>,
}

/// The texts of events, as parts of the body.
struct Texts {
    state: Vec<Bytes>,
    auth_chain: Vec<Bytes>,
    event: Option<Bytes>,
    partial: Option<Vec<OwnedServerName>>,
}

/// Checks everything of an answer that needs no state.
///
/// # Errors
/// The answer is not of the form it should have, is of another room, or has lost the join.
pub(super) async fn check(
    federation: &Federation,
    expected: &Expected,
    join: Verified,
    body: Bytes,
) -> Result<Answer, MembershipError> {
    let texts = on_blocking_pool(move || texts(&body)).await;
    let texts =
        texts.map_err(|error| MembershipError::bad_answer(&expected.server, error.to_string()))?;
    let join = countersigned(federation, expected, join, texts.event).await?;
    let mut seen = HashSet::new();
    let mut is_new = |id: &OwnedEventId| seen.insert(id.clone());
    let state = verified(federation, expected, texts.state, &mut is_new).await;
    let auth_chain = verified(federation, expected, texts.auth_chain, &mut is_new).await;
    let mut keys = BTreeSet::new();
    for event in &state {
        let key = event.state_key.as_deref().unwrap_or_default();
        if !keys.insert((event.event_type.to_string(), key.to_owned())) {
            let reason = "the state has two events of one key";
            return Err(MembershipError::bad_answer(&expected.server, reason));
        }
    }
    Ok(Answer {
        join,
        state,
        auth_chain,
        partial: texts.partial.map(|mut servers| {
            // Who lets us in is in the room, whatever else is told.
            if !servers.contains(&expected.server) {
                servers.insert(0, expected.server.clone());
            }
            servers
        }),
    })
}

/// The events of an answer to `state` that are wanted, each once, verified as those of an answer to `send_join`.
pub(in crate::federation) async fn wanted(
    federation: &Federation,
    expected: &Expected,
    body: Bytes,
    mut wanted: HashSet<OwnedEventId>,
) -> Result<Vec<Verified>, MembershipError> {
    let texts = on_blocking_pool(move || texts(&body)).await;
    let texts =
        texts.map_err(|error| MembershipError::bad_answer(&expected.server, error.to_string()))?;
    let mut is_wanted = |id: &OwnedEventId| wanted.remove(id);
    let mut events = verified(federation, expected, texts.auth_chain, &mut is_wanted).await;
    events.extend(verified(federation, expected, texts.state, &mut is_wanted).await);
    Ok(events)
}

fn texts(body: &Bytes) -> Result<Texts, serde_json::Error> {
    let read: Body<'_> = serde_json::from_slice(body)?;
    let part = |text: &RawValue| body.slice_ref(text.get().as_bytes());
    let servers = read.servers_in_room.unwrap_or_default().into_iter();
    let servers = servers.filter_map(|server| OwnedServerName::try_from(server).ok());
    Ok(Texts {
        partial: read.members_omitted.then(|| servers.collect()),
        state: read.state.into_iter().map(part).collect(),
        auth_chain: read.auth_chain.into_iter().map(part).collect(),
        event: read.event.map(part),
    })
}

/// The join as the resident server has signed it as well, if it says so; ours as it is otherwise.
async fn countersigned(
    federation: &Federation,
    expected: &Expected,
    join: Verified,
    told: Option<Bytes>,
) -> Result<Verified, MembershipError> {
    let told = told.and_then(|told| format::parse(&told, expected.rules).ok());
    let told = told.filter(|told| told.event_id == join.event_id);
    let restricted = "join_authorised_via_users_server";
    let parsed = match told {
        Some(told) => told,
        None if join.content.get().contains(restricted) => {
            let reason = "the join is not signed by the server that allows it";
            return Err(MembershipError::bad_answer(&expected.server, reason));
        }
        None => return Ok(join),
    };
    let verified = federation.verify_one(parsed, expected.rules).await;
    verified.ok_or_else(|| {
        let reason = "the join is not signed as it should be";
        MembershipError::bad_answer(&expected.server, reason)
    })
}

/// The events that are of the room, taken, and signed as they should be.
async fn verified(
    federation: &Federation,
    expected: &Expected,
    texts: Vec<Bytes>,
    takes: &mut (impl FnMut(&OwnedEventId) -> bool + Send),
) -> Vec<Verified> {
    let rules = expected.rules;
    let mut all = Vec::with_capacity(texts.len());
    let mut texts = texts.into_iter().peekable();
    while texts.peek().is_some() {
        let chunk: Vec<Bytes> = texts.by_ref().take(CHUNK).collect();
        let room_id = expected.room_id.clone();
        let mut parsed = on_blocking_pool(move || parsed(&chunk, &room_id, rules)).await;
        parsed.retain(|event| takes(&event.event_id));
        let ids: Vec<_> = parsed.iter().map(|event| event.event_id.clone()).collect();
        let checked = federation.keys().verify_pdus(rules, parsed).await;
        for (event_id, event) in ids.into_iter().zip(checked) {
            match event {
                Ok(event) => all.push(event),
                Err(error) => tracing::info!(%event_id, %error, "left out of a joined room"),
            }
        }
    }
    all
}

/// The IDs of all events of an answer that are of the room and of sound format.
pub(in crate::federation) fn event_ids(
    body: &[u8],
    room_id: &RoomId,
    rules: &RoomVersionRules,
) -> Option<Vec<OwnedEventId>> {
    let texts = texts(&Bytes::copy_from_slice(body)).ok()?;
    let all = [texts.state, texts.auth_chain].concat();
    let parsed = parsed(&all, &room_id.to_owned(), rules);
    Some(parsed.into_iter().map(|event| event.event_id).collect())
}

/// The state events of the room among `texts`.
fn parsed(texts: &[Bytes], room_id: &OwnedRoomId, rules: &RoomVersionRules) -> Vec<Parsed> {
    let is_of_room = |event: &Parsed| match text_of(&event.object, "room_id") {
        Some(named) => named == room_id.as_str(),
        // The create event of a room whose ID is made from it.
        None => version::implicit_create(room_id, rules).as_ref() == Some(&event.event_id),
    };
    texts
        .iter()
        .filter_map(|text| format::parse(text, rules).ok())
        .filter(|event| text_of(&event.object, "state_key").is_some() && is_of_room(event))
        .collect()
}

#[cfg(test)]
mod tests;

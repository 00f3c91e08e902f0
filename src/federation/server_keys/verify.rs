//! Hashes and signatures of many events at once.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::{StreamExt as _, stream};
use ruma::{
    CanonicalJsonObject, OwnedServerName, ServerName,
    canonical_json::CanonicalJsonValue,
    room_version_rules::RoomVersionRules,
    serde::Base64,
    signatures::{PublicKeyMap, PublicKeySet},
};
use tokio::runtime::{Handle, RuntimeFlavor};

use super::{Reason, ServerKeys, Wanted, known::KnownKeys};
use crate::events::{
    Verified,
    format::Parsed,
    sign::{self, VerifyError},
};

/// Events that one thread checks at a time: some ten milliseconds.
const CHUNK: usize = 128;
/// So few are checked where they are.
const MAX_INLINE: usize = 4;
/// Signatures of one server on one event whose keys are looked for.
const MAX_KEYS_OF_EVENT: usize = 8;

type Keys = BTreeMap<OwnedServerName, Arc<KnownKeys>>;

impl ServerKeys {
    /// Checks hashes and signatures of `events`, after getting the keys of all servers that have to have signed them. The
    /// answers are in their order. An event whose key cannot be had is one with a wrong signature.
    ///
    /// Spec: s2s, "Validating hashes and signatures on received events".
    pub async fn verify_pdus(
        &self,
        rules: &'static RoomVersionRules,
        events: Vec<Parsed>,
    ) -> Vec<Result<Verified, VerifyError>> {
        let is_few = events.len() <= MAX_INLINE;
        let (wanted, events) = match is_few {
            true => (wanted(&events, rules), events),
            false => on_blocking_pool(move || (wanted(&events, rules), events)).await,
        };
        // On the heap: whoever receives events has enough on its stack.
        let keys = Arc::new(Box::pin(self.gather(wanted, Reason::Events)).await);
        if is_few {
            return verify_chunk(rules, &keys, events);
        }
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let chunks = Chunks(events.into_iter()).map(|chunk| {
            let keys = Arc::clone(&keys);
            on_blocking_pool(move || verify_chunk(rules, &keys, chunk))
        });
        let verified: Vec<_> = stream::iter(chunks).buffered(threads).collect().await;
        verified.into_iter().flatten().collect()
    }
}

/// Runs `work` where it may take long. On a runtime with one thread, which is a test's, that is right here: a simulation shall
/// not depend on when threads run.
pub(in crate::federation) async fn on_blocking_pool<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
        return work();
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(failed) => match failed.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only a runtime that ends cancels; nobody waits for the answer any more.
            Err(_cancelled) => std::future::pending().await,
        },
    }
}

/// Events in portions.
struct Chunks(std::vec::IntoIter<Parsed>);

impl Iterator for Chunks {
    type Item = Vec<Parsed>;

    fn next(&mut self) -> Option<Vec<Parsed>> {
        let chunk: Vec<Parsed> = self.0.by_ref().take(CHUNK).collect();
        (!chunk.is_empty()).then_some(chunk)
    }
}

/// The keys that `events` are signed with, as far as it matters, and when each must have been valid.
fn wanted(events: &[Parsed], rules: &RoomVersionRules) -> Wanted {
    let mut wanted = Wanted::new();
    for event in events {
        // An event that names no servers is refused when it is verified.
        let Ok(servers) = sign::required_servers(event, &rules.signatures) else {
            continue;
        };
        let at_ms = moment(event, rules);
        for server in servers {
            let keys = wanted.entry(server.clone()).or_default();
            for id in key_ids(&event.object, &server) {
                match keys.get_mut(id) {
                    Some(latest) => *latest = at_ms.max(*latest),
                    None => drop(keys.insert(id.to_owned(), at_ms)),
                }
            }
        }
    }
    wanted.retain(|_, keys| !keys.is_empty());
    wanted
}

fn verify_chunk(
    rules: &RoomVersionRules,
    keys: &Keys,
    events: Vec<Parsed>,
) -> Vec<Result<Verified, VerifyError>> {
    let verify = |event: Parsed| {
        let keys = keys_of(&event, rules, keys)?;
        sign::verify(event, rules, &keys)
    };
    events.into_iter().map(verify).collect()
}

/// The keys that an event may have been signed with.
fn keys_of(
    event: &Parsed,
    rules: &RoomVersionRules,
    keys: &Keys,
) -> Result<PublicKeyMap, VerifyError> {
    let at_ms = moment(event, rules);
    let mut map = PublicKeyMap::new();
    for server in sign::required_servers(event, &rules.signatures)? {
        let Some(known) = keys.get(&server) else {
            continue;
        };
        let valid = key_ids(&event.object, &server).filter_map(|id| {
            let key = known.valid_at(id, at_ms)?;
            Some((id.to_owned(), Base64::new(key.to_vec())))
        });
        map.insert(server.to_string(), valid.collect::<PublicKeySet>());
    }
    Ok(map)
}

/// When the keys of an event must have been valid: at any time, in versions that do not ask.
///
/// Spec: rooms/v5, "Signing key validity period".
fn moment(event: &Parsed, rules: &RoomVersionRules) -> u64 {
    match event.object.get("origin_server_ts") {
        Some(CanonicalJsonValue::Integer(time)) if rules.enforce_key_validity => {
            u64::try_from(i64::from(*time)).unwrap_or(0)
        }
        _ => 0,
    }
}

/// The IDs of the keys with which a server has signed.
fn key_ids<'a>(
    object: &'a CanonicalJsonObject,
    server: &ServerName,
) -> impl Iterator<Item = &'a str> {
    let of_server = match object.get("signatures") {
        Some(CanonicalJsonValue::Object(signatures)) => signatures.get(server.as_str()),
        _ => None,
    };
    let signatures = match of_server {
        Some(CanonicalJsonValue::Object(signatures)) => Some(signatures),
        _ => None,
    };
    let ids = signatures
        .into_iter()
        .flat_map(|signatures| signatures.keys());
    ids.map(String::as_str)
        .filter(|id| id.starts_with("ed25519:"))
        .take(MAX_KEYS_OF_EVENT)
}

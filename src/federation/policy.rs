//! Policy servers: a room may name a server whose signature every event needs in order to be shown.
//!
//! The signature decides about showing, never about the rules of the room: an event without it is soft-failed.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use lru::LruCache;
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue,
    api::federation::policy::sign_event,
    events::room::policy::{POLICY_SERVER_ED25519_SIGNING_KEY_ID, RoomPolicyEventContent},
    room_version_rules::RoomVersionRules,
    signatures::verify_policy_server_signature,
};
use serde_json::value::RawValue;

use super::{Error, Federation, client::Limits};
use crate::{
    events::{Pdu, RootNumber, Verified, canonical},
    rooms::RoomNumber,
    storage::Snapshot,
};

/// How long a policy server may think.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The largest answer with a signature.
const MAX_ANSWER_BYTES: usize = 64 << 10;
/// Rooms whose policy server is remembered.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(10_000).expect("ten thousand is not zero");

const EVENT_TYPE: &str = "m.room.policy";

/// What a room says of its policy server.
type Policy = Option<Arc<RoomPolicyEventContent>>;

/// What is known of the policy servers of rooms, each at the state in which it was looked up.
pub(super) struct Policies {
    known: Mutex<LruCache<RoomNumber, (RootNumber, Policy)>>,
}

impl Default for Policies {
    fn default() -> Self {
        Self {
            known: Mutex::new(LruCache::new(REMEMBERED)),
        }
    }
}

impl Federation {
    /// The policy server that the room uses now.
    ///
    /// Spec: s2s, "Determining if a Policy Server is enabled in a room".
    pub(super) async fn policy(&self, room: RoomNumber) -> Result<Policy, Error> {
        let rooms = &self.inner.rooms;
        // Most servers never see one.
        let (Some(_), Some(published)) = (rooms.type_number(EVENT_TYPE), rooms.published(room))
        else {
            return Ok(None);
        };
        let root = published.head.root;
        if let Some((at, policy)) = self.policies().get(&room)
            && *at == root
        {
            return Ok(policy.clone());
        }
        let rooms = rooms.clone();
        let find = move |snapshot: &Snapshot| -> Result<Policy, Error> {
            let Some(event) = rooms.state_event(snapshot, (room, root), EVENT_TYPE, "")? else {
                return Ok(None);
            };
            let Ok(policy) = event.pdu.content_as::<RoomPolicyEventContent>() else {
                return Ok(None);
            };
            let is_joined = rooms.servers(snapshot, room)?.contains(&policy.via)
                || (policy.via == rooms.own_name() && published.head.local > 0);
            let has_key = policy
                .public_keys
                .contains_key(&ruma::SigningKeyAlgorithm::Ed25519);
            Ok((is_joined && has_key).then(|| Arc::new(policy)))
        };
        let policy = self.inner.store.read(find).await?;
        self.policies().put(room, (root, policy.clone()));
        Ok(policy)
    }

    fn policies(&self) -> std::sync::MutexGuard<'_, LruCache<RoomNumber, (RootNumber, Policy)>> {
        let known = &self.inner.policies.known;
        known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The event with the signature of the policy server, which is asked for it.
    ///
    /// # Errors
    /// The policy server refuses, or does not answer as it should.
    ///
    /// Spec: s2s, "Validating policy server signatures".
    pub(super) async fn recommended(
        &self,
        policy: &RoomPolicyEventContent,
        event: &Verified,
        rules: &RoomVersionRules,
    ) -> Result<Verified, Error> {
        let signature = self.ask_for_signature(policy, &event.json).await?;
        signed(policy, event, &signature)
            .filter(|signed| is_recommended(policy, signed, rules))
            .ok_or_else(|| malformed(policy, "the signature is wrong"))
    }

    /// Asks the policy server to sign an event.
    ///
    /// Spec: s2s, "Asking for a policy server signature on an event".
    async fn ask_for_signature(
        &self,
        policy: &RoomPolicyEventContent,
        json: &[u8],
    ) -> Result<String, Error> {
        let pdu: Box<RawValue> =
            serde_json::from_slice(json).map_err(|error| malformed(policy, error))?;
        let limits = Limits {
            timeout: TIMEOUT,
            max_bytes: MAX_ANSWER_BYTES,
        };
        let request = sign_event::v1::Request::new(pdu);
        let client = &self.inner.client;
        let answer = client.send_within(&policy.via, request, limits).await?;
        answer
            .ed25519_signature(&policy.via)
            .map(str::to_owned)
            .ok_or_else(|| malformed(policy, "it has not signed"))
    }
}

fn malformed(
    policy: &RoomPolicyEventContent,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> Error {
    Error::Malformed {
        server: policy.via.clone(),
        source: source.into(),
    }
}

/// Whether the event has a right signature of the policy server, or needs none.
pub(super) fn is_recommended(
    policy: &RoomPolicyEventContent,
    event: &Pdu,
    rules: &RoomVersionRules,
) -> bool {
    canonical::parse(&event.json)
        .is_ok_and(|object| verify_policy_server_signature(policy, &object, rules).is_ok())
}

/// The event with one signature more. Its other signatures stay, also those of the same server.
fn signed(policy: &RoomPolicyEventContent, event: &Verified, signature: &str) -> Option<Verified> {
    let mut object = canonical::parse(&event.json).ok()?;
    let CanonicalJsonValue::Object(signatures) = object.get_mut("signatures")? else {
        return None;
    };
    let of_server = signatures
        .entry(policy.via.to_string())
        .or_insert_with(|| CanonicalJsonValue::Object(CanonicalJsonObject::new()));
    let CanonicalJsonValue::Object(of_server) = of_server else {
        return None;
    };
    of_server.insert(
        POLICY_SERVER_ED25519_SIGNING_KEY_ID.to_owned(),
        signature.into(),
    );
    let json = canonical::to_vec(&object);
    let pdu = Pdu::from_stored(event.event_id.clone(), json.into(), event.rejected).ok()?;
    Some(Verified::from_stored(pdu))
}

#[cfg(test)]
mod tests;

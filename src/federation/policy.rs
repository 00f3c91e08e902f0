//! Policy servers: a room may name a server whose signature every event needs in order to be shown.
//!
//! The signature decides about showing, never about the rules of the room: an event without it is soft-failed.

use std::time::Duration;

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue,
    api::federation::policy::sign_event,
    events::room::policy::{POLICY_SERVER_ED25519_SIGNING_KEY_ID, RoomPolicyEventContent},
    room_version_rules::RoomVersionRules,
    signatures::verify_policy_server_signature,
};
use serde_json::value::RawValue;

use super::{Error, Federation, client::Limits, membership::MembershipError};
use crate::{
    events::{Pdu, Verified, canonical},
    rooms::Signing,
    tasks::{Stage, Tasks},
};

/// How long a policy server may think.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The largest answer with a signature.
const MAX_ANSWER_BYTES: usize = 64 << 10;
/// Events of ours for which policy servers are asked at the same time.
const MAX_ASKING: usize = 64;

impl Federation {
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

    /// Begins to get signatures for events of ours.
    pub(super) fn start_signing(&self, tasks: &Tasks) {
        let mut signings = self.inner.rooms.take_signings();
        let stop = tasks.stop_signal(Stage::Followers);
        let federation = self.clone();
        let work = async move {
            let mut asking = FuturesUnordered::new();
            loop {
                tokio::select! {
                    Some(signing) = signings.recv(), if asking.len() < MAX_ASKING => {
                        asking.push(federation.sign(signing));
                    }
                    Some(()) = asking.next() => {}
                    () = stop.requested() => return,
                }
            }
        };
        tasks.spawn("policy signatures", Stage::Followers, work);
    }

    /// As [`Self::recommended`], for an event of the room that is not in it yet; the event as it is if the room has no policy
    /// server, or it has signed it already.
    ///
    /// # Errors
    /// The policy server does not want the event in the room, or does not answer.
    pub(super) async fn approved(
        &self,
        policy: Option<RoomPolicyEventContent>,
        event: Verified,
        rules: &RoomVersionRules,
    ) -> Result<Verified, MembershipError> {
        match policy {
            Some(policy) if !is_recommended(&policy, &event, rules) => self
                .recommended(&policy, &event, rules)
                .await
                .map_err(|error| MembershipError::Forbidden(refusal(error).into())),
            _ => Ok(event),
        }
    }

    async fn sign(&self, signing: Signing) {
        let Signing {
            room,
            policy,
            event,
            reply,
        } = signing;
        let answer = match self.inner.rooms.rules_of(room) {
            Ok(rules) => self.recommended(&policy, &event, rules).await,
            Err(error) => Err(error.into()),
        };
        let answer = answer.map_err(refusal);
        // Who does not wait any more has been told so.
        drop(reply.send(answer));
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

/// What somebody is told whose event the policy server has not signed: what that says itself, if it does.
fn refusal(error: Error) -> String {
    match error {
        Error::Remote { message, .. } => message.into(),
        _ => "the policy server of the room did not answer".to_owned(),
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

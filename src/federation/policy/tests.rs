//! Signatures of policy servers.

use ruma::{
    CanonicalJsonObject, MilliSecondsSinceUnixEpoch, UInt, owned_room_id, owned_server_name,
    owned_user_id, serde::Base64, signatures::Ed25519KeyPair,
};

use super::*;
use crate::events::{NewPdu, Signer};

const RULES: RoomVersionRules = RoomVersionRules::V11;

fn event(event_type: &str) -> Verified {
    let signer = Signer::generate(owned_server_name!("a.test"), &[7; 32]);
    let new = NewPdu {
        room_id: Some(owned_room_id!("!room:a.test")),
        sender: owned_user_id!("@alice:a.test"),
        event_type: event_type.into(),
        state_key: (event_type == "m.room.policy").then(String::new),
        content: CanonicalJsonObject::new(),
        origin_server_ts: MilliSecondsSinceUnixEpoch(UInt::from(1_u32)),
        depth: 1,
        prev_events: Vec::new(),
        auth_events: Vec::new(),
        redacts: None,
        named: None,
    };
    signer.build(new, &RULES).expect("the event is small")
}

/// The signature that a policy server would answer.
fn signature(key: &Ed25519KeyPair, event: &Verified) -> String {
    let mut object = canonical::parse(&event.json).expect("canonical JSON");
    ruma::signatures::sign_event("policy.test", key, &mut object, &RULES.redaction)
        .expect("it can be signed");
    object
        .get("signatures")
        .and_then(|all| all.as_object()?.get("policy.test")?.as_object())
        .and_then(|of_server| of_server.values().next()?.as_str())
        .expect("a signature")
        .to_owned()
}

fn policy_server() -> (Ed25519KeyPair, RoomPolicyEventContent) {
    let document = Ed25519KeyPair::generate();
    let key = Ed25519KeyPair::from_der(&document, "policy_server".to_owned()).expect("a key");
    let public = Base64::new(key.public_key().to_vec());
    let policy = RoomPolicyEventContent::new(owned_server_name!("policy.test"), public);
    (key, policy)
}

#[test]
fn an_event_needs_the_signature_of_the_policy_server() {
    let (key, policy) = policy_server();
    let event = event("m.room.message");
    assert!(!is_recommended(&policy, &event, &RULES));

    let signature = signature(&key, &event);
    let signed = signed(&policy, &event, &signature).expect("the event can be signed");
    assert!(is_recommended(&policy, &signed, &RULES));
    assert_eq!(signed.event_id, event.event_id);
    let object = canonical::parse(&signed.json).expect("canonical JSON");
    let servers = object["signatures"].as_object().expect("an object");
    assert_eq!(servers.len(), 2, "the signature of its server stays");
}

#[test]
fn a_wrong_signature_does_not_count() {
    let (_, policy) = policy_server();
    let (other, _) = policy_server();
    let event = event("m.room.message");
    let wrong = signature(&other, &event);
    let signed = signed(&policy, &event, &wrong).expect("the event can be signed");
    assert!(!is_recommended(&policy, &signed, &RULES));
}

#[test]
fn the_event_that_names_the_policy_server_needs_no_signature() {
    let (_, policy) = policy_server();
    assert!(is_recommended(&policy, &event("m.room.policy"), &RULES));
}

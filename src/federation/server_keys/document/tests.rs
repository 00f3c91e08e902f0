//! What counts as the keys of a server.

use ruma::{CanonicalJsonObject, canonical_json::CanonicalJsonValue, server_name};
use serde_json::{Value, json};

use super::{BadDocument, read};
use crate::events::{Signer, canonical};

pub(in crate::federation::server_keys) fn signer(seed: u8) -> Signer {
    Signer::generate(server_name!("other.test").to_owned(), &[seed; 32])
}

/// The keys of `signer`, signed by it, with other fields as `change` says.
#[allow(
    clippy::needless_pass_by_value,
    reason = "tests say what they change in place"
)]
pub(in crate::federation::server_keys) fn document(signer: &Signer, change: Value) -> Vec<u8> {
    let mut document = json!({
        "server_name": signer.server_name(),
        "verify_keys": { signer.key_id().as_str(): { "key": signer.verify_key() } },
        "valid_until_ts": 5_000,
    });
    for (key, value) in change.as_object().unwrap() {
        document[key] = value.clone();
    }
    let mut object = object(document);
    signer.sign_json(&mut object).unwrap();
    canonical::to_vec(&object)
}

fn object(value: Value) -> CanonicalJsonObject {
    match CanonicalJsonValue::try_from(value).unwrap() {
        CanonicalJsonValue::Object(object) => object,
        other => panic!("{other:?}"),
    }
}

#[test]
fn keys_are_read_with_their_ends() {
    let (new, old) = (signer(1), signer(2));
    let ended = json!({ "key": format!("{}=", old.verify_key()), "expired_ts": 1_000 });
    let text = document(
        &new,
        json!({ "old_verify_keys": { "ed25519:old": ended, "ed25519:bad": {}, "other:1": {} } }),
    );
    let read = read(server_name!("other.test"), &text).unwrap();
    assert_eq!(read.valid_until_ms, 5_000);
    assert_eq!(
        read.current.keys().collect::<Vec<_>>(),
        [new.key_id().as_str()]
    );
    let old: Vec<_> = read
        .old
        .iter()
        .map(|(id, (_, end))| (id.as_str(), *end))
        .collect();
    assert_eq!(old, [("ed25519:old", 1_000)], "padding is no fault");
}

#[test]
fn keys_must_be_signed_with_one_of_themselves() {
    let (good, other) = (signer(1), signer(2));
    let name = server_name!("other.test");
    let foreign = json!({
        "verify_keys": { good.key_id().as_str(): { "key": other.verify_key() } },
    });
    for text in [
        document(&good, json!({ "verify_keys": {} })),
        document(&good, foreign),
    ] {
        assert!(matches!(read(name, &text), Err(BadDocument::Unsigned)));
    }
}

#[test]
fn keys_of_another_server_are_refused() {
    let text = document(&signer(1), json!({}));
    assert!(matches!(
        read(server_name!("third.test"), &text),
        Err(BadDocument::OtherServer)
    ));
}

#[test]
fn nonsense_is_refused() {
    for text in [
        "",
        "[]",
        "{}",
        "{\"server_name\":\"other.test\"}",
        "{\"a\":1.5}",
    ] {
        assert!(read(server_name!("other.test"), text.as_bytes()).is_err());
    }
}

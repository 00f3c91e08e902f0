//! When a key counts.

use std::collections::BTreeMap;

use ruma::server_name;
use serde_json::{Value, json};

use super::{KnownKey, KnownKeys, MAX_VALIDITY_MS};
use crate::{
    events::Signer,
    federation::server_keys::document::{
        KeyDocument, read,
        tests::{document, signer},
    },
    storage::{Cbor, Record as _},
};

fn told(signer: &Signer, change: Value) -> KeyDocument {
    read(server_name!("other.test"), &document(signer, change)).unwrap()
}

#[test]
fn a_key_counts_until_its_end_and_for_a_week_at_most() {
    let signer = signer(1);
    let id = signer.key_id().as_str();
    let mut known = KnownKeys::default();
    known.merge(&told(&signer, json!({ "valid_until_ts": 5_000 })), 1_000);
    assert!(known.valid_at(id, 5_000).is_some());
    assert!(known.valid_at(id, 5_001).is_none());

    known.merge(
        &told(&signer, json!({ "valid_until_ts": 1_u64 << 50 })),
        1_000,
    );
    assert!(known.valid_at(id, 1_000 + MAX_VALIDITY_MS).is_some());
    assert!(known.valid_at(id, 1_001 + MAX_VALIDITY_MS).is_none());
}

#[test]
fn a_key_that_is_not_named_any_more_counts_for_old_events_only() {
    let (first, second) = (signer(1), signer(2));
    let (old, new) = (first.key_id().as_str(), second.key_id().as_str());
    let mut known = KnownKeys::default();
    known.merge(&told(&first, json!({ "valid_until_ts": 5_000 })), 1_000);
    known.merge(&told(&second, json!({ "valid_until_ts": 9_000 })), 4_000);
    assert!(known.valid_at(old, 5_000).is_some());
    assert!(known.in_use(old, 4_500).is_none());
    assert!(known.in_use(new, 4_500).is_some());
    assert!(known.document.contains(new));

    let ended = json!({ old: { "key": first.verify_key(), "expired_ts": 3_000 } });
    let change = json!({ "valid_until_ts": 9_000, "old_verify_keys": ended });
    known.merge(&told(&second, change), 4_000);
    assert!(known.valid_at(old, 3_000).is_some());
    assert!(known.valid_at(old, 3_001).is_none(), "its end is known now");
}

#[test]
fn an_older_answer_only_adds_keys_that_were_not_known() {
    let (first, second) = (signer(1), signer(2));
    let mut known = KnownKeys::default();
    known.merge(&told(&second, json!({ "valid_until_ts": 9_000 })), 4_000);
    known.merge(&told(&first, json!({ "valid_until_ts": 5_000 })), 4_000);
    assert!(known.valid_at(first.key_id().as_str(), 5_000).is_some());
    assert!(known.in_use(first.key_id().as_str(), 4_000).is_none());
    assert!(known.in_use(second.key_id().as_str(), 4_000).is_some());
    assert_eq!(known.valid_until_ms, 9_000);
}

#[test]
fn the_row_has_these_bytes() {
    let key = KnownKey {
        key: [7; 32],
        valid_until_ms: 1_000,
        is_old: false,
    };
    let row = Cbor(KnownKeys {
        keys: BTreeMap::from([("ed25519:a".to_owned(), key)]),
        document: "{}".to_owned(),
        valid_until_ms: 1_000,
        fetched_ms: 500,
    });
    let mut bytes = Vec::new();
    row.encode(&mut bytes);
    assert_eq!(Cbor::<KnownKeys>::decode(&bytes).unwrap(), row);
    let key = r"\x07".repeat(32);
    let expected = [
        r"\xa4dkeys\xa1ied25519:a\xa3ckey\x98 ",
        &key,
        r"nvalid_until_ms\x19\x03\xe8fis_old\xf4hdocumentb{}nvalid_until_ms\x19\x03\xe8jfetched_ms\x19\x01\xf4",
    ];
    assert_eq!(bytes.escape_ascii().to_string(), expected.concat());
}

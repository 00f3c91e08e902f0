//! Only what was asked for, and only what its owner may say, is read.

use ruma::{server_name, user_id};
use serde_json::json;

use super::*;

#[test]
fn a_list_is_read_without_devices_that_have_no_keys_or_those_of_others() {
    let keys = |device: &str| json!({ "user_id": "@a:b.test", "device_id": device });
    let body = json!({
        "user_id": "@a:b.test",
        "stream_id": 7,
        "devices": [
            { "device_id": "D", "keys": keys("D"), "device_display_name": "Phone" },
            { "device_id": "E" },
            { "device_id": "F", "keys": keys("G") },
        ],
        "master_key": { "user_id": "@a:b.test" },
        "self_signing_key": { "user_id": "@other:b.test" },
    });
    let (stream_id, list) = read_list(user_id!("@a:b.test"), body.to_string().as_bytes()).unwrap();
    assert_eq!(stream_id, 7);
    let devices: Vec<_> = list.devices.keys().map(|id| id.as_str()).collect();
    assert_eq!(devices, ["D"]);
    assert!(list.master_key.is_some());
    assert_eq!(list.self_signing_key, None);
    assert!(read_list(user_id!("@a:b.test"), b"{}").is_err());
}

#[test]
fn keys_that_nobody_asked_for_are_not_taken() {
    let server = server_name!("b.test");
    let keys = json!({ "user_id": "@a:b.test", "device_id": "D" });
    let body = json!({ "device_keys": {
        "@a:b.test": { "D": keys },
        "@c:b.test": {},
    } });
    let wanted = Wanted::from([(user_id!("@a:b.test").to_owned(), Vec::new())]);
    let found = read_found(server, &wanted, body.to_string().as_bytes()).unwrap();
    let users: Vec<_> = found.device_keys.keys().map(|user| user.as_str()).collect();
    assert_eq!(users, ["@a:b.test"]);
}

#[test]
fn of_each_device_one_key_of_the_algorithm_is_taken() {
    let server = server_name!("b.test");
    let body = json!({ "one_time_keys": {
        "@a:b.test": {
            "D": { "other:1": "x", "signed_curve25519:1": {}, "signed_curve25519:2": {} },
            "E": { "signed_curve25519:3": {} },
        },
    } });
    let device = BTreeMap::from([("D".into(), "signed_curve25519".into())]);
    let claims = Claims::from([(user_id!("@a:b.test").to_owned(), device)]);
    let claimed = read_claimed(server, &claims, body.to_string().as_bytes()).unwrap();
    let told = serde_json::to_value(&claimed).unwrap();
    let expected = json!({ "@a:b.test": { "D": { "signed_curve25519:1": {} } } });
    assert_eq!(told, expected);
}

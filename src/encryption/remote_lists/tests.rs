//! What is known of a list after which change; the bytes of rows.

use ruma::user_id;

use super::*;
use crate::storage::Record;

fn known(stream_id: u64, is_stale: bool) -> RemoteList {
    RemoteList {
        stream_id,
        is_stale,
        ..RemoteList::default()
    }
}

#[test]
fn a_change_that_comes_after_what_is_known_leaves_nothing_out() {
    let check = |known: Option<&RemoteList>, prev_ids: &[u64], expected| {
        assert_eq!(follows(known, prev_ids), expected, "{known:?} {prev_ids:?}");
    };
    check(None, &[], false);
    check(None, &[1], false);
    check(Some(&known(5, false)), &[5], true);
    check(Some(&known(5, false)), &[3, 5], true);
    check(Some(&known(5, false)), &[], false);
    check(Some(&known(5, false)), &[4], false);
    check(Some(&known(5, false)), &[5, 6], false);
    check(Some(&known(5, true)), &[5], false);
}

#[test]
fn a_fetched_list_follows_the_changes_that_tell_all_and_goes_stale_with_all_others() {
    let fetched = RemoteList {
        fetched_at: Some(9),
        ..known(5, false)
    };
    let published = Some(RemoteDeviceChange::Published(DeviceWithKeys::default()));
    let after = |prev: u64, device: Option<RemoteDeviceChange>, is_full| {
        let change = RemoteChange {
            stream_id: Some(6),
            prev_ids: vec![prev],
            device: device.map(|change| ("D".into(), change)),
        };
        let mut batch = Batch::new();
        let place = (UserNumber(1), Some(fetched.clone()));
        let list = changed(&mut batch, place, (change, is_full))
            .unwrap()
            .unwrap();
        assert_eq!((list.stream_id, list.fetched_at), (6, Some(9)));
        assert_eq!(batch.is_empty(), list.is_stale);
        !list.is_stale
    };
    assert!(after(5, published.clone(), false));
    assert!(after(5, Some(RemoteDeviceChange::Ended), true));
    assert!(!after(4, published.clone(), false), "one is missing");
    assert!(!after(5, None, false), "nobody says what has changed");
    assert!(!after(5, published, true), "there is no room for it");
}

#[test]
fn a_change_of_signing_keys_makes_a_list_stale_and_what_was_told_is_not_told_again() {
    let after = |known: Option<RemoteList>, stream_id| {
        let change = RemoteChange {
            stream_id,
            ..RemoteChange::default()
        };
        changed(&mut Batch::new(), (UserNumber(1), known), (change, false))
    };
    assert_eq!(after(None, None), Some(None));
    assert_eq!(
        after(Some(known(5, false)), None),
        Some(Some(known(5, true)))
    );
    assert_eq!(after(Some(known(5, false)), Some(5)), None);
    // Who has not fetched the list has to be told nevertheless.
    let untold = RemoteList {
        is_untold: true,
        ..known(5, false)
    };
    assert_eq!(after(Some(untold), Some(5)), Some(Some(known(5, false))));
    assert_eq!(after(None, Some(5)), Some(Some(known(5, true))));
}

#[test]
fn keys_of_another_user_or_device_are_none() {
    let of = |user, device: &str| {
        let keys = format!(
            r#"{{"user_id":"@a:b","device_id":"{device}","unsigned":{{"device_display_name":"N"}}}}"#
        );
        DeviceWithKeys::of_remote((user, "D".into()), &keys, None)
    };
    let device = of(user_id!("@a:b"), "D").unwrap();
    assert_eq!(device.json, r#"{"device_id":"D","user_id":"@a:b"}"#);
    assert_eq!(device.display_name.as_deref(), Some("N"));
    assert_eq!(of(user_id!("@a:b"), "E"), None);
    assert_eq!(of(user_id!("@c:b"), "D"), None);
}

#[test]
fn rows_have_these_bytes() {
    let hex = |record: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = Vec::new();
        record(&mut bytes);
        bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let list = known(5, true);
    assert_eq!(
        hex(&|to| Cbor(list.clone()).encode(to)),
        "a26973747265616d5f6964056869735f7374616c65f5"
    );
    let device = DeviceWithKeys {
        json: "{}".to_owned(),
        display_name: Some("N".to_owned()),
    };
    assert_eq!(
        hex(&|to| Cbor(device.clone()).encode(to)),
        "a2646a736f6e627b7d6c646973706c61795f6e616d65614e"
    );
}

//! Reading stored events.

use super::*;

const MESSAGE: &str = r#"{"auth_events":["$a"],"content":{"body":"hi"},"depth":7,"hashes":{},"origin_server_ts":12,"prev_events":["$b","$c"],"room_id":"!r:x.example","sender":"@a:x.example","signatures":{},"type":"m.room.message"}"#;

fn read(json: &str) -> Result<Pdu, Malformed> {
    Pdu::from_stored(
        ruma::event_id!("$e").to_owned(),
        Bytes::copy_from_slice(json.as_bytes()),
        false,
    )
}

#[test]
fn a_stored_event_is_read() {
    let pdu = read(MESSAGE).expect("the event has all fields");
    assert_eq!(
        (pdu.event_id.as_str(), pdu.sender.as_str(), pdu.depth),
        ("$e", "@a:x.example", 7)
    );
    assert_eq!(
        pdu.room_id.as_ref().map(|id| id.as_str()),
        Some("!r:x.example")
    );
    assert_eq!(pdu.prev_events, ["$b", "$c"]);
    assert_eq!(pdu.auth_events, ["$a"]);
    assert_eq!(pdu.content.get(), r#"{"body":"hi"}"#);
    assert_eq!(pdu.json, MESSAGE);
    assert!(!pdu.is_state());
}

#[test]
fn fields_that_no_check_looks_at_may_be_anything() {
    let odd = MESSAGE.replacen('{', r#"{"redacts":5,"origin":[],"#, 1);
    assert_eq!(read(&odd).expect("the event has all fields").redacts, None);
}

#[test]
fn the_target_of_a_redaction_is_found_in_both_places() {
    let redaction = MESSAGE.replace("m.room.message", "m.room.redaction");
    let beside = redaction.replacen('{', r#"{"redacts":"$t","#, 1);
    let inside = redaction.replace(r#""body":"hi""#, r#""redacts":"$t""#);
    let broken = redaction.replace(r#""body":"hi""#, r#""redacts":{}"#);
    let target = |json: &str| read(json).expect("the event has all fields").redacts;
    assert_eq!(target(&beside).as_deref(), Some(ruma::event_id!("$t")));
    assert_eq!(target(&inside).as_deref(), Some(ruma::event_id!("$t")));
    assert_eq!(target(&broken), None);
}

#[test]
fn a_damaged_event_is_an_error() {
    assert!(read(&MESSAGE.replace("\"depth\":7,", "")).is_err());
    assert!(read(&MESSAGE.replace("@a:x.example", "nobody")).is_err());
    assert!(read("").is_err());
}

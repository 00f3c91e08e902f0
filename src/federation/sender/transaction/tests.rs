//! Bodies of transactions and what answers mean.

use ruma::{api::error::ErrorKind, server_name};

use super::*;

#[test]
fn a_body_is_canonical_json_of_its_parts() {
    let contents = Contents {
        pdus: vec![
            Bytes::from_static(b"{\"a\":1}"),
            Bytes::from_static(b"{\"b\":2}"),
        ],
        edus: vec!["{\"edu_type\":\"x\"}".to_owned()],
    };
    let origin = server_name!("one.example");
    assert_eq!(
        contents.body(origin, 7),
        r#"{"edus":[{"edu_type":"x"}],"origin":"one.example","origin_server_ts":7,"pdus":[{"a":1},{"b":2}]}"#
    );
    let empty = Contents::default();
    assert!(empty.is_empty());
    assert_eq!(
        empty.body(origin, 7),
        r#"{"origin":"one.example","origin_server_ts":7,"pdus":[]}"#
    );
}

#[test]
fn a_body_holds_at_least_one_event_and_not_too_many() {
    assert_eq!(Contents::fitting([MAX_BODY_BYTES + 1, 1]), 1);
    assert_eq!(Contents::fitting([MAX_BODY_BYTES / 2; 3]), 2);
    assert_eq!(Contents::fitting([1; 50]), 50);
}

#[test]
fn an_answer_tells_what_can_be_sent_again() {
    let server = server_name!("two.example");
    let remote = |status| {
        Err(Error::Remote {
            server: server.to_owned(),
            status,
            kind: Box::new(ErrorKind::Unknown),
            message: "".into(),
            retry_after: None,
        })
    };
    let taken = http::Response::new(Bytes::from_static(
        b"{\"pdus\":{\"$a\":{\"error\":\"no\"}}}",
    ));
    assert!(matches!(Outcome::of(Ok(taken), server), Outcome::Taken));
    let nonsense = http::Response::new(Bytes::from_static(b"<html>"));
    assert!(matches!(Outcome::of(Ok(nonsense), server), Outcome::Taken));
    for status in [400, 413] {
        assert!(matches!(
            Outcome::of(remote(status), server),
            Outcome::Refused(_)
        ));
    }
    for status in [401, 403, 404, 429, 500, 502] {
        assert!(matches!(
            Outcome::of(remote(status), server),
            Outcome::Failed(_)
        ));
    }
}

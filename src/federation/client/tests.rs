//! What is signed, and what answers become.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::Method;
use ruma::{
    OwnedServerName, ServerName,
    api::{
        error::ErrorKind,
        federation::{
            authentication::XMatrix, discovery::get_server_version,
            event::get_missing_events::v1 as missing_events,
        },
    },
    serde::Base64,
};

use super::{Client, Limits, Simulated};
use crate::{
    clock::Clock,
    events::Signer,
    federation::{Config, Error, Mode},
};

type Seen = Arc<Mutex<Vec<http::Request<Bytes>>>>;

fn name(text: &str) -> OwnedServerName {
    ServerName::parse(text).expect("a server name")
}

/// A client of `us.example` to whom all servers answer the same.
fn client(config: &Config, status: u16, body: &'static str) -> (Client, Arc<Signer>, Seen) {
    let seen = Seen::default();
    let note = Arc::clone(&seen);
    let simulated: Simulated = Arc::new(move |_server, request| {
        note.lock().expect("a lock").push(request);
        let answer = http::Response::builder()
            .status(status)
            .body(Bytes::from_static(body.as_bytes()))
            .map_err(Into::into);
        async move { answer }.boxed()
    });
    let signer = Arc::new(Signer::generate(name("us.example"), &[7; 32]));
    let client = Client::new(
        simulated.into(),
        Arc::clone(&signer),
        Clock::manual(0),
        config,
    );
    (client, signer, seen)
}

#[tokio::test]
async fn the_other_side_can_check_the_signature() {
    let (client, signer, seen) = client(&Config::default(), 200, r#"{"events":[]}"#);
    let them = name("them.example:8449");
    let room = "!room/ä:us.example".try_into().expect("a room");
    let request = missing_events::Request::new(room, vec![], vec![]);
    client.send(&them, request).await.expect("an answer");
    client
        .request(
            &them,
            Method::GET,
            "/_matrix/federation/v1/query/profile?user_id=%40a%3Athem.example",
            None,
            client.default_limits(),
        )
        .await
        .expect("an answer");
    let key = Base64::parse(signer.verify_key()).expect("a key");
    let keys = [(signer.key_id().to_string(), key)].into_iter().collect();
    let keys = [("us.example".to_owned(), keys)].into_iter().collect();
    let seen = seen.lock().expect("a lock");
    assert_eq!(seen.len(), 2);
    for request in seen.iter() {
        let header = XMatrix::extract_from_http_headers(request.headers()).expect("a header");
        assert_eq!(header.origin, name("us.example"));
        assert_eq!(header.destination, Some(them.clone()));
        header
            .verify_http_request(request, &them, &keys)
            .expect("the signature is right");
        header
            .verify_http_request(request, &name("other.example"), &keys)
            .expect_err("it is for them alone");
        let has_body = !request.body().is_empty();
        assert_eq!(has_body, request.headers().contains_key("content-type"));
    }
}

#[tokio::test]
async fn what_needs_no_signature_has_none() {
    let (client, _signer, seen) = client(&Config::default(), 200, "{}");
    let request = get_server_version::v1::Request::new();
    client
        .send(&name("them.example"), request)
        .await
        .expect("an answer");
    let seen = seen.lock().expect("a lock");
    assert!(
        seen.iter()
            .all(|request| !request.headers().contains_key("authorization"))
    );
}

async fn error(config: &Config, status: u16, body: &'static str) -> Error {
    let (client, _signer, _seen) = client(config, status, body);
    let request = missing_events::Request::new(
        "!room:us.example".try_into().expect("a room"),
        vec![],
        vec![],
    );
    client
        .send(&name("them.example"), request)
        .await
        .expect_err("an error")
}

#[tokio::test]
async fn an_error_of_the_other_side_keeps_its_code() {
    let config = Config::default();
    let body = r#"{"errcode":"M_FORBIDDEN","error":"no"}"#;
    match error(&config, 403, body).await {
        Error::Remote {
            status: 403,
            kind,
            message,
            ..
        } => {
            assert_eq!(kind.errcode().as_str(), "M_FORBIDDEN");
            assert_eq!(&*message, "no");
        }
        other => panic!("{other:?}"),
    }
    match error(&config, 502, "<html>").await {
        Error::Remote {
            status: 502, kind, ..
        } => assert!(matches!(*kind, ErrorKind::Unknown)),
        other => panic!("{other:?}"),
    }
    let body = r#"{"errcode":"M_LIMIT_EXCEEDED","error":"slow","retry_after_ms":1500}"#;
    match error(&config, 429, body).await {
        Error::Remote { retry_after, .. } => {
            assert_eq!(retry_after.map(|wait| wait.as_millis()), Some(1_500))
        }
        other => panic!("{other:?}"),
    }
    for (status, is_unrecognized) in [(404, true), (405, true), (400, false)] {
        let body = r#"{"errcode":"M_UNRECOGNIZED","error":"?"}"#;
        let error = error(&config, status, body).await;
        assert_eq!(error.is_unrecognized(), is_unrecognized, "{status}");
        assert!(!error.is_temporary());
    }
    assert!(error(&config, 302, "").await.is_status(302));
}

#[tokio::test]
async fn an_answer_that_is_not_as_specified_is_malformed() {
    for body in ["", "[]", "<html>", r#"{"events":1}"#] {
        let error = error(&Config::default(), 200, body).await;
        assert!(
            matches!(error, Error::Malformed { .. }),
            "{body}: {error:?}"
        );
    }
}

#[tokio::test]
async fn nobody_is_asked_who_is_denied_nor_are_we() {
    let mut config = Config {
        deny: vec!["*.example".parse().expect("a pattern")],
        ..Config::default()
    };
    assert!(matches!(error(&config, 200, "{}").await, Error::Denied(_)));
    config.deny.clear();
    config.mode = Mode::Off;
    assert!(matches!(error(&config, 200, "{}").await, Error::Denied(_)));
    let (client, _signer, seen) = client(&Config::default(), 200, "{}");
    let request = get_server_version::v1::Request::new();
    let failed = client.send(&name("us.example"), request).await;
    assert!(matches!(failed, Err(Error::Denied(_))));
    assert!(seen.lock().expect("a lock").is_empty());
}

#[tokio::test]
async fn a_large_answer_is_refused_within_its_limits() {
    let (client, _signer, _seen) = client(&Config::default(), 200, r#"{"events":[]}"#);
    let limits = Limits {
        max_bytes: 3,
        ..client.default_limits()
    };
    let request = get_server_version::v1::Request::new();
    let failed = client
        .send_within(&name("them.example"), request, limits)
        .await;
    assert!(
        matches!(failed, Err(Error::TooLarge { limit: 3, .. })),
        "{failed:?}"
    );
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up_when_the_clock_says_so() {
    let simulated: Simulated = Arc::new(|_server, _request| std::future::pending().boxed());
    let signer = Arc::new(Signer::generate(name("us.example"), &[7; 32]));
    let clock = Clock::manual(0);
    let config = Config::default();
    let client = Client::new(simulated.into(), signer, clock.clone(), &config);
    let them = name("them.example");
    let asked = client.send(&them, get_server_version::v1::Request::new());
    let (answer, ()) = futures_util::future::join(asked, async {
        clock.advance(config.timeout.0);
    })
    .await;
    assert!(matches!(answer, Err(Error::TimedOut(_))), "{answer:?}");
}

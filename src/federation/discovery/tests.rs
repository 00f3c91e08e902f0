//! Every step of the specification, with names that the test says and well-known files from a server of its own.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use ruma::ServerName;

use super::{Discovery, Route, Rule};
use crate::{
    clock::Clock,
    outbound::{
        Error, Fixed, Service,
        tests::{Authority, Peer},
    },
};

type Files = Arc<Mutex<BTreeMap<&'static str, (u16, String)>>>;

/// Hosts with well-known files on one server.
struct World {
    discovery: Discovery,
    clock: Clock,
    files: Files,
    fetched: Arc<AtomicUsize>,
    _peer: Peer,
}

fn service(host: &str, port: u16, priority: u16) -> Service {
    Service {
        priority,
        weight: 1,
        host: host.into(),
        port,
    }
}

/// `hosts` have a web server with their certificate; `services` are SRV records.
async fn world(hosts: &[&str], services: &[(&str, Vec<Service>)]) -> World {
    let authority = Authority::new();
    let files = Files::default();
    let fetched = Arc::new(AtomicUsize::new(0));
    let (answered, counted) = (Arc::clone(&files), Arc::clone(&fetched));
    let peer = authority
        .answering(hosts, &["http/1.1"], move |request| {
            counted.fetch_add(1, Ordering::SeqCst);
            assert_eq!(request.uri().path(), "/.well-known/matrix/server");
            let host = request
                .headers()
                .get("host")
                .and_then(|host| host.to_str().ok());
            let files = answered.lock().expect("a lock");
            let (status, text) = files
                .get(host.unwrap_or_default())
                .cloned()
                .unwrap_or((404, String::new()));
            http::Response::builder()
                .status(status)
                .body(Full::new(Bytes::from(text)))
                .expect("an answer")
        })
        .await;
    let names = Fixed {
        places: hosts
            .iter()
            .map(|host| (format!("{host}:443"), vec![peer.address]))
            .collect(),
        services: services
            .iter()
            .map(|(name, found)| ((*name).to_owned(), found.clone()))
            .collect(),
    };
    let clock = Clock::manual(1_000_000);
    let outbound = authority.outbound_with(names, &["127.0.0.0/8"]);
    World {
        discovery: Discovery::new(outbound, clock.clone()),
        clock,
        files,
        fetched,
        _peer: peer,
    }
}

impl World {
    /// What `host` says from now on.
    fn delegates(&self, host: &'static str, to: &str) {
        self.says(host, 200, format!(r#"{{"m.server":"{to}"}}"#));
    }

    fn says(&self, host: &'static str, status: u16, text: impl Into<String>) {
        let mut files = self.files.lock().expect("a lock");
        files.insert(host, (status, text.into()));
    }

    async fn route(&self, server: &str) -> Result<Arc<Route>, Error> {
        let server = <&ServerName>::try_from(server).expect("a server name");
        self.discovery.route(server).await
    }

    /// Rule, machines, certificate, `Host` header.
    async fn check(&self, server: &str, expected: (Rule, &[&str], &str, &str)) {
        let route = self.route(server).await.expect("it is somewhere");
        let endpoints: Vec<String> = route
            .target
            .endpoints
            .iter()
            .map(|endpoint| format!("{}:{}", endpoint.host, endpoint.port))
            .collect();
        let (rule, machines, certificate, authority) = expected;
        assert_eq!(endpoints, machines, "{server}");
        assert_eq!(route.rule, rule, "{server}");
        assert_eq!(&*route.target.certificate_name, certificate, "{server}");
        assert_eq!(&*route.target.authority, authority, "{server}");
    }

    fn fetched(&self) -> usize {
        self.fetched.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn names_that_say_all_are_not_looked_up() {
    let world = world(
        &["a.example"],
        &[("_matrix._tcp.a.example", vec![service("x", 1, 0)])],
    )
    .await;
    world.delegates("a.example", "b.example");
    let check = |server, expected| world.check(server, expected);
    check(
        "1.2.3.4",
        (Rule::Address, &["1.2.3.4:8448"], "1.2.3.4", "1.2.3.4"),
    )
    .await;
    check(
        "1.2.3.4:5",
        (Rule::Address, &["1.2.3.4:5"], "1.2.3.4", "1.2.3.4:5"),
    )
    .await;
    check("[::1]", (Rule::Address, &["[::1]:8448"], "[::1]", "[::1]")).await;
    check("[::1]:5", (Rule::Address, &["[::1]:5"], "[::1]", "[::1]:5")).await;
    let port = (Rule::Port, &["a.example:5"][..], "a.example", "a.example:5");
    check("a.example:5", port).await;
    assert_eq!(world.fetched(), 0);
}

#[tokio::test]
async fn a_well_known_file_takes_the_place_of_the_name() {
    let records = [
        (
            "_matrix-fed._tcp.new.example",
            vec![service("m1.example", 1, 0)],
        ),
        (
            "_matrix._tcp.new.example",
            vec![service("m2.example", 2, 0)],
        ),
        (
            "_matrix._tcp.old.example",
            vec![service("m3.example", 3, 0)],
        ),
        // Of the name itself, which no longer counts.
        (
            "_matrix-fed._tcp.a.example",
            vec![service("wrong.example", 9, 0)],
        ),
    ];
    type Case<'a> = (&'a str, (Rule, &'a [&'a str], &'a str, &'a str));
    let cases: [Case<'_>; 6] = [
        (
            "1.2.3.4",
            (Rule::Address, &["1.2.3.4:8448"], "1.2.3.4", "1.2.3.4"),
        ),
        ("[::2]:5", (Rule::Address, &["[::2]:5"], "[::2]", "[::2]:5")),
        (
            "b.example:5",
            (Rule::Port, &["b.example:5"], "b.example", "b.example:5"),
        ),
        (
            "new.example",
            (
                Rule::Service,
                &["m1.example:1"],
                "new.example",
                "new.example",
            ),
        ),
        (
            "old.example",
            (
                Rule::DeprecatedService,
                &["m3.example:3"],
                "old.example",
                "old.example",
            ),
        ),
        (
            "b.example",
            (Rule::Host, &["b.example:8448"], "b.example", "b.example"),
        ),
    ];
    for (delegate, expected) in cases {
        let world = world(&["a.example"], &records).await;
        world.delegates("a.example", delegate);
        world.check("a.example", expected).await;
        let route = world.route("a.example").await.expect("it is somewhere");
        let delegated = route.delegated.as_ref().expect("a delegation");
        assert_eq!(delegated.as_str(), delegate);
    }
}

#[tokio::test]
async fn without_a_valid_file_the_name_itself_is_looked_up() {
    let records = [
        (
            "_matrix-fed._tcp.new.example",
            vec![service("m1.example", 1, 0)],
        ),
        (
            "_matrix._tcp.new.example",
            vec![service("m2.example", 2, 0)],
        ),
        (
            "_matrix._tcp.old.example",
            vec![service("m3.example", 3, 0)],
        ),
    ];
    let hosts = ["new.example", "old.example", "plain.example", "bad.example"];
    let world = world(&hosts, &records).await;
    world.says("bad.example", 200, "<html>");
    world.says("plain.example", 500, r#"{"m.server":"wrong.example"}"#);
    let check = |server, expected| world.check(server, expected);
    let service = Rule::Service;
    check(
        "new.example",
        (service, &["m1.example:1"], "new.example", "new.example"),
    )
    .await;
    let old = Rule::DeprecatedService;
    check(
        "old.example",
        (old, &["m3.example:3"], "old.example", "old.example"),
    )
    .await;
    for host in ["plain.example", "bad.example", "nowhere.example"] {
        let place = format!("{host}:8448");
        let machines = [place.as_str()];
        world.check(host, (Rule::Host, &machines, host, host)).await;
    }
}

#[tokio::test]
async fn a_file_of_a_server_with_the_wrong_certificate_does_not_count() {
    let authority = Authority::new();
    let peer = authority
        .answering(&["evil.example"], &["h2"], |_request| {
            http::Response::new(Full::from(r#"{"m.server":"evil.example"}"#))
        })
        .await;
    let outbound = authority.outbound(&[("a.example:443", peer.address)]);
    let discovery = Discovery::new(outbound, Clock::manual(0));
    let server = <&ServerName>::try_from("a.example").expect("a server name");
    let route = discovery.route(server).await.expect("it is somewhere");
    assert_eq!((&route.delegated, route.rule), (&None, Rule::Host));
}

#[tokio::test]
async fn machines_are_ordered_and_a_lone_dot_means_nowhere() {
    let machines = vec![
        service("b", 2, 20),
        service("a", 1, 10),
        service("c", 3, 10),
    ];
    let records = [
        ("_matrix-fed._tcp.many.example", machines),
        ("_matrix-fed._tcp.none.example", vec![service("", 0, 0)]),
    ];
    let world = world(&[], &records).await;
    let machines = ["a:1", "c:3", "b:2"];
    let expected = (Rule::Service, &machines[..], "many.example", "many.example");
    world.check("many.example", expected).await;
    let failed = world.route("none.example").await;
    assert!(matches!(failed, Err(Error::NoEndpoint(_))), "{failed:?}");
}

#[tokio::test]
async fn a_file_is_read_again_when_its_time_is_over() {
    let world = world(&["a.example"], &[]).await;
    world.delegates("a.example", "b.example");
    for _ in 0..3 {
        world.route("a.example").await.expect("it is somewhere");
        world.route("A.example").await.expect("it is somewhere");
    }
    assert_eq!(world.fetched(), 1);
    world.delegates("a.example", "c.example");
    world.clock.advance(Duration::from_secs(25 * 60 * 60));
    let expected = (
        Rule::Host,
        &["c.example:8448"][..],
        "c.example",
        "c.example",
    );
    world.check("a.example", expected).await;
    assert_eq!(world.fetched(), 2);
}

#[tokio::test]
async fn a_file_that_is_missing_is_looked_for_less_and_less() {
    let world = world(&["a.example"], &[]).await;
    for _ in 0..600 {
        world.route("a.example").await.expect("it is somewhere");
        world.clock.advance(Duration::from_secs(60));
    }
    // After 2, 4, 8, 16 and 32 minutes, then each hour, in ten hours.
    assert_eq!(world.fetched(), 14);
}

#[tokio::test]
async fn a_host_that_is_away_delegates_as_before_and_one_that_says_no_does_not() {
    for (status, is_kept) in [(503, true), (404, false)] {
        let world = world(&["a.example"], &[]).await;
        world.delegates("a.example", "b.example");
        world.route("a.example").await.expect("it is somewhere");
        world.says("a.example", status, "");
        world.clock.advance(Duration::from_secs(25 * 60 * 60));
        let route = world.route("a.example").await.expect("it is somewhere");
        assert_eq!(route.delegated.is_some(), is_kept, "{status}");
        // Two days after it was read nobody believes the file any more.
        world.clock.advance(Duration::from_secs(24 * 60 * 60));
        let route = world.route("a.example").await.expect("it is somewhere");
        assert_eq!(route.delegated, None, "{status}");
    }
}

#[tokio::test]
async fn many_who_ask_at_once_share_one_fetch() {
    let world = world(&["a.example"], &[]).await;
    world.delegates("a.example", "b.example");
    let all = (0..50).map(|_| world.route("a.example"));
    for route in futures_util::future::join_all(all).await {
        let route = route.expect("it is somewhere");
        assert_eq!(route.target.authority.as_ref(), "b.example");
    }
    assert_eq!(world.fetched(), 1);
}

#[tokio::test]
async fn a_file_that_is_too_large_does_not_count() {
    let world = world(&["a.example"], &[]).await;
    let padding = " ".repeat(60 * 1024);
    let file = format!(r#"{{"m.server":"b.example"{padding}}}"#);
    world.says("a.example", 200, file);
    let route = world.route("a.example").await.expect("it is somewhere");
    assert_eq!(route.delegated, None);
}

#[tokio::test]
async fn a_route_that_leads_nowhere_is_looked_up_again() {
    let world = world(&["a.example"], &[]).await;
    world.delegates("a.example", "b.example:1");
    let server = <&ServerName>::try_from("a.example").expect("a server name");
    let first = world.route("a.example").await.expect("it is somewhere");
    let second = world.route("a.example").await.expect("it is somewhere");
    assert!(Arc::ptr_eq(&first, &second));
    world.discovery.forget(server);
    let third = world.route("a.example").await.expect("it is somewhere");
    assert!(!Arc::ptr_eq(&first, &third));
    assert_eq!(world.fetched(), 1, "what the file says is kept");
}

//! Delivery to many servers of which one is dead and one is slow.
//!
//! A dead server is one that swallows packets, which takes a network of one's own to have: `tests/netns/run` makes a network
//! namespace and runs these tests in it. Elsewhere they pass without doing anything.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::{
    harness::{TestServer, User},
    peer::Peer,
    room_words::{escaped, room_path},
};

/// Set by `tests/netns/run`.
const MARKER: &str = "HEARTH_NETNS";
const SERVERS: usize = 50;
const MESSAGES: usize = 50;
const PAUSE: Duration = Duration::from_millis(100);
/// What each way through the slow path takes.
const SLOWNESS: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(120);
const PORT: u16 = 8448;
const DEAD: &str = "10.9.0.49";
const SLOW: &str = "10.9.0.50";

/// When each message was first seen, by server and text.
type Arrivals = Arc<Mutex<BTreeMap<(String, String), Instant>>>;

/// Runs `ip` in this namespace.
fn ip(arguments: &str) {
    let status = Command::new("ip")
        .args(arguments.split(' '))
        .status()
        .expect("ip is there");
    assert!(status.success(), "ip {arguments}");
}

/// Passes bytes on, each piece `delay_ms` later.
async fn slow_path(from: SocketAddr, to: SocketAddr, delay_ms: Arc<AtomicU64>) {
    let listener = TcpListener::bind(from).await.expect("the address is free");
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let far = TcpStream::connect(to).await.expect("the peer listens");
            let (near_in, near_out) = near.into_split();
            let (far_in, far_out) = far.into_split();
            tokio::spawn(pass_on(near_in, far_out, Arc::clone(&delay_ms)));
            tokio::spawn(pass_on(far_in, near_out, Arc::clone(&delay_ms)));
        }
    });
}

async fn pass_on(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    delay_ms: Arc<AtomicU64>,
) {
    let mut piece = vec![0; 16 * 1024];
    while let Ok(length) = from.read(&mut piece).await {
        tokio::time::sleep(Duration::from_millis(delay_ms.load(Ordering::SeqCst))).await;
        if length == 0 || to.write_all(&piece[..length]).await.is_err() {
            break;
        }
    }
}

/// A server that takes transactions, and notes when each message came.
async fn receiver(address: SocketAddr, behind: SocketAddr, arrivals: &Arrivals) -> Peer {
    let peer = Peer::start_behind(address, behind).await;
    let (name, arrivals) = (peer.name.to_string(), Arc::clone(arrivals));
    peer.answer("PUT", "/_matrix/federation/v1/send/*", move |request| {
        let now = Instant::now();
        let body: Value = serde_json::from_slice(request.body()).expect("JSON");
        let mut arrivals = arrivals.lock().expect("a lock");
        for pdu in body["pdus"].as_array().into_iter().flatten() {
            if let Some(text) = pdu["content"]["body"].as_str() {
                let key = (name.clone(), text.to_owned());
                arrivals.entry(key).or_insert(now);
            }
        }
        (200, json!({ "pdus": {} }))
    });
    peer
}

/// Sends messages at a pace. How long each took to each of `servers`, sorted.
async fn round(
    name: &str,
    sender: &User,
    room: &str,
    servers: &[String],
    arrivals: &Arrivals,
) -> Vec<Duration> {
    let mut sent = Vec::new();
    for number in 0..MESSAGES {
        let text = format!("{name} {number}");
        let path = room_path(room, &format!("/send/m.room.message/{name}{number}"));
        sent.push((text.clone(), Instant::now()));
        let body = json!({ "msgtype": "m.text", "body": text });
        sender.put(&path, body).await.ok();
        tokio::time::sleep(PAUSE).await;
    }
    let wanted: Vec<(String, String)> = servers
        .iter()
        .flat_map(|server| {
            sent.iter()
                .map(move |(text, _)| (server.clone(), text.clone()))
        })
        .collect();
    all_arrive(&wanted, arrivals, || ()).await;
    let sent: BTreeMap<String, Instant> = sent.into_iter().collect();
    let arrivals = arrivals.lock().expect("a lock");
    let mut took: Vec<Duration> = wanted
        .iter()
        .map(|key| arrivals[key].duration_since(sent[&key.1]))
        .collect();
    took.sort();
    took
}

/// Waits until everything wanted has come, and does `meanwhile` again and again.
async fn all_arrive(wanted: &[(String, String)], arrivals: &Arrivals, meanwhile: impl Fn()) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let missing = {
            let arrivals = arrivals.lock().expect("a lock");
            wanted
                .iter()
                .filter(|key| !arrivals.contains_key(*key))
                .count()
        };
        if missing == 0 {
            return;
        }
        assert!(Instant::now() < deadline, "{missing} messages do not come");
        meanwhile();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn of_hundred(took: &[Duration], percent: usize) -> Duration {
    took[(took.len() - 1) * percent / 100]
}

fn is_here() -> bool {
    std::env::var_os(MARKER).is_some()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_dead_and_a_slow_server_do_not_delay_the_others() {
    if !is_here() {
        return;
    }
    let [server] =
        TestServer::federated_with(&["net.allowed_ranges=[\"127.0.0.0/8\", \"10.9.0.0/24\"]"])
            .await;
    let alice = server.user("alice").await;
    let room = alice.create_room().await;
    let arrivals = Arrivals::default();
    let delay_ms = Arc::new(AtomicU64::new(0));
    let mut names = Vec::new();
    for number in 1..=SERVERS {
        let host = format!("10.9.0.{number}");
        ip(&format!("address add {host}/32 dev lo"));
        let address: SocketAddr = format!("{host}:{PORT}").parse().expect("an address");
        let behind = if host == SLOW {
            SocketAddr::from(([127, 0, 9, 50], PORT))
        } else {
            address
        };
        let peer = receiver(address, behind, &arrivals).await;
        if host == SLOW {
            slow_path(address, behind, Arc::clone(&delay_ms)).await;
        }
        peer.join(&server, &room, "bob").await;
        names.push(peer.name.to_string());
    }
    let (healthy, sick) = names.split_at(SERVERS - 2);

    let before = round("before", &alice, &room, healthy, &arrivals).await;
    // Packets to the dead server go to a machine that is not there.
    ip(&format!("address del {DEAD}/32 dev lo"));
    ip(&format!(
        "neighbor replace {DEAD} lladdr 02:00:00:00:00:99 dev hearth0 nud permanent"
    ));
    delay_ms.store(
        u64::try_from(SLOWNESS.as_millis()).expect("small"),
        Ordering::SeqCst,
    );
    let during = round("during", &alice, &room, healthy, &arrivals).await;
    for (what, took) in [("healthy", &before), ("one dead, one slow", &during)] {
        println!(
            "{what}: p50 {:?}, p99 {:?}, longest {:?} to {} servers",
            of_hundred(took, 50),
            of_hundred(took, 99),
            of_hundred(took, 100),
            healthy.len()
        );
    }
    let bound = of_hundred(&before, 99) * 2 + Duration::from_millis(50);
    assert!(of_hundred(&during, 99) < bound, "others were delayed");

    // When they are well again, they get what they have missed.
    ip(&format!("neighbor del {DEAD} dev hearth0"));
    ip(&format!("address add {DEAD}/32 dev lo"));
    delay_ms.store(0, Ordering::SeqCst);
    let missed: Vec<(String, String)> = sick
        .iter()
        .flat_map(|server| {
            (0..MESSAGES).map(move |number| (server.clone(), format!("during {number}")))
        })
        .collect();
    let federation = &server.running.server.federation;
    let retry = || {
        for name in sick {
            let name = <&ruma::ServerName>::try_from(name.as_str()).expect("a server name");
            federation.retry(name);
        }
    };
    all_arrive(&missed, &arrivals, retry).await;
}

/// Messages that a server misses while it is away.
const MISSED: usize = 10_000;
/// Requests that are sent at the same time.
const AT_ONCE: usize = 8;
const AWAY: &str = "10.9.0.60";
/// Pages of at most 100 messages, with room for those that are short.
const MAX_PAGES: usize = 400;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_server_that_was_away_for_ten_thousand_events_catches_up() {
    if !is_here() {
        return;
    }
    let settings = ["net.allowed_ranges=[\"127.0.0.0/8\", \"10.9.0.0/24\"]"];
    let here = TestServer::federating(&settings).await;
    ip(&format!("address add {AWAY}/32 dev lo"));
    let address = format!("{AWAY}:{PORT}").parse().expect("an address");
    let there = TestServer::federating_at(address, &settings).await;
    let alice = here.user("alice").await;
    let room = alice.create_room().await;
    let bob = there.user("bob").await;
    let join = format!(
        "/_matrix/client/v3/join/{}?via={}",
        escaped(&room),
        here.name()
    );
    bob.post(&join, json!({})).await.ok();

    ip(&format!("address del {AWAY}/32 dev lo"));
    ip(&format!(
        "neighbor replace {AWAY} lladdr 02:00:00:00:00:98 dev hearth0 nud permanent"
    ));
    let start = Instant::now();
    let sending = (0..MISSED).map(|number| say(&alice, &room, number));
    futures_util::stream::iter(sending)
        .buffer_unordered(AT_ONCE)
        .collect::<Vec<()>>()
        .await;
    println!("{MISSED} messages sent in {:?}", start.elapsed());

    ip(&format!("neighbor del {AWAY} dev hearth0"));
    ip(&format!("address add {AWAY}/32 dev lo"));
    let start = Instant::now();
    say(&alice, &room, MISSED).await;
    let federation = &here.running.server.federation;
    let name = <&ruma::ServerName>::try_from(there.name()).expect("a server name");
    while !page(&bob, &room, None).await.0.contains(&MISSED) {
        federation.retry(name);
        assert!(
            start.elapsed() < PATIENCE,
            "the newest message does not come"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!("the newest message came after {:?}", start.elapsed());
    let mut seen = BTreeMap::new();
    let mut from = None;
    for _ in 0..MAX_PAGES {
        let (numbers, next) = page(&bob, &room, from.as_deref()).await;
        for number in numbers {
            *seen.entry(number).or_insert(0) += 1;
        }
        from = next;
        if from.is_none() {
            break;
        }
    }
    println!("all of them were read after {:?}", start.elapsed());
    let missing = (0..=MISSED)
        .filter(|number| !seen.contains_key(number))
        .count();
    let twice = seen.values().filter(|times| **times > 1).count();
    assert_eq!((missing, twice), (0, 0), "each is there once");
}

async fn say(user: &User, room: &str, number: usize) {
    let path = room_path(room, &format!("/send/m.room.message/m{number}"));
    let body = json!({ "msgtype": "m.text", "body": number.to_string() });
    user.put(&path, body).await.ok();
}

/// The numbers in a page of history, and where the next older one begins.
async fn page(user: &User, room: &str, from: Option<&str>) -> (Vec<usize>, Option<String>) {
    let from = from.map(|from| format!("&from={from}")).unwrap_or_default();
    let path = room_path(room, &format!("/messages?dir=b&limit=100{from}"));
    let answer = user.get(&path).await.ok();
    let numbers = answer["chunk"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|event| event["content"]["body"].as_str()?.parse().ok())
        .collect();
    (numbers, answer["end"].as_str().map(ToOwned::to_owned))
}

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

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::{
    harness::{TestServer, User},
    peer::Peer,
    room_words::room_path,
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

//! Fetching keys, and what they check, against servers that are played.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use ruma::{
    CanonicalJsonObject, MilliSecondsSinceUnixEpoch, OwnedServerName, RoomVersionId, ServerName,
    UserId, events::TimelineEventType, room_id, server_name, uint,
};
use serde_json::json;

use super::{Parts, Reason, ServerKeys, document::tests::document};
use crate::{
    clock::Clock,
    events::{NewPdu, Signer, format, version},
    federation::{
        Config,
        client::{Client, Simulated},
    },
    storage::Store,
};

const NOW_MS: u64 = 1_700_000_000_000;

/// What other servers answer, and how often they were asked.
#[derive(Default)]
struct World {
    documents: Mutex<BTreeMap<OwnedServerName, Vec<u8>>>,
    asked: AtomicUsize,
    /// What the notary `notary.test` knows, which it signs with this.
    archive: Mutex<Vec<serde_json::Value>>,
    notarized: AtomicUsize,
}

impl World {
    fn notary() -> Signer {
        signer("notary.test", 7)
    }

    fn notarize(&self) -> Vec<u8> {
        self.notarized.fetch_add(1, Ordering::SeqCst);
        let signed = self
            .archive
            .lock()
            .unwrap()
            .clone()
            .into_iter()
            .map(|document| {
                let text = serde_json::to_vec(&document).unwrap();
                let mut object = crate::events::canonical::parse(&text).unwrap();
                Self::notary().sign_json(&mut object).unwrap();
                serde_json::to_value(object).unwrap()
            });
        json!({ "server_keys": signed.collect::<Vec<_>>() })
            .to_string()
            .into()
    }

    fn tell(&self, signer: &Signer, valid_until_ms: u64) {
        let text = document(signer, json!({ "valid_until_ts": valid_until_ms }));
        self.documents
            .lock()
            .unwrap()
            .insert(signer.server_name().to_owned(), text);
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn server_keys(world: &Arc<World>, clock: &Clock) -> ServerKeys {
    server_keys_with(world, clock, Vec::new())
}

fn server_keys_with(
    world: &Arc<World>,
    clock: &Clock,
    notaries: Vec<OwnedServerName>,
) -> ServerKeys {
    let world = Arc::clone(world);
    let simulated: Simulated = Arc::new(move |server, request| {
        if request.uri().path() == "/_matrix/key/v2/query" {
            assert_eq!(server, "notary.test");
            let answer = world.notarize();
            return async { Ok(http::Response::new(Bytes::from(answer))) }.boxed();
        }
        world.asked.fetch_add(1, Ordering::SeqCst);
        assert_eq!(request.uri().path(), "/_matrix/key/v2/server");
        let text = world.documents.lock().unwrap().get(&server).cloned();
        async move {
            match text {
                Some(text) => Ok(http::Response::new(Bytes::from(text))),
                None => Err("nobody is there".into()),
            }
        }
        .boxed()
    });
    let signer = Arc::new(signer("own.test", 9));
    let client = Client::new(
        simulated.into(),
        Arc::clone(&signer),
        clock.clone(),
        &Config::default(),
    );
    ServerKeys::new(Parts {
        store: Store::memory_with(clock.clone()),
        clock: clock.clone(),
        signer,
        client,
        notaries,
    })
    .unwrap()
}

fn signer(server: &str, seed: u8) -> Signer {
    Signer::generate(ServerName::parse(server).unwrap(), &[seed; 32])
}

/// An event of a user of the signer's server, sent at a time.
fn event(signer: &Signer, at_ms: u64) -> format::Parsed {
    let rules = version::rules(&RoomVersionId::V11).unwrap();
    let new = NewPdu {
        room_id: Some(room_id!("!room:other.test").to_owned()),
        sender: UserId::parse(format!("@alice:{}", signer.server_name())).unwrap(),
        event_type: TimelineEventType::RoomMessage,
        state_key: None,
        content: CanonicalJsonObject::new(),
        origin_server_ts: MilliSecondsSinceUnixEpoch(at_ms.try_into().unwrap_or(uint!(0))),
        depth: 1,
        prev_events: Vec::new(),
        auth_events: Vec::new(),
        redacts: None,
        named: None,
    };
    let built = signer.build(new, rules).unwrap();
    format::parse(&built.json, rules).unwrap()
}

async fn verify(keys: &ServerKeys, events: Vec<format::Parsed>) -> Vec<bool> {
    let rules = version::rules(&RoomVersionId::V11).unwrap();
    let verified = keys.verify_pdus(rules, events).await;
    verified.iter().map(Result::is_ok).collect()
}

#[tokio::test]
async fn keys_are_fetched_once_for_many_events_and_answers_keep_their_order() {
    let (world, clock) = (Arc::new(World::default()), Clock::manual(NOW_MS));
    let keys = server_keys(&world, &clock);
    let (one, two, gone) = (
        signer("one.test", 1),
        signer("two.test", 2),
        signer("gone.test", 3),
    );
    let forged = signer("one.test", 4);
    world.tell(&one, NOW_MS + 1_000);
    world.tell(&two, NOW_MS + 1_000);

    let signers = [&one, &two, &gone, &forged];
    let events = (0..600)
        .map(|at| event(signers[at % 4], NOW_MS - 5))
        .collect();
    let verified = verify(&keys, events).await;
    let expected: Vec<bool> = (0..600).map(|at| at % 4 < 2).collect();
    assert_eq!(verified, expected);
    assert_eq!(world.asked(), 3);
    assert_eq!(verify(&keys, vec![event(&one, NOW_MS)]).await, [true]);
    assert_eq!(world.asked(), 3);
}

#[tokio::test]
async fn an_event_from_after_the_end_of_a_key_is_refused_until_the_key_is_renewed() {
    let (world, clock) = (Arc::new(World::default()), Clock::manual(NOW_MS));
    let keys = server_keys(&world, &clock);
    let one = signer("one.test", 1);
    world.tell(&one, NOW_MS + 1_000);
    let late = || vec![event(&one, NOW_MS + 2_000)];
    assert_eq!(
        verify(&keys, vec![event(&one, NOW_MS + 1_000)]).await,
        [true]
    );
    assert_eq!(verify(&keys, late()).await, [false]);

    world.tell(&one, NOW_MS + 3_000);
    assert_eq!(
        verify(&keys, late()).await,
        [false],
        "it is not asked again at once"
    );
    clock.advance(super::REFRESH_INTERVAL);
    assert_eq!(verify(&keys, late()).await, [true]);
    assert_eq!(world.asked(), 2);
}

#[tokio::test]
async fn a_dead_server_is_asked_ever_more_seldom_and_sooner_when_it_speaks() {
    let (world, clock) = (Arc::new(World::default()), Clock::manual(NOW_MS));
    let keys = server_keys(&world, &clock);
    let gone = signer("gone.test", 3);
    for _ in 0..2_000 {
        assert_eq!(verify(&keys, vec![event(&gone, NOW_MS)]).await, [false]);
        clock.advance(Duration::from_secs(5));
    }
    assert!((8..=14).contains(&world.asked()), "{}", world.asked());
    assert!(!keys.may_ask(server_name!("gone.test"), Reason::Events));
    clock.advance(super::MAX_BACKOFF_OF_CALLER);
    assert!(keys.may_ask(server_name!("gone.test"), Reason::Caller));
}

#[tokio::test]
async fn our_own_signatures_need_nobody() {
    let (world, clock) = (Arc::new(World::default()), Clock::manual(NOW_MS));
    let keys = server_keys(&world, &clock);
    let own = signer("own.test", 9);
    assert_eq!(verify(&keys, vec![event(&own, NOW_MS)]).await, [true]);
    assert_eq!(world.asked(), 0);
}

#[tokio::test]
async fn a_notary_signs_what_a_server_told_and_keeps_it_when_the_server_is_gone() {
    let (world, clock) = (Arc::new(World::default()), Clock::manual(NOW_MS));
    let keys = server_keys(&world, &clock);
    let one = signer("one.test", 1);
    let name = one.server_name().to_owned();
    assert!(keys.notarized(name.clone(), NOW_MS).await.is_none());
    world.tell(&one, NOW_MS + 10_000);
    clock.advance(Duration::from_secs(5));
    let told = keys.notarized(name.clone(), NOW_MS).await.unwrap();
    let signers: Vec<_> = match &told["signatures"] {
        ruma::canonical_json::CanonicalJsonValue::Object(signatures) => signatures.keys().collect(),
        other => panic!("{other:?}"),
    };
    assert_eq!(signers, ["one.test", "own.test"]);

    world.documents.lock().unwrap().clear();
    clock.advance(Duration::from_secs(60));
    assert!(keys.notarized(name, NOW_MS + 65_000).await.is_some());
}

#[tokio::test]
async fn a_notary_is_asked_for_the_keys_of_servers_that_are_gone() {
    let (world, clock) = (Arc::new(World::default()), Clock::manual(NOW_MS));
    let notary = World::notary();
    let keys = server_keys_with(&world, &clock, vec![notary.server_name().to_owned()]);
    world.tell(&notary, NOW_MS + 1_000_000);
    let gone = signer("gone.test", 3);
    let text = document(&gone, json!({ "valid_until_ts": NOW_MS + 10 }));
    world
        .archive
        .lock()
        .unwrap()
        .push(serde_json::from_slice(&text).unwrap());

    let events = vec![event(&gone, NOW_MS), event(&signer("lost.test", 4), NOW_MS)];
    assert_eq!(verify(&keys, events.clone()).await, [true, false]);
    assert_eq!(verify(&keys, events).await, [true, false]);
    assert_eq!(
        world.notarized.load(Ordering::SeqCst),
        1,
        "once for both, and not again at once"
    );
}

#[tokio::test]
async fn a_notary_that_does_not_sign_what_it_says_is_not_believed() {
    let (world, clock) = (Arc::new(World::default()), Clock::manual(NOW_MS));
    let keys = server_keys_with(
        &world,
        &clock,
        vec![World::notary().server_name().to_owned()],
    );
    // The key that the notary publishes is another than the one it signs with.
    world.tell(&signer("notary.test", 8), NOW_MS + 1_000_000);
    let gone = signer("gone.test", 3);
    let text = document(&gone, json!({ "valid_until_ts": NOW_MS + 10 }));
    world
        .archive
        .lock()
        .unwrap()
        .push(serde_json::from_slice(&text).unwrap());
    assert_eq!(verify(&keys, vec![event(&gone, NOW_MS)]).await, [false]);
}

#[tokio::test]
async fn the_keys_of_who_signed_events_are_stored_and_those_of_mere_callers_are_not() {
    let (world, clock) = (Arc::new(World::default()), Clock::manual(NOW_MS));
    let keys = server_keys(&world, &clock);
    let (one, two) = (signer("one.test", 1), signer("two.test", 2));
    for signer in [&one, &two] {
        world.tell(signer, NOW_MS + 1_000);
    }
    verify(&keys, vec![event(&one, NOW_MS)]).await;
    let wanted = [(
        two.server_name().to_owned(),
        BTreeMap::from([(two.key_id().to_string(), NOW_MS)]),
    )];
    let found = keys.gather(wanted.into(), Reason::Caller).await;
    assert_eq!(found.len(), 1);

    super::lock(&keys.inner.known).clear();
    assert!(keys.known(one.server_name()).await.is_some());
    assert!(keys.known(two.server_name()).await.is_none());
}

//! What other servers may send to do harm, and the bounds on what it costs.

use std::time::{Duration, Instant};

use hearth::events::{Verified, format::MAX_PDU_BYTES};
use ruma::OwnedEventId;
use serde_json::{Value, json};

use crate::{
    guest::{Draft, Guest},
    harness::{TestServer, User},
    peer::pdu_json,
    room_words::room_path,
};

/// The longest time that one transaction may take here, on a busy machine too.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

async fn room_of(server: &TestServer) -> (User, String) {
    let alice = server.user("alice").await;
    let room = alice.create_room().await;
    (alice, room)
}

/// An ID that no event has.
fn no_event(number: usize) -> OwnedEventId {
    let hash = blake3::hash(&number.to_be_bytes());
    let text: String = hash.to_hex().chars().take(43).collect();
    format!("${text}").try_into().expect("an event ID")
}

#[tokio::test]
async fn a_message_of_another_server_is_seen_by_ours() {
    let [server] = TestServer::federated().await;
    let (alice, room) = room_of(&server).await;
    let guest = Guest::join(&server, &room).await;
    let hello = guest.message("hello", &[&guest.join]);
    let answer = guest.send("1", &[&hello]).await.ok();
    assert_eq!(answer, json!({ "pdus": { hello.event_id.as_str(): {} } }));
    guest.is_seen(&alice, &hello).await;
}

#[tokio::test]
async fn a_repeated_transaction_gets_the_same_answer() {
    let [server] = TestServer::federated().await;
    let (alice, room) = room_of(&server).await;
    let guest = Guest::join(&server, &room).await;
    let hello = guest.message("hello", &[&guest.join]);
    let first = guest.send("1", &[&hello]).await.ok();
    guest.is_seen(&alice, &hello).await;
    // What it holds does not matter any more.
    let second = guest.send("1", &[]).await.ok();
    assert_eq!(first, second);
}

#[tokio::test]
async fn a_transaction_has_at_most_fifty_pdus_and_a_hundred_edus() {
    let [server] = TestServer::federated().await;
    let (_alice, room) = room_of(&server).await;
    let guest = Guest::join(&server, &room).await;
    let hello = pdu_json(&guest.message("hello", &[&guest.join]));
    let pdus: Vec<Value> = vec![hello; 51];
    let answer = guest.send_json("1", json!(pdus)).await;
    assert_eq!(answer.status, 400, "{}", answer.text);
}

#[tokio::test]
async fn an_event_with_a_wrong_signature_is_refused_and_the_others_are_not() {
    let [server] = TestServer::federated().await;
    let (alice, room) = room_of(&server).await;
    let guest = Guest::join(&server, &room).await;
    let fine = guest.message("fine", &[&guest.join]);
    let mut forged = pdu_json(&guest.message("forged", &[&guest.join]));
    forged["sender"] = json!(alice.id);
    let answer = guest
        .send_json("1", json!([forged, pdu_json(&fine)]))
        .await
        .ok();
    let outcomes = answer["pdus"].as_object().expect("an object");
    assert_eq!(outcomes.len(), 2);
    assert_eq!(outcomes[fine.event_id.as_str()], json!({}));
    let refused = outcomes
        .values()
        .filter(|outcome| outcome["error"].is_string());
    assert_eq!(refused.count(), 1);
    guest.is_seen(&alice, &fine).await;
}

#[tokio::test]
async fn an_event_may_have_65536_bytes_and_not_one_more() {
    let [server] = TestServer::federated().await;
    let (alice, room) = room_of(&server).await;
    let guest = Guest::join(&server, &room).await;
    let empty = guest.message("", &[&guest.join]).json.len();
    let largest = guest.message(&"x".repeat(MAX_PDU_BYTES - empty), &[&guest.join]);
    assert_eq!(largest.json.len(), MAX_PDU_BYTES);
    let mut larger = pdu_json(&largest);
    larger["content"]["body"] = json!("x".repeat(MAX_PDU_BYTES - empty + 1));
    let answer = guest
        .send_json("1", json!([pdu_json(&largest), larger]))
        .await
        .ok();
    assert_eq!(answer, json!({ "pdus": { largest.event_id.as_str(): {} } }));
    guest.is_seen(&alice, &largest).await;
}

#[tokio::test]
async fn an_event_as_deep_as_can_be_does_not_keep_others_from_speaking() {
    let [server] = TestServer::federated().await;
    let (alice, room) = room_of(&server).await;
    let guest = Guest::join(&server, &room).await;
    let deepest = guest.event(Draft {
        depth: (1 << 53) - 1,
        ..Draft::message("deep", &[&guest.join])
    });
    guest.send("1", &[&deepest]).await.ok();
    guest.is_seen(&alice, &deepest).await;
    alice.say(&room, "still here").await;
    let (ends, _) = guest.ends();
    assert_eq!(ends.len(), 1);
    let after = guest.event(Draft {
        prev_events: ends,
        ..Draft::message("after", &[])
    });
    guest.send("2", &[&after]).await.ok();
    guest.is_seen(&alice, &after).await;
}

#[tokio::test]
async fn an_event_after_twenty_that_do_not_exist_is_dropped_and_nobody_waits_for_it() {
    let [server] = TestServer::federated().await;
    let (alice, room) = room_of(&server).await;
    let guest = Guest::join(&server, &room).await;
    let lost = guest.event(Draft {
        prev_events: (0..20).map(no_event).collect(),
        ..Draft::message("lost", &[])
    });
    let fine = guest.message("fine", &[&guest.join]);
    let started = Instant::now();
    guest.send("1", &[&lost, &fine]).await.ok();
    assert!(started.elapsed() < ANSWER_WITHIN);
    guest.is_seen(&alice, &fine).await;
    assert!(!guest.sees(&alice, &lost).await);
    assert_eq!(guest.asked("get_missing_events"), 1);
    assert_eq!(guest.asked("state_ids"), 0);
}

#[tokio::test]
async fn missing_events_are_fetched_and_come_in_their_order() {
    let [server] = TestServer::federated().await;
    let (alice, room) = room_of(&server).await;
    let guest = Guest::join(&server, &room).await;
    let first = guest.message("first", &[&guest.join]);
    let second = guest.message("second", &[&first]);
    let third = guest.message("third", &[&second]);
    let events = json!({ "events": [pdu_json(&second), pdu_json(&first)] });
    guest.answer("POST", "get_missing_events", events);
    guest.send("1", &[&third]).await.ok();
    guest.is_seen(&alice, &third).await;
    let page = alice
        .get(&room_path(&room, "/messages?dir=b&limit=3"))
        .await
        .ok();
    let bodies: Vec<_> = page["chunk"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|event| event["content"]["body"].as_str().unwrap_or_default())
        .collect();
    assert_eq!(bodies, ["third", "second", "first"]);
    assert_eq!(guest.asked("state_ids"), 0);
}

#[tokio::test]
async fn a_gap_that_stays_open_is_bridged_by_the_state_of_its_other_side() {
    let [server] = TestServer::federated().await;
    let (alice, room) = room_of(&server).await;
    let guest = Guest::join(&server, &room).await;
    let lost = guest.message("lost", &[&guest.join]);
    let edge = guest.message("edge", &[&lost]);
    let last = guest.message("last", &[&edge]);
    guest.answer(
        "POST",
        "get_missing_events",
        json!({ "events": [pdu_json(&edge)] }),
    );
    guest.answer(
        "GET",
        "state_ids",
        json!({ "pdu_ids": guest.state(), "auth_chain_ids": [] }),
    );
    guest.answer_events(vec![pdu_json(&lost)], std::slice::from_ref(&lost.event_id));
    guest.send("1", &[&last]).await.ok();
    guest.is_seen(&alice, &last).await;
    assert!(guest.sees(&alice, &edge).await);
    assert_eq!(guest.asked("state_ids"), 1);
    assert!(!guest.sees(&alice, &lost).await);
    alice.say(&room, "still here").await;
}

/// Events of a long auth chain: as many as are fetched for one event, and more than that with what they rest on.
const LONG_CHAIN: usize = 10_000;
/// Questions for single events that a chain may cost, whatever its length.
const MAX_ASKED_EVENTS: usize = 40;
/// What may be kept in memory of the answers, in bytes of JSON: those of the chain, once.
const MAX_ANSWERED_BYTES: usize = 16 << 20;

/// Memberships of the guest, each of which needs the one before it; the first needs `first`. Whoever asks for single ones,
/// or for the auth events of an event, gets them.
fn auth_chain(guest: &Guest<'_>, first: &OwnedEventId, length: usize) -> Vec<Verified> {
    let mut chain: Vec<Verified> = Vec::with_capacity(length);
    for number in 0..length {
        let last = chain.last().map_or(first, |last| &last.event_id);
        chain.push(guest.event(Draft {
            event_type: "m.room.member",
            state_key: Some(guest.user.to_string()),
            content: json!({ "membership": "join", "displayname": number.to_string() }),
            auth_events: Some(allowed_by(guest, last)),
            ..Draft::message("", &[&guest.join])
        }));
    }
    let ids: Vec<_> = chain.iter().map(|event| event.event_id.clone()).collect();
    let events: Vec<Value> = chain.iter().map(pdu_json).collect();
    guest.answer("GET", "event_auth", json!({ "auth_chain": events }));
    guest.answer_events(events, &ids);
    chain
}

/// What allows the guest to speak, with another membership than its first.
fn allowed_by(guest: &Guest<'_>, membership: &OwnedEventId) -> Vec<OwnedEventId> {
    let mut auth_events = guest.auth_events.clone();
    auth_events.pop();
    auth_events.push(membership.clone());
    auth_events
}

/// A message that rests on the end of a chain.
fn after_chain(guest: &Guest<'_>, chain: &[Verified]) -> Verified {
    let last = chain.last().expect("a chain");
    guest.event(Draft {
        auth_events: Some(allowed_by(guest, &last.event_id)),
        ..Draft::message("after a long chain", &[&guest.join])
    })
}

/// What a chain may cost: few questions, answers that fit in memory.
fn costs_little(guest: &Guest<'_>) {
    let asked = guest.asked("event");
    assert!(asked <= MAX_ASKED_EVENTS, "{asked} events were asked for");
    let asked = guest.asked("event_auth");
    assert!(asked <= 2, "{asked} auth chains were asked for");
    let bytes = guest.peer.answered_bytes();
    assert!(bytes <= MAX_ANSWERED_BYTES, "{bytes} bytes were answered");
}

#[tokio::test]
async fn who_is_put_out_is_out_though_nobody_tells_what_came_before_it() {
    let [server] = TestServer::federated().await;
    let (alice, room) = room_of(&server).await;
    let carol = server.user("carol").await;
    let invite = json!({ "user_id": carol.id });
    alice.post(&room_path(&room, "/invite"), invite).await.ok();
    carol.post(&room_path(&room, "/join"), json!({})).await.ok();
    let guest = Guest::join(&server, &room).await;
    let levels = room_path(&room, "/state/m.room.power_levels");
    let mut powers = alice.get(&levels).await.ok();
    powers["users"][guest.user.as_str()] = json!(50);
    alice.put(&levels, powers).await.ok();
    let state = alice.get(&room_path(&room, "/state")).await.ok();
    let state = state.as_array().expect("a list").iter();
    let allows = |event: &&Value| {
        event["type"] == "m.room.power_levels"
            || event["state_key"] == carol.id
            || event["state_key"] == guest.user.as_str()
    };
    let auth_events = state.filter(allows).map(|event| &event["event_id"]);
    let auth_events = auth_events.map(|id| id.as_str().expect("an ID").try_into());
    let kick = guest.event(Draft {
        event_type: "m.room.member",
        state_key: Some(carol.id.clone()),
        content: json!({ "membership": "leave" }),
        prev_events: vec![no_event(1)],
        auth_events: Some(auth_events.collect::<Result<_, _>>().expect("IDs")),
        depth: 100,
    });

    guest.send("1", &[&kick]).await.ok();

    guest.is_seen(&alice, &kick).await;
    let members = alice.get(&room_path(&room, "/joined_members")).await.ok();
    let joined = members["joined"].as_object().expect("an object");
    assert_eq!(joined.len(), 2, "{members}");
    assert!(!joined.contains_key(&carol.id), "{members}");
    alice.say(&room, "still here").await;
}

#[tokio::test]
async fn auth_events_that_go_on_without_end_are_given_up() {
    let [server] = TestServer::federated().await;
    let (alice, room) = room_of(&server).await;
    let guest = Guest::join(&server, &room).await;
    // The first needs one that nobody has.
    let chain = auth_chain(&guest, &no_event(0), LONG_CHAIN);
    let lost = after_chain(&guest, &chain);
    let fine = guest.message("fine", &[&guest.join]);
    guest.send("1", &[&lost, &fine]).await.ok();
    guest.is_seen(&alice, &fine).await;
    guest.is_settled().await;
    assert!(!guest.sees(&alice, &lost).await);
    costs_little(&guest);
    let ids: Vec<_> = chain.iter().map(|event| event.event_id.clone()).collect();
    assert_eq!(
        guest.unknown(&ids).len(),
        LONG_CHAIN,
        "nothing is kept of it"
    );
}

#[tokio::test]
async fn a_long_auth_chain_that_is_whole_is_followed_to_its_end() {
    let [server] = TestServer::federated().await;
    let (alice, room) = room_of(&server).await;
    let guest = Guest::join(&server, &room).await;
    let chain = auth_chain(&guest, &guest.join.event_id, LONG_CHAIN - 100);
    let last = after_chain(&guest, &chain);
    guest.send("1", &[&last]).await.ok();
    guest.is_seen(&alice, &last).await;
    costs_little(&guest);
}

#[tokio::test]
async fn auth_events_of_another_room_allow_nothing() {
    let [server] = TestServer::federated().await;
    let (alice, room) = room_of(&server).await;
    let guest = Guest::join(&server, &room).await;
    let other = alice.create_room().await;
    let elsewhere = Guest::join(&server, &other).await;
    let forged = guest.event(Draft {
        auth_events: Some(elsewhere.auth_events.clone()),
        ..Draft::message("forged", &[&guest.join])
    });
    let fine = guest.message("fine", &[&guest.join]);
    guest.send("1", &[&forged, &fine]).await.ok();
    guest.is_seen(&alice, &fine).await;
    assert!(!guest.sees(&alice, &forged).await);
}

#[tokio::test]
async fn an_event_whose_auth_event_was_rejected_is_rejected() {
    let [server] = TestServer::federated().await;
    let (alice, room) = room_of(&server).await;
    let guest = Guest::join(&server, &room).await;
    let rejected = guest.event(Draft {
        event_type: "m.room.power_levels",
        state_key: Some(String::new()),
        content: json!({ "users": {} }),
        ..Draft::message("", &[&guest.join])
    });
    guest.send("1", &[&rejected]).await.ok();
    let mut auth_events = guest.auth_events.clone();
    auth_events.push(rejected.event_id.clone());
    let tainted = guest.event(Draft {
        auth_events: Some(auth_events),
        ..Draft::message("tainted", &[&guest.join])
    });
    let fine = guest.message("fine", &[&guest.join]);
    guest.send("2", &[&tainted, &fine]).await.ok();
    guest.is_seen(&alice, &fine).await;
    assert!(!guest.sees(&alice, &tainted).await);
    assert!(!guest.sees(&alice, &rejected).await);
}

#[tokio::test]
async fn a_thousand_ends_of_a_room_are_joined_again() {
    let [server] = TestServer::federated().await;
    let (alice, room) = room_of(&server).await;
    let guest = Guest::join(&server, &room).await;
    let started = Instant::now();
    let ends: Vec<_> = (0..1_000)
        .map(|number| guest.message(&number.to_string(), &[&guest.join]))
        .collect();
    for (number, some) in ends.chunks(50).enumerate() {
        let some: Vec<_> = some.iter().collect();
        guest.send(&number.to_string(), &some).await.ok();
    }
    guest
        .is_seen(&alice, ends.last().expect("a thousand"))
        .await;
    alice.say(&room, "one of many").await;
    assert!(started.elapsed() < Duration::from_secs(60));
    let (left, _) = guest.ends();
    assert!(left.len() <= 1_000 - 9, "{} ends are left", left.len());
}

#[tokio::test]
async fn power_levels_as_large_as_an_event_can_be_are_no_burden() {
    let [server] = TestServer::federated().await;
    let (alice, room) = room_of(&server).await;
    let guest = Guest::join(&server, &room).await;
    let path = room_path(&room, "/state/m.room.power_levels/");
    let mut levels = alice.get(&path).await.ok();
    levels["users"][guest.user.as_str()] = json!(100);
    alice.put(&path, levels.clone()).await.ok();
    for number in 0..3_000 {
        levels["users"][format!("@{number}:b.test")] = json!(1);
    }
    let (ends, depth) = guest.ends();
    let mut auth_events = guest.auth_events.clone();
    auth_events.remove(0);
    auth_events.extend(ends.clone());
    let huge = guest.event(Draft {
        event_type: "m.room.power_levels",
        state_key: Some(String::new()),
        content: levels,
        prev_events: ends,
        auth_events: Some(auth_events),
        depth: depth + 1,
    });
    assert!(huge.json.len() > MAX_PDU_BYTES / 2);
    guest.send("1", &[&huge]).await.ok();
    guest.is_seen(&alice, &huge).await;
    let started = Instant::now();
    for number in 0..20 {
        alice.say(&room, &number.to_string()).await;
    }
    assert!(started.elapsed() < ANSWER_WITHIN);
}

#[tokio::test]
async fn nonsense_in_place_of_events_is_passed_over() {
    let [server] = TestServer::federated().await;
    let (alice, room) = room_of(&server).await;
    let guest = Guest::join(&server, &room).await;
    let fine = guest.message("fine", &[&guest.join]);
    let nonsense = json!([
        null, 1, "text", [], {}, { "room_id": 1 }, { "room_id": room },
        { "room_id": "!elsewhere:b.test", "type": "m.room.message" },
        pdu_json(&fine),
    ]);
    let answer = guest.send_json("1", nonsense).await.ok();
    assert_eq!(answer, json!({ "pdus": { fine.event_id.as_str(): {} } }));
    guest.is_seen(&alice, &fine).await;
}

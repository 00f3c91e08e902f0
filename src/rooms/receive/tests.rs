//! Several servers in one room, on stores in memory, without a network: events are carried by hand, in any order.

mod convergence;
mod filling;
mod returning;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::prelude::*;
use rand::{SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use ruma::{OwnedServerName, OwnedUserId, RoomVersionId, ServerName};
use serde_json::json;

use super::*;
use crate::{
    clock::Clock,
    events::RootNumber,
    rooms::{
        Adoption, Class, CreateRoom, NewEvent, Preset, object,
        tests::{Parts, message},
    },
    storage::{Position, Store},
};

/// A server with one user.
struct Peer {
    rooms: Rooms,
    user: OwnedUserId,
}

async fn peer(number: usize) -> Peer {
    let name = ServerName::parse(format!("s{number}.example")).unwrap();
    let clock = Clock::seeded(1_700_000_000_000, u64::try_from(number).unwrap());
    let rooms = on(Store::memory(), clock, name.clone()).await;
    let user = OwnedUserId::try_from(format!("@u{number}:{name}")).unwrap();
    Peer { rooms, user }
}

async fn on(store: Store, clock: Clock, name: OwnedServerName) -> Rooms {
    let parts = Parts::new(store, clock, &name, Default::default()).await;
    parts.rooms
}

fn plan(creator: &OwnedUserId, version: RoomVersionId) -> CreateRoom {
    crate::rooms::tests::plan(creator, Preset::PublicChat, version)
}

/// An event as it comes from the network.
fn carried(pdu: &Pdu) -> Verified {
    let pdu = Pdu::from_stored(pdu.event_id.clone(), pdu.json.clone(), false);
    Verified::from_stored(pdu.unwrap())
}

impl Peer {
    fn room(&self) -> RoomNumber {
        self.rooms.all()[0]
    }

    fn event(&self, id: &EventId) -> Option<Arc<StoredEvent>> {
        let snapshot = self.rooms.store.snapshot().unwrap();
        self.rooms
            .event_in_room(&snapshot, self.room(), id)
            .unwrap()
    }

    async fn send(&self, event: NewEvent) -> Result<Arc<Pdu>, Error> {
        let mut writer = self.rooms.write(self.room()).await?;
        let id = writer.send(event).await?.durable().await?;
        drop(writer);
        Ok(Arc::clone(&self.event(&id).unwrap().pdu))
    }

    /// An event of anybody that this server would sign, without sending it.
    async fn template(&self, event: NewEvent) -> Arc<Pdu> {
        let mut writer = self.rooms.write(self.room()).await.unwrap();
        Arc::new(writer.propose(event).await.unwrap().into_pdu())
    }

    async fn receive(&self, pdu: &Pdu) -> Received {
        self.receive_as(pdu, Intake::Live).await.unwrap()
    }

    async fn receive_as(&self, pdu: &Pdu, intake: Intake) -> Result<Received, Error> {
        let mut writer = self.rooms.write(self.room()).await?;
        let mut received = writer.receive(carried(pdu), intake, Batch::new()).await?;
        drop(writer);
        if let Received::Settled { commit, .. } = &mut received
            && let Some(commit) = commit.take()
        {
            commit.await?;
        }
        Ok(received)
    }

    /// Takes in an event that lacks its previous events, after the state that another server has after them.
    async fn receive_after_gap(&self, pdu: &Pdu, teller: &Self, intake: Intake) -> Outcome {
        let root = teller.event(&pdu.event_id).unwrap().meta.root_before;
        let before: Vec<_> = teller.state_ids(root).into_iter().collect();
        let mut writer = self.rooms.write(self.room()).await.unwrap();
        let received = writer.receive_after_gap(carried(pdu), &before, intake, Batch::new());
        let received = received.await.unwrap();
        writer.settled().await.unwrap();
        match received {
            Received::Settled { outcome, .. } => outcome,
            Received::MissingAuth(_) | Received::MissingPrev(_) => panic!("it lacks something"),
        }
    }

    async fn outcome(&self, pdu: &Pdu) -> Outcome {
        match self.receive(pdu).await {
            Received::Settled { outcome, .. } => outcome,
            Received::MissingAuth(missing) => panic!("auth events {missing:?} are missing"),
            Received::MissingPrev(missing) => panic!("events {missing:?} are missing"),
        }
    }

    fn root(&self) -> RootNumber {
        self.rooms.published(self.room()).unwrap().head.root
    }

    /// The state as events.
    fn state(&self, root: RootNumber) -> Vec<Arc<Pdu>> {
        let snapshot = self.rooms.store.snapshot().unwrap();
        let mut state = self.rooms.core_state(&snapshot, self.room(), root).unwrap();
        state.extend(
            self.rooms
                .member_state(&snapshot, self.room(), root)
                .unwrap(),
        );
        state.iter().map(|event| Arc::clone(&event.pdu)).collect()
    }

    fn state_ids(&self, root: RootNumber) -> BTreeSet<OwnedEventId> {
        self.state(root)
            .iter()
            .map(|pdu| pdu.event_id.clone())
            .collect()
    }

    fn extremities(&self) -> BTreeSet<OwnedEventId> {
        let snapshot = self.rooms.store.snapshot().unwrap();
        let head = self.rooms.published(self.room()).unwrap().head.clone();
        let ends = self
            .rooms
            .events(&snapshot, self.room(), &head.extremities)
            .unwrap();
        ends.into_iter()
            .flatten()
            .map(|event| event.pdu.event_id.clone())
            .collect()
    }

    /// All events of the graph.
    fn graph(&self) -> BTreeMap<OwnedEventId, Arc<StoredEvent>> {
        let snapshot = self.rooms.store.snapshot().unwrap();
        let rows = snapshot.scan(
            event::METAS.prefix(&(self.room(),)),
            crate::storage::Order::Forward,
        );
        let numbers: Vec<_> = rows.map(|row| row.unwrap().0.1).collect();
        let events = self.rooms.events(&snapshot, self.room(), &numbers).unwrap();
        let events = events.into_iter().flatten();
        let events = events.filter(|event| !event.meta.has(flag::OUTLIER));
        events
            .map(|event| (event.pdu.event_id.clone(), event))
            .collect()
    }

    fn check(&self) {
        let snapshot = self.rooms.store.snapshot().unwrap();
        assert_eq!(self.rooms.verify(&snapshot, self.room()).unwrap(), []);
    }

    fn bodies(&self) -> Vec<String> {
        let snapshot = self.rooms.store.snapshot().unwrap();
        let order = crate::storage::Order::Forward;
        let page = self
            .rooms
            .timeline(&snapshot, self.room(), i64::MIN, order, 10_000)
            .unwrap();
        let body = |event: &StoredEvent| {
            let content = event.pdu.content_as::<serde_json::Value>().ok()?;
            Some(content.get("body")?.as_str()?.to_owned())
        };
        page.iter()
            .filter_map(|placed| body(&placed.event))
            .collect()
    }

    fn class(&self, user: &OwnedUserId) -> Option<Class> {
        let snapshot = self.rooms.store.snapshot().unwrap();
        let number = self.rooms.accounts.user_number(&snapshot, user).unwrap()?;
        self.rooms.class_of(&snapshot, number, self.room()).unwrap()
    }

    /// What this server answers to the join of another.
    fn answer(&self, join: &Pdu, version: RoomVersionId) -> Adoption {
        let state: Vec<_> = self
            .state(self.root())
            .iter()
            .map(|pdu| carried(pdu))
            .collect();
        let chain = self
            .graph()
            .into_values()
            .filter(|event| event.pdu.is_state());
        Adoption {
            room_id: self.rooms.room_id(self.room()).unwrap(),
            version,
            join: carried(join),
            state,
            auth_chain: chain.map(|event| carried(&event.pdu)).collect(),
            partial: None,
        }
    }
}

fn joined(user: &OwnedUserId) -> NewEvent {
    membership(user, user, "join")
}

fn membership(sender: &OwnedUserId, target: &OwnedUserId, membership: &str) -> NewEvent {
    let content = object(json!({ "membership": membership })).unwrap();
    NewEvent::state(sender.clone(), "m.room.member", target.as_str(), content)
}

fn topic(sender: &OwnedUserId, topic: &str) -> NewEvent {
    let content = object(json!({ "topic": topic })).unwrap();
    NewEvent::state(sender.clone(), "m.room.topic", "", content)
}

/// Servers whose users are all in one room that the first has made.
async fn servers(count: usize, version: RoomVersionId) -> Vec<Peer> {
    let first = peer(0).await;
    first
        .rooms
        .create(plan(&first.user, version.clone()))
        .await
        .unwrap();
    let mut all = vec![first];
    for number in 1..count {
        let new = peer(number).await;
        let join = all[0].template(joined(&new.user)).await;
        let answer = all[0].answer(&join, version.clone());
        new.rooms.adopt(answer).await.unwrap();
        let relayed = all[0].receive_as(&join, Intake::Vouched).await.unwrap();
        assert!(matches!(
            relayed,
            Received::Settled {
                outcome: Outcome::Accepted,
                ..
            }
        ));
        for other in &all[1..] {
            assert_eq!(other.outcome(&join).await, Outcome::Accepted);
        }
        all.push(new);
    }
    for server in &all {
        server.check();
        assert_eq!(
            server.state_ids(server.root()),
            all[0].state_ids(all[0].root())
        );
    }
    all
}

#[tokio::test]
async fn a_room_is_adopted_and_its_messages_follow() {
    for version in [
        RoomVersionId::V6,
        RoomVersionId::V10,
        RoomVersionId::V11,
        RoomVersionId::V12,
    ] {
        let first = peer(0).await;
        let plan = plan(&first.user, version.clone());
        if first.rooms.create(plan).await.is_err() {
            // Of this version none are made here.
            continue;
        }
        drop(first);
        let all = servers(3, version).await;
        let [a, b, c] = all.as_slice() else {
            unreachable!()
        };

        let hello = b.send(message(&b.user, "hello")).await.unwrap();
        assert_eq!(a.outcome(&hello).await, Outcome::Accepted);
        let answer = a.send(message(&a.user, "answer")).await.unwrap();
        let waiting = c.receive(&answer).await;
        assert!(
            matches!(waiting, Received::MissingPrev(missing) if missing == [hello.event_id.clone()])
        );
        assert_eq!(c.outcome(&hello).await, Outcome::Accepted);
        assert_eq!(c.outcome(&answer).await, Outcome::Accepted);
        assert_eq!(c.outcome(&answer).await, Outcome::Known);

        assert_eq!(c.bodies(), ["hello", "answer"]);
        c.check();
    }
}

#[tokio::test]
async fn two_branches_resolve_to_the_same_on_both_sides() {
    let all = servers(2, RoomVersionId::V11).await;
    let [a, b] = all.as_slice() else {
        unreachable!()
    };
    let levels = json!({ "users": { a.user.as_str(): 100, b.user.as_str(): 100 } });
    let levels = NewEvent::state(
        a.user.clone(),
        "m.room.power_levels",
        "",
        object(levels).unwrap(),
    );
    let levels = a.send(levels).await.unwrap();
    b.outcome(&levels).await;

    let of_a = a.send(topic(&a.user, "by a")).await.unwrap();
    let of_b = b.send(topic(&b.user, "by b")).await.unwrap();
    assert_eq!(a.outcome(&of_b).await, Outcome::Accepted);
    assert_eq!(b.outcome(&of_a).await, Outcome::Accepted);

    assert_eq!(a.extremities().len(), 2);
    assert_eq!(a.extremities(), b.extremities());
    assert_eq!(a.state_ids(a.root()), b.state_ids(b.root()));
    let merge = a.send(message(&a.user, "merged")).await.unwrap();
    assert_eq!(b.outcome(&merge).await, Outcome::Accepted);
    for side in [a, b] {
        assert_eq!(side.extremities().len(), 1);
        side.check();
    }
}

#[tokio::test]
async fn what_a_banned_user_sends_from_before_the_ban_is_not_shown() {
    let all = servers(2, RoomVersionId::V11).await;
    let [a, b] = all.as_slice() else {
        unreachable!()
    };
    let ban = a.send(membership(&a.user, &b.user, "ban")).await.unwrap();
    let evading = b.send(message(&b.user, "still here")).await.unwrap();
    let renamed = b.send(joined(&b.user)).await;
    assert!(renamed.is_ok(), "the ban is not known there");

    assert_eq!(a.outcome(&evading).await, Outcome::SoftFailed);
    assert!(a.bodies().is_empty());
    assert_eq!(a.extremities(), BTreeSet::from([ban.event_id.clone()]));
    assert_eq!(b.outcome(&ban).await, Outcome::Accepted);
    assert_eq!(b.class(&b.user), Some(Class::Ban));
    a.check();
    b.check();
}

#[tokio::test]
async fn an_event_that_the_rules_refuse_is_rejected_and_what_follows_it_is_not() {
    let all = servers(2, RoomVersionId::V11).await;
    let [a, b] = all.as_slice() else {
        unreachable!()
    };
    // A topic without the power for it, made as if there were no rules.
    let template = a.template(topic(&a.user, "mine")).await;
    let forged = String::from_utf8(template.json.to_vec()).unwrap();
    let forged = forged.replace(a.user.as_str(), b.user.as_str());
    let forged = Pdu::from_stored(
        EventId::parse("$GZGFnMCRjNmbYOm3JPFp8dSPMDDKlWwmO2QPLgBAl2E").unwrap(),
        forged.into(),
        false,
    );
    assert_eq!(b.outcome(&forged.unwrap()).await, Outcome::Rejected);
    let hello = a.send(message(&a.user, "hello")).await.unwrap();
    assert_eq!(b.outcome(&hello).await, Outcome::Accepted);
    b.check();
    assert_eq!(b.bodies(), ["hello"]);
}

#[tokio::test]
async fn a_redaction_that_comes_first_waits_for_its_target() {
    let all = servers(2, RoomVersionId::V11).await;
    let [a, b] = all.as_slice() else {
        unreachable!()
    };
    let first = a.send(message(&a.user, "first")).await.unwrap();
    let second = a.send(message(&a.user, "secret")).await.unwrap();
    let redaction = NewEvent {
        event_type: "m.room.redaction".into(),
        content: Default::default(),
        redacts: Some(second.event_id.clone()),
        ..message(&a.user, "")
    };
    b.outcome(&first).await;
    let redaction = a.template(redaction).await;
    // As if it had been sent by a server that forgot to cite what it redacts.
    let text = String::from_utf8(redaction.json.to_vec()).unwrap();
    let text = text.replacen(
        &format!("\"prev_events\":[\"{}\"]", second.event_id),
        &format!("\"prev_events\":[\"{}\"]", first.event_id),
        1,
    );
    let early = Pdu::from_stored(redaction.event_id.clone(), text.into(), false).unwrap();

    assert_eq!(b.outcome(&early).await, Outcome::Accepted);
    assert_eq!(b.outcome(&second).await, Outcome::Accepted);

    let shown = b.event(&second.event_id).unwrap();
    assert!(shown.meta.has(flag::REDACTED));
    assert_eq!(b.bodies(), ["first"]);
    b.check();
}

#[tokio::test]
async fn coming_back_to_a_room_takes_the_state_of_now() {
    let all = servers(2, RoomVersionId::V11).await;
    let [a, b] = all.as_slice() else {
        unreachable!()
    };
    let leave = b.send(membership(&b.user, &b.user, "leave")).await.unwrap();
    assert_eq!(a.outcome(&leave).await, Outcome::Accepted);
    a.send(topic(&a.user, "without b")).await.unwrap();
    a.send(message(&a.user, "b is away")).await.unwrap();
    let join = a.template(joined(&b.user)).await;
    b.rooms
        .adopt(a.answer(&join, RoomVersionId::V11))
        .await
        .unwrap();
    a.receive_as(&join, Intake::Vouched).await.unwrap();

    assert_eq!(a.state_ids(a.root()), b.state_ids(b.root()));
    assert_eq!(b.extremities(), BTreeSet::from([join.event_id.clone()]));
    assert_eq!(b.class(&b.user), Some(Class::Join));
    b.check();
    let hello = b.send(message(&b.user, "back")).await.unwrap();
    assert_eq!(a.outcome(&hello).await, Outcome::Accepted);
}

#[tokio::test]
async fn loose_ends_are_tied_together_a_few_at_a_time() {
    let all = servers(2, RoomVersionId::V11).await;
    let [a, b] = all.as_slice() else {
        unreachable!()
    };
    let mut forks = Vec::new();
    for number in 0..25 {
        forks.push(a.template(message(&b.user, &number.to_string())).await);
    }
    for fork in &forks {
        assert_eq!(a.outcome(fork).await, Outcome::Accepted);
        assert_eq!(b.outcome(fork).await, Outcome::Accepted);
    }
    assert_eq!(a.extremities().len(), 25);
    a.check();

    let tie = a.send(message(&a.user, "tie")).await.unwrap();
    assert_eq!(tie.prev_events.len(), 10);
    assert_eq!(a.extremities().len(), 16);
    a.rooms.merge(a.room()).await.unwrap();
    assert_eq!(a.extremities().len(), 7);
    let shown = a.bodies();
    assert_eq!((shown.len(), shown.last().unwrap().as_str()), (26, "tie"));
    a.check();
    let sent = a.graph();
    let mut sent: Vec<_> = sent
        .values()
        .filter(|event| event.meta.has(flag::LOCAL) && event.pdu.depth >= tie.depth)
        .collect();
    sent.sort_by_key(|event| event.number);
    assert_eq!(sent.len(), 2);
    for event in sent {
        assert_eq!(b.outcome(&event.pdu).await, Outcome::Accepted);
    }
    assert_eq!(a.extremities(), b.extremities());
    assert_eq!(b.bodies(), shown);
    b.check();
}

#[tokio::test]
async fn a_redaction_sent_here_waits_for_its_target_from_elsewhere() {
    let all = servers(2, RoomVersionId::V11).await;
    let [a, b] = all.as_slice() else {
        unreachable!()
    };
    let secret = b.send(message(&b.user, "secret")).await.unwrap();
    let redaction = NewEvent {
        event_type: "m.room.redaction".into(),
        content: Default::default(),
        redacts: Some(secret.event_id.clone()),
        ..message(&a.user, "")
    };
    let redaction = a.send(redaction).await.unwrap();
    a.check();

    assert_eq!(a.outcome(&secret).await, Outcome::Accepted);
    assert_eq!(b.outcome(&redaction).await, Outcome::Accepted);

    for side in [a, b] {
        let shown = side.event(&secret.event_id).unwrap();
        assert!(shown.meta.has(flag::REDACTED));
        assert_eq!(side.bodies(), Vec::<String>::new());
        side.check();
    }
    assert_eq!(a.extremities(), b.extremities());
}

#[tokio::test]
async fn a_room_is_created_once() {
    let all = servers(2, RoomVersionId::V11).await;
    let [a, b] = all.as_slice() else {
        unreachable!()
    };
    let state = a.state(a.root());
    let create = state.iter().find(|pdu| pdu.prev_events.is_empty()).unwrap();
    let another = String::from_utf8(create.json.to_vec()).unwrap();
    let another = another.replace("\"room_version\"", "\"other\":1,\"room_version\"");
    let id = EventId::parse("$GZGFnMCRjNmbYOm3JPFp8dSPMDDKlWwmO2QPLgBAl2E").unwrap();
    let another = Pdu::from_stored(id, another.into(), false).unwrap();
    let before = (b.root(), b.extremities());

    assert_eq!(b.outcome(create).await, Outcome::Known);
    assert_eq!(b.outcome(&another).await, Outcome::Rejected);

    assert_eq!((b.root(), b.extremities()), before);
    b.check();
}

#[tokio::test]
async fn rooms_that_are_made_alike_at_the_same_time_are_two() {
    let peer = peer(0).await;
    let plan = || plan(&peer.user, RoomVersionId::V12);

    let (one, two) = tokio::join!(peer.rooms.create(plan()), peer.rooms.create(plan()));

    assert_ne!(one.unwrap(), two.unwrap());
    assert_eq!(peer.rooms.all().len(), 2);
    let found = peer.rooms.verify_recent().await.unwrap();
    assert!(found.is_empty(), "{found:?}");
}

#[tokio::test]
async fn a_relation_that_comes_first_waits_for_its_parent() {
    let all = servers(2, RoomVersionId::V11).await;
    let [a, b] = all.as_slice() else {
        unreachable!()
    };
    let parent = a.template(message(&a.user, "parent")).await;
    let content = json!({ "msgtype": "m.text", "body": "child",
        "m.relates_to": { "rel_type": "m.thread", "event_id": parent.event_id } });
    let child = NewEvent {
        content: object(content).unwrap(),
        ..message(&a.user, "")
    };
    let child = a.template(child).await;

    assert_eq!(b.outcome(&child).await, Outcome::Accepted);
    assert_eq!(b.outcome(&parent).await, Outcome::Accepted);

    let (parent, child) = (b.event(&parent.event_id), b.event(&child.event_id));
    let (parent, child) = (parent.unwrap(), child.unwrap());
    assert_eq!(child.meta.thread_root, Some(parent.number));
    let snapshot = b.rooms.store.snapshot().unwrap();
    let threads = b
        .rooms
        .threads_of(&snapshot, b.room(), &[parent.number])
        .unwrap();
    assert_eq!(threads[0].unwrap().count, 1);
    b.check();
}

//! Several servers in one room, on stores in memory, without a network: events are carried by hand, in any order.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::prelude::*;
use rand::{SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use ruma::{OwnedServerName, OwnedUserId, RoomVersionId, ServerName};
use serde_json::json;

use super::*;
use crate::{
    accounts::{Accounts, Settings},
    clock::Clock,
    events::RootNumber,
    rooms::{Adoption, Class, CreateRoom, NewEvent, Preset, identity, object, tests::message},
    storage::{Position, Store},
    telemetry::Metrics,
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
    let signer = identity::signer(&store, &clock, name.clone())
        .await
        .unwrap();
    let settings = Settings::default();
    let accounts = Accounts::new(
        store.clone(),
        clock.clone(),
        name,
        settings,
        &Metrics::new(),
    );
    Rooms::new(store, clock, signer, accounts, Default::default()).unwrap()
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

/// Fills the gaps of a server from another, two events at a time, the newest first as /backfill has them.
/// True if there may be more.
async fn fill_gaps(new: &Peer, first: &Peer) -> bool {
    let graph = first.graph();
    let mut order: Vec<_> = graph.values().cloned().collect();
    order.sort_by_key(|event| event.meta.index);
    for _ in 0..20 {
        let mut writer = new.rooms.write(new.room()).await.unwrap();
        writer.settled().await.unwrap();
        let snapshot = new.rooms.store.snapshot().unwrap();
        let Some(gap) = new
            .rooms
            .gap_at_or_below(&snapshot, new.room(), i64::MAX)
            .unwrap()
        else {
            return false;
        };
        let newest = gap
            .missing
            .iter()
            .map(|id| graph[id].meta.index)
            .max()
            .unwrap();
        let page = order.iter().filter(|event| event.meta.index <= newest);
        let page: Vec<_> = page.collect();
        let page = page[page.len().saturating_sub(2)..]
            .iter()
            .map(|event| HistoryEvent {
                event: carried(&event.pdu),
                state_before: Some(
                    first
                        .state_ids(event.meta.root_before)
                        .into_iter()
                        .collect(),
                ),
            });
        writer.receive_history(&gap, page.collect()).await.unwrap();
    }
    true
}

#[tokio::test]
async fn history_fills_the_gap_before_a_join_and_one_in_the_middle() {
    let first = peer(0).await;
    first
        .rooms
        .create(plan(&first.user, RoomVersionId::V11))
        .await
        .unwrap();
    let mut sent = Vec::new();
    for body in ["1", "2", "3"] {
        sent.push(first.send(message(&first.user, body)).await.unwrap());
    }
    let new = peer(1).await;
    let join = first.template(joined(&new.user)).await;
    new.rooms
        .adopt(first.answer(&join, RoomVersionId::V11))
        .await
        .unwrap();
    first.receive_as(&join, Intake::Vouched).await.unwrap();
    for body in ["4", "5"] {
        sent.push(first.send(message(&first.user, body)).await.unwrap());
    }
    let last = first.send(message(&first.user, "6")).await.unwrap();
    let then = (new.rooms.store.position(), new.root());
    let before: Vec<_> = first.state_ids(first.root()).into_iter().collect();
    let mut writer = new.rooms.write(new.room()).await.unwrap();
    let received = writer
        .receive_after_gap(carried(&last), &before, Intake::Live, Batch::new())
        .await
        .unwrap();
    assert!(matches!(
        received,
        Received::Settled {
            outcome: Outcome::Accepted,
            ..
        }
    ));
    writer.settled().await.unwrap();
    drop(writer);
    assert_eq!(new.bodies(), Vec::<String>::from(["6".to_owned()]));

    assert!(!fill_gaps(&new, &first).await);

    let snapshot = new.rooms.store.snapshot().unwrap();
    let root = new.rooms.root_at(&snapshot, new.room(), then.0).unwrap();
    assert_eq!(root, Some(then.1), "history is not what was current");
    let since = new
        .rooms
        .timeline_since(&snapshot, new.room(), then.0, i64::MAX, 10);
    let (since, has_more) = since.unwrap();
    assert_eq!(
        (since.len(), has_more),
        (1, true),
        "there is more than what is live"
    );
    assert_eq!(new.bodies(), ["1", "2", "3", "4", "5", "6"]);
    new.check();
    let theirs = new.graph();
    for (id, event) in &first.graph() {
        let own = theirs
            .get(id)
            .unwrap_or_else(|| panic!("{id} did not come"));
        assert_eq!(
            new.state_ids(own.meta.root_after),
            first.state_ids(event.meta.root_after),
        );
    }
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
async fn what_was_missing_in_a_gap_goes_there_when_it_comes() {
    let all = servers(2, RoomVersionId::V11).await;
    let [a, b] = all.as_slice() else {
        unreachable!()
    };
    let late = a.send(message(&a.user, "late")).await.unwrap();
    let early = a.send(message(&a.user, "early")).await.unwrap();
    let before: Vec<_> = a.state_ids(a.root()).into_iter().collect();
    let mut writer = b.rooms.write(b.room()).await.unwrap();
    let taken = writer.receive_after_gap(carried(&early), &before, Intake::Live, Batch::new());
    assert!(matches!(
        taken.await.unwrap(),
        Received::Settled {
            outcome: Outcome::Accepted,
            ..
        }
    ));
    drop(writer);

    assert_eq!(b.outcome(&late).await, Outcome::Accepted);

    assert_eq!(b.bodies(), ["late", "early"]);
    assert_eq!(b.extremities(), a.extremities());
    let snapshot = b.rooms.store.snapshot().unwrap();
    let gap = b
        .rooms
        .gap_at_or_below(&snapshot, b.room(), i64::MAX)
        .unwrap()
        .unwrap();
    assert!(
        gap.index < 2 * gaps::GAP_WIDTH,
        "only the one before the join is left"
    );
    b.check();
}

#[tokio::test]
async fn what_a_gap_names_stands_apart_from_what_it_follows_and_came_first() {
    let all = servers(2, RoomVersionId::V11).await;
    let [a, b] = all.as_slice() else {
        unreachable!()
    };
    let first = a.send(message(&a.user, "first")).await.unwrap();
    let second = a.send(message(&a.user, "second")).await.unwrap();
    let third = a.send(message(&a.user, "third")).await.unwrap();
    b.receive_after_gap(&third, a, Intake::Live).await;

    assert_eq!(b.outcome(&first).await, Outcome::Accepted);
    assert_eq!(b.outcome(&second).await, Outcome::Accepted);

    assert_eq!(b.bodies(), ["second", "third", "first"]);
    assert_eq!(b.extremities(), a.extremities());
    b.check();
}

#[tokio::test]
async fn what_an_event_that_is_not_shown_follows_is_no_end_when_it_comes() {
    let all = servers(2, RoomVersionId::V11).await;
    let [a, b] = all.as_slice() else {
        unreachable!()
    };
    let late = a.send(message(&a.user, "late")).await.unwrap();
    let unsigned = a.send(message(&a.user, "unsigned")).await.unwrap();
    let outcome = b.receive_after_gap(&unsigned, a, Intake::Unsigned).await;
    assert_eq!(outcome, Outcome::SoftFailed);
    let last = a.send(message(&a.user, "last")).await.unwrap();
    assert_eq!(b.outcome(&last).await, Outcome::Accepted);

    assert_eq!(b.outcome(&late).await, Outcome::Accepted);

    assert_eq!(b.bodies(), ["late", "last"]);
    b.check();
}

#[tokio::test]
async fn what_the_policy_server_did_not_sign_is_not_shown_in_a_gap_either() {
    let all = servers(2, RoomVersionId::V11).await;
    let [a, b] = all.as_slice() else {
        unreachable!()
    };
    let late = a.send(message(&a.user, "late")).await.unwrap();
    let early = a.send(message(&a.user, "early")).await.unwrap();
    let outcome = b.receive_after_gap(&early, a, Intake::Live).await;
    assert_eq!(outcome, Outcome::Accepted);

    let Received::Settled { outcome, .. } = b.receive_as(&late, Intake::Unsigned).await.unwrap()
    else {
        panic!("nothing is missing");
    };

    assert_eq!(outcome, Outcome::SoftFailed);
    assert_eq!(b.bodies(), ["early"]);
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
async fn a_position_is_found_across_history_that_has_filled_a_gap() {
    let first = peer(0).await;
    let plan = plan(&first.user, RoomVersionId::V11);
    first.rooms.create(plan).await.unwrap();
    for number in 0..40 {
        let body = number.to_string();
        first.send(message(&first.user, &body)).await.unwrap();
    }
    let new = peer(1).await;
    let join = first.template(joined(&new.user)).await;
    let answer = first.answer(&join, RoomVersionId::V11);
    new.rooms.adopt(answer).await.unwrap();
    first.receive_as(&join, Intake::Vouched).await.unwrap();
    let mut seen = vec![(Position::default(), i64::MIN)];
    let mut note = || {
        let published = new.rooms.published(new.room()).unwrap();
        seen.push((published.position, published.head.high));
    };
    note();
    for number in 0..100 {
        let sent = first.send(message(&first.user, &number.to_string())).await;
        let sent = sent.unwrap();
        match number {
            // The second gap.
            40..60 => continue,
            60 => assert_eq!(
                new.receive_after_gap(&sent, &first, Intake::Live).await,
                Outcome::Accepted
            ),
            _ => assert_eq!(new.outcome(&sent).await, Outcome::Accepted),
        }
        note();
    }
    while fill_gaps(&new, &first).await {}
    assert_eq!(new.bodies().len(), 140);
    let after = Clock::seeded(1_700_000_000_000, 1);
    let name = new.rooms.own_name().to_owned();
    // One that has only now started, and has nothing in memory.
    let restarted = on(new.rooms.store.clone(), after, name).await;

    let snapshot = restarted.store.snapshot().unwrap();
    for (position, index) in seen {
        let found = restarted.index_at(&snapshot, new.room(), position);
        assert_eq!(found.unwrap(), index, "at {position:?}");
    }
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

/// A world of servers and what is under way between them.
struct World {
    servers: Vec<Peer>,
    random: StdRng,
    /// How many events were sent.
    sent: usize,
    by_id: HashMap<OwnedEventId, Arc<Pdu>>,
    /// Those that made the room.
    old: BTreeSet<OwnedEventId>,
    /// By server: events that have not come yet.
    waiting: Vec<Vec<OwnedEventId>>,
}

impl World {
    fn pick(&mut self, below: usize) -> usize {
        self.random.random_range(0..below)
    }

    async fn step(&mut self) {
        let from = self.pick(self.servers.len());
        let to = self.pick(self.servers.len());
        let (user, other) = (
            self.servers[from].user.clone(),
            self.servers[to].user.clone(),
        );
        let event = match self.pick(10) {
            0 | 1 => topic(&user, &format!("topic {}", self.sent)),
            2 => membership(&user, &other, "ban"),
            3 => membership(&user, &other, "leave"),
            4 => membership(&user, &other, "invite"),
            5 => joined(&user),
            6 => {
                let level = [0, 50, 100][self.pick(3)];
                let first = self.servers[0].user.clone();
                let mut users = serde_json::Map::new();
                users.insert(first.to_string(), json!(100));
                users.insert(user.to_string(), json!(100));
                users.insert(
                    other.to_string(),
                    json!(if other == first { 100 } else { level }),
                );
                let content = object(json!({ "users": users })).unwrap();
                NewEvent::state(user, "m.room.power_levels", "", content)
            }
            7 => {
                let rule = ["public", "invite"][self.pick(2)];
                let content = object(json!({ "join_rule": rule })).unwrap();
                NewEvent::state(user, "m.room.join_rules", "", content)
            }
            _ => message(&user, &format!("message {}", self.sent)),
        };
        // What the rules do not allow where it is sent is not sent.
        if let Ok(pdu) = self.servers[from].send(event).await
            && !self.old.contains(&pdu.event_id)
            && self
                .by_id
                .insert(pdu.event_id.clone(), Arc::clone(&pdu))
                .is_none()
        {
            self.sent += 1;
            for (server, waiting) in self.waiting.iter_mut().enumerate() {
                if server != from {
                    waiting.push(pdu.event_id.clone());
                }
            }
        }
    }

    /// Carries an event to a server, and before it what that lacks.
    async fn carry(&self, server: usize, id: &OwnedEventId) {
        let mut stack = vec![id.clone()];
        while let Some(id) = stack.last().cloned() {
            match self.servers[server].receive(&self.by_id[&id]).await {
                Received::Settled { .. } => {
                    stack.pop();
                }
                Received::MissingAuth(missing) | Received::MissingPrev(missing) => {
                    stack.extend(missing);
                }
            }
        }
    }

    async fn deliver(&mut self, percent: usize) {
        for server in 0..self.servers.len() {
            let mut waiting = std::mem::take(&mut self.waiting[server]);
            waiting.shuffle(&mut self.random);
            let now = (waiting.len() * percent).div_ceil(100);
            let later = waiting.split_off(now);
            for id in waiting {
                self.carry(server, &id).await;
            }
            self.waiting[server] = later;
        }
    }

    fn compare(&self) -> usize {
        let mut agree = 0;
        let first = &self.servers[0];
        let graph = first.graph();
        for other in &self.servers[1..] {
            let theirs = other.graph();
            for id in self.by_id.keys() {
                let (here, there) = (&graph[id], &theirs[id]);
                assert_eq!(here.meta.is_rejected(), there.meta.is_rejected(), "{id}");
                assert_eq!(
                    first.state_ids(here.meta.root_after),
                    other.state_ids(there.meta.root_after),
                    "the state after {id}"
                );
            }
            if other.extremities() == first.extremities() {
                agree += 1;
                assert_eq!(first.state_ids(first.root()), other.state_ids(other.root()));
            }
        }
        for server in &self.servers {
            server.check();
        }
        agree
    }
}

async fn converge(seed: u64, version: RoomVersionId) -> usize {
    let servers = servers(3, version).await;
    let mut world = World {
        waiting: vec![Vec::new(); servers.len()],
        old: servers[0].graph().into_keys().collect(),
        servers,
        random: StdRng::seed_from_u64(seed),
        sent: 0,
        by_id: HashMap::new(),
    };
    let levels = world
        .servers
        .iter()
        .map(|server| (server.user.to_string(), json!(100)));
    let users: serde_json::Map<_, _> = levels.collect();
    let content = object(json!({ "users": users })).unwrap();
    let user = world.servers[0].user.clone();
    if let Ok(levels) = world.servers[0]
        .send(NewEvent::state(user, "m.room.power_levels", "", content))
        .await
    {
        world
            .by_id
            .insert(levels.event_id.clone(), Arc::clone(&levels));
        for server in [1, 2] {
            world.carry(server, &levels.event_id).await;
        }
    }
    for _ in 0..6 {
        for _ in 0..5 {
            world.step().await;
        }
        world.deliver(50).await;
    }
    world.deliver(100).await;
    world.compare()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 0, ..ProptestConfig::default() })]
    #[test]
    fn servers_that_hear_the_same_in_any_order_agree(seed: u64, is_newest: bool) {
        let version = if is_newest { RoomVersionId::V12 } else { RoomVersionId::V11 };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(converge(seed, version));
    }
}

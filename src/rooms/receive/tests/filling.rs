//! Gaps in the timeline, and the history that fills them.

use super::*;

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

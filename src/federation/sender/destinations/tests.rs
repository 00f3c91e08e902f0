//! The state machine of destinations, with times given by hand.

use super::*;

const HOUR_MS: u64 = 3_600_000;
const ONE: ServerNumber = ServerNumber(1);
const TWO: ServerNumber = ServerNumber(2);

fn event(position: u64) -> Queued {
    Queued {
        position: Position(position),
        room: RoomNumber(7),
        event: EventNumber(u32::try_from(position).unwrap()),
        is_parting: false,
    }
}

fn parting(position: u64) -> Queued {
    Queued {
        is_parting: true,
        ..event(position)
    }
}

fn begin() -> Destinations {
    Destinations::load(Position(0), [], [])
}

/// Pushes events at these positions and deals the log out up to the last.
fn push(to: &mut Destinations, server: ServerNumber, positions: std::ops::RangeInclusive<u64>) {
    for position in positions {
        to.push(server, event(position), 0);
        to.distributed_to(Position(position));
    }
}

#[track_caller]
fn starts(from: &mut Destinations, now_ms: u64, expected: &[ServerNumber]) {
    let started: Vec<_> = from.take_ready(now_ms);
    let servers: Vec<_> = started.iter().map(|(server, _)| *server).collect();
    assert_eq!(servers, expected);
}

/// The positions that a task is to send.
#[track_caller]
fn send(from: &mut Destinations, server: ServerNumber) -> Vec<u64> {
    match from.work(server) {
        Some(Work::Send { pdus, .. }) => pdus.iter().map(|pdu| pdu.position.0).collect(),
        other => panic!("expected something to send, not {other:?}"),
    }
}

#[track_caller]
fn walk(from: &mut Destinations, server: ServerNumber) -> (u64, u64) {
    match from.work(server) {
        Some(Work::Walk { behind, upto }) => (behind.after.0, upto.0),
        other => panic!("expected a walk, not {other:?}"),
    }
}

fn fail(of: &mut Destinations, server: ServerNumber, now_ms: u64) -> bool {
    of.failed(server, now_ms, |attempts| backoff_ms(attempts, 6 * HOUR_MS))
}

#[test]
fn a_server_gets_one_transaction_after_the_other_and_is_forgotten() {
    let mut all = begin();
    push(&mut all, ONE, 1..=60);
    starts(&mut all, 0, &[ONE]);
    push(&mut all, ONE, 61..=61);
    starts(&mut all, 0, &[]);
    assert_eq!(send(&mut all, ONE), (1..=50).collect::<Vec<_>>());
    all.sent(ONE);
    assert_eq!(send(&mut all, ONE), (51..=61).collect::<Vec<_>>());
    all.sent(ONE);
    assert!(!all.is_quiet(0));
    assert!(all.work(ONE).is_none());
    assert!(all.is_quiet(0));
    assert!(all.standings().is_empty());
    assert_eq!(all.queued(), 0);
    let changes = all.changes(0);
    assert_eq!(changes.distributed, Position(61));
    assert!(changes.put.is_empty() && changes.delete.is_empty());
}

#[test]
fn a_server_that_is_away_costs_no_memory_for_each_event() {
    let mut all = begin();
    push(&mut all, ONE, 5..=8);
    starts(&mut all, 0, &[ONE]);
    send(&mut all, ONE);
    assert!(fail(&mut all, ONE, 100));
    assert_eq!(all.queued(), 0);
    push(&mut all, ONE, 9..=2_000);
    all.push_volatile(ONE, |_| panic!("nothing volatile is kept"));
    assert_eq!(all.queued(), 0);
    starts(&mut all, 1_099, &[]);
    assert_eq!(all.next_retry(), Some(1_100));
    starts(&mut all, 1_100, &[ONE]);
    assert_eq!(walk(&mut all, ONE), (4, 2_000));
    // While the walk is under way new events wait in the queue.
    push(&mut all, ONE, 2_001..=2_002);
    all.walked_to(ONE, Position(1_500));
    assert_eq!(all.counts(), (1, 0));
    all.walk_ended(ONE, Position(2_000));
    assert_eq!(send(&mut all, ONE), [2_001, 2_002]);
    all.sent(ONE);
    assert!(all.work(ONE).is_none());
    assert!(all.standings().is_empty());
}

#[test]
fn a_walk_that_fails_goes_on_where_it_was() {
    let mut all = begin();
    push(&mut all, ONE, 1..=10);
    starts(&mut all, 0, &[ONE]);
    send(&mut all, ONE);
    fail(&mut all, ONE, 0);
    starts(&mut all, 1_000, &[ONE]);
    assert_eq!(walk(&mut all, ONE), (0, 10));
    push(&mut all, ONE, 11..=12);
    all.walked_to(ONE, Position(6));
    assert!(fail(&mut all, ONE, 1_000), "it had answered in between");
    assert_eq!(all.queued(), 0);
    starts(&mut all, 2_000, &[ONE]);
    assert_eq!(walk(&mut all, ONE), (6, 12));
}

#[test]
fn the_wait_doubles_up_to_its_bound() {
    let mut all = begin();
    push(&mut all, ONE, 1..=1);
    let mut now_ms = 0;
    let mut waits = Vec::new();
    for attempt in 0..20 {
        starts(&mut all, now_ms, &[ONE]);
        assert_eq!(fail(&mut all, ONE, now_ms), attempt == 0);
        let next = all.next_retry().unwrap();
        waits.push((next - now_ms) / 1_000);
        now_ms = next;
    }
    let start = [
        1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024, 2_048, 4_096, 8_192, 16_384,
    ];
    assert_eq!(waits.get(..15), Some(&start[..]));
    assert!(waits.iter().skip(15).all(|wait| *wait == 21_600));
    assert_eq!(all.standings()[0].attempts, 20);
}

#[test]
fn traffic_of_a_server_wakes_it_but_not_again_and_again() {
    let mut all = begin();
    push(&mut all, ONE, 1..=1);
    assert!(!all.heard_from(ONE, 0), "it is not waited for");
    starts(&mut all, 0, &[ONE]);
    fail(&mut all, ONE, 0);
    for deaf_ms in [0, 1_000, 2_000, 4_000] {
        let before = all.all[&ONE].failure.unwrap().tried_ms;
        if deaf_ms > 0 {
            assert!(!all.heard_from(ONE, before + deaf_ms - 1));
        }
        let now_ms = before + deaf_ms;
        assert!(all.heard_from(ONE, now_ms));
        assert!(!all.heard_from(ONE, now_ms), "it is on its way");
        starts(&mut all, now_ms, &[ONE]);
        fail(&mut all, ONE, now_ms);
    }
    assert!(all.retry(ONE), "an operator is always heard");
    assert!(all.retry(ONE));
    starts(&mut all, 7_001, &[ONE]);
    assert_eq!(walk(&mut all, ONE), (0, 1));
    all.walked_to(ONE, Position(1));
    all.walk_ended(ONE, Position(1));
    assert!(all.work(ONE).is_none());
    assert!(!all.retry(ONE));
}

#[test]
fn a_slow_server_falls_behind_and_the_others_do_not() {
    let mut all = begin();
    push(&mut all, ONE, 1..=100);
    starts(&mut all, 0, &[ONE]);
    assert_eq!(send(&mut all, ONE).len(), 50);
    push(&mut all, ONE, 101..=1_200);
    push(&mut all, TWO, 1_201..=1_201);
    starts(&mut all, 0, &[TWO]);
    assert_eq!(all.queued(), 51);
    all.sent(ONE);
    // What was on its way is not sent again.
    assert_eq!(walk(&mut all, ONE), (50, 1_201));
    let changes = all.changes(9);
    let row = |server| {
        let found = changes.put.iter().find(|(number, _)| *number == server);
        found.and_then(|(_, row)| row.behind)
    };
    let (one, two) = (row(ONE).unwrap(), row(TWO).unwrap());
    assert_eq!((one.after.0, one.since_ms), (50, 0));
    assert_eq!((two.after.0, two.since_ms), (1_200, 9));
}

#[test]
fn what_was_on_its_way_when_a_server_fell_behind_is_not_lost() {
    let mut all = begin();
    push(&mut all, ONE, 1..=100);
    starts(&mut all, 0, &[ONE]);
    send(&mut all, ONE);
    push(&mut all, ONE, 101..=1_200);
    let row = all.changes(0).put[0].1;
    assert_eq!(row.behind.unwrap().after.0, 0);
    fail(&mut all, ONE, 0);
    starts(&mut all, 1_000, &[ONE]);
    assert_eq!(walk(&mut all, ONE), (0, 1_200));
}

#[test]
fn an_overflow_during_a_walk_makes_another_walk() {
    let mut all = begin();
    push(&mut all, ONE, 1..=1);
    starts(&mut all, 0, &[ONE]);
    fail(&mut all, ONE, 0);
    starts(&mut all, 1_000, &[ONE]);
    assert_eq!(walk(&mut all, ONE), (0, 1));
    push(&mut all, ONE, 2..=1_010);
    all.walk_ended(ONE, Position(1));
    assert_eq!(walk(&mut all, ONE), (1, 1_010));
    all.walk_ended(ONE, Position(1_010));
    assert!(all.work(ONE).is_none());
}

#[test]
fn partings_are_kept_whatever_happens_to_the_queue() {
    let mut all = begin();
    all.push(ONE, parting(1), 0);
    starts(&mut all, 0, &[ONE]);
    send(&mut all, ONE);
    let saved = |all: &mut Destinations| -> Vec<u64> {
        let partings = all.changes(0).partings;
        partings.iter().map(|(_, event)| event.position.0).collect()
    };
    assert_eq!(saved(&mut all), [1], "it waits in the queue");
    fail(&mut all, ONE, 0);
    all.push(ONE, parting(2), 0);
    assert!(all.has_unsaved_partings());
    assert_eq!(saved(&mut all), [1, 2], "it waits for the server");
    starts(&mut all, 1_000, &[ONE]);
    all.distributed_to(Position(2));
    walk(&mut all, ONE);
    all.push(ONE, parting(3), 0);
    push(&mut all, ONE, 4..=1_010);
    assert_eq!(saved(&mut all), [3], "it fell out of the queue");
}

#[test]
fn a_restart_goes_on_with_what_was_written() {
    let mut before = begin();
    push(&mut before, ONE, 1..=3);
    push(&mut before, TWO, 4..=6);
    starts(&mut before, 0, &[ONE, TWO]);
    send(&mut before, ONE);
    send(&mut before, TWO);
    fail(&mut before, TWO, 50);
    let changes = before.changes(60);
    assert!(!before.is_changed());
    assert_eq!(before.changes(60).put, []);

    let server = ServerNumber(3);
    let mut after = Destinations::load(changes.distributed, changes.put, [server]);
    starts(&mut after, 60, &[ONE, server]);
    assert_eq!(walk(&mut after, ONE), (0, 6));
    after.walk_ended(ONE, Position(6));
    assert!(after.work(ONE).is_none());
    assert_eq!(after.changes(70).delete, [ONE]);
    assert!(matches!(
        after.work(server),
        Some(Work::Send { pdus, has_stored: true, .. }) if pdus.is_empty()
    ));
    starts(&mut after, 1_050, &[TWO]);
    assert_eq!(walk(&mut after, TWO), (3, 6));
}

#[test]
fn a_refused_transaction_is_narrowed_down_to_what_is_refused() {
    let mut all = begin();
    push(&mut all, ONE, 1..=4);
    all.note_stored(ONE);
    starts(&mut all, 0, &[ONE]);
    assert_eq!(send(&mut all, ONE).len(), 4);
    all.has_more_stored(ONE);
    assert!(all.refused(ONE, 4, 1), "first without EDUs");
    assert!(matches!(
        all.work(ONE),
        Some(Work::Send { pdus, has_stored: false, .. }) if pdus.len() == 4
    ));
    assert!(all.refused(ONE, 4, 0));
    assert_eq!(send(&mut all, ONE), [1, 2]);
    assert!(all.refused(ONE, 2, 0));
    assert_eq!(send(&mut all, ONE), [1]);
    assert!(!all.refused(ONE, 1, 0), "it is this one");
    all.sent(ONE);
    assert!(matches!(
        all.work(ONE),
        Some(Work::Send { pdus, has_stored: true, .. }) if pdus.len() == 3
    ));
    all.sent(ONE);
    assert!(all.work(ONE).is_none());
}

#[test]
fn refused_edus_are_narrowed_down_to_the_one_that_is_refused() {
    let mut all = begin();
    all.note_stored(ONE);
    starts(&mut all, 0, &[ONE]);
    send(&mut all, ONE);
    assert_eq!(all.edu_limit(ONE), usize::MAX);
    for (edus, limit) in [(100, 50), (50, 25), (25, 12), (3, 1)] {
        assert!(all.refused(ONE, 0, edus));
        assert_eq!(all.edu_limit(ONE), limit);
    }
    assert!(!all.refused(ONE, 0, 1), "it is this one");
    all.sent(ONE);
    assert_eq!(all.edu_limit(ONE), usize::MAX);
}

#[test]
fn a_task_that_is_told_to_stop_leaves_everything_as_it_was() {
    let mut all = begin();
    push(&mut all, ONE, 1..=2);
    starts(&mut all, 0, &[ONE]);
    send(&mut all, ONE);
    all.interrupted(ONE);
    all.interrupted(ONE);
    assert!(!all.has_running());
    assert_eq!(all.changes(5).put.len(), 1);
    push(&mut all, ONE, 3..=3);
    starts(&mut all, 0, &[ONE]);
    assert_eq!(send(&mut all, ONE), [1, 2, 3]);
}

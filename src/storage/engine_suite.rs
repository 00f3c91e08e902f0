//! One suite of cases, run for every engine.
#![allow(clippy::disallowed_methods, reason = "tests start tasks as they like")]

mod reopening;
mod rows;
mod syncing;

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::FutureExt as _;

use self::rows::{
    ranges_are_deleted, rows_are_written_read_and_deleted,
    scans_go_both_ways_and_keep_within_their_range, tables_of_a_family_do_not_see_each_other,
};
use super::*;

static NUMBERS: Table<(u32, Text), String> = Table::new("numbers", Family::Users, b'1');
static NEIGHBOR: Table<(u32,), u8> = Table::new("neighbor", Family::Users, b'2');
static COUNTS: Table<(u8,), Counter> = Table::new("counts", Family::Users, b'3');
static STAMPED: Table<(u8, Position), Stamped<String>> =
    Table::new("stamped", Family::Membership, b'4');
static ROOM_ROWS: Table<(u32, Index), u32> = Table::new("room rows", Family::Timeline, b't');
static SINGLE: Table<(), Cbor<Vec<Option<u8>>>> = Table::new("single", Family::Meta, b'z');

fn text(value: &str) -> Text {
    Text::from(value)
}

fn put(store: &Store, number: u32, name: &str, value: &str) -> Commit {
    let mut batch = Batch::new();
    batch.put(&NUMBERS, &(number, text(name)), &value.to_owned());
    store.submit(batch)
}

fn get(store: &Store, number: u32, name: &str) -> Option<String> {
    store
        .snapshot()
        .unwrap()
        .get(&NUMBERS, &(number, text(name)))
        .unwrap()
}

async fn positions_are_given_in_order_without_holes(store: Store) {
    let first = store.position();
    let published = Arc::new(Mutex::new(Vec::new()));
    let commits: Vec<Commit> = (0..700)
        .map(|number| {
            let mut batch = Batch::new();
            batch.put(&NEIGHBOR, &(number,), &0);
            let published = Arc::clone(&published);
            batch.on_publish(move |position| published.lock().unwrap().push(position));
            store.submit(batch)
        })
        .collect();
    let mut positions = Vec::new();
    for commit in commits {
        positions.push(commit.await.unwrap());
    }
    let expected: Vec<Position> = (1..=700).map(|step| Position(first.0 + step)).collect();
    assert_eq!(positions, expected);
    assert_eq!(*published.lock().unwrap(), expected);
    assert_eq!(store.position(), Position(first.0 + 700));
    assert_eq!(
        (first.writer(), store.position().sequence()),
        (1, first.sequence() + 700)
    );
}

async fn a_failed_precondition_writes_nothing_and_takes_no_position(store: Store) {
    put(&store, 1, "a", "old").await.unwrap();
    let attempt = |expected: Option<&str>, value: &str| {
        let mut batch = Batch::new();
        batch.expect(
            &NUMBERS,
            &(1, text("a")),
            expected.map(str::to_owned).as_ref(),
        );
        batch.put(&NUMBERS, &(1, text("a")), &value.to_owned());
        batch.put(&NEIGHBOR, &(1,), &1);
        batch.log(1, b"entry");
        store.submit(batch)
    };
    let before = store.position();
    assert!(matches!(attempt(None, "new").await, Err(Error::Conflict)));
    assert!(matches!(
        attempt(Some("other"), "new").await,
        Err(Error::Conflict)
    ));
    assert_eq!(get(&store, 1, "a").as_deref(), Some("old"));
    assert!(!store.snapshot().unwrap().has(&NEIGHBOR, &(1,)).unwrap());
    assert_eq!(
        attempt(Some("old"), "new").await.unwrap(),
        Position(before.0 + 1)
    );
    assert_eq!(get(&store, 1, "a").as_deref(), Some("new"));
}

/// The first keeps the committer busy, so that the others share a group.
async fn preconditions_see_earlier_batches_of_their_group(store: Store) {
    let (entered, wait_entered) = std::sync::mpsc::channel();
    let (release, held) = std::sync::mpsc::channel::<()>();
    let mut batch = Batch::new();
    batch.add(&COUNTS, &(1,), 5);
    batch.on_publish(move |_position| {
        entered.send(()).unwrap();
        held.recv().unwrap();
    });
    let blocker = store.submit(batch);
    tokio::task::spawn_blocking(move || wait_entered.recv().unwrap())
        .await
        .unwrap();
    let claim = |name: &str| {
        let mut batch = Batch::new();
        batch.expect(&NUMBERS, &(1, text("claimed")), None);
        batch.put(&NUMBERS, &(1, text("claimed")), &name.to_owned());
        store.submit(batch)
    };
    let counted = |expected: i64| {
        let mut batch = Batch::new();
        batch.expect(&COUNTS, &(1,), Some(&Counter(expected)));
        batch.add(&COUNTS, &(1,), 1);
        store.submit(batch)
    };
    let (first, second) = (claim("first"), claim("second"));
    let (wrong, right, next) = (counted(7), counted(5), counted(6));
    let mut batch = Batch::new();
    batch.delete_range(NUMBERS.prefix(&(1u32,)));
    let cleared = store.submit(batch);
    let third = claim("third");
    let mut batch = Batch::new();
    batch.delete(&NUMBERS, &(1, text("claimed")));
    let deleted = store.submit(batch);
    let fourth = claim("fourth");
    release.send(()).unwrap();
    blocker.await.unwrap();
    assert!(first.await.is_ok());
    assert!(matches!(second.await, Err(Error::Conflict)));
    assert!(matches!(wrong.await, Err(Error::Conflict)));
    assert!(right.await.is_ok() && next.await.is_ok() && cleared.await.is_ok());
    assert!(third.await.is_ok() && deleted.await.is_ok() && fourth.await.is_ok());
    assert_eq!(get(&store, 1, "claimed").as_deref(), Some("fourth"));
    assert_eq!(
        store.snapshot().unwrap().get(&COUNTS, &(1,)).unwrap(),
        Some(Counter(7))
    );
}

async fn hooks_run_before_and_after_snapshots_show_the_batch(store: Store) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    type Hook = Box<dyn FnOnce(Position) + Send>;
    let look = |batch: &mut Batch, when: fn(&mut Batch, Hook)| {
        let (seen, store) = (Arc::clone(&seen), store.clone());
        let hook =
            move |position: Position| seen.lock().unwrap().push(store.position() >= position);
        when(batch, Box::new(hook));
    };
    let mut batch = Batch::new();
    batch.put(&NEIGHBOR, &(1,), &1);
    look(&mut batch, |batch, hook| batch.on_publish(hook));
    look(&mut batch, |batch, hook| batch.before_publish(hook));
    store.submit(batch).await.unwrap();
    assert_eq!(*seen.lock().unwrap(), [false, true]);
}

async fn callers_wait_while_the_queue_is_full(store: Store) {
    let (release, held) = std::sync::mpsc::channel::<()>();
    let mut batch = Batch::new();
    batch.put(&NEIGHBOR, &(1,), &1);
    batch.on_publish(move |_position| held.recv().unwrap());
    let mut commits = vec![store.submit(batch)];
    store.has_room().await;
    let value = "x".repeat(85_000);
    while store.stats().queue_bytes < QUEUE_LIMIT_BYTES {
        let mut batch = Batch::new();
        (0..10).for_each(|number| batch.put(&NUMBERS, &(number, text("")), &value));
        commits.push(store.submit(batch));
    }
    assert!(store.has_room().now_or_never().is_none());
    release.send(()).unwrap();
    store.has_room().await;
    for commit in commits {
        commit.await.unwrap();
    }
}

async fn counters_add_up(store: Store) {
    let adds: Vec<Commit> = (0..100)
        .map(|number| {
            let mut batch = Batch::new();
            batch.add(&COUNTS, &(1,), number);
            batch.add(&COUNTS, &(2,), -1);
            store.submit(batch)
        })
        .collect();
    for add in adds {
        add.await.unwrap();
    }
    let counts = |store: &Store| {
        let snapshot = store.snapshot().unwrap();
        [1, 2, 3].map(|key| snapshot.get(&COUNTS, &(key,)).unwrap().map(|count| count.0))
    };
    assert_eq!(counts(&store), [Some(4_950), Some(-100), None]);
    let mut batch = Batch::new();
    batch.delete(&COUNTS, &(1,));
    batch.add(&COUNTS, &(1,), 3);
    batch.put(&COUNTS, &(2,), &Counter(10));
    batch.add(&COUNTS, &(2,), 1);
    batch.add(&COUNTS, &(3,), 1);
    batch.delete(&COUNTS, &(3,));
    store.submit(batch).await.unwrap();
    assert_eq!(counts(&store), [Some(3), Some(11), None]);
}

async fn positions_are_written_into_keys_and_values(store: Store) {
    let mut first = Batch::new();
    first.put(&NEIGHBOR, &(1,), &1);
    let row = Stamped(Position(0), "x".to_owned());
    first.put_stamped(&STAMPED, &(1, Position(0)), &row, PositionAt::Key(1));
    let mut second = Batch::new();
    second.put_stamped(&STAMPED, &(2, Position(5)), &row, PositionAt::Value(0));
    first.append(second);
    let position = store.submit(first).await.unwrap();
    let snapshot = store.snapshot().unwrap();
    let rows: Vec<_> = snapshot
        .scan(STAMPED.all(), Order::Forward)
        .map(Result::unwrap)
        .collect();
    assert_eq!(
        rows,
        [
            ((1, position), row),
            ((2, Position(5)), Stamped(position, "x".to_owned()))
        ]
    );
}

async fn snapshots_do_not_change(store: Store) {
    put(&store, 1, "a", "old").await.unwrap();
    let before = store.snapshot().unwrap();
    let position = before.position();
    let mut batch = Batch::new();
    batch.put(&NUMBERS, &(1, text("a")), &"new".to_owned());
    batch.put(&NUMBERS, &(1, text("b")), &"new".to_owned());
    batch.add(&COUNTS, &(1,), 1);
    store.submit(batch).await.unwrap();
    assert_eq!(
        before.get(&NUMBERS, &(1, text("a"))).unwrap().as_deref(),
        Some("old")
    );
    assert_eq!(before.scan(NUMBERS.all(), Order::Forward).count(), 1);
    assert_eq!(before.get(&COUNTS, &(1,)).unwrap(), None);
    assert_eq!(before.position(), position);
    assert_eq!(
        store.snapshot().unwrap().position(),
        Position(position.0 + 1)
    );
    assert_eq!(get(&store, 1, "a").as_deref(), Some("new"));
}

/// Every batch moves one from one counter to the other and writes its own number, so each view must add up.
async fn every_view_is_of_one_position(store: Store) {
    let writer = store.clone();
    let writing = tokio::spawn(async move {
        for _round in 0..300 {
            let mut batch = Batch::new();
            batch.add(&COUNTS, &(1,), 1);
            batch.add(&COUNTS, &(2,), -1);
            batch.put_stamped(
                &STAMPED,
                &(0, Position(0)),
                &Stamped(Position(0), String::new()),
                PositionAt::Value(0),
            );
            batch.log(1, b"");
            writer.submit(batch).await.unwrap();
        }
    });
    while !writing.is_finished() {
        let checked = store.read(|snapshot| {
            let count = |key| {
                snapshot
                    .get(&COUNTS, &(key,))
                    .map(|count| count.map_or(0, |count: Counter| count.0))
            };
            assert_eq!(count(1)? + count(2)?, 0);
            let row = snapshot.get(&STAMPED, &(0, Position(0)))?;
            assert_eq!(
                row.map_or(Position::new(1, 0), |row| row.0),
                snapshot.position()
            );
            let log = snapshot.log(Position::new(1, 0), usize::MAX)?;
            assert_eq!(i64::try_from(log.entries.len()).unwrap(), count(1)?);
            Ok::<_, Error>(())
        });
        checked.await.unwrap();
    }
    writing.await.unwrap();
}

async fn who_was_woken_or_answered_sees_the_change(store: Store) {
    let writer = store.clone();
    let rounds = 200u32;
    let writing = tokio::spawn(async move {
        for number in 1..=rounds {
            let mut batch = Batch::new();
            batch.put(&NEIGHBOR, &(0,), &u8::try_from(number % 251).unwrap());
            batch.add(&COUNTS, &(9,), 1);
            batch.wake(Topic::Room(3));
            writer.submit(batch).await.unwrap();
            let count = writer
                .snapshot()
                .unwrap()
                .get(&COUNTS, &(9,))
                .unwrap()
                .unwrap();
            assert_eq!(count.0, i64::from(number));
        }
    });
    loop {
        let tick = store.tick();
        let count = store
            .read(|snapshot| snapshot.get(&COUNTS, &(9,)))
            .await
            .unwrap()
            .map_or(0, |count| count.0);
        if count == i64::from(rounds) {
            break;
        }
        assert!(
            store
                .wait(&[Topic::Room(3)], tick, Duration::from_secs(20))
                .await,
            "a change was missed"
        );
    }
    writing.await.unwrap();
}

async fn the_log_is_read_from_memory_and_from_the_table(store: Store) {
    let start = store.position();
    for number in 0..20u8 {
        let mut batch = Batch::new();
        batch.put(&NEIGHBOR, &(1,), &number);
        if number % 2 == 0 {
            batch.log(1, &[number]);
            batch.log(2, &[number, number]);
        }
        store.submit(batch).await.unwrap();
    }
    let from_memory = store.log(start, 1_000).await.unwrap();
    let from_table = store.snapshot().unwrap().log(start, 1_000).unwrap();
    assert_eq!(from_memory, from_table);
    assert_eq!(from_memory.entries.len(), 20);
    assert_eq!(from_memory.upto, store.position());
    assert!(!from_memory.has_gap);
    let mut entries = Vec::new();
    let mut after = start;
    while after < store.position() {
        let page = store.log(after, 3).await.unwrap();
        assert_eq!(page, store.snapshot().unwrap().log(after, 3).unwrap());
        entries.extend(page.entries);
        after = page.upto;
    }
    assert_eq!(entries, from_memory.entries);
    let mut batch = Batch::new();
    batch.cursor("search", after);
    store.submit(batch).await.unwrap();
    let snapshot = store.snapshot().unwrap();
    assert_eq!(snapshot.cursor("search").unwrap(), Some(after));
    assert_eq!(snapshot.cursor("push").unwrap(), None);
    assert_eq!(snapshot.cursors().unwrap(), [("search".to_owned(), after)]);
}

async fn nothing_is_taken_after_closing(store: Store) {
    let queued = put(&store, 1, "a", "last");
    let other = store.clone();
    tokio::task::spawn_blocking(move || other.close())
        .await
        .unwrap()
        .unwrap();
    queued.await.unwrap();
    assert!(matches!(
        put(&store, 1, "b", "late").await,
        Err(Error::Closed)
    ));
    assert_eq!(get(&store, 1, "a").as_deref(), Some("last"));
    store.has_room().await;
}

async fn a_server_name_is_claimed_once(store: Store) {
    store.claim_server_name("a.example").await.unwrap();
    store.claim_server_name("a.example").await.unwrap();
    assert!(matches!(
        store.claim_server_name("b.example").await,
        Err(Error::Open(_))
    ));
}

/// Opens the database of a folder.
fn open(folder: &Path) -> Store {
    Store::open(&Config::default(), folder, Clock::system()).unwrap()
}

fn rocks() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("database"));
    (folder, store)
}

async fn close(store: Store) {
    tokio::task::spawn_blocking(move || store.close())
        .await
        .unwrap()
        .unwrap();
}

async fn the_log_is_trimmed_after_a_week(open: impl Fn(Clock) -> Store) {
    const HOUR: Duration = Duration::from_secs(3_600);
    let clock = Clock::manual(1_700_000_000_000);
    let store = open(clock.clone());
    let start = store.position();
    for _hour in 0..8 * 24 {
        let mut batch = Batch::new();
        batch.log(1, b"x");
        store.submit(batch).await.unwrap();
        clock.advance(HOUR);
    }
    let page = store.snapshot().unwrap().log(start, usize::MAX).unwrap();
    assert!(page.has_gap);
    assert!(
        (7 * 24..=7 * 24 + 1).contains(&page.entries.len()),
        "{} entries",
        page.entries.len()
    );
    assert_eq!(page.entries.last().unwrap().position, store.position());
    let rest = store
        .snapshot()
        .unwrap()
        .log(page.entries[0].position, usize::MAX)
        .unwrap();
    assert!(!rest.has_gap);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_in_memory_is_trimmed_after_a_week() {
    the_log_is_trimmed_after_a_week(Store::memory_with).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_on_disk_is_trimmed_after_a_week() {
    let folder = tempfile::tempdir().unwrap();
    the_log_is_trimmed_after_a_week(|clock| {
        Store::open(&Config::default(), folder.path(), clock).unwrap()
    })
    .await;
}

async fn jobs_are_kept_until_they_are_finished(store: Store) {
    let mut job = Job::new("rooms.purge", vec![1, 2]);
    let mut batch = Batch::new();
    batch.add_job(5, job.clone());
    store.submit(batch).await.unwrap();
    let mut batch = Batch::new();
    batch.add_job(5, job.clone());
    assert!(matches!(store.submit(batch).await, Err(Error::Conflict)));
    job.state = JobState::Failed("no disk".to_owned());
    job.progress = JobProgress { done: 1, total: 2 };
    let mut batch = Batch::new();
    batch.put_job(5, job.clone());
    store.submit(batch).await.unwrap();
    assert_eq!(
        store.snapshot().unwrap().jobs().unwrap(),
        [(5, job.clone())]
    );
    assert_eq!(store.snapshot().unwrap().job(5).unwrap(), Some(job));
    let mut batch = Batch::new();
    batch.finish_job(5);
    store.submit(batch).await.unwrap();
    assert!(store.snapshot().unwrap().jobs().unwrap().is_empty());
}

macro_rules! cases {
    ($($case:ident)*) => {$(
        mod $case {
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn in_memory() {
                super::$case(super::Store::memory()).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_disk() {
                let (_folder, store) = super::rocks();
                super::$case(store).await;
            }
        }
    )*};
}

cases! {
    rows_are_written_read_and_deleted
    scans_go_both_ways_and_keep_within_their_range
    ranges_are_deleted
    tables_of_a_family_do_not_see_each_other
    positions_are_given_in_order_without_holes
    a_failed_precondition_writes_nothing_and_takes_no_position
    preconditions_see_earlier_batches_of_their_group
    hooks_run_before_and_after_snapshots_show_the_batch
    callers_wait_while_the_queue_is_full
    counters_add_up
    positions_are_written_into_keys_and_values
    snapshots_do_not_change
    every_view_is_of_one_position
    who_was_woken_or_answered_sees_the_change
    the_log_is_read_from_memory_and_from_the_table
    nothing_is_taken_after_closing
    a_server_name_is_claimed_once
    jobs_are_kept_until_they_are_finished
}

//! One suite of cases, run for every engine.
#![allow(clippy::disallowed_methods, reason = "tests start tasks as they like")]

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::FutureExt as _;

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

async fn rows_are_written_read_and_deleted(store: Store) {
    let mut batch = Batch::new();
    batch.put(&NUMBERS, &(1, text("a")), &"one".to_owned());
    batch.put(&NUMBERS, &(1, text("")), &String::new());
    batch.put(&SINGLE, &(), &Cbor(vec![None, Some(1)]));
    batch.put(&NUMBERS, &(1, text("b")), &"gone".to_owned());
    batch.delete(&NUMBERS, &(1, text("b")));
    store.submit(batch).await.unwrap();
    assert_eq!(get(&store, 1, "a").as_deref(), Some("one"));
    assert_eq!(get(&store, 1, "").as_deref(), Some(""));
    assert_eq!(get(&store, 1, "b"), None);
    assert_eq!(
        store.snapshot().unwrap().get(&SINGLE, &()).unwrap(),
        Some(Cbor(vec![None, Some(1)]))
    );
    let keys = [
        (1, text("b")),
        (1, text("a")),
        (2, text("a")),
        (1, text("a")),
    ];
    let many = store.snapshot().unwrap().get_many(&NUMBERS, &keys).unwrap();
    assert_eq!(
        many,
        [None, Some("one".to_owned()), None, Some("one".to_owned())]
    );
    assert!(
        store
            .snapshot()
            .unwrap()
            .has(&NUMBERS, &(1, text("a")))
            .unwrap()
    );
    assert!(!store.snapshot().unwrap().has(&NEIGHBOR, &(1,)).unwrap());
    let mut batch = Batch::new();
    batch.delete(&NUMBERS, &(1, text("a")));
    store.submit(batch).await.unwrap();
    assert_eq!(get(&store, 1, "a"), None);
}

async fn scans_go_both_ways_and_keep_within_their_range(store: Store) {
    let mut batch = Batch::new();
    for room in [1, 2, 0xff, 0x100, u32::MAX] {
        for index in -150..150 {
            batch.put(&ROOM_ROWS, &(room, Index(index)), &room);
        }
    }
    store.submit(batch).await.unwrap();
    // Once from memory, then from files with filters by prefix.
    check_scans(&store);
    store.inner.engine.flush().unwrap();
    check_scans(&store);
}

fn indexes(
    snapshot: &Snapshot,
    range: TableRange<(u32, Index), u32>,
    order: Order,
) -> Vec<(u32, i64)> {
    let keys = snapshot.scan(range, order).map(|row| row.unwrap().0);
    keys.map(|(room, index)| (room, index.0)).collect()
}

fn check_scans(store: &Store) {
    let snapshot = store.snapshot().unwrap();
    let check = |range: TableRange<(u32, Index), u32>, expected: Vec<(u32, i64)>| {
        assert_eq!(indexes(&snapshot, range.clone(), Order::Forward), expected);
        let reversed: Vec<_> = expected.into_iter().rev().collect();
        assert_eq!(indexes(&snapshot, range.clone(), Order::Backward), reversed);
        assert_eq!(
            snapshot
                .first(range, Order::Backward)
                .unwrap()
                .map(|((room, index), _)| (room, index.0)),
            reversed.first().copied()
        );
    };
    let of = |room, indexes: std::ops::Range<i64>| {
        indexes.map(|index| (room, index)).collect::<Vec<_>>()
    };
    for room in [1, 2, 0xff, 0x100, u32::MAX] {
        check(ROOM_ROWS.prefix(&(room,)), of(room, -150..150));
        check(
            ROOM_ROWS.range(&(room, Index(-3)), &(room, Index(3))),
            of(room, -3..3),
        );
        check(
            ROOM_ROWS.after(&(room, Index(-3)), &(room,)),
            of(room, -2..150),
        );
        check(
            ROOM_ROWS.from(&(room, Index(-3)), &(room,)),
            of(room, -3..150),
        );
        check(
            ROOM_ROWS.before(&(room, Index(3)), &(room,)),
            of(room, -150..3),
        );
        check(
            ROOM_ROWS.through(&(room, Index(3)), &(room,)),
            of(room, -150..4),
        );
    }
    check(ROOM_ROWS.prefix(&(3u32,)), vec![]);
    check(
        ROOM_ROWS.range(&(2u32, Index(3)), &(2u32, Index(-3))),
        vec![],
    );
    check(
        ROOM_ROWS.range(&(1u32, Index(148)), &(2u32, Index(-148))),
        [of(1, 148..150), of(2, -150..-148)].concat(),
    );
    check(
        ROOM_ROWS.after(&(1u32,), &()),
        [2, 0xff, 0x100, u32::MAX]
            .map(|room| of(room, -150..150))
            .concat(),
    );
    assert_eq!(
        indexes(&snapshot, ROOM_ROWS.all(), Order::Forward).len(),
        1_500
    );
}

async fn ranges_are_deleted(store: Store) {
    let mut batch = Batch::new();
    for (room, index) in [1, 2, u32::MAX]
        .into_iter()
        .flat_map(|room| (0..100).map(move |index| (room, index)))
    {
        batch.put(&ROOM_ROWS, &(room, Index(index)), &room);
    }
    store.submit(batch).await.unwrap();
    store.inner.engine.flush().unwrap();
    let before = store.snapshot().unwrap();
    let mut batch = Batch::new();
    batch.delete_range(ROOM_ROWS.prefix(&(2u32,)));
    batch.delete_range(ROOM_ROWS.from(&(u32::MAX, Index(50)), &(u32::MAX,)));
    batch.delete_range(ROOM_ROWS.range(&(1u32, Index(9)), &(1u32, Index(3))));
    batch.put(&ROOM_ROWS, &(2, Index(7)), &9);
    store.submit(batch).await.unwrap();
    assert_eq!(
        indexes(&before, ROOM_ROWS.prefix(&(2u32,)), Order::Forward).len(),
        100,
        "a snapshot does not change"
    );
    let now = store.snapshot().unwrap();
    assert_eq!(
        indexes(&now, ROOM_ROWS.prefix(&(2u32,)), Order::Backward),
        [(2, 7)]
    );
    assert_eq!(indexes(&now, ROOM_ROWS.all(), Order::Backward).len(), 151);
    assert_eq!(
        now.get_many(&ROOM_ROWS, &[(2, Index(1)), (1, Index(5)), (2, Index(7))])
            .unwrap(),
        [None, Some(1), Some(9)]
    );
}

/// The same random history on both engines, with flushes and restarts in between: equal answers to every read.
#[tokio::test(flavor = "multi_thread")]
async fn both_engines_answer_alike() {
    for seed in 0..4 {
        let random = Clock::seeded(0, seed);
        let folder = tempfile::tempdir().unwrap();
        let (memory, mut disk) = (Store::memory(), open(folder.path()));
        for _step in 0..60 {
            let seed = random.random_u64();
            let (first, second) = (random_batch(seed), random_batch(seed));
            let outcomes = (
                memory.submit(first).await.is_ok(),
                disk.submit(second).await.is_ok(),
            );
            assert_eq!(outcomes.0, outcomes.1);
            match random.random_below(12) {
                0 => disk.inner.engine.flush().unwrap(),
                1 => disk.compact(),
                2 => {
                    drop(disk);
                    disk = open(folder.path());
                }
                _ => {}
            }
            check_alike(
                &memory.snapshot().unwrap(),
                &disk.snapshot().unwrap(),
                &random,
            );
        }
    }
}

fn random_batch(seed: u64) -> Batch {
    let random = Clock::seeded(0, seed);
    let mut batch = Batch::new();
    for _write in 0..random.random_below(20) {
        let room = u32::try_from(random.random_below(3)).unwrap();
        let index = Index(i64::try_from(random.random_below(12)).unwrap() - 6);
        let count = u8::try_from(random.random_below(3)).unwrap();
        match random.random_below(16) {
            0 => batch.delete_range(ROOM_ROWS.prefix(&(room,))),
            1 => batch.delete_range(ROOM_ROWS.from(&(room, index), &(room,))),
            2 | 3 => batch.delete(&ROOM_ROWS, &(room, index)),
            4 | 5 => batch.add(&COUNTS, &(count,), index.0),
            6 => batch.delete(&COUNTS, &(count,)),
            7 if random.random_below(8) == 0 => batch.expect(&ROOM_ROWS, &(room, index), None),
            _ => batch.put(
                &ROOM_ROWS,
                &(room, index),
                &u32::try_from(random.random_below(1_000)).unwrap(),
            ),
        }
    }
    batch
}

fn check_alike(memory: &Snapshot, disk: &Snapshot, random: &Clock) {
    let rows = |snapshot: &Snapshot, range: TableRange<_, _>, order| -> Vec<((u32, Index), u32)> {
        snapshot.scan(range, order).map(Result::unwrap).collect()
    };
    let room = u32::try_from(random.random_below(4)).unwrap();
    let index = Index(i64::try_from(random.random_below(14)).unwrap() - 7);
    let ranges = [
        ROOM_ROWS.all(),
        ROOM_ROWS.prefix(&(room,)),
        ROOM_ROWS.from(&(room, index), &(room,)),
        ROOM_ROWS.through(&(room, index), &(room,)),
        ROOM_ROWS.after(&(room, index), &()),
    ];
    for (range, order) in ranges
        .into_iter()
        .flat_map(|range| [(range.clone(), Order::Forward), (range, Order::Backward)])
    {
        assert_eq!(rows(memory, range.clone(), order), rows(disk, range, order));
    }
    let keys: Vec<_> = (-7..7).map(|index| (room, Index(index))).collect();
    assert_eq!(
        memory.get_many(&ROOM_ROWS, &keys).unwrap(),
        disk.get_many(&ROOM_ROWS, &keys).unwrap()
    );
    for count in 0..3 {
        assert_eq!(
            memory.get(&COUNTS, &(count,)).unwrap(),
            disk.get(&COUNTS, &(count,)).unwrap()
        );
    }
}

async fn tables_of_a_family_do_not_see_each_other(store: Store) {
    let mut batch = Batch::new();
    batch.put(&NUMBERS, &(1, text("a")), &"x".to_owned());
    batch.put(&NEIGHBOR, &(1,), &7);
    store.submit(batch).await.unwrap();
    let snapshot = store.snapshot().unwrap();
    assert_eq!(snapshot.scan(NUMBERS.all(), Order::Backward).count(), 1);
    assert_eq!(
        snapshot
            .scan(NEIGHBOR.all(), Order::Forward)
            .collect::<Result<Vec<_>>>()
            .unwrap(),
        [((1,), 7)]
    );
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

#[tokio::test(flavor = "multi_thread")]
async fn what_was_committed_is_there_after_closing_and_opening() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    assert!(store.was_clean());
    let key = store.database_key();
    store.claim_server_name("a.example").await.unwrap();
    let mut batch = Batch::new();
    batch.put(&NUMBERS, &(1, text("a")), &"x".to_owned());
    batch.add(&COUNTS, &(1,), 3);
    batch.log(1, b"entry");
    batch.cursor("search", Position(7));
    let position = store.submit(batch).await.unwrap();
    close(store).await;

    let store = open(folder.path());
    assert!(store.was_clean());
    assert_eq!(store.database_key(), key);
    assert!(store.position() > position);
    assert_eq!(get(&store, 1, "a").as_deref(), Some("x"));
    assert!(matches!(
        store.claim_server_name("b.example").await,
        Err(Error::Open(_))
    ));
    let page = store.log(Position(position.0 - 1), 10).await.unwrap();
    assert_eq!(
        page.entries,
        [LogEntry {
            position,
            kind: 1,
            payload: "entry".into()
        }]
    );
    assert_eq!(
        store.snapshot().unwrap().cursor("search").unwrap(),
        Some(Position(7))
    );
    let mut batch = Batch::new();
    batch.add(&COUNTS, &(1,), 4);
    let next = store.submit(batch).await.unwrap();
    assert!(next > position);
    assert_eq!(
        store.snapshot().unwrap().get(&COUNTS, &(1,)).unwrap(),
        Some(Counter(7))
    );
}

/// Dropping a store does not close the database in good order, and writes nothing but what was queued.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_there_after_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let mut last = Position(0);
    for round in 0..5 {
        let store = open(folder.path());
        assert_eq!(store.was_clean(), round == 0);
        assert_eq!(
            store
                .snapshot()
                .unwrap()
                .scan(NUMBERS.all(), Order::Forward)
                .count(),
            round as usize * 50
        );
        // Positions that the crash may have taken are never given out again.
        assert!(round == 0 || store.position().sequence() > last.sequence() + 1_000);
        let commits: Vec<Commit> = (0..50)
            .map(|number| put(&store, round, &number.to_string(), "x"))
            .collect();
        for commit in commits {
            let position = commit.await.unwrap();
            assert!(position > last);
            last = position;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_is_opened_once() {
    let (folder, store) = rocks();
    let path = folder.path().join("database");
    let second = Store::open(&Config::default(), &path, Clock::system());
    let Err(Error::Open(reason)) = second else {
        panic!("opened twice")
    };
    assert!(reason.contains("another process"), "{reason}");
    drop(store);
    open(&path);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_schema_is_refused() {
    let (folder, store) = rocks();
    let mut batch = Batch::new();
    meta::put(&mut batch, meta::SCHEMA, &(migrate::SCHEMA + 1));
    store.submit(batch).await.unwrap();
    close(store).await;
    let opened = Store::open(
        &Config::default(),
        &folder.path().join("database"),
        Clock::system(),
    );
    let Err(Error::Open(reason)) = opened else {
        panic!("opened a newer schema")
    };
    assert!(reason.contains("schema"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_copy_knows_positions_of_the_lost_future() {
    let (folder, store) = rocks();
    let known = put(&store, 1, "a", "kept").await.unwrap();
    let copy = folder.path().join("copy");
    store.checkpoint(&copy).unwrap();
    let lost = put(&store, 1, "a", "lost").await.unwrap();
    assert!(store.has_published(lost));
    drop(store);

    let store = Store::open_restored(&Config::default(), &copy, Clock::system()).unwrap();
    assert_eq!(get(&store, 1, "a").as_deref(), Some("kept"));
    assert!(store.has_published(known) && !store.has_published(lost));
    let next = put(&store, 1, "a", "new").await.unwrap();
    assert!(next > lost && store.has_published(next) && !store.has_published(Position(next.0 + 1)));
    drop(store);
    let store = open(&copy);
    assert!(store.has_published(known) && !store.has_published(lost) && store.has_published(next));
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_temporary_rows_vanish_when_compacted() {
    static TEMPORARY: Table<(u32,), Expiring<String>> =
        Table::new("temporary", Family::Temporary, b'x');
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::manual(1_000_000);
    let store = Store::open(&Config::default(), folder.path(), clock.clone()).unwrap();
    let mut batch = Batch::new();
    for number in 0..10 {
        let row = Expiring(
            Millis48(1_000_000 + u64::from(number) * 1_000),
            "x".to_owned(),
        );
        batch.put(&TEMPORARY, &(number,), &row);
    }
    store.submit(batch).await.unwrap();
    clock.advance(Duration::from_millis(4_500));
    store.inner.engine.flush().unwrap();
    store.compact();
    let left: Vec<u32> = {
        let snapshot = store.snapshot().unwrap();
        snapshot
            .scan(TEMPORARY.all(), Order::Forward)
            .map(|row| row.unwrap().0.0)
            .collect()
    };
    assert_eq!(left, [5, 6, 7, 8, 9]);
}

#[tokio::test(flavor = "multi_thread")]
async fn integrity_and_numbers_can_be_asked_for() {
    let (_folder, store) = rocks();
    for number in 0..20 {
        put(&store, number, "a", "x").await.unwrap();
    }
    assert!(store.check_integrity().unwrap() > 20);
    let stats = store.stats();
    assert_eq!(
        (stats.commits, stats.conflicts, stats.queue_batches),
        (20, 0, 0)
    );
    assert!(stats.groups <= 20 && stats.syncs.counts.iter().sum::<u64>() == stats.groups);
    assert_eq!(stats.engine.families.len(), 16);
    assert!(stats.engine.write_buffer_bytes > 0 && !stats.engine.is_stalled);
    store.inner.engine.flush().unwrap();
    assert!(store.disk_bytes() > 0);
    assert!(
        store
            .stats()
            .engine
            .families
            .iter()
            .any(|family| family.family == "us" && family.disk_bytes > 0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_waiting_for_the_disk_it_is_synced_soon_after() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config {
        durability: Durability::Relaxed,
        ..Config::default()
    };
    let store = Store::open(&config, folder.path(), Clock::system()).unwrap();
    put(&store, 1, "a", "x").await.unwrap();
    let synced = async {
        while store.stats().syncs.counts.iter().sum::<u64>() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), synced)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_of_relaxed_batches_does_not_wait_for_the_disk() {
    let (_folder, store) = rocks();
    let mut batch = Batch::new();
    batch.put(&NEIGHBOR, &(1,), &1);
    batch.relaxed();
    let mut other = Batch::new();
    other.append(batch);
    let syncs = |store: &Store| store.stats().syncs.counts.iter().sum::<u64>();
    let before = syncs(&store);
    store.submit(other).await.unwrap();
    // The timer that syncs it may have run meanwhile on a machine under load.
    assert!(syncs(&store) <= before + 1);
    let mut firm = Batch::new();
    firm.put(&NEIGHBOR, &(1,), &1);
    let mut relaxed = Batch::new();
    relaxed.put(&NEIGHBOR, &(2,), &1);
    relaxed.relaxed();
    relaxed.append(firm);
    assert!(!relaxed.is_relaxed());
}

#[tokio::test(flavor = "multi_thread")]
async fn relaxed_batches_that_never_cease_are_synced_all_the_same() {
    let (_folder, store) = rocks();
    let syncs = |store: &Store| store.stats().syncs.counts.iter().sum::<u64>();
    let before = syncs(&store);
    let relaxed = |number| {
        let mut batch = Batch::new();
        batch.put(&NEIGHBOR, &(number,), &1);
        batch.relaxed();
        batch
    };
    let written = async {
        let mut waiting = std::collections::VecDeque::new();
        for number in 0.. {
            // The queue is never empty.
            waiting.push_back(store.submit(relaxed(number)));
            if waiting.len() > 1_000
                && let Some(oldest) = waiting.pop_front()
            {
                oldest.await.unwrap();
            }
            if syncs(&store) > before {
                break;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), written)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_that_belong_together_are_one_write() {
    let (_folder, store) = rocks();
    put(&store, 0, "before", "x").await.unwrap();
    for count in [0, 1, 2, 700] {
        let before = (store.stats().groups, store.position().0);
        let batch = |number: u32| {
            let mut batch = Batch::new();
            batch.put(&NUMBERS, &(number, text("a")), &"x".to_owned());
            batch
        };
        let commits = store.submit_all((0..count).map(batch).collect());
        for commit in commits {
            commit.await.unwrap();
        }
        let after = (store.stats().groups, store.position().0);
        let groups = before.0 + u64::from(count > 0);
        assert_eq!(after, (groups, before.1 + u64::from(count)));
    }
}

#[tokio::test]
async fn a_store_without_a_thread_commits_when_told_and_loses_what_waits_when_killed() {
    let put = |store: &Store, number| {
        let mut batch = Batch::new();
        batch.put(&NEIGHBOR, &(number,), &1);
        store.submit(batch)
    };
    let has = |store: &Store, number| {
        let snapshot = store.snapshot().unwrap();
        snapshot.get(&NEIGHBOR, &(number,)).unwrap().is_some()
    };
    let store = Store::stepped(Clock::manual(0));
    let commit = put(&store, 1);
    assert!(!has(&store, 1));
    assert!(store.step());
    assert!(!store.step());
    let position = commit.await.unwrap();
    assert!(has(&store, 1));

    let lost = put(&store, 2);
    let next = store.kill().unwrap();
    assert!(matches!(lost.await, Err(Error::Closed)));
    assert!(matches!(put(&store, 3).await, Err(Error::Closed)));
    assert!(has(&next, 1) && !has(&next, 2) && !next.was_clean());
    let commit = put(&next, 4);
    assert!(next.step());
    assert!(commit.await.unwrap() > position);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_after_a_commit_ends_everything() {
    let failures = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&failures);
    let on_failure: OnFailure = Arc::new(move |error| told.lock().unwrap().push(error.to_string()));
    let setup = Setup {
        on_failure,
        ..Setup::new(Clock::system(), false)
    };
    let store = Store::start(
        Engine::Memory(memory::Memory::default()),
        Writer::Same,
        setup,
    )
    .unwrap();
    let mut batch = Batch::new();
    batch.put(&NEIGHBOR, &(1,), &1);
    batch.on_publish(|_position| panic!("a hook fails (on purpose)"));
    assert!(matches!(store.submit(batch).await, Err(Error::Closed)));
    assert!(matches!(put(&store, 1, "a", "x").await, Err(Error::Closed)));
    assert_eq!(failures.lock().unwrap().len(), 1);
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

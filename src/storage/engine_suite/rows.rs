//! What is written is read: rows, ranges, scans; and both engines answer alike.

use super::*;

pub(super) async fn rows_are_written_read_and_deleted(store: Store) {
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

pub(super) async fn scans_go_both_ways_and_keep_within_their_range(store: Store) {
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

pub(super) async fn ranges_are_deleted(store: Store) {
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

pub(super) async fn tables_of_a_family_do_not_see_each_other(store: Store) {
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

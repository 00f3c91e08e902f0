//! What a folder holds after it was closed, copied, or left by a crash.

use super::*;

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

//! When writes reach the disk, and what a failed one ends.

use super::*;

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

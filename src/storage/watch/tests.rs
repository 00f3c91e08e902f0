//! Tests of waiting.
#![allow(clippy::disallowed_methods, reason = "tests start tasks as they like")]

use futures_util::FutureExt;

use super::*;

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(2);

#[tokio::test]
async fn a_change_after_the_tick_resolves_at_once() {
    let watch = Watch::new();
    let before = watch.tick();
    watch.touch(&[Topic::Room(1)]);
    assert!(
        watch
            .wait(&[Topic::User(1), Topic::Room(1)], before, LONG)
            .await
    );
    let after = watch.tick();
    assert!(!watch.wait(&[Topic::Room(1)], after, SHORT).await);
    assert!(!watch.wait(&[Topic::Room(2)], before, SHORT).await);
    assert!(!watch.wait(&[], before, SHORT).await);
}

#[tokio::test]
async fn a_change_wakes_those_who_wait_for_it_and_nobody_else() {
    let watch = Watch::new();
    let since = watch.tick();
    let topics = [Topic::Device(1, 2), Topic::Room(7)];
    let mut waiter = Box::pin(watch.wait(&topics, since, LONG));
    assert!((&mut waiter).now_or_never().is_none());
    watch.touch(&[Topic::Room(8), Topic::Device(1, 3)]);
    assert!((&mut waiter).now_or_never().is_none());
    watch.touch(&[Topic::Room(7)]);
    assert!(waiter.await);
}

#[tokio::test]
async fn those_who_went_away_are_swept() {
    let watch = Watch::new();
    let since = watch.tick();
    for _round in 0..1_000 {
        assert!(
            !watch
                .wait(&[Topic::Room(1)], since, Duration::from_micros(1))
                .await
        );
    }
    let shard = watch.shard(&Topic::Room(1));
    assert!(shard.topics[&Topic::Room(1)].waiting.len() <= 8);
}

#[tokio::test]
async fn what_was_forgotten_counts_as_changed() {
    let watch = Watch::new();
    let start = watch.tick();
    let topics: Vec<Topic> = (0..400_000).map(Topic::Room).collect();
    watch.touch(&topics);
    let known: usize = watch
        .shards
        .iter()
        .map(|shard| shard.lock().unwrap().topics.len())
        .sum();
    assert!(
        known <= SHARDS * (TOPICS_PER_SHARD + 1),
        "{known} topics are known"
    );
    for topic in [Topic::Room(0), Topic::Room(399_999)] {
        assert!(watch.wait(&[topic], start, LONG).await);
        assert!(!watch.wait(&[topic], watch.tick(), SHORT).await);
    }
}

/// Writers change a number and then touch its topic; a reader that has seen all changes but the last must be woken.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_change_is_missed_between_reading_and_waiting() {
    const CHANGES: u64 = 2_000;
    let shared = Arc::new((Watch::new(), [AtomicU64::new(0), AtomicU64::new(0)]));
    let topic = |index: usize| Topic::Room(u32::try_from(index).unwrap());
    let readers = (0..4).map(|_reader| {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let (watch, numbers) = &*shared;
            loop {
                let tick = watch.tick();
                if numbers
                    .iter()
                    .map(|number| number.load(Ordering::SeqCst))
                    .sum::<u64>()
                    == 2 * CHANGES
                {
                    return;
                }
                assert!(
                    watch.wait(&[topic(0), topic(1)], tick, LONG).await,
                    "a change was missed"
                );
            }
        })
    });
    let readers: Vec<_> = readers.collect();
    let writers = [0, 1].map(|index| {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            for round in 0..CHANGES {
                shared.1[index].fetch_add(1, Ordering::SeqCst);
                shared.0.touch(&[topic(index)]);
                if round % 16 == 0 {
                    tokio::task::yield_now().await;
                }
            }
        })
    });
    for task in writers.into_iter().chain(readers) {
        task.await.unwrap();
    }
}

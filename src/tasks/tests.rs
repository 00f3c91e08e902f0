//! Tasks are restarted and stopped.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

#[tokio::test]
async fn a_task_that_fails_or_panics_is_started_again() {
    let tasks = Tasks::new(&Metrics::new());
    let runs = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&runs);
    let (done, mut is_done) = watch::channel(false);
    tasks.start("flaky", Stage::Followers, move |_stop| {
        let run = counted.fetch_add(1, Ordering::SeqCst);
        let done = done.clone();
        async move {
            assert_ne!(run, 1, "the second run panics");
            if run == 0 {
                return Err("the first run fails");
            }
            done.send_replace(true);
            Ok(())
        }
    });
    is_done
        .wait_for(|done| *done)
        .await
        .expect("the task lives");
    assert_eq!(runs.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_stopped_task_has_ended_when_stop_returns() {
    let tasks = Tasks::new(&Metrics::new());
    let ended = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&ended);
    let stop = tasks.stop_signal(Stage::Followers);
    tasks.spawn("waits", Stage::Followers, async move {
        stop.requested().await;
        counted.fetch_add(1, Ordering::SeqCst);
    });
    tasks.stop(Stage::Followers, Duration::from_secs(10)).await;
    assert_eq!(ended.load(Ordering::SeqCst), 1);
}

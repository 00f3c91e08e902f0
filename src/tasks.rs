//! Background work: named, restarted when it fails, stopped in order.
//!
//! Nothing else spawns tasks, so that no work is without a name, dies unseen, or outlives what it needs.

use std::{
    fmt,
    future::Future,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::FutureExt as _;
use prometheus_client::metrics::{counter::Counter, family::Family};
use tokio::{sync::watch, task::JoinHandle};

use crate::telemetry::Metrics;

/// The wait before a failed task is started again, doubled with each failure in a row.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// When a task is stopped: earlier stages first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Whatever takes in new work.
    Listeners,
    /// Requests that wait for news.
    Requests,
    /// What follows the log or drains queues.
    Followers,
}

const STAGES: [Stage; 3] = [Stage::Listeners, Stage::Requests, Stage::Followers];

/// A request to stop, which a task looks at or waits for.
#[derive(Clone, Debug)]
pub struct Stop(watch::Receiver<bool>);

/// All background work of a server.
#[derive(Clone)]
pub struct Tasks {
    inner: Arc<Inner>,
}

struct Inner {
    stops: [watch::Sender<bool>; STAGES.len()],
    running: Mutex<Vec<Running>>,
    failures: Family<[(&'static str, &'static str); 1], Counter>,
}

struct Running {
    name: &'static str,
    stage: Stage,
    handle: JoinHandle<()>,
}

impl Stop {
    /// Whether the task shall end.
    pub fn is_requested(&self) -> bool {
        *self.0.borrow()
    }

    /// Resolves when the task shall end.
    pub async fn requested(&self) {
        let mut receiver = self.0.clone();
        // The sender is gone only when everything is: that is a reason to stop as well.
        let _stopped = receiver.wait_for(|stopped| *stopped).await.is_ok();
    }
}

impl Tasks {
    pub fn new(metrics: &Metrics) -> Self {
        let failures = Family::default();
        metrics.register(
            "task_failures",
            "Background tasks that failed and were started again.",
            failures.clone(),
        );
        let stops = STAGES.map(|_stage| watch::Sender::new(false));
        Self {
            inner: Arc::new(Inner {
                stops,
                running: Mutex::default(),
                failures,
            }),
        }
    }

    /// What tells tasks and requests of `stage` to end.
    pub fn stop_signal(&self, stage: Stage) -> Stop {
        Stop(self.sender(stage).subscribe())
    }

    /// Starts `work` and starts it again whenever it fails or panics. It ends when it returns `Ok`, which it must do
    /// soon after its [`Stop`].
    pub fn start<W, F, E>(&self, name: &'static str, stage: Stage, work: W)
    where
        W: Fn(Stop) -> F + Send + 'static,
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: fmt::Display + Send + 'static,
    {
        let stop = self.stop_signal(stage);
        let failures = self.inner.failures.get_or_create(&[("task", name)]).clone();
        self.spawn(name, stage, keep_running(name, work, stop, failures));
    }

    /// Starts `work`, which runs once: a connection, a timer.
    pub fn spawn(
        &self,
        name: &'static str,
        stage: Stage,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
        #[expect(
            clippy::disallowed_methods,
            reason = "this is the one place that spawns"
        )]
        let handle = tokio::spawn(work);
        let mut running = self
            .inner
            .running
            .lock()
            .expect("nothing panics while it holds this lock");
        running.retain(|task| !task.handle.is_finished());
        running.push(Running {
            name,
            stage,
            handle,
        });
    }

    /// Tells all tasks and requests of `stage` to end, and does not wait.
    pub fn signal(&self, stage: Stage) {
        self.sender(stage).send_replace(true);
    }

    /// Tells all tasks of `stage` to end and waits for them, for `grace` at most; who has not ended then is dropped.
    pub async fn stop(&self, stage: Stage, grace: Duration) {
        self.signal(stage);
        let tasks = self.take(stage);
        let deadline = tokio::time::Instant::now() + grace;
        for mut task in tasks {
            if tokio::time::timeout_at(deadline, &mut task.handle)
                .await
                .is_err()
            {
                tracing::warn!(task = task.name, "did not end in time");
                task.handle.abort();
            }
        }
    }

    fn take(&self, stage: Stage) -> Vec<Running> {
        let mut running = self
            .inner
            .running
            .lock()
            .expect("nothing panics while it holds this lock");
        let (taken, kept) = running.drain(..).partition(|task| task.stage == stage);
        *running = kept;
        taken
    }

    fn sender(&self, stage: Stage) -> &watch::Sender<bool> {
        let index = STAGES
            .iter()
            .position(|other| *other == stage)
            .expect("every stage is listed");
        self.inner
            .stops
            .get(index)
            .expect("a sender for each stage")
    }
}

impl fmt::Debug for Tasks {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Tasks")
    }
}

async fn keep_running<W, F, E>(name: &'static str, work: W, stop: Stop, failures: Counter)
where
    W: Fn(Stop) -> F + Send,
    F: Future<Output = Result<(), E>> + Send,
    E: fmt::Display + Send,
{
    let mut backoff = FIRST_BACKOFF;
    while !stop.is_requested() {
        let started = tokio::time::Instant::now();
        match AssertUnwindSafe(work(stop.clone())).catch_unwind().await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => tracing::error!(task = name, %error, "failed; starting it again"),
            Err(_panic) => tracing::error!(task = name, "panicked; starting it again"),
        }
        failures.inc();
        if started.elapsed() > MAX_BACKOFF {
            backoff = FIRST_BACKOFF;
        }
        // Whichever comes first; the loop's condition tells them apart.
        let _stopped = tokio::time::timeout(backoff, stop.requested())
            .await
            .is_ok();
        backoff = (backoff * 2).min(MAX_BACKOFF);
    }
}

#[cfg(test)]
mod tests;

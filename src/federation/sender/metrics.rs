//! What is counted of sending.

use prometheus_client::metrics::{
    counter::Counter, family::Family, gauge::Gauge, histogram::Histogram,
};

use super::{
    Sender,
    transaction::{Contents, Outcome},
};
use crate::telemetry::{Metrics, seconds_histogram};

type Labeled<M> = Family<[(&'static str, &'static str); 1], M>;

pub(super) struct SenderMetrics {
    transactions: Labeled<Counter>,
    sent: Labeled<Counter>,
    seconds: Histogram,
    queue: Labeled<Gauge>,
    destinations: Labeled<Gauge>,
}

impl SenderMetrics {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let new = Self {
            transactions: Family::default(),
            sent: Family::default(),
            seconds: seconds_histogram(),
            queue: Family::default(),
            destinations: Family::default(),
        };
        metrics.register(
            "federation_out_transactions",
            "Transactions sent to other servers.",
            new.transactions.clone(),
        );
        metrics.register(
            "federation_out_units",
            "PDUs and EDUs that other servers have taken.",
            new.sent.clone(),
        );
        metrics.register(
            "federation_out_seconds",
            "Time until another server has answered a transaction.",
            new.seconds.clone(),
        );
        metrics.register(
            "federation_out_queue",
            "Events that wait in memory for other servers.",
            new.queue.clone(),
        );
        metrics.register(
            "federation_destinations",
            "Other servers that are being sent something, and those that are waited for.",
            new.destinations.clone(),
        );
        new
    }

    /// One transaction was answered, or not.
    pub(super) fn sent(&self, outcome: &Outcome, contents: &Contents, seconds: f64) {
        let result = match outcome {
            Outcome::Taken => "taken",
            Outcome::Refused(_) => "refused",
            Outcome::Failed(_) => "failed",
        };
        self.transactions.get_or_create(&[("result", result)]).inc();
        self.seconds.observe(seconds);
        if let Outcome::Taken = outcome {
            let count = |class, units: usize| {
                let units = u64::try_from(units).unwrap_or(u64::MAX);
                self.sent.get_or_create(&[("class", class)]).inc_by(units);
            };
            count("pdu", contents.pdus.len());
            count("edu", contents.edus.len());
        }
    }
}

impl Sender {
    /// Shows how much waits.
    pub(super) fn count_metrics(&self) {
        let (queued, (running, waiting)) = {
            let destinations = self.lock();
            (destinations.queued(), destinations.counts())
        };
        let set = |family: &Labeled<Gauge>, label, value: usize| {
            let value = i64::try_from(value).unwrap_or(i64::MAX);
            family.get_or_create(&[label]).set(value);
        };
        set(&self.metrics.queue, ("class", "pdu"), queued);
        set(&self.metrics.destinations, ("state", "sending"), running);
        set(&self.metrics.destinations, ("state", "waiting"), waiting);
    }
}

//! The store on the metrics page.

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

use super::{SYNC_BUCKETS_US, Stats, Store, SyncTimes};
use crate::telemetry::Metrics;

impl Store {
    /// Shows the numbers of [`Store::stats`] on the page of `metrics`.
    pub fn register_metrics(&self, metrics: &Metrics) {
        metrics.register_collector(StoreCollector(self.clone()));
    }
}

struct StoreCollector(Store);

impl std::fmt::Debug for StoreCollector {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("StoreCollector")
    }
}

impl Collector for StoreCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let stats = self.0.stats();
        encode_committer(&stats, &mut encoder)?;
        encode_engine(&stats, &mut encoder)
    }
}

fn encode_committer(stats: &Stats, to: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
    counter(to, "database_commits", "Batches committed.", stats.commits)?;
    counter(
        to,
        "database_conflicts",
        "Batches refused because somebody was first.",
        stats.conflicts,
    )?;
    counter(
        to,
        "database_groups",
        "Writes of one or more batches.",
        stats.groups,
    )?;
    counter(
        to,
        "database_reads",
        "Look-ups, look-ups of many and scans.",
        stats.reads,
    )?;
    let queued = u64::try_from(stats.queue_batches).unwrap_or(u64::MAX);
    gauge(
        to,
        "database_queue_batches",
        "Batches that wait to be written.",
        queued,
    )?;
    let queued = u64::try_from(stats.queue_bytes).unwrap_or(u64::MAX);
    gauge(
        to,
        "database_queue_bytes",
        "Bytes that wait to be written or are being written.",
        queued,
    )?;
    let help = "Time of writing a group to the disk.";
    let syncs = to.encode_descriptor(
        "database_sync",
        help,
        Some(&Unit::Seconds),
        MetricType::Histogram,
    )?;
    SyncHistogram(&stats.syncs).encode(syncs)
}

fn encode_engine(stats: &Stats, to: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
    let engine = &stats.engine;
    gauge(
        to,
        "database_cache_bytes",
        "Memory that holds what was read.",
        engine.cache_bytes,
    )?;
    gauge(
        to,
        "database_write_buffer_bytes",
        "Memory that is not in files yet.",
        engine.write_buffer_bytes,
    )?;
    let pending = engine.pending_compaction_bytes;
    gauge(
        to,
        "database_pending_compaction_bytes",
        "Bytes that are to be rewritten.",
        pending,
    )?;
    let is_stalled = u64::from(engine.is_stalled);
    gauge(
        to,
        "database_stalled",
        "1 while writes wait for compactions.",
        is_stalled,
    )?;
    let mut sizes = to.encode_descriptor(
        "database_size_bytes",
        "Size of the files of a family.",
        None,
        MetricType::Gauge,
    )?;
    for family in &engine.families {
        let size = ConstGauge::new(family.disk_bytes);
        size.encode(sizes.encode_family(&[("family", family.family)])?)?;
    }
    Ok(())
}

fn counter(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: u64,
) -> Result<(), std::fmt::Error> {
    let counter = ConstCounter::new(value);
    counter.encode(to.encode_descriptor(name, help, None, MetricType::Counter)?)
}

fn gauge(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: u64,
) -> Result<(), std::fmt::Error> {
    let gauge = ConstGauge::new(value);
    gauge.encode(to.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

struct SyncHistogram<'a>(&'a SyncTimes);

impl SyncHistogram<'_> {
    #[allow(clippy::cast_precision_loss, reason = "microseconds of a metric")]
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let bounds = SYNC_BUCKETS_US
            .iter()
            .map(|us| *us as f64 / 1e6)
            .chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(self.0.counts).collect();
        let count = self.0.counts.iter().sum();
        encoder.encode_histogram::<[(&str, &str); 0]>(
            self.0.sum_us as f64 / 1e6,
            count,
            &buckets,
            None,
        )
    }
}

#[cfg(test)]
mod tests {
    use crate::{storage::Store, telemetry::Metrics};

    #[test]
    fn the_numbers_of_the_store_are_on_the_page() {
        let metrics = Metrics::new();
        Store::memory().register_metrics(&metrics);
        let page = metrics.encode().unwrap();
        assert!(page.contains("hearth_database_commits_total 0"), "{page}");
        assert!(
            page.contains("hearth_database_sync_seconds_bucket{le=\"+Inf\"} 0"),
            "{page}"
        );
        assert!(page.contains("hearth_database_stalled 0"), "{page}");
    }
}

//! Logs and metrics.
//!
//! Metrics carry stable names, prefixed `hearth_`, and labels from bounded sets: never a user, a room or an address.

use std::{
    fmt::{self, Write as _},
    io::IsTerminal as _,
    sync::Mutex,
};

use prometheus_client::{
    collector::Collector,
    encoding::text,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Metric, Registry},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing_subscriber::{EnvFilter, filter::ParseError};

use crate::units::Period;

/// Logs. They go to standard error.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Config {
    /// `"pretty"` for people, `"json"` for machines, `"auto"`: pretty on a terminal, JSON otherwise.
    pub format: LogFormat,
    /// What to log: a level (`error`, `warn`, `info`, `debug`, `trace`), or levels by module: `info,hearth::rooms=debug`.
    /// The default keeps the authorization rules quiet, which tell of each event that they let pass.
    pub filter: String,
    /// Requests that take longer than this are logged as a warning; waiting for news is not counted.
    pub slow_request: Period,
}

/// How a log line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Auto,
    Pretty,
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            format: LogFormat::Auto,
            filter: "info".to_owned(),
            slow_request: Period::from_secs(2),
        }
    }
}

/// Starts logging for this process. Later calls change nothing.
///
/// # Errors
/// The filter cannot be read.
pub fn start_logging(config: &Config) -> Result<(), ParseError> {
    let filter = env_filter(&config.filter)?;
    let on_terminal = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let json = match config.format {
        LogFormat::Json => true,
        LogFormat::Pretty => false,
        LogFormat::Auto => !on_terminal,
    };
    // An embedder or a test may have set a subscriber of its own, which then stays.
    let _already_set = if json {
        builder
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .try_init()
    } else {
        builder.with_ansi(on_terminal).try_init()
    };
    Ok(())
}

/// The filter of a text. The library that checks events tells of each of them, also of those that are rightly refused:
/// that is heard only where the text asks for it.
fn env_filter(text: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::try_new(format!("ruma_state_res=error,{text}"))
}

/// Whether `filter` can be read.
///
/// # Errors
/// It cannot.
pub fn check_filter(filter: &str) -> Result<(), ParseError> {
    env_filter(filter).map(|_filter| ())
}

/// All metrics of a server.
pub struct Metrics {
    registry: Mutex<Registry>,
    pub http: HttpMetrics,
}

impl Metrics {
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("hearth");
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The version of this server.", build);
        let http = HttpMetrics::new(&mut registry);
        Self {
            registry: Mutex::new(registry),
            http,
        }
    }

    /// Makes `metric` known under `hearth_NAME` (counters get `_total`). Keep a clone and count on that.
    pub fn register(&self, name: &str, help: &str, metric: impl Metric) {
        self.registry
            .lock()
            .expect("nothing panics while it holds this lock")
            .register(name, help, metric);
    }

    /// Asks `collector` whenever the page is read: for numbers that are kept elsewhere.
    pub fn register_collector(&self, collector: impl Collector) {
        self.registry
            .lock()
            .expect("nothing panics while it holds this lock")
            .register_collector(Box::new(collector));
    }

    /// Everything, in the text format of OpenMetrics.
    ///
    /// # Errors
    /// A metric cannot be written.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut page = String::new();
        let registry = self.registry.lock().map_err(|_poisoned| fmt::Error)?;
        text::encode(&mut page, &registry)?;
        drop(registry);
        write_process_metrics(&mut page)?;
        Ok(page)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Metrics")
    }
}

/// Requests by route, method and status.
pub type Requests = Family<[(&'static str, String); 3], Counter>;

/// Times of requests by route.
pub type RequestSeconds = Family<[(&'static str, String); 1], Histogram, fn() -> Histogram>;

/// What is counted of requests.
#[derive(Clone)]
pub struct HttpMetrics {
    pub requests: Requests,
    pub seconds: RequestSeconds,
    pub panics: Counter,
    /// Requests that have no answer yet.
    pub running: Gauge,
}

impl HttpMetrics {
    fn new(registry: &mut Registry) -> Self {
        let new = Self {
            requests: Family::default(),
            seconds: Family::new_with_constructor(seconds_histogram),
            panics: Counter::default(),
            running: Gauge::default(),
        };
        registry.register("http_requests", "Requests answered.", new.requests.clone());
        registry.register(
            "http_request_seconds",
            "Time from a request's head to its answer.",
            new.seconds.clone(),
        );
        registry.register(
            "http_requests_running",
            "Requests that have no answer yet.",
            new.running.clone(),
        );
        registry.register(
            "http_panics",
            "Requests whose handler panicked.",
            new.panics.clone(),
        );
        new
    }
}

/// A histogram of times from 0.5 ms to a minute.
pub fn seconds_histogram() -> Histogram {
    Histogram::new([
        0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0,
    ])
}

/// Memory of this process, before the closing line of the page.
fn write_process_metrics(page: &mut String) -> fmt::Result {
    let Some(bytes) = resident_bytes() else {
        return Ok(());
    };
    let end = page.rfind("# EOF").unwrap_or(page.len());
    page.truncate(end);
    writeln!(
        page,
        "# HELP process_resident_memory_bytes Memory of this process."
    )?;
    writeln!(page, "# TYPE process_resident_memory_bytes gauge")?;
    writeln!(page, "process_resident_memory_bytes {bytes}")?;
    writeln!(page, "# EOF")
}

/// Resident memory as Linux tells it; unknown elsewhere.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

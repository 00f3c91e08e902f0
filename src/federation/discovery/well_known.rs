//! The file `/.well-known/matrix/server`: what it says, and for how long.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::{HeaderMap, Uri, header};
use lru::LruCache;
use ruma::{OwnedServerName, ServerName};

use crate::{
    clock::Clock,
    outbound::{Limits, Outbound},
};

/// The name that a server delegates to.
pub type Delegation = OwnedServerName;

const TIMEOUT: Duration = Duration::from_secs(10);
const MAX_BYTES: usize = 50 * 1024;
/// Hosts whose files are remembered.
const MAX_HOSTS: NonZeroUsize = NonZeroUsize::new(10_000).expect("it is not zero");
/// How long a file counts that does not say.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
const MIN_LIFETIME: Duration = Duration::from_secs(5 * 60);
const MAX_LIFETIME: Duration = Duration::from_secs(48 * 60 * 60);
/// How long it counts that there is no file: doubled with each time in a row.
const FIRST_ERROR_LIFETIME: Duration = Duration::from_secs(2 * 60);
const MAX_ERROR_LIFETIME: Duration = Duration::from_secs(60 * 60);

/// What is known of the files of all hosts.
pub(super) struct WellKnown {
    outbound: Outbound,
    clock: Clock,
    hosts: Mutex<LruCache<Box<str>, Arc<Host>>>,
}

/// One host. Who holds the lock fetches the file; others wait for what comes of it.
#[derive(Default)]
struct Host(tokio::sync::Mutex<Known>);

#[derive(Clone, Debug, Default)]
struct Known {
    delegation: Option<Delegation>,
    /// When the file was last read, in milliseconds of the clock.
    read_at: u64,
    valid_until: u64,
    /// Failures in a row.
    failures: u32,
}

impl WellKnown {
    pub(super) fn new(outbound: Outbound, clock: Clock) -> Self {
        Self {
            outbound,
            clock,
            hosts: Mutex::new(LruCache::new(MAX_HOSTS)),
        }
    }

    /// The name that `host` delegates to; none if there is no valid file.
    pub(super) async fn delegation(&self, host: &str) -> Option<Delegation> {
        let slot = self.host(host);
        let mut known = slot.0.lock().await;
        if self.clock.now_ms() >= known.valid_until {
            *known = self.fetch(host, &known).await;
        }
        known.delegation.clone()
    }

    fn host(&self, host: &str) -> Arc<Host> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let host = host.to_ascii_lowercase().into_boxed_str();
        Arc::clone(hosts.get_or_insert(host, Arc::default))
    }

    async fn fetch(&self, host: &str, before: &Known) -> Known {
        let fetched = self.fetch_file(host).await;
        let now = self.clock.now_ms();
        let after = |lifetime: Duration| {
            now.saturating_add(u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX))
        };
        match fetched {
            Ok((delegation, lifetime)) => Known {
                delegation: Some(delegation),
                read_at: now,
                valid_until: after(lifetime),
                failures: 0,
            },
            Err(failure) => {
                tracing::debug!(host, ?failure, "there is no well-known file");
                // A host that is away for a while still delegates as it did; one that says there is no file does not.
                let is_kept = failure == Failure::NoAnswer
                    && now
                        < before.read_at.saturating_add(
                            u64::try_from(MAX_LIFETIME.as_millis()).unwrap_or(u64::MAX),
                        );
                Known {
                    delegation: before.delegation.clone().filter(|_| is_kept),
                    read_at: before.read_at,
                    valid_until: after(error_lifetime(before.failures)),
                    failures: before.failures.saturating_add(1),
                }
            }
        }
    }

    async fn fetch_file(&self, host: &str) -> Result<(Delegation, Duration), Failure> {
        let url: Uri = format!("https://{host}/.well-known/matrix/server")
            .parse()
            .map_err(|_error| Failure::NoFile)?;
        let limits = Limits {
            timeout: TIMEOUT,
            max_bytes: MAX_BYTES,
        };
        let answer = self
            .outbound
            .get(&url, limits)
            .await
            .map_err(|_error| Failure::NoAnswer)?;
        if answer.status().is_server_error() {
            return Err(Failure::NoAnswer);
        }
        if answer.status() != http::StatusCode::OK {
            return Err(Failure::NoFile);
        }
        let delegation = parse(answer.body()).ok_or(Failure::NoFile)?;
        Ok((delegation, lifetime(answer.headers(), self.clock.now_ms())))
    }
}

/// Why there is no file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// The host says so, or the file is none.
    NoFile,
    /// Nobody says anything.
    NoAnswer,
}

fn error_lifetime(failures_before: u32) -> Duration {
    FIRST_ERROR_LIFETIME
        .saturating_mul(2_u32.saturating_pow(failures_before))
        .min(MAX_ERROR_LIFETIME)
}

/// What the file says; none if it is not valid.
fn parse(body: &[u8]) -> Option<Delegation> {
    #[derive(serde::Deserialize)]
    struct File {
        #[serde(rename = "m.server")]
        server: Box<str>,
    }
    let file: File = serde_json::from_slice(body).ok()?;
    ServerName::parse(&file.server).ok()
}

/// For the fuzzer: what a file with these headers says, and how long it counts.
pub fn file(cache_control: &[u8], expires: &[u8], body: &[u8]) -> (Option<Delegation>, Duration) {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        (header::CACHE_CONTROL, cache_control),
        (header::EXPIRES, expires),
    ] {
        if let Ok(value) = http::HeaderValue::from_bytes(value) {
            headers.insert(name, value);
        }
    }
    (parse(body), lifetime(&headers, 1_000_000_000_000))
}

/// How long the file counts: what its headers say, within our bounds.
fn lifetime(headers: &HeaderMap, now_ms: u64) -> Duration {
    let said = match max_age(headers) {
        Some(lifetime) => Some(lifetime),
        None => expires(headers, now_ms),
    };
    said.unwrap_or(DEFAULT_LIFETIME)
        .clamp(MIN_LIFETIME, MAX_LIFETIME)
}

fn max_age(headers: &HeaderMap) -> Option<Duration> {
    let directives = headers
        .get_all(header::CACHE_CONTROL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|line| line.split(','));
    let mut found = None;
    for directive in directives {
        let directive = directive.trim();
        if ["no-store", "no-cache"]
            .iter()
            .any(|name| directive.eq_ignore_ascii_case(name))
        {
            return Some(Duration::ZERO);
        }
        if let Some((name, value)) = directive.split_once('=')
            && name.eq_ignore_ascii_case("max-age")
            && let Ok(seconds) = value.trim_matches('"').parse()
        {
            found = Some(Duration::from_secs(seconds));
        }
    }
    found
}

fn expires(headers: &HeaderMap, now_ms: u64) -> Option<Duration> {
    let expires = headers.get(header::EXPIRES)?;
    // What is no date, "0" above all, is a date in the past.
    let at = expires.to_str().ok().and_then(http_date).unwrap_or(0);
    Some(Duration::from_secs(at.saturating_sub(now_ms / 1_000)))
}

/// The seconds since the Unix epoch of a date such as `Sun, 06 Nov 1994 08:49:37 GMT`.
///
/// Spec: RFC 9110, "Date/Time Formats"; the two obsolete forms count as no date.
fn http_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let (_weekday, rest) = text.split_once(", ")?;
    let mut words = rest.split(' ');
    let day: u64 = words.next()?.parse().ok()?;
    let month_name = words.next()?;
    let month = MONTHS.iter().position(|name| *name == month_name)?;
    let year: u64 = words.next()?.parse().ok()?;
    let mut clock = words.next()?.split(':').map(str::parse::<u64>);
    let (hour, minute, second) = (
        clock.next()?.ok()?,
        clock.next()?.ok()?,
        clock.next()?.ok()?,
    );
    let is_sane = (1..=31).contains(&day)
        && (1970..=9999).contains(&year)
        && hour < 24
        && minute < 60
        && second <= 60;
    if words.next() != Some("GMT") || !is_sane {
        return None;
    }
    let days = days_to_year(year) + days_to_month(year, month) + day - 1;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

/// The days from the first of January 1970 to that of `year`.
fn days_to_year(year: u64) -> u64 {
    let before = year - 1;
    let leap_days = |year: u64| year / 4 - year / 100 + year / 400;
    (year - 1970) * 365 + leap_days(before) - leap_days(1969)
}

/// The days of `year` before its month number `month`, from 0.
fn days_to_month(year: u64, month: usize) -> u64 {
    const DAYS: [u64; 12] = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let is_leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let leap_day = u64::from(is_leap && month > 1);
    DAYS.iter().take(month).sum::<u64>() + leap_day
}

#[cfg(test)]
mod tests;

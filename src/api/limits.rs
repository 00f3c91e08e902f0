//! Rate limits: token buckets by what is asked for and who asks.
//!
//! A bucket is one number, the time at which it will be full again (the generic cell rate algorithm), so that one that is
//! full needs no memory at all. Memory is bounded: a shard that is full of buckets in use starts anew.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::Mutex,
    time::{Duration, Instant},
};

use prometheus_client::metrics::{counter::Counter, family::Family};

use crate::{
    clock::Clock,
    config::rate_limits::{self, Limit},
    telemetry::Metrics,
};

const SHARDS: usize = 16;
/// Buckets in use in one shard: with all shards some 5 MiB.
const MAX_BUCKETS_PER_SHARD: usize = 8_192;
/// A shard smaller than this is not searched for full buckets.
const MIN_SWEEP: usize = 256;

/// What is limited. The settings are in the section `rate_limits`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bucket {
    Login,
    Registration,
    Message,
    Join,
    Invite,
    Profile,
    Typing,
    Receipts,
    Delayed,
    UserDirectory,
    Search,
    Reports,
}

/// Who is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A user's number.
    User(u32),
    /// An address; of IPv6 the /64, since that is what one customer has.
    Address(IpAddr),
}

/// The state of all buckets.
pub struct Limits {
    clock: Clock,
    config: rate_limits::Config,
    shards: [Mutex<Shard>; SHARDS],
    limited: Family<[(&'static str, &'static str); 1], Counter>,
}

#[derive(Default)]
struct Shard {
    /// When each bucket is full again.
    full_at: HashMap<(Bucket, Subject), Instant>,
    /// The size at which full buckets are looked for.
    sweep_at: usize,
}

impl Subject {
    /// The subject of an address.
    pub fn address(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::Address(IpAddr::V4(address)),
            IpAddr::V6(address) => {
                let prefix = address.to_bits() & (u128::MAX << 64);
                Self::Address(IpAddr::V6(Ipv6Addr::from_bits(prefix)))
            }
        }
    }

    fn shard(self) -> usize {
        let hash = match self {
            Self::User(number) => u128::from(number),
            Self::Address(IpAddr::V4(address)) => u128::from(address.to_bits()),
            Self::Address(IpAddr::V6(address)) => address.to_bits() >> 64,
        };
        let folded = hash ^ (hash >> 4) ^ (hash >> 16) ^ (hash >> 32);
        usize::try_from(folded % 16).expect("a remainder below 16 fits")
    }
}

impl Bucket {
    /// The name of the bucket in the configuration and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Login => "login",
            Self::Registration => "registration",
            Self::Message => "message",
            Self::Join => "join",
            Self::Invite => "invite",
            Self::Profile => "profile",
            Self::Typing => "typing",
            Self::Receipts => "receipts",
            Self::Delayed => "delayed",
            Self::UserDirectory => "user_directory",
            Self::Search => "search",
            Self::Reports => "reports",
        }
    }

    fn limit(self, config: &rate_limits::Config) -> Limit {
        match self {
            Self::Login => config.login,
            Self::Registration => config.registration,
            Self::Message => config.message,
            Self::Join => config.join,
            Self::Invite => config.invite,
            Self::Profile => config.profile,
            Self::Typing => config.typing,
            Self::Receipts => config.receipts,
            Self::Delayed => config.delayed,
            Self::UserDirectory => config.user_directory,
            Self::Search => config.search,
            Self::Reports => config.reports,
        }
    }
}

impl Limits {
    pub fn new(clock: Clock, config: rate_limits::Config, metrics: &Metrics) -> Self {
        let limited = Family::default();
        metrics.register(
            "rate_limited",
            "Requests refused by a rate limit, by bucket.",
            limited.clone(),
        );
        Self {
            clock,
            config,
            shards: Default::default(),
            limited,
        }
    }

    /// Takes one from the bucket of `subject`.
    ///
    /// # Errors
    /// The time after which there will be one.
    pub fn take(&self, bucket: Bucket, subject: Subject) -> Result<(), Duration> {
        let Limit::Rate { rate, burst } = bucket.limit(&self.config) else {
            return Ok(());
        };
        let now = self.clock.instant();
        let interval = rate.interval();
        let shard = self
            .shards
            .get(subject.shard())
            .expect("a shard for each remainder");
        let mut shard = shard
            .lock()
            .expect("nothing panics while it holds this lock");
        let full_at = shard
            .full_at
            .get(&(bucket, subject))
            .copied()
            .unwrap_or(now)
            .max(now);
        let after = full_at + interval;
        let latest = now + interval.saturating_mul(burst.get());
        if after > latest {
            drop(shard);
            self.limited
                .get_or_create(&[("bucket", bucket.name())])
                .inc();
            return Err(after - latest);
        }
        shard.insert((bucket, subject), after, now);
        Ok(())
    }
}

impl Shard {
    fn insert(&mut self, key: (Bucket, Subject), full_at: Instant, now: Instant) {
        if self.full_at.len() >= self.sweep_at.max(MIN_SWEEP) {
            self.full_at.retain(|_, full_at| *full_at > now);
            if self.full_at.len() >= MAX_BUCKETS_PER_SHARD {
                self.full_at.clear();
            }
            self.sweep_at = (self.full_at.len() * 2).min(MAX_BUCKETS_PER_SHARD);
        }
        self.full_at.insert(key, full_at);
    }
}

#[cfg(test)]
mod tests;

//! Where a server is: from its name to machines, ports, the certificate to expect and the `Host` header.
//!
//! Spec: s2s, "Resolving server names". Delegation changes only whom we connect to; requests are signed for the name that was asked for.

mod well_known;

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lru::LruCache;
use ruma::{OwnedServerName, ServerName};

use self::well_known::WellKnown;
pub use self::well_known::{Delegation, file as well_known_file};
use crate::{
    clock::Clock,
    outbound::{self, Endpoint, Outbound, Service, Target},
};

/// The port of servers that name none.
const DEFAULT_PORT: u16 = 8448;
/// How long a service may be looked up. Networks without DNS, or with a broken one, must not cost every request more.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// Servers whose routes are remembered.
const MAX_ROUTES: NonZeroUsize = NonZeroUsize::new(10_000).expect("it is not zero");
/// How long a route is remembered; longer when DNS did not answer, since asking it is slow then.
const ROUTE_LIFETIME: Duration = Duration::from_secs(60);
const UNSURE_ROUTE_LIFETIME: Duration = Duration::from_secs(5 * 60);

/// The rule by which a place was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The host is an address.
    Address,
    /// The name says its port.
    Port,
    /// An SRV record `_matrix-fed._tcp`.
    Service,
    /// An SRV record `_matrix._tcp`.
    DeprecatedService,
    /// Nothing else is known than the host.
    Host,
}

impl Rule {
    /// In words for administrators.
    pub fn name(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Port => "port",
            Self::Service => "SRV _matrix-fed._tcp",
            Self::DeprecatedService => "SRV _matrix._tcp",
            Self::Host => "port 8448 of the host",
        }
    }
}

/// How a server is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The name in the well-known file, if there is one; `rule` was applied to it then.
    pub delegated: Option<Delegation>,
    pub rule: Rule,
    pub target: Target,
}

/// Finds servers, and remembers where they are.
pub struct Discovery {
    outbound: Outbound,
    clock: Clock,
    well_known: WellKnown,
    routes: Mutex<LruCache<OwnedServerName, Remembered>>,
}

struct Remembered {
    route: Arc<Route>,
    /// In milliseconds of the clock.
    valid_until: u64,
}

/// What a look-up of services gave.
struct Found {
    rule: Rule,
    target: Target,
    /// DNS answered.
    is_sure: bool,
}

impl Discovery {
    pub(super) fn new(outbound: Outbound, clock: Clock) -> Self {
        Self {
            well_known: WellKnown::new(outbound.clone(), clock.clone()),
            routes: Mutex::new(LruCache::new(MAX_ROUTES)),
            outbound,
            clock,
        }
    }

    pub(super) fn outbound(&self) -> &Outbound {
        &self.outbound
    }

    /// How `server` is reached, as far as is remembered, or looked up now.
    ///
    /// # Errors
    /// DNS says that the server is nowhere. Whether anything answers there is not looked at.
    pub async fn route(&self, server: &ServerName) -> Result<Arc<Route>, outbound::Error> {
        let now = self.clock.now_ms();
        let remembered = self
            .routes()
            .get(server)
            .filter(|remembered| now < remembered.valid_until)
            .map(|remembered| Arc::clone(&remembered.route));
        if let Some(route) = remembered {
            return Ok(route);
        }
        let (route, is_sure) = self.look_up(server).await?;
        let route = Arc::new(route);
        let lifetime = if is_sure {
            ROUTE_LIFETIME
        } else {
            UNSURE_ROUTE_LIFETIME
        };
        let lifetime = u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX);
        let remembered = Remembered {
            route: Arc::clone(&route),
            valid_until: self.clock.now_ms().saturating_add(lifetime),
        };
        self.routes().put(server.to_owned(), remembered);
        Ok(route)
    }

    /// The route led nowhere: it is looked up again the next time.
    pub(super) fn forget(&self, server: &ServerName) {
        self.routes().pop(server);
    }

    /// How `server` is reached; and whether DNS answered all that it was asked.
    async fn look_up(&self, server: &ServerName) -> Result<(Route, bool), outbound::Error> {
        let mut delegated = None;
        let mut found = without_lookup(server);
        let mut name = server.to_owned();
        if found.is_none()
            && let Some(other) = self.well_known.delegation(server.host()).await
        {
            found = without_lookup(&other);
            name.clone_from(&other);
            delegated = Some(other);
        }
        let Found {
            rule,
            target,
            is_sure,
        } = match found {
            Some((rule, target)) => Found {
                rule,
                target,
                is_sure: true,
            },
            None => self.by_service(name.host()).await?,
        };
        let route = Route {
            delegated,
            rule,
            target,
        };
        Ok((route, is_sure))
    }

    /// Where DNS says the service of `host` is, or its default port.
    async fn by_service(&self, host: &str) -> Result<Found, outbound::Error> {
        let (new, deprecated) = futures_util::future::join(
            self.services("_matrix-fed._tcp", host),
            self.services("_matrix._tcp", host),
        )
        .await;
        let is_sure = new.is_some() && deprecated.is_some();
        for (services, rule) in [(new, Rule::Service), (deprecated, Rule::DeprecatedService)] {
            if let Some(target) = target_of(host, services.unwrap_or_default())? {
                return Ok(Found {
                    rule,
                    target,
                    is_sure,
                });
            }
        }
        Ok(Found {
            rule: Rule::Host,
            target: single(host, DEFAULT_PORT, host),
            is_sure,
        })
    }

    /// The machines of a service; `None` if DNS does not say. Some name servers know no SRV records and break; the host
    /// itself may be found all the same.
    async fn services(&self, service: &str, host: &str) -> Option<Vec<Service>> {
        let name = format!("{service}.{host}");
        let look_up = self.outbound.names().services(&name);
        match tokio::time::timeout(LOOKUP_TIMEOUT, look_up).await {
            Ok(Ok(found)) => Some(found),
            Ok(Err(error)) => {
                tracing::debug!(%error, "a service cannot be looked up");
                None
            }
            Err(_elapsed) => None,
        }
    }

    fn routes(&self) -> MutexGuard<'_, LruCache<OwnedServerName, Remembered>> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The machines that offer the service of `host`; none if there is no record.
fn target_of(host: &str, mut found: Vec<Service>) -> Result<Option<Target>, outbound::Error> {
    if found.is_empty() {
        return Ok(None);
    }
    // A single "." says that the service is decidedly not there (RFC 2782).
    found.retain(|service| !service.host.is_empty());
    if found.is_empty() {
        return Err(outbound::Error::NoEndpoint(host.into()));
    }
    // Always the same order, so that the same server is the same target.
    found.sort();
    Ok(Some(Target {
        endpoints: found,
        certificate_name: host.into(),
        authority: host.into(),
    }))
}

/// Names that say all themselves: addresses, and hosts with a port.
fn without_lookup(name: &ServerName) -> Option<(Rule, Target)> {
    let host = name.host();
    if name.is_ip_literal() {
        let port = name.port().unwrap_or(DEFAULT_PORT);
        return Some((Rule::Address, single(host, port, name.as_str())));
    }
    let port = name.port()?;
    Some((Rule::Port, single(host, port, name.as_str())))
}

fn single(host: &str, port: u16, authority: &str) -> Target {
    Target {
        endpoints: vec![Endpoint::single(host, port)],
        certificate_name: host.into(),
        authority: authority.into(),
    }
}

#[cfg(test)]
mod tests;

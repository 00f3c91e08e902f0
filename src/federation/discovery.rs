//! Where a server is: from its name to machines, ports, the certificate to expect and the `Host` header.
//!
//! Spec: s2s, "Resolving server names". Delegation changes only whom we connect to; requests are signed for the name that was asked for.

mod well_known;

use ruma::ServerName;

use self::well_known::WellKnown;
pub use self::well_known::{Delegation, file as well_known_file};
use crate::{
    clock::Clock,
    outbound::{self, Endpoint, Outbound, Service, Target},
};

/// The port of servers that name none.
const DEFAULT_PORT: u16 = 8448;
/// The service names in the order they are looked up; the second is deprecated.
const SERVICES: [&str; 2] = ["_matrix-fed._tcp", "_matrix._tcp"];

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

/// Finds servers, and remembers what their well-known files say. DNS is remembered by the resolver.
pub struct Discovery {
    outbound: Outbound,
    well_known: WellKnown,
}

impl Discovery {
    pub(super) fn new(outbound: Outbound, clock: Clock) -> Self {
        Self {
            well_known: WellKnown::new(outbound.clone(), clock),
            outbound,
        }
    }

    pub(super) fn outbound(&self) -> &Outbound {
        &self.outbound
    }

    /// How `server` is reached.
    ///
    /// # Errors
    /// DNS says that the server is nowhere. Whether anything answers there is not looked at.
    pub async fn route(&self, server: &ServerName) -> Result<Route, outbound::Error> {
        if let Some((rule, target)) = without_lookup(server) {
            return Ok(Route {
                delegated: None,
                rule,
                target,
            });
        }
        match self.well_known.delegation(server.host()).await {
            Some(delegated) => {
                let (rule, target) = match without_lookup(&delegated) {
                    Some(found) => found,
                    None => self.by_service(delegated.host()).await?,
                };
                Ok(Route {
                    delegated: Some(delegated),
                    rule,
                    target,
                })
            }
            None => {
                let (rule, target) = self.by_service(server.host()).await?;
                Ok(Route {
                    delegated: None,
                    rule,
                    target,
                })
            }
        }
    }

    /// Where DNS says `host` is, or its default port.
    async fn by_service(&self, host: &str) -> Result<(Rule, Target), outbound::Error> {
        for (service, rule) in SERVICES
            .into_iter()
            .zip([Rule::Service, Rule::DeprecatedService])
        {
            let name = format!("{service}.{host}");
            let found = match self.outbound.names().services(&name).await {
                Ok(found) => found,
                // Some name servers know no SRV records and break; the host itself may still be found.
                Err(error) => {
                    tracing::debug!(%error, "a service cannot be looked up");
                    continue;
                }
            };
            if let Some(target) = target_of(host, found)? {
                return Ok((rule, target));
            }
        }
        Ok((Rule::Host, single(host, DEFAULT_PORT, host)))
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

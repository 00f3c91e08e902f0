//! What DNS and `/etc/hosts` say.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use hickory_resolver::{
    ResolverBuilder, TokioResolver,
    config::{LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig},
    net::runtime::TokioRuntimeProvider,
    proto::rr::RData,
};

use super::Error;

/// The most addresses of one name that are tried, and the most machines of one service.
const MAX_RECORDS: usize = 8;

/// Where names are looked up.
#[derive(Clone)]
pub enum Names {
    /// `/etc/hosts`, then the name servers of `/etc/resolv.conf`. Answers are kept as long as they say.
    System(Box<TokioResolver>),
    /// What a test says, and nothing else.
    Fixed(Arc<Fixed>),
}

/// All names there are.
#[derive(Clone, Debug, Default)]
pub struct Fixed {
    /// Where `HOST:PORT` is.
    pub places: BTreeMap<String, Vec<SocketAddr>>,
    pub services: BTreeMap<String, Vec<Service>>,
}

/// A machine that offers a service: an SRV record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Service {
    /// Lower ones are tried first.
    pub priority: u16,
    /// How often the machine is taken among those of its priority.
    pub weight: u16,
    /// A name, without a dot at the end; empty: the service is not offered.
    pub host: Box<str>,
    pub port: u16,
}

impl Names {
    /// The names that this machine knows. Without name servers only `/etc/hosts` is left, so that a network without DNS
    /// can do with addresses.
    ///
    /// # Errors
    /// The resolver cannot be made.
    pub fn system() -> Result<Self, Error> {
        match TokioResolver::builder(TokioRuntimeProvider::default()) {
            Ok(builder) => Self::build(builder),
            Err(error) => {
                tracing::warn!(%error, "there are no name servers; only /etc/hosts is asked");
                Self::of_servers(Vec::new())
            }
        }
    }

    /// `/etc/hosts` and these name servers.
    fn of_servers(servers: Vec<NameServerConfig>) -> Result<Self, Error> {
        let config = ResolverConfig::from_parts(None, Vec::new(), servers);
        let provider = TokioRuntimeProvider::default();
        Self::build(TokioResolver::builder_with_config(config, provider))
    }

    fn build(mut builder: ResolverBuilder<TokioRuntimeProvider>) -> Result<Self, Error> {
        let options = builder.options_mut();
        options.ip_strategy = LookupIpStrategy::Ipv6AndIpv4;
        options.use_hosts_file = ResolveHosts::Always;
        let resolver = builder
            .build()
            .map_err(|error| Error::Resolver(error.to_string()))?;
        Ok(Self::System(Box::new(resolver)))
    }

    /// The addresses of `host`, at most 8, with `port`.
    ///
    /// # Errors
    /// There are none, or no name server answers.
    pub async fn addresses(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, Error> {
        let unknown = |reason: String| Error::Name {
            name: host.into(),
            reason,
        };
        let found: Vec<SocketAddr> = match self {
            Self::System(resolver) => resolver
                .lookup_ip(absolute(host))
                .await
                .map_err(|error| unknown(error.to_string()))?
                .iter()
                .take(MAX_RECORDS)
                .map(|address| SocketAddr::new(address, port))
                .collect(),
            Self::Fixed(fixed) => fixed
                .places
                .get(&format!("{host}:{port}"))
                .cloned()
                .unwrap_or_default(),
        };
        if found.is_empty() {
            return Err(unknown("it has no addresses".to_owned()));
        }
        Ok(found)
    }

    /// The machines that offer `service`, such as `_matrix-fed._tcp.example.org`, in no order, at most 8; empty if none do.
    ///
    /// # Errors
    /// No name server answers.
    pub async fn services(&self, service: &str) -> Result<Vec<Service>, Error> {
        match self {
            Self::System(resolver) => match resolver.srv_lookup(absolute(service)).await {
                Ok(found) => Ok(found
                    .answers()
                    .iter()
                    .filter_map(|record| service_of(&record.data))
                    .take(MAX_RECORDS)
                    .collect()),
                Err(error) if error.is_no_records_found() => Ok(Vec::new()),
                Err(error) => Err(Error::Name {
                    name: service.into(),
                    reason: error.to_string(),
                }),
            },
            Self::Fixed(fixed) => Ok(fixed.services.get(service).cloned().unwrap_or_default()),
        }
    }
}

fn service_of(data: &RData) -> Option<Service> {
    let RData::SRV(record) = data else {
        return None;
    };
    let host = record.target.to_ascii();
    Some(Service {
        priority: record.priority,
        weight: record.weight,
        host: host.trim_end_matches('.').into(),
        port: record.port,
    })
}

/// The name with a dot at its end: no domain of this machine is searched for it.
fn absolute(name: &str) -> String {
    if name.ends_with('.') {
        name.to_owned()
    } else {
        format!("{name}.")
    }
}

#[cfg(test)]
mod tests;

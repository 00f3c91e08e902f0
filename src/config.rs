//! The configuration: what there is to set, where it comes from, what is wrong with it.
//!
//! A section lies beside the code it configures; those of modules above `config` are declared in `sections`.

mod load;
mod problem;
pub mod rate_limits;
mod schema;
pub mod sections;
mod tree;

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::sections::{
    AdminSection, ConfigSection, LimitsSection, Listener, NoticesSection, ProxySection,
    ServerSection, TlsMode, TlsSection, WellKnownSection, default_listeners,
};
pub use self::{
    load::{Loaded, Sources},
    problem::{Problem, Problems, Severity},
    schema::{Schema, example, inline, schema},
    tree::{Node, NodeValue, Origin},
};
use crate::{accounts, ephemeral, federation, outbound, rooms, storage, telemetry};

/// The sections in the order of the example file. A list stands before the first table, where TOML wants it.
pub const SECTIONS: &[&str] = &[
    "listeners",
    "server",
    "database",
    "tls",
    "proxy",
    "well_known",
    "net",
    "federation",
    "accounts",
    "registration",
    "rooms",
    "directory",
    "presence",
    "rate_limits",
    "limits",
    "admin",
    "notices",
    "log",
    "config",
];

/// Everything that can be set, one field per section.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Config {
    pub server: ServerSection,
    pub database: storage::Config,
    /// Where the server listens.
    pub listeners: Vec<Listener>,
    pub tls: TlsSection,
    pub proxy: ProxySection,
    pub well_known: WellKnownSection,
    pub net: outbound::Config,
    pub federation: federation::Config,
    pub accounts: accounts::Config,
    pub registration: accounts::RegistrationConfig,
    pub rooms: rooms::Config,
    pub directory: rooms::DirectoryConfig,
    pub presence: ephemeral::Config,
    pub rate_limits: rate_limits::Config,
    pub limits: LimitsSection,
    pub admin: AdminSection,
    pub notices: NoticesSection,
    pub log: telemetry::Config,
    pub config: ConfigSection,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            server: ServerSection::default(),
            database: storage::Config::default(),
            listeners: default_listeners(),
            tls: TlsSection::default(),
            proxy: ProxySection::default(),
            well_known: WellKnownSection::default(),
            net: outbound::Config::default(),
            federation: federation::Config::default(),
            accounts: accounts::Config::default(),
            registration: accounts::RegistrationConfig::default(),
            rooms: rooms::Config::default(),
            directory: rooms::DirectoryConfig::default(),
            presence: ephemeral::Config::default(),
            rate_limits: rate_limits::Config::default(),
            limits: LimitsSection::default(),
            admin: AdminSection::default(),
            notices: NoticesSection::default(),
            log: telemetry::Config::default(),
            config: ConfigSection::default(),
        }
    }
}

impl Config {
    /// The server name, which [`Config::check`] demands.
    pub fn server_name(&self) -> &str {
        self.server.name.as_deref().unwrap_or_default()
    }

    /// Where clients reach the server, without a slash at the end.
    pub fn base_url(&self) -> String {
        match &self.server.base_url {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None => format!("https://{}", self.server_name()),
        }
    }

    /// The socket of the command line.
    pub fn admin_socket(&self) -> PathBuf {
        self.admin
            .socket
            .clone()
            .unwrap_or_else(|| self.server.data_dir.join("admin.sock"))
    }

    /// What is wrong across keys. `tree` tells where a value was set.
    fn check(&self, tree: &Node, problems: &mut Vec<Problem>) {
        let mut report = |key: &str, text: String| {
            let path: Vec<&str> = key.split('.').collect();
            let origin = tree
                .get(&path)
                .map_or(Origin::BuiltIn, |node| node.origin.clone());
            problems.push(Problem::new(origin, key, text));
        };
        match &self.server.name {
            None => report(
                "server.name",
                "is required: the part of user IDs after the colon".to_owned(),
            ),
            Some(name) => {
                if let Err(error) = ruma::ServerName::parse(name) {
                    report(
                        "server.name",
                        format!("\"{name}\" is not a server name: {error}"),
                    );
                }
            }
        }
        if let Some(url) = &self.server.base_url
            && !url.starts_with("https://")
            && !is_loopback_url(url)
        {
            report(
                "server.base_url",
                format!("\"{url}\" must begin with https://"),
            );
        }
        if self.registration.mode == accounts::RegistrationMode::Open
            && !self.registration.i_accept_open_registration
        {
            report(
                "registration.mode",
                "\"open\" lets spammers in; if that is wanted, set registration.i_accept_open_registration = true"
                    .to_owned(),
            );
        }
        if self.listeners.is_empty() {
            report("listeners", "at least one is needed".to_owned());
        }
        if self.tls.mode == TlsMode::Off && self.listeners.iter().any(|listener| listener.tls) {
            report(
                "tls.mode",
                "a listener wants TLS; set \"files\" with tls.cert and tls.key".to_owned(),
            );
        }
        if self.tls.mode == TlsMode::Files && (self.tls.cert.is_none() || self.tls.key.is_none()) {
            report(
                "tls.mode",
                "\"files\" needs tls.cert and tls.key".to_owned(),
            );
        }
        if let Err(error) = telemetry::check_filter(&self.log.filter) {
            report(
                "log.filter",
                format!("\"{}\" cannot be read: {error}", self.log.filter),
            );
        }
    }
}

fn is_loopback_url(url: &str) -> bool {
    ["http://localhost", "http://127.", "http://[::1]"]
        .iter()
        .any(|start| url.starts_with(start))
}

#[cfg(test)]
mod tests;

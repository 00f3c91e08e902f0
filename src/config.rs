//! The configuration: what there is to set, where it comes from, what is wrong with it.
//!
//! A section lies beside the code it configures; those of modules above `config` are declared in `sections`.

pub mod rate_limits;
pub mod sections;

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::sections::{
    AdminSection, ConfigSection, LimitsSection, Listener, ProxySection, ServerSection, TlsSection,
    WellKnownSection, default_listeners,
};
use crate::telemetry;

/// Everything that can be set, one field per section.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Config {
    pub server: ServerSection,
    /// Where the server listens.
    pub listeners: Vec<Listener>,
    pub tls: TlsSection,
    pub proxy: ProxySection,
    pub well_known: WellKnownSection,
    pub rate_limits: rate_limits::Config,
    pub limits: LimitsSection,
    pub admin: AdminSection,
    pub log: telemetry::Config,
    pub config: ConfigSection,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            server: ServerSection::default(),
            listeners: default_listeners(),
            tls: TlsSection::default(),
            proxy: ProxySection::default(),
            well_known: WellKnownSection::default(),
            rate_limits: rate_limits::Config::default(),
            limits: LimitsSection::default(),
            admin: AdminSection::default(),
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
}

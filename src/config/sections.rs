//! The sections of what lies above the parts: identity, listeners, TLS, proxies, well-known files, administration.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use http::HeaderMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::units::{ByteSize, Network, Period};

/// How the configuration itself is read.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ConfigSection {
    /// What to do about a key that is not known: `"error"`, or `"warn"` to go on without it.
    pub unknown_keys: UnknownKeys,
    /// Refuse to start when others can read a file that holds secrets, instead of a warning.
    pub strict_permissions: bool,
}

/// What to do about a key that is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum UnknownKeys {
    #[default]
    Error,
    Warn,
}

/// Identity and place.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ServerSection {
    /// The name in user IDs: `@alice:NAME`. Required. It cannot be changed once there is data.
    pub name: Option<String>,
    /// Where clients reach the server. Default: `https://NAME`.
    pub base_url: Option<String>,
    /// Where everything is stored. It is made if missing.
    pub data_dir: PathBuf,
    /// Defaults for a kind of community: `"team"`, `"messenger"` or `"community"`. Keys that are set win.
    pub preset: Option<Preset>,
}

/// A kind of community.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    Team,
    Messenger,
    Community,
}

impl Default for ServerSection {
    fn default() -> Self {
        Self {
            name: None,
            base_url: None,
            data_dir: PathBuf::from("/var/lib/hearth"),
            preset: None,
        }
    }
}

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Listener {
    /// `"127.0.0.1:8008"`, `"[::]:443"`, or `"unix:/run/hearth/hearth.sock"`.
    pub bind: Bind,
    /// Whether to speak TLS with the certificate of the section `tls`.
    #[serde(default)]
    pub tls: bool,
    /// What is served here.
    pub resources: Vec<Resource>,
}

/// Where a listener listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bind {
    Network(SocketAddr),
    Unix(PathBuf),
}

/// What a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Resource {
    /// The client-server API and the well-known files.
    Client,
    /// The server-server API, which other servers use.
    Federation,
    /// Pages for browsers: the first account.
    Web,
    /// Prometheus metrics.
    Metrics,
    /// `/health/live` and `/health/ready`.
    Health,
}

impl Serialize for Bind {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Network(address) => serializer.collect_str(address),
            Self::Unix(path) => serializer.collect_str(&format_args!("unix:{}", path.display())),
        }
    }
}

impl<'de> Deserialize<'de> for Bind {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.strip_prefix("unix:") {
            Some(path) => Ok(Self::Unix(path.into())),
            None => text
                .parse()
                .map(Self::Network)
                .map_err(|_error| serde::de::Error::custom("expected ADDRESS:PORT or unix:PATH")),
        }
    }
}

impl JsonSchema for Bind {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Bind".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "format": "bind" })
    }
}

/// The listeners of a server without any in its configuration: a proxy on this machine does TLS.
pub fn default_listeners() -> Vec<Listener> {
    let loopback = |port| Bind::Network(SocketAddr::from(([127, 0, 0, 1], port)));
    vec![
        Listener {
            bind: loopback(8008),
            tls: false,
            resources: vec![
                Resource::Client,
                Resource::Federation,
                Resource::Web,
                Resource::Health,
            ],
        },
        Listener {
            bind: loopback(9090),
            tls: false,
            resources: vec![Resource::Metrics, Resource::Health],
        },
    ]
}

/// Certificates of listeners with `tls = true`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TlsSection {
    /// `"off"`: no listener speaks TLS. `"files"`: the certificate and key below.
    pub mode: TlsMode,
    /// The certificate and its chain, PEM.
    pub cert: Option<PathBuf>,
    /// The private key, PEM.
    pub key: Option<PathBuf>,
}

/// Where certificates come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TlsMode {
    #[default]
    Off,
    Files,
}

/// Reverse proxies, whose word on a client's address is believed.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ProxySection {
    /// Addresses of proxies: `["127.0.0.1/32", "10.0.0.0/8"]`. Headers from others are ignored.
    pub trusted: Vec<Network>,
    /// The header with the client's address: `"x-forwarded-for"` or `"cf-connecting-ip"`.
    pub header: ProxyHeader,
}

/// The header in which a proxy names its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ProxyHeader {
    XForwardedFor,
    CfConnectingIp,
}

impl Default for ProxySection {
    fn default() -> Self {
        Self {
            trusted: Vec::new(),
            header: ProxyHeader::XForwardedFor,
        }
    }
}

impl ProxySection {
    /// Whether `address` is one of our proxies.
    pub fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.trusted.iter().any(|network| network.contains(address))
    }

    /// The client that a trusted proxy names: the right-most address that is not a proxy of ours.
    pub fn client_behind(&self, headers: &HeaderMap) -> Option<IpAddr> {
        match self.header {
            ProxyHeader::CfConnectingIp => headers
                .get("cf-connecting-ip")?
                .to_str()
                .ok()?
                .trim()
                .parse()
                .ok(),
            ProxyHeader::XForwardedFor => {
                let all: Vec<&str> = headers
                    .get_all("x-forwarded-for")
                    .iter()
                    .filter_map(|value| value.to_str().ok())
                    .collect();
                let hops = all.iter().rev().flat_map(|line| line.rsplit(','));
                for hop in hops {
                    let address: IpAddr = hop.trim().parse().ok()?;
                    if !self.trusts(address) {
                        return Some(address.to_canonical());
                    }
                }
                None
            }
        }
    }
}

/// The files under `/.well-known/matrix/`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct WellKnownSection {
    /// Where other servers reach this one, `HOST:PORT`. None: they use the server name.
    pub server: Option<String>,
    /// More keys of the file for clients.
    pub client_extra: Map<String, Value>,
    /// People to ask for help: `[{ matrix_id = "@admin:example.org", role = "m.role.admin" }]`.
    pub support_contacts: Vec<SupportContact>,
    /// A page with help.
    pub support_page: Option<String>,
}

/// Somebody to ask for help.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SupportContact {
    /// `m.role.admin` or `m.role.security`.
    pub role: String,
    /// A Matrix user ID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matrix_id: Option<String>,
    /// An e-mail address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email_address: Option<String>,
}

/// Administration from the command line.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct AdminSection {
    /// The socket that `hearth user` and others talk to. Default: `admin.sock` in `server.data_dir`.
    pub socket: Option<PathBuf>,
}

/// Notices to users.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct NoticesSection {
    /// The user who sends them: the part before the colon. Nobody can register it. Do not change it later, or users are
    /// invited into another room.
    pub from: String,
    /// The name of the room that each user gets.
    pub room_name: String,
}

impl Default for NoticesSection {
    fn default() -> Self {
        Self {
            from: "notices".to_owned(),
            room_name: "Server notices".to_owned(),
        }
    }
}

/// Bounds on what one request or connection may use.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct LimitsSection {
    /// Connections at the same time, on all listeners together. More wait to be accepted.
    pub connections: u32,
    /// How long a client may take to send the head of a request, and how long a connection may be idle. A proxy should
    /// keep its connections for less.
    pub request_head_timeout: Period,
    /// How long requests may go on after the server was told to stop.
    pub shutdown_grace: Period,
    /// The largest body of a request that is JSON.
    pub request_body: ByteSize,
}

impl Default for LimitsSection {
    fn default() -> Self {
        Self {
            connections: 20_000,
            request_head_timeout: Period::from_secs(75),
            shutdown_grace: Period::from_secs(10),
            request_body: ByteSize(2 * 1024 * 1024),
        }
    }
}

//! The section `federation`.

use std::{borrow::Cow, fmt, str::FromStr};

use ruma::{OwnedServerName, ServerName};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::units::Period;

/// Other Matrix servers.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Config {
    /// Whom this server talks to: `"open"`, everybody but those in `deny`; `"allowlist"`, those in `allow` but not in
    /// `deny`; `"off"`, nobody.
    pub mode: Mode,
    /// Server names for the mode `"allowlist"`. `*` stands for any text, `?` for one letter; a name without port
    /// stands for all ports: `["example.org", "*.example.org"]`.
    pub allow: Vec<ServerPattern>,
    /// Server names that this server does not talk to, written as in `allow`.
    pub deny: Vec<ServerPattern>,
    /// How long another server may take for an answer. Joins of large rooms have more time.
    pub timeout: Period,
    /// Servers that are asked for the keys of others, which may be gone. They can forge what servers say that are asked
    /// for through them.
    pub trusted_key_servers: Vec<KeyServer>,
    /// What waits longer for a server that is away is left out; when it is back it gets the newest event of each room and
    /// fetches the rest.
    pub queue_max_age: Period,
    /// The longest wait between attempts to reach a server that is away.
    pub backoff_max: Period,
    /// Whether a room can be used while the list of its members is still being fetched.
    pub partial_joins: bool,
    /// Whether other servers are told what the devices of users are called, which often names their owners or what they
    /// own.
    pub tell_device_names: bool,
}

/// Whom this server talks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Open,
    Allowlist,
    Off,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mode: Mode::Open,
            allow: Vec::new(),
            deny: Vec::new(),
            timeout: Period::from_secs(30),
            trusted_key_servers: Vec::new(),
            queue_max_age: Period::from_secs(24 * 60 * 60),
            backoff_max: Period::from_secs(6 * 60 * 60),
            partial_joins: true,
            tell_device_names: false,
        }
    }
}

impl Config {
    /// Whether this server talks to `server`.
    pub fn allows(&self, server: &ServerName) -> bool {
        let is_in = |list: &[ServerPattern]| list.iter().any(|pattern| pattern.matches(server));
        match self.mode {
            Mode::Open => !is_in(&self.deny),
            Mode::Allowlist => is_in(&self.allow) && !is_in(&self.deny),
            Mode::Off => false,
        }
    }
}

/// Server names: `example.org`, `*.example.org`, `example.org:8449`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerPattern(Box<str>);

impl ServerPattern {
    /// Whether the whole name matches, or its host alone.
    pub fn matches(&self, server: &ServerName) -> bool {
        matches(self.0.as_bytes(), server.as_bytes())
            || matches(self.0.as_bytes(), server.host().as_bytes())
    }
}

/// Whether `text` is what `pattern` says, in any case of letters. Takes at most the product of both lengths in steps.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut here) = (0, 0);
    // Where the last `*` was, and where its text ends so far.
    let mut star: Option<(usize, usize)> = None;
    while let Some(letter) = text.get(here) {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, here));
                at += 1;
            }
            Some(wanted) if *wanted == b'?' || wanted.eq_ignore_ascii_case(letter) => {
                at += 1;
                here += 1;
            }
            _ => match star {
                Some((place, end)) => {
                    star = Some((place, end + 1));
                    at = place + 1;
                    here = end + 1;
                }
                None => return false,
            },
        }
    }
    pattern
        .get(at..)
        .unwrap_or_default()
        .iter()
        .all(|letter| *letter == b'*')
}

impl FromStr for ServerPattern {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]*?".contains(&byte);
        if text.is_empty() || !text.bytes().all(is_part) {
            return Err("expected a server name, in which * and ? stand for others");
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for ServerPattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A server that is asked for keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyServer(pub OwnedServerName);

impl FromStr for KeyServer {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let name = ServerName::parse(text).map_err(|_error| "expected a server name")?;
        Ok(Self(name))
    }
}

impl fmt::Display for KeyServer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.0.as_str())
    }
}

/// Serde and the schema of a type that is written as a text.
macro_rules! written_as_text {
    ($type:ident) => {
        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Cow::<'de, str>::deserialize(deserializer)?
                    .parse()
                    .map_err(serde::de::Error::custom)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_generator: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string" })
            }
        }
    };
}

written_as_text!(ServerPattern);
written_as_text!(KeyServer);

#[cfg(test)]
mod tests;

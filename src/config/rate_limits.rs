//! How often a user or an address may do what costs others something.

use std::{borrow::Cow, num::NonZeroU32};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::units::{Rate, RatePeriod};

/// Rate limits. Each is `{ rate = "100/min", burst = 50 }`: `burst` at once, then `rate`; or `"off"`.
/// Users are counted by account where one is known, by address otherwise (an IPv6 /64 is one address).
/// A request above the limit is answered 429 with the time to wait.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Config {
    /// Attempts to sign in, by address.
    pub login: Limit,
    /// Registrations, by address.
    pub registration: Limit,
    /// Messages, state events and redactions, by user.
    pub message: Limit,
    /// Joins and knocks, by user.
    pub join: Limit,
    /// Invitations, by user.
    pub invite: Limit,
    /// Changes of the profile, by user.
    pub profile: Limit,
    /// Typing notifications, by user.
    pub typing: Limit,
    /// Receipts and read markers, by user.
    pub receipts: Limit,
    /// Delayed events, by user.
    pub delayed: Limit,
    /// Searches in the user directory, by user.
    pub user_directory: Limit,
    /// Searches in messages, by user.
    pub search: Limit,
    /// Reports of rooms, events and users, by user.
    pub reports: Limit,
}

/// One limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    Off,
    Rate {
        rate: Rate,
        /// How many at once after a pause.
        burst: NonZeroU32,
    },
}

impl Default for Config {
    fn default() -> Self {
        Self {
            login: per_minute(30, 20),
            registration: per_minute(10, 10),
            message: per_minute(100, 50),
            join: per_minute(30, 20),
            invite: per_minute(60, 30),
            profile: per_minute(30, 20),
            typing: Limit::Off,
            receipts: Limit::Off,
            delayed: per_minute(60, 20),
            user_directory: per_minute(60, 30),
            search: per_minute(30, 10),
            reports: per_minute(10, 5),
        }
    }
}

const fn per_minute(count: u32, burst: u32) -> Limit {
    let (Some(count), Some(burst)) = (NonZeroU32::new(count), NonZeroU32::new(burst)) else {
        return Limit::Off;
    };
    Limit::Rate {
        rate: Rate {
            count,
            per: RatePeriod::Minute,
        },
        burst,
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Off(Off),
    Rate { rate: Rate, burst: NonZeroU32 },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Off {
    Off,
}

impl Serialize for Limit {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match *self {
            Self::Off => Written::Off(Off::Off),
            Self::Rate { rate, burst } => Written::Rate { rate, burst },
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = Written::deserialize(deserializer).map_err(|_error| {
            serde::de::Error::custom("expected \"off\" or { rate = \"100/min\", burst = 50 }")
        })?;
        Ok(match written {
            Written::Off(Off::Off) => Self::Off,
            Written::Rate { rate, burst } => Self::Rate { rate, burst },
        })
    }
}

impl JsonSchema for Limit {
    fn schema_name() -> Cow<'static, str> {
        "Limit".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "format": "rate-limit" })
    }
}

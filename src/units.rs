//! Values as people write them in a configuration file: periods, sizes, rates, secrets.
//!
//! A plain number is refused for all of them, since nobody can see its unit. The types live at the foundation because every
//! module's `Config` uses them.

use std::{borrow::Cow, fmt, net::IpAddr, num::NonZeroU32, str::FromStr, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A length of time, written `"500ms"`, `"30s"`, `"5m"`, `"2h"`, `"7d"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Period(pub Duration);

/// A number of bytes, written `"512B"`, `"64KiB"`, `"50MiB"`, `"4GiB"`, `"1TiB"` (or `kB`, `MB`, `GB`, `TB` by thousands).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

/// How often something may happen, written `"10/s"`, `"100/min"`, `"20/h"`, `"5/d"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate {
    /// Times in each `per`.
    pub count: NonZeroU32,
    /// The period that `count` is about.
    pub per: RatePeriod,
}

/// The period of a [`Rate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RatePeriod {
    Second,
    Minute,
    Hour,
    Day,
}

/// A value that is never printed. `KEY_file` in the configuration names a file that holds it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

/// A range of addresses: `10.0.0.0/8`, `::1/128`, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

/// Why a text is not the value it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("expected a period such as \"30s\", \"5m\", \"2h\" or \"7d\"")]
    Period,
    #[error("expected a size such as \"64KiB\", \"50MiB\" or \"4GiB\"")]
    ByteSize,
    #[error("expected a rate such as \"10/s\", \"100/min\", \"20/h\" or \"5/d\"")]
    Rate,
    #[error("expected an address or a range such as 10.0.0.0/8")]
    Network,
}

impl Period {
    /// A period of whole seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// A period of whole milliseconds.
    pub const fn from_millis(milliseconds: u64) -> Self {
        Self(Duration::from_millis(milliseconds))
    }
}

impl FromStr for Period {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (number, unit) = split_unit(text).ok_or(ParseError::Period)?;
        let millis_per_unit: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "w" => 7 * 86_400_000,
            _ => return Err(ParseError::Period),
        };
        let millis = number
            .checked_mul(millis_per_unit)
            .ok_or(ParseError::Period)?;
        Ok(Self::from_millis(millis))
    }
}

impl fmt::Display for Period {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        let units = [
            ("d", 86_400_000),
            ("h", 3_600_000),
            ("m", 60_000),
            ("s", 1_000),
        ];
        match units
            .iter()
            .find(|(_, size)| millis > 0 && millis.is_multiple_of(*size))
        {
            Some((unit, size)) => write!(formatter, "{}{unit}", millis / size),
            None => write!(formatter, "{millis}ms"),
        }
    }
}

impl FromStr for ByteSize {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (number, unit) = split_unit(text).ok_or(ParseError::ByteSize)?;
        let bytes_per_unit: u64 = match unit {
            "B" => 1,
            "kB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "TB" => 1_000_000_000_000,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "TiB" => 1 << 40,
            _ => return Err(ParseError::ByteSize),
        };
        number
            .checked_mul(bytes_per_unit)
            .map(Self)
            .ok_or(ParseError::ByteSize)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [
            ("TiB", 1_u64 << 40),
            ("GiB", 1 << 30),
            ("MiB", 1 << 20),
            ("KiB", 1 << 10),
        ];
        match units
            .iter()
            .find(|(_, size)| self.0 > 0 && self.0.is_multiple_of(*size))
        {
            Some((unit, size)) => write!(formatter, "{}{unit}", self.0 / size),
            None => write!(formatter, "{}B", self.0),
        }
    }
}

impl Rate {
    /// The time between two that are evenly spread.
    pub fn interval(&self) -> Duration {
        self.per.duration() / self.count.get()
    }
}

impl RatePeriod {
    fn duration(self) -> Duration {
        Duration::from_secs(match self {
            Self::Second => 1,
            Self::Minute => 60,
            Self::Hour => 3_600,
            Self::Day => 86_400,
        })
    }
}

impl FromStr for Rate {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (count, per) = text.split_once('/').ok_or(ParseError::Rate)?;
        let count: u32 = count.trim().parse().map_err(|_error| ParseError::Rate)?;
        let per = match per.trim() {
            "s" => RatePeriod::Second,
            "m" | "min" => RatePeriod::Minute,
            "h" => RatePeriod::Hour,
            "d" => RatePeriod::Day,
            _ => return Err(ParseError::Rate),
        };
        let count = NonZeroU32::new(count).ok_or(ParseError::Rate)?;
        Ok(Self { count, per })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per = match self.per {
            RatePeriod::Second => "s",
            RatePeriod::Minute => "min",
            RatePeriod::Hour => "h",
            RatePeriod::Day => "d",
        };
        write!(formatter, "{}/{per}", self.count)
    }
}

impl Secret {
    /// The value itself. Do not log what this returns.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(value: String) -> Self {
        Self(value)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(…)")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("********")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self)
    }
}

impl JsonSchema for Secret {
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "secret" })
    }
}

impl Network {
    /// Whether `address` lies in the range. An IPv4 address inside an IPv6 one is none: make it canonical first.
    pub fn contains(self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let shift = 32_u32.saturating_sub(self.prefix.into());
                let mask = u32::MAX.checked_shl(shift).unwrap_or(0);
                (network.to_bits() ^ address.to_bits()) & mask == 0
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let shift = 128_u32.saturating_sub(self.prefix.into());
                let mask = u128::MAX.checked_shl(shift).unwrap_or(0);
                (network.to_bits() ^ address.to_bits()) & mask == 0
            }
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (
                address,
                Some(prefix.parse::<u8>().map_err(|_error| ParseError::Network)?),
            ),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_error| ParseError::Network)?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.unwrap_or(bits);
        if prefix > bits {
            Err(ParseError::Network)
        } else {
            Ok(Self { address, prefix })
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.address, self.prefix)
    }
}

/// `"30s"` → (30, `"s"`). Spaces between the two are allowed.
fn split_unit(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    Some((number.parse().ok()?, unit.trim_start()))
}

/// Serde and the schema of a type that is written as a text with a unit.
macro_rules! written_as_text {
    ($type:ident, $format:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
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
                json_schema!({ "type": "string", "format": $format })
            }
        }
    };
}

written_as_text!(Period, "period");
written_as_text!(ByteSize, "byte-size");
written_as_text!(Rate, "rate");
written_as_text!(Network, "network");

#[cfg(test)]
mod tests;

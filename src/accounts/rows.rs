//! The stored records of accounts, devices and tokens.

use std::fmt;

use ruma::OwnedUserId;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest, Sha256};

use super::UserNumber;
use crate::storage::{Cbor, Expiring, Family, KeyError, KeyPart, Table, Text};

pub(super) static ACCOUNTS: Table<(UserNumber,), Cbor<Account>> =
    Table::new("accounts", Family::Users, b'a');
pub(super) static DEVICES: Table<(UserNumber, Text), Cbor<Device>> =
    Table::new("devices", Family::Users, b'v');
/// When and from where a device was last seen; apart from the device, as it changes all the time.
pub(super) static SEEN: Table<(UserNumber, Text), Cbor<Seen>> =
    Table::new("devices_seen", Family::Users, b's');
pub(super) static TOKENS: Table<(TokenHash,), Cbor<Token>> =
    Table::new("tokens", Family::Users, b't');
pub(super) static LOGIN_TOKENS: Table<(TokenHash,), Expiring<UserNumber>> =
    Table::new("login_tokens", Family::Temporary, b'l');
pub(super) static OPENID_TOKENS: Table<(TokenHash,), Expiring<UserNumber>> =
    Table::new("openid_tokens", Family::Temporary, b'o');
pub(super) static INTERACTIVE: Table<(TokenHash,), Expiring<Interactive>> =
    Table::new("interactive", Family::Temporary, b'i');
pub(super) static REGISTRATION_TOKENS: Table<(Text,), Cbor<RegistrationToken>> =
    Table::new("registration_tokens", Family::Meta, b'g');

/// A local account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Account {
    /// A PHC string; absent for accounts without a password and for deactivated ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) password: Option<String>,
    pub(super) created_ms: u64,
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) admin: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) deactivated: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) erased: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) locked: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) suspended: bool,
}

/// A device of a local account, and the tokens it uses now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Device {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) display_name: Option<String>,
    pub(super) created_ms: u64,
    /// Every token row of this device: all of them go with it.
    pub(super) tokens: Vec<TokenHash>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seen {
    pub(super) at_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ip: Option<String>,
}

/// What a token stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Token {
    pub(super) user: UserNumber,
    pub(super) device: String,
    pub(super) kind: TokenKind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) expires_ms: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum TokenKind {
    Access {
        /// The access token that this one replaced: valid until this one is used, which clears the field.
        replaces: Option<TokenHash>,
    },
    Refresh {
        /// The access token that came with it.
        access: TokenHash,
    },
    /// A refresh token that was exchanged for `access` and its refresh token, both made of `nonce` and this token.
    /// It stays until the next exchange, to answer or punish a replay.
    Exchanged {
        at_ms: u64,
        nonce: TokenHash,
        access: TokenHash,
    },
}

/// An interactive authentication that has begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Interactive {
    /// What is being authorized: BLAKE3 of the operation, the caller and what is bound of the request.
    pub(super) operation: TokenHash,
    pub(super) completed: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) registration_token: Option<String>,
}

/// A token that allows some registrations.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RegistrationToken {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) uses_allowed: Option<u64>,
    pub(super) completed: u64,
    /// Until when each begun registration keeps its use.
    pub(super) pending_until_ms: Vec<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) expires_ms: Option<u64>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde calls it with a reference"
)]
fn is_false(value: &bool) -> bool {
    !value
}

/// 32 bytes that stand for a secret we do not keep.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct TokenHash(pub(super) [u8; 32]);

impl TokenHash {
    /// The SHA-256 of `token`.
    pub(super) fn of(token: &str) -> Self {
        Self(Sha256::digest(token.as_bytes()).into())
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, second, ..] = self.0;
        write!(formatter, "TokenHash({first:02x}{second:02x}…)")
    }
}

impl KeyPart for TokenHash {
    fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.0);
    }
    fn decode(from: &mut &[u8]) -> Result<Self, KeyError> {
        let (hash, rest) = from.split_first_chunk::<32>().ok_or(KeyError)?;
        *from = rest;
        Ok(Self(*hash))
    }
}

impl Serialize for TokenHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for TokenHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = TokenHash;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("32 bytes")
            }
            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<TokenHash, E> {
                bytes
                    .try_into()
                    .map(TokenHash)
                    .map_err(|_length| E::invalid_length(bytes.len(), &self))
            }
        }
        deserializer.deserialize_bytes(Visitor)
    }
}

/// A user with the number, as the parts of this module pass it around.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalUser {
    pub id: OwnedUserId,
    pub number: UserNumber,
}

#[cfg(test)]
mod tests;

//! Pure: PDUs per room version, canonical JSON, hashes, signatures, redaction, auth rules, state trie, auth graph, state resolution.
//!
//! No I/O, no async, no clock, no randomness: equal input gives equal output. What is stored comes in as bytes or through a look-up, what
//! is to be stored goes out as values. Room versions are data ([`ruma::room_version_rules::RoomVersionRules`]), never a comparison of
//! version names. Design: engine.md sections 2, 5.2, 5.3, 6, 7, 8.

pub mod auth;
pub mod canonical;
pub mod extremities;
pub mod fingerprint;
pub mod format;
pub mod graph;
pub mod pdu;
pub mod power;
pub mod redact;
pub mod resolve;
pub mod sign;
pub mod trie;
pub mod version;

use serde::{Deserialize, Serialize};

pub use self::{
    auth::{AuthError, Authorized},
    fingerprint::Fingerprint,
    pdu::{Malformed, Pdu, References},
    power::PowerLevels,
    sign::{Named, NewPdu, Signer, Verified},
};

/// Any event ID that a room has mentioned, in that room. The event may be a stub: its body unknown.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct EventNumber(pub u32);

/// A state event of a room that passed the check against its auth events. Dense; parents are always smaller.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct StateNumber(pub u32);

/// A (type, state key) pair of a room.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct StateKeyNumber(pub u32);

/// A node of a room's state tries. 0 is the empty trie and never a stored node.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct NodeNumber(pub u32);

/// A state snapshot of a room. 0 is no state.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct RootNumber(pub u32);

//! Taking apart a PDU of another server: canonical JSON, fields, sizes, event ID. The first checks on receipt.
//!
//! The library's check is not used: it allows a byte less than the spec, and drops what versions before 11 keep.

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, OwnedEventId, RoomId, UserId,
    room_version_rules::{EventsReferenceFormatVersion, RoomVersionRules},
};

use crate::events::{
    canonical::{self, Loose, NotCanonical},
    sign, version,
};

/// Most bytes of a PDU, signatures included, as canonical JSON.
///
/// Spec: c2s, "Size limits".
pub const MAX_PDU_BYTES: usize = 65_536;

/// Most bytes of a user, room or event ID, an event type and a state key.
///
/// Spec: c2s, "Size limits".
pub const MAX_IDENTIFIER_BYTES: usize = 255;

/// Most `prev_events` of a PDU.
///
/// Spec: rooms/v1, "Event format".
pub const MAX_PREV_EVENTS: usize = 20;

/// Most `auth_events` of a PDU.
///
/// Spec: rooms/v1, "Event format".
pub const MAX_AUTH_EVENTS: usize = 10;

/// Largest text that is looked into for numbers which canonical JSON lacks. Spaces are not counted for [`MAX_PDU_BYTES`].
const MAX_LOOSE_BYTES: usize = 2 * MAX_PDU_BYTES;

/// A PDU of sound format. Nothing is known about who made it.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// Without `unsigned`, and without `event_id` where that is a hash of the rest.
    pub object: CanonicalJsonObject,
    pub event_id: OwnedEventId,
    /// An identifier is longer than the limit in bytes but not in code points: to be stored as rejected, in versions that keep such events.
    pub rejected: bool,
    /// The event holds numbers that canonical JSON lacks, which are strings in `object`: see [`Loose`].
    pub(in crate::events) has_other_numbers: bool,
}

impl Parsed {
    /// The canonical form of the event, as it is stored.
    pub fn to_vec(&self) -> Vec<u8> {
        match self.has_other_numbers {
            true => canonical::loose_to_vec(&self.object),
            false => canonical::to_vec(&self.object),
        }
    }
}

/// Why a PDU is dropped.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    #[error(transparent)]
    NotCanonical(#[from] NotCanonical),
    #[error("the PDU is larger than {MAX_PDU_BYTES} bytes")]
    TooLarge,
    #[error("`{0}` is missing")]
    Missing(&'static str),
    #[error("`{0}` is not of its type or out of range")]
    Invalid(&'static str),
    #[error("`{0}` is too long")]
    TooLong(&'static str),
    #[error("the event ID cannot be calculated: {0}")]
    ReferenceHash(#[from] ruma::signatures::JsonError),
}

/// Checks the format and the sizes of a PDU and calculates its ID.
///
/// # Errors
///
/// If the PDU is to be dropped.
///
/// Spec: s2s, "Checks performed on receipt of a PDU"; rooms/v1, "Event format" and its successors.
pub fn parse(text: &[u8], rules: &RoomVersionRules) -> Result<Parsed, FormatError> {
    if rules.authorization.strict_canonical_json {
        return check(canonical::parse(text)?.into(), rules);
    }
    if text.len() > MAX_LOOSE_BYTES {
        return Err(FormatError::TooLarge);
    }
    check(Loose::parse(text)?, rules)
}

fn check(loose: Loose, rules: &RoomVersionRules) -> Result<Parsed, FormatError> {
    if loose.to_vec().len() > MAX_PDU_BYTES {
        return Err(FormatError::TooLarge);
    }
    let mut loose = loose;
    loose.object.remove("unsigned");
    let named = match rules.event_format.require_event_id {
        true => Some(given_id(&loose.object)?),
        false => {
            // The ID is calculated. Some servers add it to what they send; where it was signed too, the signature will not match.
            loose.object.remove("event_id");
            None
        }
    };
    let rejected = check_identifiers(&loose.object, rules)?;
    check_references(&loose.object, rules)?;
    for field in ["depth", "origin_server_ts"] {
        check_natural(&loose, field)?;
    }
    for field in ["content", "hashes", "signatures"] {
        let CanonicalJsonValue::Object(_) = required(&loose.object, field)? else {
            return Err(FormatError::Invalid(field));
        };
    }
    let event_id = match named {
        Some(event_id) => event_id,
        None => {
            let hash = sign::hash_of(&loose, rules)?;
            EventId::parse(format!("${hash}")).expect("a hash after a dollar sign is an event ID")
        }
    };
    Ok(Parsed {
        has_other_numbers: !loose.is_canonical(),
        object: loose.object,
        event_id,
        rejected,
    })
}

/// The ID that its server has given an event.
///
/// Spec: rooms/v1, "Event IDs".
fn given_id(object: &CanonicalJsonObject) -> Result<OwnedEventId, FormatError> {
    let id = string(object, "event_id")?.ok_or(FormatError::Missing("event_id"))?;
    if id.len() > MAX_IDENTIFIER_BYTES {
        return Err(FormatError::TooLong("event_id"));
    }
    EventId::parse(id)
        .ok()
        .filter(|id| id.server_name().is_some())
        .ok_or(FormatError::Invalid("event_id"))
}

/// Checks the identifiers; true if one of them is longer in bytes than in code points allows.
fn check_identifiers(
    object: &CanonicalJsonObject,
    rules: &RoomVersionRules,
) -> Result<bool, FormatError> {
    let event_type = string(object, "type")?.ok_or(FormatError::Missing("type"))?;
    let sender = string(object, "sender")?.ok_or(FormatError::Missing("sender"))?;
    let room_id = string(object, "room_id")?;
    let state_key = string(object, "state_key")?;

    if UserId::parse(sender).is_err() {
        return Err(FormatError::Invalid("sender"));
    }
    match room_id {
        Some(room_id) if RoomId::parse(room_id).is_err() => {
            return Err(FormatError::Invalid("room_id"));
        }
        None if event_type != "m.room.create" || rules.event_format.require_room_create_room_id => {
            return Err(FormatError::Missing("room_id"));
        }
        _ => {}
    }

    let mut is_long = false;
    let fields = [
        ("type", Some(event_type)),
        ("sender", Some(sender)),
        ("room_id", room_id),
        ("state_key", state_key),
    ];
    for (field, value) in fields {
        let value = value.unwrap_or_default();
        is_long |= value.len() > MAX_IDENTIFIER_BYTES;
        let length = match version::keeps_long_identifiers(rules) {
            true => value.chars().count(),
            false => value.len(),
        };
        if length > MAX_IDENTIFIER_BYTES {
            return Err(FormatError::TooLong(field));
        }
    }
    Ok(is_long)
}

fn check_references(
    object: &CanonicalJsonObject,
    rules: &RoomVersionRules,
) -> Result<(), FormatError> {
    let is_pair = rules.events_reference_format == EventsReferenceFormatVersion::V1;
    for (field, most) in [
        ("prev_events", MAX_PREV_EVENTS),
        ("auth_events", MAX_AUTH_EVENTS),
    ] {
        let CanonicalJsonValue::Array(references) = required(object, field)? else {
            return Err(FormatError::Invalid(field));
        };
        if references.len() > most {
            return Err(FormatError::TooLong(field));
        }
        let is_event_id = |reference: &CanonicalJsonValue| {
            reference
                .as_str()
                .is_some_and(|id| id.len() <= MAX_IDENTIFIER_BYTES && EventId::parse(id).is_ok())
        };
        let is_reference = |reference: &CanonicalJsonValue| match reference {
            CanonicalJsonValue::Array(pair) if is_pair => match pair.as_slice() {
                [id, CanonicalJsonValue::Object(_hashes)] => is_event_id(id),
                _ => false,
            },
            reference => !is_pair && is_event_id(reference),
        };
        if !references.iter().all(is_reference) {
            return Err(FormatError::Invalid(field));
        }
    }
    Ok(())
}

/// Versions with canonical JSON allow what that can say, those before a signed integer of 64 bits; a time is never that large.
fn check_natural(loose: &Loose, field: &'static str) -> Result<(), FormatError> {
    let value = required(&loose.object, field)?;
    let is_natural = match (value, loose.number(value)) {
        (CanonicalJsonValue::Integer(number), _) => i64::from(*number) >= 0,
        (_, Some(number)) if field == "depth" => {
            number.parse().is_ok_and(|number: i64| number >= 0) && number != "-0"
        }
        _ => false,
    };
    match is_natural {
        true => Ok(()),
        false => Err(FormatError::Invalid(field)),
    }
}

fn required<'a>(
    object: &'a CanonicalJsonObject,
    field: &'static str,
) -> Result<&'a CanonicalJsonValue, FormatError> {
    object.get(field).ok_or(FormatError::Missing(field))
}

fn string<'a>(
    object: &'a CanonicalJsonObject,
    field: &'static str,
) -> Result<Option<&'a str>, FormatError> {
    match object.get(field) {
        None => Ok(None),
        Some(CanonicalJsonValue::String(value)) => Ok(Some(value)),
        Some(_) => Err(FormatError::Invalid(field)),
    }
}

#[cfg(test)]
mod tests;

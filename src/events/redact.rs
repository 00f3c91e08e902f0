//! What is left of an event when it is redacted, and which event a redaction targets.

use bytes::Bytes;
use ruma::{
    CanonicalJsonObject, OwnedEventId,
    canonical_json::{CanonicalJsonFieldError, redact_content_in_place, redact_in_place},
    events::TimelineEventType,
    room_version_rules::RedactionRules,
};
use serde::Deserialize;

use crate::events::{
    canonical::{Loose, NotCanonical},
    pdu::{Malformed, Pdu},
};

/// Stored JSON that is no event.
#[derive(Debug, thiserror::Error)]
pub enum RedactError {
    #[error(transparent)]
    NotCanonical(#[from] NotCanonical),
    #[error("the event lacks what redaction needs: {0}")]
    Field(#[from] CanonicalJsonFieldError),
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// The redacted canonical form of an event's canonical JSON. Hash, signatures and event ID stay valid; doing it twice changes nothing.
///
/// # Errors
///
/// If `json` is not the JSON of an event.
///
/// Spec: c2s, "Redactions".
pub fn redact(json: &[u8], rules: &RedactionRules) -> Result<Bytes, RedactError> {
    let mut event = Loose::parse(json)?;
    redact_in_place(&mut event.object, rules, None)?;
    Ok(event.to_vec().into())
}

/// `pdu` as it is when redacted.
///
/// # Errors
///
/// If its JSON is not that of an event, that is: the database is damaged.
pub fn redacted(pdu: &Pdu, rules: &RedactionRules) -> Result<Pdu, RedactError> {
    let json = redact(&pdu.json, rules)?;
    Ok(Pdu::from_stored(pdu.event_id.clone(), json, pdu.rejected)?)
}

/// The event that a redaction targets in a room of these rules; `None` if it is no redaction or names no target.
///
/// Spec: rooms/v11, "Moving the `redacts` property".
pub fn target(pdu: &Pdu, rules: &RedactionRules) -> Option<OwnedEventId> {
    #[derive(Deserialize)]
    struct Target {
        redacts: Option<OwnedEventId>,
    }

    if pdu.event_type != TimelineEventType::RoomRedaction {
        return None;
    }
    let target: Target = match rules.content_field_redacts {
        true => pdu.content_as().ok()?,
        false => serde_json::from_slice(&pdu.json).ok()?,
    };
    target.redacts
}

/// The content that stays of `content` in an event of this type.
pub(in crate::events) fn content(
    event_type: &str,
    content: &CanonicalJsonObject,
    rules: &RedactionRules,
) -> CanonicalJsonObject {
    let mut kept = match event_type {
        "m.room.member"
        | "m.room.create"
        | "m.room.join_rules"
        | "m.room.power_levels"
        | "m.room.history_visibility"
        | "m.room.redaction"
        | "m.room.aliases" => content.clone(),
        // Nothing is kept of any other type, so there is nothing to copy. A property test holds this against the library.
        _ => return CanonicalJsonObject::new(),
    };
    redact_content_in_place(&mut kept, rules, event_type);
    kept
}

#[cfg(test)]
pub(in crate::events) mod tests;

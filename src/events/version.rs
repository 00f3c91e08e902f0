//! The room versions served, and their rules.
//!
//! Everything that differs between versions is a field of [`RoomVersionRules`]; what ruma's rules lack is a function here.

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use ruma::{
    EventId, OwnedEventId, RoomId, RoomVersionId,
    room_version_rules::{EventIdFormatVersion, RoomVersionRules},
};

use crate::events::format::MAX_IDENTIFIER_BYTES;

/// Versions of rooms that can be joined and served.
pub const SERVED: [RoomVersionId; 12] = [
    RoomVersionId::V1,
    RoomVersionId::V2,
    RoomVersionId::V3,
    RoomVersionId::V4,
    RoomVersionId::V5,
    RoomVersionId::V6,
    RoomVersionId::V7,
    RoomVersionId::V8,
    RoomVersionId::V9,
    RoomVersionId::V10,
    RoomVersionId::V11,
    RoomVersionId::V12,
];

/// Versions in which new rooms can be created: all that are served, as whoever asks for an old one has a reason (members on old servers).
/// The default is one of the newer ones.
pub const CREATABLE: [RoomVersionId; 12] = SERVED;

static V1: RoomVersionRules = RoomVersionRules::V1;
static V2: RoomVersionRules = RoomVersionRules::V2;
static V3: RoomVersionRules = RoomVersionRules::V3;
static V4: RoomVersionRules = RoomVersionRules::V4;
static V5: RoomVersionRules = RoomVersionRules::V5;
static V6: RoomVersionRules = RoomVersionRules::V6;
static V7: RoomVersionRules = RoomVersionRules::V7;
static V8: RoomVersionRules = RoomVersionRules::V8;
static V9: RoomVersionRules = RoomVersionRules::V9;
static V10: RoomVersionRules = RoomVersionRules::V10;
static V11: RoomVersionRules = RoomVersionRules::V11;
static V12: RoomVersionRules = RoomVersionRules::V12;

/// The rules of a served room version; `None` for every other version.
pub fn rules(version: &RoomVersionId) -> Option<&'static RoomVersionRules> {
    match version {
        RoomVersionId::V1 => Some(&V1),
        RoomVersionId::V2 => Some(&V2),
        RoomVersionId::V3 => Some(&V3),
        RoomVersionId::V4 => Some(&V4),
        RoomVersionId::V5 => Some(&V5),
        RoomVersionId::V6 => Some(&V6),
        RoomVersionId::V7 => Some(&V7),
        RoomVersionId::V8 => Some(&V8),
        RoomVersionId::V9 => Some(&V9),
        RoomVersionId::V10 => Some(&V10),
        RoomVersionId::V11 => Some(&V11),
        RoomVersionId::V12 => Some(&V12),
        _ => None,
    }
}

/// Whether an event with an identifier of more than 255 bytes, but at most 255 code points, is kept as rejected instead of being dropped.
///
/// The versions before 11 did not say that the limit counts bytes, so rooms hold such events in their history.
pub(in crate::events) fn keeps_long_identifiers(rules: &RoomVersionRules) -> bool {
    !rules.authorization.use_room_create_sender
}

/// Whether an event of a room of this version can have this ID.
///
/// Spec: rooms/v1, "Event IDs"; rooms/v3, "Event IDs"; rooms/v4, "Event IDs".
pub fn is_event_id(event_id: &EventId, rules: &RoomVersionRules) -> bool {
    let hash = event_id.as_str().get(1..).unwrap_or_default();
    let is_hash = |bytes: Result<Vec<u8>, _>| bytes.is_ok_and(|bytes| bytes.len() == 32);
    match rules.event_id_format {
        EventIdFormatVersion::V1 => {
            event_id.server_name().is_some() && event_id.as_bytes().len() <= MAX_IDENTIFIER_BYTES
        }
        EventIdFormatVersion::V2 => is_hash(STANDARD_NO_PAD.decode(hash)),
        _ => is_hash(URL_SAFE_NO_PAD.decode(hash)),
    }
}

/// The create event of a room whose ID is made from it: an implicit auth event of all its other events.
///
/// `None` in versions whose create event is cited like any other, and for a room ID that is not a hash. Whoever walks auth chains for
/// other servers adds it.
///
/// Spec: rooms/v12, "Event format".
pub fn implicit_create(room_id: &RoomId, rules: &RoomVersionRules) -> Option<OwnedEventId> {
    if !rules.authorization.room_create_event_id_as_room_id {
        return None;
    }
    EventId::parse(format!("${}", room_id.strip_sigil())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_served_version_has_rules_and_others_have_none() {
        assert!(SERVED.iter().all(|version| rules(version).is_some()));
        assert!(CREATABLE.iter().all(|version| SERVED.contains(version)));
        for version in ["0", "13", "org.example.custom"] {
            let version = RoomVersionId::try_from(version).expect("room versions are free text");
            assert!(rules(&version).is_none());
        }
    }

    #[test]
    fn what_an_event_id_looks_like_depends_on_the_version() {
        let named = ruma::event_id!("$143273582443PhrSn:example.org");
        let slashed = ruma::event_id!("$acR1l0raoZnm60CBwAVgqbZqoO/mYU81xysh1u7XcJk");
        let dashed = ruma::event_id!("$Rqnc-F-dvnEYJTyHq_iKxU2bZ1CI92-kuZq3a5lr5Zg");
        let short = ruma::event_id!("$Rqnc");
        for (rules, expected) in [
            (&V1, [true, false, false, false]),
            (&V2, [true, false, false, false]),
            (&V3, [false, true, false, false]),
            (&V4, [false, false, true, false]),
            (&V12, [false, false, true, false]),
        ] {
            let is = [named, slashed, dashed, short].map(|id| is_event_id(id, rules));
            assert_eq!(is, expected);
        }
    }

    #[test]
    fn only_version_12_has_an_implicit_create_event() {
        let room = ruma::room_id!("!04rONMzootFsCEgDpC5h7wz7zpq9Khvx4rDN6snL-X4");
        assert_eq!(
            implicit_create(room, &V12).as_deref(),
            Some(ruma::event_id!(
                "$04rONMzootFsCEgDpC5h7wz7zpq9Khvx4rDN6snL-X4"
            ))
        );
        assert_eq!(implicit_create(room, &V11), None);
    }
}

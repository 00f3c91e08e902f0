//! What events of room versions 1 and 2 have beside those of later ones: an ID that their server chooses, and with each event that they
//! cite its hash.
//!
//! Spec: rooms/v1, "Event IDs" and "Event format".

use ruma::{EventId, OwnedEventId, room_version_rules::RoomVersionRules};

use super::{Error, Rooms, state::Source};
use crate::events::{EventNumber, Named, Pdu, sign::reference_hash};

/// Random letters of an event ID.
const ID_CHARS: usize = 18;

impl Rooms {
    /// An ID for an event of this server in a room of version 1 or 2.
    pub fn new_event_id(&self) -> OwnedEventId {
        let random = self.clock.random_string(ID_CHARS);
        EventId::parse(format!("${random}:{}", self.own_name()))
            .expect("random letters and a server name make an event ID")
    }

    /// The ID of a new event, with the hashes of the events that it cites; nothing where the version does without.
    ///
    /// # Errors
    /// If one of them is not stored, or damaged.
    pub fn named<'a>(
        &self,
        rules: &RoomVersionRules,
        cited: impl IntoIterator<Item = &'a Pdu>,
    ) -> Result<Option<Named>, Error> {
        if !rules.event_format.require_event_id {
            return Ok(None);
        }
        let hashes = cited.into_iter().map(|event| {
            let hash = reference_hash(event, rules)
                .map_err(|damaged| Error::corrupt("bodies", &damaged.to_string()))?;
            Ok((event.event_id.clone(), hash))
        });
        Ok(Some(Named {
            hashes: hashes.collect::<Result<_, Error>>()?,
            event_id: self.new_event_id(),
        }))
    }

    /// The same for an event on top of others, which are not read for nothing.
    pub(super) fn named_after(
        &self,
        rules: &RoomVersionRules,
        source: &Source<'_>,
        prev_events: impl IntoIterator<Item = EventNumber>,
        auth_events: &[&Pdu],
    ) -> Result<Option<Named>, Error> {
        if !rules.event_format.require_event_id {
            return Ok(None);
        }
        let mut prevs = Vec::new();
        for number in prev_events {
            let event = source.event(number)?;
            prevs.push(event.ok_or_else(|| Error::corrupt("bodies", "an extremity is missing"))?);
        }
        let prevs = prevs.iter().map(|event| &*event.pdu);
        self.named(rules, prevs.chain(auth_events.iter().copied()))
    }
}

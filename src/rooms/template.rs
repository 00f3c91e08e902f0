//! Events for others to send, and events of ours that others must see first: built on the head, checked against the current
//! state, but not appended.
//!
//! What comes back signed enters the room as any event of another server does: [`RoomWriter::receive`].

use ruma::{
    CanonicalJsonObject, RoomVersionId, UserId,
    events::{StateEventType, TimelineEventType},
};
use serde_json::value::RawValue;

use super::{
    Error, NewEvent, RoomNumber, RoomWriter, Rooms, head::Head, milliseconds, state::Source,
};
use crate::events::{NewPdu, Pdu, Verified, auth, canonical, extremities};

/// State that a user is shown of a room before joining it.
///
/// Spec: c2s, "Stripped state".
const SHOWN_TYPES: &[&str] = &[
    "m.room.create",
    "m.room.join_rules",
    "m.room.name",
    "m.room.avatar",
    "m.room.topic",
    "m.room.canonical_alias",
    "m.room.encryption",
];

impl RoomWriter {
    /// What an event of another server's user would be: everything but hashes and signatures, and the room's version.
    ///
    /// # Errors
    /// [`Error::NotAllowed`] if the rules refuse the event at the current state.
    ///
    /// Spec: s2s, "Joining Rooms".
    pub async fn template(
        &mut self,
        new: NewEvent,
    ) -> Result<(CanonicalJsonObject, RoomVersionId), Error> {
        let event = self.propose(new).await?;
        let version = self.version()?;
        let mut object = canonical::parse(&event.json)
            .map_err(|_not_canonical| Error::corrupt("bodies", "not canonical"))?;
        // Where there is an ID of its own, the server that asks gives it.
        for field in ["event_id", "hashes", "signatures"] {
            object.remove(field);
        }
        Ok((object, version))
    }

    /// An event on the head, signed by this server and allowed at the current state, which is not in the room yet.
    ///
    /// # Errors
    /// [`Error::NotAllowed`] by the room's rules, [`Error::Build`] if it is too large.
    pub async fn propose(&mut self, new: NewEvent) -> Result<Verified, Error> {
        let rooms = self.rooms().clone();
        self.with_source(move |head, source| proposal(&rooms, head, source, &new))
            .await
    }

    /// The room version.
    ///
    /// # Errors
    /// If the head is damaged.
    pub fn version(&self) -> Result<RoomVersionId, Error> {
        RoomVersionId::try_from(self.head().row.version.as_str())
            .map_err(|_invalid| Error::UnsupportedVersion)
    }

    /// The state that somebody is shown before joining, as whole events, with the membership of `member`.
    ///
    /// Spec: s2s, "Inviting to a room" (`invite_room_state`).
    pub async fn shown_state(&mut self, member: &UserId) -> Result<Vec<Box<RawValue>>, Error> {
        let (rooms, member) = (self.rooms().clone(), member.to_owned());
        self.with_source(move |head, source| {
            let keys = SHOWN_TYPES.iter().map(|event_type| (*event_type, ""));
            let member = [("m.room.member", member.as_str())];
            let mut shown = Vec::with_capacity(SHOWN_TYPES.len() + 1);
            for (event_type, key) in keys.chain(member) {
                let Some(key) = rooms.state_key(event_type, key) else {
                    continue;
                };
                if let Some((_, event)) = head.state(source, &key)? {
                    shown.push(raw(&event.pdu.json)?);
                }
            }
            Ok(shown)
        })
        .await
    }
}

impl Rooms {
    /// The version of a room that is here.
    ///
    /// # Errors
    /// [`Error::NotFound`] if it is not.
    pub fn room_version(&self, room: RoomNumber) -> Result<RoomVersionId, Error> {
        let published = self.published(room).ok_or(Error::NotFound)?;
        RoomVersionId::try_from(published.head.version.as_str())
            .map_err(|_invalid| Error::UnsupportedVersion)
    }
}

fn raw(json: &[u8]) -> Result<Box<RawValue>, Error> {
    serde_json::from_slice(json).map_err(|_malformed| Error::corrupt("bodies", "not JSON"))
}

fn proposal(
    rooms: &Rooms,
    head: &Head,
    source: &Source<'_>,
    new: &NewEvent,
) -> Result<Verified, Error> {
    let rules = &head.rules.authorization;
    let content = serde_json::value::to_raw_value(&new.content)
        .map_err(|_malformed| Error::Invalid("the content is not JSON".into()))?;
    let mut keys = auth::selection(
        rules,
        &new.event_type,
        &new.sender,
        new.state_key.as_deref(),
        &content,
    );
    let implicit_create = rules.room_create_event_id_as_room_id;
    if implicit_create {
        keys.push((StateEventType::RoomCreate, String::new()));
    }
    let mut found = Vec::with_capacity(keys.len());
    for (event_type, key) in keys {
        let Some(state_key) = rooms.state_key(&event_type.to_string(), &key) else {
            continue;
        };
        if let Some((_, event)) = head.state(source, &state_key)? {
            found.push((event_type, key, event));
        }
    }
    let is_cited = |event_type: &StateEventType| {
        !(implicit_create && *event_type == StateEventType::RoomCreate)
    };
    let cited = found
        .iter()
        .filter(|(event_type, ..)| is_cited(event_type))
        .map(|(_, _, event)| &*event.pdu)
        .collect::<Vec<_>>();
    let event = rooms
        .signer
        .build(on_head(head, source, new, &cited)?, head.rules)?;
    let fetch = |event_type: &StateEventType, key: &str| {
        found
            .iter()
            .find(|(known_type, known_key, _)| known_type == event_type && known_key == key)
            .map(|(_, _, event)| std::sync::Arc::clone(&event.pdu))
    };
    match new.event_type {
        TimelineEventType::RoomMember => auth::check_sending(rules, &event, fetch)?,
        _ => auth::check(rules, &event, fetch)?,
    }
    Ok(event)
}

fn on_head(
    head: &Head,
    source: &Source<'_>,
    new: &NewEvent,
    auth_events: &[&Pdu],
) -> Result<NewPdu, Error> {
    let rooms = source.rooms;
    let newest_first: Vec<_> = head.extremities.iter().rev().collect();
    let cited = extremities::to_cite(newest_first, |below| {
        let picked = rooms.clock.random_below(below as u64);
        usize::try_from(picked).unwrap_or_default()
    });
    let named = rooms.named_after(
        head.rules,
        source,
        cited.iter().map(|(number, _)| *number),
        auth_events,
    )?;
    Ok(NewPdu {
        room_id: Some(head.room_id.clone()),
        sender: new.sender.clone(),
        event_type: new.event_type.clone(),
        state_key: new.state_key.clone(),
        content: new.content.clone(),
        origin_server_ts: new
            .timestamp
            .unwrap_or_else(|| milliseconds(rooms.clock.now_ms())),
        depth: head.row.max_depth.saturating_add(1),
        prev_events: cited
            .into_iter()
            .map(|(_, event_id)| event_id.clone())
            .collect(),
        auth_events: auth_events
            .iter()
            .map(|event| event.event_id.clone())
            .collect(),
        redacts: new.redacts.clone(),
        named,
    })
}

#[cfg(test)]
mod tests;

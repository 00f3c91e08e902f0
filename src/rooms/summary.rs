//! What a room looks like from outside: name, topic, avatar, how to get in.
//!
//! Spec: c2s, "Room summary"; "m.space.child".

use std::sync::Arc;

use ruma::{
    OwnedRoomId, UInt, UserId,
    events::room::history_visibility::HistoryVisibility,
    room::{JoinRuleSummary, RestrictedSummary, RoomSummary, RoomType},
};
use serde::{Deserialize, de::DeserializeOwned};

use super::{Class, Error, RoomNumber, Rooms, RootRow, StoredEvent};
use crate::{accounts::UserNumber, events::RootNumber, storage::Snapshot};

/// A room from outside, with what decides who may see it.
#[derive(Clone, Debug)]
pub struct Summary {
    pub room: RoomNumber,
    /// What clients are told.
    pub shown: RoomSummary,
    /// Rooms whose members may join, of a restricted room.
    pub allowed: Vec<OwnedRoomId>,
}

/// State that a summary is made of.
const TYPES: &[&str] = &[
    "m.room.create",
    "m.room.name",
    "m.room.topic",
    "m.room.avatar",
    "m.room.canonical_alias",
    "m.room.join_rules",
    "m.room.history_visibility",
    "m.room.guest_access",
    "m.room.encryption",
];

/// A field of the content of a state event; absent if it is missing or of another type.
fn field<T: DeserializeOwned>(
    events: &[Arc<StoredEvent>],
    event_type: &str,
    name: &str,
) -> Option<T> {
    let event = events
        .iter()
        .find(|event| event.pdu.event_type.to_string() == event_type)?;
    let mut content = event
        .pdu
        .content_as::<serde_json::Map<String, serde_json::Value>>()
        .ok()?;
    serde_json::from_value(content.remove(name)?).ok()
}

/// A text field that is not empty.
fn text(events: &[Arc<StoredEvent>], event_type: &str, name: &str) -> Option<String> {
    field::<String>(events, event_type, name).filter(|text| !text.is_empty())
}

#[derive(Deserialize)]
struct Allow {
    #[serde(rename = "type")]
    kind: String,
    room_id: Option<OwnedRoomId>,
}

impl Rooms {
    /// The summary of a room as it is now.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the room is not here.
    pub fn summary(&self, snapshot: &Snapshot, room: RoomNumber) -> Result<Summary, Error> {
        let head = self.head(snapshot, room)?.ok_or(Error::NotFound)?;
        let room_id = self.room_id(room).ok_or(Error::NotFound)?;
        let keys: Vec<_> = TYPES.iter().map(|event_type| (*event_type, "")).collect();
        let events = self.state_events(snapshot, (room, head.root), &keys)?;
        let visibility: Option<HistoryVisibility> =
            field(&events, "m.room.history_visibility", "history_visibility");
        let guests: Option<String> = field(&events, "m.room.guest_access", "guest_access");
        let allowed = allowed(&events);
        let mut shown = RoomSummary::new(
            room_id,
            join_rule(&events, &allowed),
            guests.as_deref() == Some("can_join"),
            UInt::new_saturating(head.joined),
            visibility == Some(HistoryVisibility::WorldReadable),
        );
        shown.name = text(&events, "m.room.name", "name");
        shown.topic = text(&events, "m.room.topic", "topic");
        shown.avatar_url = text(&events, "m.room.avatar", "url").map(Into::into);
        shown.canonical_alias = field(&events, "m.room.canonical_alias", "alias");
        shown.room_type = field::<RoomType>(&events, "m.room.create", "type");
        shown.encryption = field(&events, "m.room.encryption", "algorithm");
        shown.room_version = head.version.as_str().try_into().ok();
        Ok(Summary {
            room,
            shown,
            allowed,
        })
    }

    /// Whether a user may see the summary: who is in or invited, who may join or knock, or everybody if the room is open
    /// to all eyes. `None`: somebody without an account.
    pub fn may_see_summary(
        &self,
        snapshot: &Snapshot,
        summary: &Summary,
        user: Option<UserNumber>,
    ) -> Result<bool, Error> {
        let open = summary.shown.world_readable
            || matches!(
                summary.shown.join_rule,
                JoinRuleSummary::Public
                    | JoinRuleSummary::Knock
                    | JoinRuleSummary::KnockRestricted(_)
            );
        if open {
            return Ok(true);
        }
        let Some(user) = user else { return Ok(false) };
        let membership = self.user_room(snapshot, user, summary.room)?;
        if membership
            .is_some_and(|membership| matches!(membership.class, Class::Join | Class::Invite))
        {
            return Ok(true);
        }
        for room in summary
            .allowed
            .iter()
            .filter_map(|room_id| self.number(room_id))
        {
            if self.is_joined(snapshot, user, room)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The heroes of a room without a name: members other than `user`, joined and invited first, at most five.
    ///
    /// Spec: c2s, "Calculating the display name for a room".
    pub fn heroes(
        &self,
        snapshot: &Snapshot,
        (room, root): (RoomNumber, RootNumber),
        user: &UserId,
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        const HEROES: usize = 5;
        // Of very large rooms only some members are looked at; they have names anyway.
        const LOOKED_AT: usize = 64;
        let counts: RootRow = self.root(snapshot, room, root)?;
        let classes: &[Class] = match counts.joined + counts.invited > 1 {
            true => &[Class::Join, Class::Invite],
            false => &[Class::Leave, Class::Ban],
        };
        let mut events = Vec::new();
        for class in classes {
            let rows = self.members(snapshot, room, *class, LOOKED_AT)?;
            let numbers: Vec<_> = rows.iter().map(|(.., row)| row.event).collect();
            events.extend(self.events(snapshot, room, &numbers)?.into_iter().flatten());
        }
        events.retain(|event| event.pdu.state_key.as_deref() != Some(user.as_str()));
        events.sort_by_key(|event| event.number);
        events.truncate(HEROES);
        Ok(events)
    }
}

/// The rooms whose members may join.
fn allowed(events: &[Arc<StoredEvent>]) -> Vec<OwnedRoomId> {
    let allow: Vec<serde_json::Value> =
        field(events, "m.room.join_rules", "allow").unwrap_or_default();
    allow
        .into_iter()
        .filter_map(|allow| serde_json::from_value::<Allow>(allow).ok())
        .filter(|allow| allow.kind == "m.room_membership")
        .filter_map(|allow| allow.room_id)
        .collect()
}

fn join_rule(events: &[Arc<StoredEvent>], allowed: &[OwnedRoomId]) -> JoinRuleSummary {
    let restricted = || RestrictedSummary::new(allowed.to_vec());
    let rule: Option<String> = field(events, "m.room.join_rules", "join_rule");
    match rule.as_deref() {
        Some("public") => JoinRuleSummary::Public,
        Some("knock") => JoinRuleSummary::Knock,
        Some("restricted") => JoinRuleSummary::Restricted(restricted()),
        Some("knock_restricted") => JoinRuleSummary::KnockRestricted(restricted()),
        Some("private") => JoinRuleSummary::Private,
        _ => JoinRuleSummary::Invite,
    }
}

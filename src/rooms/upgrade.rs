//! Upgrading a room: a new room of another version takes the place of the old one.
//!
//! Spec: c2s, "Room upgrades".

use std::sync::Arc;

use ruma::{
    CanonicalJsonObject, OwnedRoomId, OwnedUserId, RoomId, RoomVersionId,
    canonical_json::CanonicalJsonValue, events::TimelineEventType,
};
use serde_json::json;

use super::{
    Class, CreateRoom, Error, NewEvent, Preset, RoomNumber, Rooms, StoredEvent, alias, directory,
    membership_of, object,
};
use crate::{
    events::power::{Level, in_whole_numbers},
    storage::{Batch, Snapshot},
};

/// What an upgrade shall make.
#[derive(Clone, Debug)]
pub struct Upgrade {
    pub user: OwnedUserId,
    pub version: RoomVersionId,
    /// Users besides `user` who are above every level, from version 12 on.
    pub additional_creators: Vec<OwnedUserId>,
}

/// State that moves to the new room as it is.
const MOVED: &[&str] = &[
    "m.room.server_acl",
    "m.room.encryption",
    "m.room.name",
    "m.room.avatar",
    "m.room.topic",
    "m.room.guest_access",
    "m.room.history_visibility",
    "m.room.join_rules",
];

/// What is read of the old room.
struct Old {
    room: RoomNumber,
    room_id: OwnedRoomId,
    create: CanonicalJsonObject,
    power_levels: CanonicalJsonObject,
    state: Vec<(TimelineEventType, String, CanonicalJsonObject)>,
    aliases: Vec<ruma::OwnedRoomAliasId>,
    canonical_alias: Option<CanonicalJsonObject>,
    bans: Vec<(String, CanonicalJsonObject)>,
    is_published: bool,
}

impl Rooms {
    /// Makes a new room of another version with the state, bans and aliases of the old one, and closes the old one with
    /// a tombstone.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::UnsupportedVersion`], [`Error::Forbidden`] if the user may not send the tombstone.
    pub async fn upgrade(&self, room_id: &RoomId, upgrade: Upgrade) -> Result<OwnedRoomId, Error> {
        let room = self.resident(room_id)?;
        let mut writer = self.write(room).await?;
        let levels = writer.power_levels().await?;
        let tombstone = TimelineEventType::RoomTombstone;
        if writer.membership(&upgrade.user).await? != Some(Class::Join)
            || !levels.may_send_state(&upgrade.user, &tombstone)
        {
            return Err(Error::Forbidden("you may not upgrade this room".into()));
        }
        // What is in flight moves to the new room as well.
        writer.settled().await?;
        let rooms = self.clone();
        let old = self
            .store
            .read(move |snapshot| Old::read(&rooms, snapshot, room))
            .await?;
        let new_id = self
            .create(old.successor(&upgrade, levels.creators())?)
            .await?;
        self.move_names(&old, &new_id, &upgrade).await?;
        let content = object(json!({
            "body": "This room has been replaced",
            "replacement_room": new_id,
        }))?;
        let event = NewEvent::state(upgrade.user.clone(), tombstone, "", content);
        self.send_in_turn(writer, event).await?.durable().await?;
        if levels.may_send_state(&upgrade.user, &TimelineEventType::RoomPowerLevels)
            && let Some(event) = closed(&old, &upgrade, levels.user(&upgrade.user))?
        {
            self.send(room_id, event).await?;
        }
        Ok(new_id)
    }

    /// Aliases, the canonical alias and the place in the directory follow the room.
    async fn move_names(&self, old: &Old, new_id: &RoomId, upgrade: &Upgrade) -> Result<(), Error> {
        let new = self.resident(new_id)?;
        let mut batch = Batch::new();
        for name in &old.aliases {
            alias::remove(&mut batch, name, old.room);
            alias::insert(&mut batch, name, new, &upgrade.user);
        }
        if old.is_published {
            directory::publish(&mut batch, new);
            directory::hide(&mut batch, old.room);
        }
        self.store.submit(batch).await?;
        let alias = old.canonical_alias.iter();
        let alias = alias.map(|content| (TimelineEventType::RoomCanonicalAlias, "", content));
        let bans = old.bans.iter();
        let bans = bans.map(|(user, content)| (TimelineEventType::RoomMember, &**user, content));
        for (event_type, key, content) in alias.chain(bans) {
            let event = NewEvent::state(upgrade.user.clone(), event_type, key, content.clone());
            match self.send(new_id, event).await {
                // Who replaces a room need not be above all whom others have banned from it.
                Err(Error::NotAllowed(error)) => {
                    tracing::debug!(%new_id, key, %error, "left behind in the old room");
                }
                sent => drop(sent?),
            }
        }
        Ok(())
    }

    /// The room that a room says it replaces.
    pub fn predecessor(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
    ) -> Result<Option<OwnedRoomId>, Error> {
        #[derive(serde::Deserialize)]
        struct Predecessor {
            room_id: OwnedRoomId,
        }
        #[derive(serde::Deserialize)]
        struct Content {
            predecessor: Predecessor,
        }
        let head = self.head(snapshot, room)?.ok_or(Error::NotFound)?;
        let create = self.state_event(snapshot, (room, head.root), "m.room.create", "")?;
        let content = create.and_then(|create| create.pdu.content_as::<Content>().ok());
        Ok(content.map(|content| content.predecessor.room_id))
    }
}

/// What takes the right to speak from everybody below those who may moderate, as the tombstone says that the room is over.
fn closed(old: &Old, upgrade: &Upgrade, own: Level) -> Result<Option<NewEvent>, Error> {
    let number = |key: &str, default: i64| match old.power_levels.get(key) {
        Some(CanonicalJsonValue::Integer(level)) => i64::from(*level),
        _ => default,
    };
    let muted = number("users_default", 0).saturating_add(1).max(50);
    let mut content = old.power_levels.clone();
    for key in ["events_default", "invite"] {
        let raised = muted.max(number(key, 0));
        if own < Level::Number(raised) {
            return Ok(None);
        }
        content.insert(
            key.to_owned(),
            CanonicalJsonValue::try_from(json!(raised))
                .map_err(|_range| Error::Invalid("a power level is out of range".into()))?,
        );
    }
    let levels = TimelineEventType::RoomPowerLevels;
    let event = NewEvent::state(upgrade.user.clone(), levels, "", content);
    Ok(Some(event))
}

/// Gives users the highest of all levels, who needed none before.
fn list_creators(levels: &mut CanonicalJsonObject, creators: &[OwnedUserId]) -> Result<(), Error> {
    const LEAST: i64 = 100;
    let number = |level: &CanonicalJsonValue| match level {
        CanonicalJsonValue::Integer(level) => i64::from(*level),
        _ => 0,
    };
    let highest = levels.values().map(|level| match level {
        CanonicalJsonValue::Object(levels) => levels.values().map(number).max().unwrap_or(0),
        level => number(level),
    });
    let highest = highest.max().unwrap_or(0).max(LEAST);
    let highest = CanonicalJsonValue::try_from(json!(highest))
        .map_err(|_range| Error::Invalid("a power level is out of range".into()))?;
    let users = levels
        .entry("users".to_owned())
        .or_insert_with(|| CanonicalJsonValue::Object(CanonicalJsonObject::new()));
    if let CanonicalJsonValue::Object(users) = users {
        users.extend(
            creators
                .iter()
                .map(|user| (user.to_string(), highest.clone())),
        );
    }
    Ok(())
}

impl Old {
    fn read(rooms: &Rooms, snapshot: &Snapshot, room: RoomNumber) -> Result<Self, Error> {
        let head = rooms.head(snapshot, room)?.ok_or(Error::NotFound)?;
        let at = (room, head.root);
        let content = |event: Option<Arc<StoredEvent>>| {
            event.and_then(|event| event.pdu.content_as::<CanonicalJsonObject>().ok())
        };
        let one =
            |event_type| Ok::<_, Error>(content(rooms.state_event(snapshot, at, event_type, "")?));
        let mut state = Vec::new();
        for event_type in MOVED {
            if let Some(content) = one(event_type)? {
                state.push((TimelineEventType::from(*event_type), String::new(), content));
            }
        }
        let bans = rooms.member_state(snapshot, room, head.root)?;
        let bans = bans
            .into_iter()
            .filter(|event| Class::of(&membership_of(event)) == Class::Ban);
        Ok(Self {
            room,
            room_id: rooms.room_id(room).ok_or(Error::NotFound)?,
            create: one("m.room.create")?.unwrap_or_default(),
            power_levels: rooms
                .state_event(snapshot, at, "m.room.power_levels", "")?
                .map(|event| in_whole_numbers(&event.pdu))
                .unwrap_or_default(),
            state,
            aliases: rooms.aliases_of(snapshot, room)?,
            canonical_alias: one("m.room.canonical_alias")?,
            bans: bans
                .filter_map(|event| Some((event.pdu.state_key.clone()?, content(Some(event))?)))
                .collect(),
            is_published: rooms.is_published(snapshot, room)?,
        })
    }

    /// The room that takes the place of this one, where `creators` are above every level.
    fn successor(&self, upgrade: &Upgrade, creators: &[OwnedUserId]) -> Result<CreateRoom, Error> {
        let mut creation_content = self.create.clone();
        for key in [
            "creator",
            "room_version",
            "additional_creators",
            "predecessor",
        ] {
            creation_content.remove(key);
        }
        let predecessor = object(json!({ "room_id": self.room_id }))?;
        creation_content.insert(
            "predecessor".to_owned(),
            CanonicalJsonValue::Object(predecessor),
        );
        let creators_are_above = crate::events::version::rules(&upgrade.version)
            .ok_or(Error::UnsupportedVersion)?
            .authorization
            .explicitly_privilege_room_creators;
        let mut power_levels = self.power_levels.clone();
        if creators_are_above {
            if !upgrade.additional_creators.is_empty() {
                creation_content.insert(
                    "additional_creators".to_owned(),
                    CanonicalJsonValue::Array(
                        upgrade
                            .additional_creators
                            .iter()
                            .map(|user| user.to_string().into())
                            .collect(),
                    ),
                );
            }
            if let Some(CanonicalJsonValue::Object(users)) = power_levels.get_mut("users") {
                users.retain(|user, _| {
                    *user != upgrade.user
                        && !upgrade
                            .additional_creators
                            .iter()
                            .any(|other| other == user)
                });
            }
        }
        if !creators_are_above && !creators.is_empty() {
            list_creators(&mut power_levels, creators)?;
        }
        Ok(CreateRoom {
            creator: upgrade.user.clone(),
            preset: Preset::PrivateChat,
            is_published: false,
            version: Some(upgrade.version.clone()),
            alias: None,
            name: None,
            topic: None,
            invite: Vec::new(),
            is_direct: false,
            creation_content,
            initial_state: self.state.clone(),
            power_levels,
        })
    }
}

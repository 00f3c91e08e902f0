//! Creating a room: the events that make it, in the order of the specification, all or none of them.
//!
//! Spec: c2s, "Room creation".

use ruma::{
    CanonicalJsonObject, OwnedRoomAliasId, OwnedRoomId, OwnedUserId, RoomId, RoomVersionId,
    ServerName, canonical_json::CanonicalJsonValue, events::TimelineEventType,
    room_version_rules::RoomVersionRules,
};
use serde_json::json;

use super::{Error, NewEvent, RoomNumber, RoomWriter, Rooms, head::Head, object};
use crate::{events::version, storage::Batch};

/// A set of defaults for a new room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    PrivateChat,
    PublicChat,
    /// As a private chat; who is invited gets the creator's power.
    TrustedPrivateChat,
}

/// What a new room shall be.
#[derive(Clone, Debug)]
pub struct CreateRoom {
    pub creator: OwnedUserId,
    pub preset: Preset,
    /// Listed in the room directory.
    pub is_published: bool,
    /// `None`: the configured default.
    pub version: Option<RoomVersionId>,
    pub alias: Option<OwnedRoomAliasId>,
    pub name: Option<String>,
    pub topic: Option<String>,
    /// Only users of this server are invited along with the creation; what others get by the preset they get all the same.
    pub invite: Vec<OwnedUserId>,
    pub is_direct: bool,
    /// Keys of the create event besides `creator` and `room_version`.
    pub creation_content: CanonicalJsonObject,
    /// Type, state key and content of further state; takes the place of what the preset would set.
    pub initial_state: Vec<(TimelineEventType, String, CanonicalJsonObject)>,
    /// Keys that replace those of the default power levels.
    pub power_levels: CanonicalJsonObject,
}

/// Users that a request may invite at once.
const MAX_INVITES: usize = 1_000;

impl Rooms {
    /// Creates a room and waits until it is durable.
    ///
    /// # Errors
    /// [`Error::UnsupportedVersion`], [`Error::AliasInUse`], [`Error::Invalid`] for a request that contradicts itself, and
    /// what sending can answer; in all cases no room is left behind.
    pub async fn create(&self, room: CreateRoom) -> Result<OwnedRoomId, Error> {
        if room.invite.len() > MAX_INVITES {
            return Err(Error::Invalid("too many users are invited".into()));
        }
        let version = self.version_of(&room)?;
        let rules = version::rules(&version).ok_or(Error::UnsupportedVersion)?;
        let alias = match &room.alias {
            Some(alias) => Some(self.reserve_alias(alias).await?),
            None => None,
        };
        let create = create_event(&room, &version, rules);
        let mut making = self.begin(&room, &version, rules, create).await?;
        for event in events(&room, rules)? {
            making.add(event).await?;
        }
        // Those of other servers are invited when there is a room: their servers have a say.
        for user in room
            .invite
            .iter()
            .filter(|user| self.accounts.is_local(user))
        {
            let invite = self
                .invite_event(&room.creator, user, room.is_direct)
                .await?;
            making.add(invite).await?;
        }
        let number = making.writer.room();
        let mut last = Batch::new();
        if let (Some(alias), Some(reserved)) = (&room.alias, alias) {
            super::alias::insert(&mut last, alias, number, &room.creator);
            last.hold(reserved);
        }
        if room.is_published {
            super::directory::publish(&mut last, number);
        }
        let room_id = making.commit(last).await?;
        if room.creation_content.contains_key("predecessor") {
            self.carry_settings(&room.creator, number).await?;
        }
        Ok(room_id)
    }

    fn version_of(&self, room: &CreateRoom) -> Result<RoomVersionId, Error> {
        let version = match &room.version {
            Some(version) => version.clone(),
            None => RoomVersionId::try_from(self.config.default_version.as_str())
                .map_err(|_invalid| Error::UnsupportedVersion)?,
        };
        if version::CREATABLE.contains(&version) {
            Ok(version)
        } else {
            Err(Error::UnsupportedVersion)
        }
    }

    /// The writer of the new room, with its create event prepared.
    async fn begin(
        &self,
        room: &CreateRoom,
        version: &RoomVersionId,
        rules: &RoomVersionRules,
        create: NewEvent,
    ) -> Result<Making, Error> {
        let mut create = create;
        let (number, room_id) = if rules.authorization.room_create_event_id_as_room_id {
            self.number_by_event(version, &mut create)?
        } else {
            let room_id = fresh_room_id(self.own_name(), &self.clock.random_string(18));
            (self.numbers.intern_room(&room_id), room_id)
        };
        let head = Head::unborn(number, room_id.clone(), version)?;
        let writer = self.write_unborn(head).await;
        let mut making = Making {
            writer,
            room_id,
            batches: Vec::new(),
        };
        making.add(create).await?;
        making
            .add(
                self.join_event(&room.creator, &CanonicalJsonObject::new())
                    .await?,
            )
            .await?;
        Ok(making)
    }
}

impl Rooms {
    /// The number and ID of a new room whose ID is that of its create event, which gets the time that leads to it. Rooms that
    /// somebody makes alike in the same millisecond would be one.
    fn number_by_event(
        &self,
        version: &RoomVersionId,
        create: &mut NewEvent,
    ) -> Result<(RoomNumber, OwnedRoomId), Error> {
        let now_ms = self.clock.now_ms();
        for later_ms in 0..MAX_LATER_MS {
            create.timestamp = Some(super::milliseconds(now_ms + later_ms));
            let placeholder = fresh_room_id(self.own_name(), "new");
            let head = Head::unborn(RoomNumber::default(), placeholder, version)?;
            let room_id = super::writer::authorize::room_id_of(self, &head, create)?;
            let (number, is_new) = self.numbers.intern_new_room(&room_id);
            if is_new {
                return Ok((number, room_id));
            }
        }
        Err(Error::Full)
    }
}

/// How much later than now a new room is said to be made at most.
const MAX_LATER_MS: u64 = 1_000;

/// A room that is being made: its events are prepared, but nothing is written before all are.
struct Making {
    writer: RoomWriter,
    room_id: OwnedRoomId,
    batches: Vec<Batch>,
}

impl Making {
    async fn add(&mut self, event: NewEvent) -> Result<(), Error> {
        if let Some(batch) = self.writer.prepare(event).await? {
            self.batches.push(batch);
        }
        Ok(())
    }

    async fn commit(mut self, more: Batch) -> Result<OwnedRoomId, Error> {
        if let Some(last) = self.batches.last_mut() {
            last.append(more);
        }
        let commits = self.writer.submit_all(self.batches);
        drop(self.writer);
        for commit in commits {
            commit.await?;
        }
        Ok(self.room_id)
    }
}

fn fresh_room_id(server: &ServerName, random: &str) -> OwnedRoomId {
    RoomId::parse(format!("!{random}:{server}"))
        .expect("random letters and a server name make a room ID")
}

fn create_event(room: &CreateRoom, version: &RoomVersionId, rules: &RoomVersionRules) -> NewEvent {
    let mut content = room.creation_content.clone();
    content.insert(
        "room_version".to_owned(),
        CanonicalJsonValue::String(version.as_str().to_owned()),
    );
    if rules.authorization.use_room_create_sender {
        content.remove("creator");
    } else {
        content.insert(
            "creator".to_owned(),
            CanonicalJsonValue::String(room.creator.to_string()),
        );
    }
    if rules.authorization.additional_room_creators && room.preset == Preset::TrustedPrivateChat {
        let mut creators: Vec<String> = match content.get("additional_creators") {
            Some(CanonicalJsonValue::Array(given)) => given
                .iter()
                .filter_map(|user| user.as_str().map(str::to_owned))
                .collect(),
            _ => Vec::new(),
        };
        creators.extend(room.invite.iter().map(|user| user.to_string()));
        creators.sort_unstable();
        creators.dedup();
        creators.retain(|user| *user != room.creator);
        if !creators.is_empty() {
            let creators = creators
                .into_iter()
                .map(CanonicalJsonValue::String)
                .collect();
            content.insert(
                "additional_creators".to_owned(),
                CanonicalJsonValue::Array(creators),
            );
        }
    }
    NewEvent::state(
        room.creator.clone(),
        TimelineEventType::RoomCreate,
        "",
        content,
    )
}

/// The events after the creator's join and before the invites, in order.
fn events(room: &CreateRoom, rules: &RoomVersionRules) -> Result<Vec<NewEvent>, Error> {
    let state = |event_type: TimelineEventType, content| {
        NewEvent::state(room.creator.clone(), event_type, "", content)
    };
    let mut events = vec![state(
        TimelineEventType::RoomPowerLevels,
        power_levels(room, rules)?,
    )];
    if let Some(alias) = &room.alias {
        events.push(state(
            TimelineEventType::RoomCanonicalAlias,
            object(json!({ "alias": alias }))?,
        ));
    }
    let is_public = room.preset == Preset::PublicChat;
    let join_rule = if is_public { "public" } else { "invite" };
    let mut preset = vec![
        (
            TimelineEventType::RoomJoinRules,
            json!({ "join_rule": join_rule }),
        ),
        (
            TimelineEventType::RoomHistoryVisibility,
            json!({ "history_visibility": "shared" }),
        ),
    ];
    if !is_public {
        // Where nothing is said guests are forbidden: public rooms do without the event, which every server would keep.
        preset.push((
            TimelineEventType::RoomGuestAccess,
            json!({ "guest_access": "can_join" }),
        ));
    }
    for (event_type, content) in preset {
        let replaced = room
            .initial_state
            .iter()
            .any(|(given, key, _)| *given == event_type && key.is_empty());
        if !replaced {
            events.push(state(event_type, object(content)?));
        }
    }
    for (event_type, key, content) in &room.initial_state {
        events.push(NewEvent::state(
            room.creator.clone(),
            event_type.clone(),
            key.clone(),
            content.clone(),
        ));
    }
    if let Some(name) = &room.name {
        events.push(state(
            TimelineEventType::RoomName,
            object(json!({ "name": name }))?,
        ));
    }
    if let Some(topic) = &room.topic {
        let text = json!({ "m.text": [{ "body": topic }] });
        events.push(state(
            TimelineEventType::RoomTopic,
            object(json!({ "topic": topic, "m.topic": text }))?,
        ));
    }
    Ok(events)
}

/// The default power levels, with the keys that the request replaces.
fn power_levels(room: &CreateRoom, rules: &RoomVersionRules) -> Result<CanonicalJsonObject, Error> {
    let privileged = rules.authorization.explicitly_privilege_room_creators;
    let mut users = serde_json::Map::new();
    if !privileged {
        users.insert(room.creator.to_string(), json!(100));
        if room.preset == Preset::TrustedPrivateChat {
            users.extend(
                room.invite
                    .iter()
                    .map(|user| (user.to_string(), json!(100))),
            );
        }
    }
    let tombstone = if privileged { 150 } else { 100 };
    let invite = if room.preset == Preset::PublicChat {
        50
    } else {
        0
    };
    let mut levels = object(json!({
        "ban": 50,
        "events": {
            "m.room.avatar": 50,
            "m.room.canonical_alias": 50,
            "m.room.encryption": 100,
            "m.room.history_visibility": 100,
            "m.room.name": 50,
            "m.room.power_levels": 100,
            "m.room.server_acl": 100,
            "m.room.tombstone": tombstone,
        },
        "events_default": 0,
        "historical": 100,
        "invite": invite,
        "kick": 50,
        "redact": 50,
        "state_default": 50,
        "users": users,
        "users_default": 0,
    }))?;
    levels.extend(room.power_levels.clone());
    Ok(levels)
}

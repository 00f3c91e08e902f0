//! The power levels of a room, parsed once and cheap to ask.
//!
//! The auth rules of the library parse the event each time they ask; a room asks for every event it is sent.

use std::collections::BTreeMap;

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, Int, OwnedServerName, OwnedUserId, UserId,
    events::{TimelineEventType, room::power_levels::UserPowerLevel},
    room_version_rules::AuthorizationRules,
    state_res::events::{RoomCreateEvent, RoomPowerLevelsEvent, RoomPowerLevelsIntField as Field},
};
use serde_json::Value;

use crate::events::pdu::Pdu;

/// The level of the creator in a room without power levels.
const CREATOR_LEVEL: i64 = 100;

/// The level of a user. A creator of a room of version 12 or later is above every number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Number(i64),
    Infinite,
}

/// Who may do what in a room.
///
/// What is malformed in the power levels counts as absent here; [`PowerLevels::is_sound`] tells, as the auth rules refuse every event that
/// they would need it for.
///
/// Spec: c2s, "Permissions".
#[derive(Clone, Debug)]
pub struct PowerLevels {
    users: BTreeMap<OwnedUserId, i64>,
    /// Level per event type.
    events: BTreeMap<TimelineEventType, i64>,
    notifications: BTreeMap<String, i64>,
    users_default: i64,
    events_default: i64,
    state_default: i64,
    ban: i64,
    kick: i64,
    redact: i64,
    invite: i64,
    /// Users above every level.
    creators: Vec<OwnedUserId>,
    /// In a room that does not federate, the only server whose users may do anything.
    only_server: Option<OwnedServerName>,
    is_sound: bool,
}

impl PowerLevels {
    /// The levels in a room with this state. `power_levels` is the `m.room.power_levels` event, if there is one.
    pub fn new(rules: &AuthorizationRules, power_levels: Option<&Pdu>, create: &Pdu) -> Self {
        let mut is_sound = true;
        let created = RoomCreateEvent::new(create);
        let creators = or_default(created.creators(rules), &mut is_sound);
        let federates = created.federate().unwrap_or_else(|_| {
            is_sound = false;
            true
        });
        let mut levels = match power_levels {
            Some(event) => Self::of_event(rules, &RoomPowerLevelsEvent::new(event)),
            None => Self::without_event(),
        };
        if rules.explicitly_privilege_room_creators {
            levels.creators = creators.into_iter().collect();
            levels.creators.sort_unstable();
        } else if power_levels.is_none() {
            levels.users = creators
                .into_iter()
                .map(|creator| (creator, CREATOR_LEVEL))
                .collect();
        }
        levels.only_server = (!federates).then(|| create.sender.server_name().to_owned());
        levels.is_sound &= is_sound;
        levels
    }

    fn of_event(rules: &AuthorizationRules, event: &RoomPowerLevelsEvent<&Pdu>) -> Self {
        let mut is_sound = true;
        let mut field = |field: Field| match event.get_as_int(field, rules) {
            Ok(level) => i64::from(level.unwrap_or_else(|| field.default_value())),
            Err(_) => {
                is_sound = false;
                i64::from(field.default_value())
            }
        };
        let mut levels = Self {
            users_default: field(Field::UsersDefault),
            events_default: field(Field::EventsDefault),
            state_default: field(Field::StateDefault),
            ban: field(Field::Ban),
            kick: field(Field::Kick),
            redact: field(Field::Redact),
            invite: field(Field::Invite),
            ..Self::without_event()
        };
        let users = event.users(rules).map(Option::<&BTreeMap<_, _>>::cloned);
        levels.users = numbers(or_default(users, &mut is_sound));
        levels.events = numbers(or_default(event.events(rules), &mut is_sound));
        levels.notifications = numbers(or_default(event.notifications(rules), &mut is_sound));
        levels.is_sound = is_sound;
        levels
    }

    fn without_event() -> Self {
        let default = |field: Field| i64::from(field.default_value());
        Self {
            users: BTreeMap::new(),
            events: BTreeMap::new(),
            notifications: BTreeMap::new(),
            users_default: default(Field::UsersDefault),
            events_default: default(Field::EventsDefault),
            state_default: default(Field::StateDefault),
            ban: default(Field::Ban),
            kick: default(Field::Kick),
            redact: default(Field::Redact),
            invite: default(Field::Invite),
            creators: Vec::new(),
            only_server: None,
            is_sound: true,
        }
    }

    /// Whether every level in the power levels and the creators in the create event are well formed.
    pub fn is_sound(&self) -> bool {
        self.is_sound
    }

    /// Whether events of this user's server are allowed at all: in a room that does not federate, only those of the creator's.
    pub fn admits_server_of(&self, user: &UserId) -> bool {
        self.only_server
            .as_ref()
            .is_none_or(|server| server == user.server_name())
    }

    /// The level of a user, member or not.
    pub fn user(&self, user: &UserId) -> Level {
        if self.is_creator(user) {
            return Level::Infinite;
        }
        Level::Number(self.users.get(user).copied().unwrap_or(self.users_default))
    }

    /// Whether `user` is above every level, as a creator of a room of version 12 or later.
    pub fn is_creator(&self, user: &UserId) -> bool {
        self.creators.iter().any(|creator| creator == user)
    }

    /// The level needed to send an event of this type that is no state event.
    pub fn message(&self, event_type: &TimelineEventType) -> Level {
        Level::Number(
            self.events
                .get(event_type)
                .copied()
                .unwrap_or(self.events_default),
        )
    }

    /// The level needed to send a state event of this type.
    pub fn state(&self, event_type: &TimelineEventType) -> Level {
        Level::Number(
            self.events
                .get(event_type)
                .copied()
                .unwrap_or(self.state_default),
        )
    }

    pub fn ban(&self) -> Level {
        Level::Number(self.ban)
    }

    pub fn kick(&self) -> Level {
        Level::Number(self.kick)
    }

    /// The level needed to redact events of others.
    pub fn redact(&self) -> Level {
        Level::Number(self.redact)
    }

    pub fn invite(&self) -> Level {
        Level::Number(self.invite)
    }

    /// The level needed to notify a group of users, such as `room`.
    pub fn notification(&self, key: &str) -> Level {
        const DEFAULT: i64 = 50;
        Level::Number(self.notifications.get(key).copied().unwrap_or(DEFAULT))
    }

    pub fn may_send_message(&self, user: &UserId, event_type: &TimelineEventType) -> bool {
        self.user(user) >= self.message(event_type)
    }

    pub fn may_send_state(&self, user: &UserId, event_type: &TimelineEventType) -> bool {
        self.user(user) >= self.state(event_type)
    }

    /// Whether `user` may redact an event of another user. For one's own events sending redactions is enough.
    pub fn may_redact_others(&self, user: &UserId) -> bool {
        self.user(user) >= self.redact()
    }

    pub fn may_invite(&self, user: &UserId) -> bool {
        self.user(user) >= self.invite()
    }

    pub fn may_kick(&self, user: &UserId, target: &UserId) -> bool {
        self.user(user) >= self.kick() && self.user(user) > self.user(target)
    }

    pub fn may_ban(&self, user: &UserId, target: &UserId) -> bool {
        self.user(user) >= self.ban() && self.user(user) > self.user(target)
    }

    pub fn may_notify(&self, user: &UserId, key: &str) -> bool {
        self.user(user) >= self.notification(key)
    }

    /// Users with a level of their own, creators not among them.
    pub fn users(&self) -> impl Iterator<Item = (&UserId, i64)> {
        self.users.iter().map(|(user, level)| (&**user, *level))
    }

    /// Users above every level.
    pub fn creators(&self) -> &[OwnedUserId] {
        &self.creators
    }
}

/// The content of power levels as rooms of every version can have it: texts and floats, which old ones may hold, become whole numbers.
///
/// Spec: rooms/v1, "Deprecated event content schemas"; rooms/v10, "Values in `m.room.power_levels` events must be integers".
pub fn in_whole_numbers(power_levels: &Pdu) -> CanonicalJsonObject {
    let mut content: Value =
        serde_json::from_str(power_levels.judged_content().get()).unwrap_or(Value::Null);
    let levels = content.as_object_mut().into_iter();
    let levels = levels.flat_map(|fields| fields.values_mut());
    for level in levels {
        match level {
            Value::Object(levels) => levels.values_mut().for_each(read_text),
            level => read_text(level),
        }
    }
    match CanonicalJsonValue::try_from(content) {
        Ok(CanonicalJsonValue::Object(content)) => content,
        _ => CanonicalJsonObject::new(),
    }
}

fn read_text(level: &mut Value) {
    let Value::String(text) = level else { return };
    let digits = text.trim();
    let digits = digits.strip_prefix('+').unwrap_or(digits);
    if let Ok(number) = digits.parse::<i64>() {
        *level = number.into();
    }
}

impl From<UserPowerLevel> for Level {
    fn from(level: UserPowerLevel) -> Self {
        match level {
            UserPowerLevel::Int(level) => Self::Number(level.into()),
            _ => Self::Infinite,
        }
    }
}

fn or_default<T: Default, E>(result: Result<T, E>, is_sound: &mut bool) -> T {
    result.unwrap_or_else(|_| {
        *is_sound = false;
        T::default()
    })
}

fn numbers<K: Ord>(levels: Option<BTreeMap<K, Int>>) -> BTreeMap<K, i64> {
    levels
        .unwrap_or_default()
        .into_iter()
        .map(|(key, level)| (key, level.into()))
        .collect()
}

#[cfg(test)]
mod tests;

//! The authorization rules: the library's, with what other servers do where the library differs.
//!
//! A room without `m.room.join_rules`, or with one that names no rule, is joined by invitation; the library refuses every join there.
//! Elsewhere the library's answer is ours. The vectors in `tests/vectors` hold both.

use std::sync::{Arc, LazyLock};

use ruma::{
    EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, UserId, event_id,
    events::{StateEventType, TimelineEventType, room::member::MembershipState},
    room_version_rules::AuthorizationRules,
    state_res::{self, events::RoomMemberEvent},
    uint, user_id,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::events::{pdu::Pdu, power::PowerLevels, sign::Verified};

/// Why an event is not authorized.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// The rules refuse the event.
    #[error("{0}")]
    Refused(String),
    /// An auth event was not found: a look-up that should not have been made yet.
    #[error("the auth event {0} is not known")]
    MissingAuthEvent(OwnedEventId),
}

/// An event that the rules allow at the state it was checked against.
#[derive(Clone, Debug)]
pub struct Authorized(Pdu);

impl std::ops::Deref for Authorized {
    type Target = Pdu;

    fn deref(&self) -> &Pdu {
        &self.0
    }
}

impl Authorized {
    pub fn into_pdu(self) -> Pdu {
        self.0
    }
}

impl From<Authorized> for Pdu {
    fn from(authorized: Authorized) -> Self {
        authorized.0
    }
}

/// A verified event that the rules refuse, given back.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Refused {
    pub event: Box<Verified>,
    #[source]
    pub error: AuthError,
}

impl Verified {
    /// Checks the event against a state, as [`check`].
    ///
    /// # Errors
    ///
    /// If the rules refuse the event.
    pub fn authorize(
        self,
        rules: &AuthorizationRules,
        fetch: impl Fn(&StateEventType, &str) -> Option<Arc<Pdu>>,
    ) -> Result<Authorized, Refused> {
        let checked = check(rules, &self, fetch);
        self.authorized(checked)
    }

    /// The same, as [`check_with_levels`].
    ///
    /// # Errors
    ///
    /// If the rules refuse the event.
    pub fn authorize_with_levels(
        self,
        rules: &AuthorizationRules,
        levels: &PowerLevels,
        fetch: impl Fn(&StateEventType, &str) -> Option<Arc<Pdu>>,
    ) -> Result<Authorized, Refused> {
        let checked = check_with_levels(rules, &self, levels, fetch);
        self.authorized(checked)
    }

    fn authorized(self, checked: Result<(), AuthError>) -> Result<Authorized, Refused> {
        match checked {
            Ok(()) => Ok(Authorized(self.into_pdu())),
            Err(error) => Err(Refused {
                event: Box::new(self),
                error,
            }),
        }
    }
}

/// The state that the rules look at for an event, and that it cites as auth events if it is there.
///
/// For content that the rules will refuse anyway, because it lacks what its type needs, these are the keys that every event has.
///
/// Spec: s2s, "Auth events selection".
pub fn selection(
    rules: &AuthorizationRules,
    event_type: &TimelineEventType,
    sender: &UserId,
    state_key: Option<&str>,
    content: &RawValue,
) -> Vec<(StateEventType, String)> {
    state_res::auth_types_for_event(event_type, sender, state_key, content, rules).unwrap_or_else(
        |_| {
            let mut keys = vec![
                (StateEventType::RoomPowerLevels, String::new()),
                (StateEventType::RoomMember, sender.to_string()),
            ];
            if !rules.room_create_event_id_as_room_id {
                keys.push((StateEventType::RoomCreate, String::new()));
            }
            keys
        },
    )
}

/// Checks an event and the list of its auth events, once, when it is received.
///
/// `fetch` finds the events of the room by ID; the auth events must have been fetched before.
///
/// # Errors
///
/// If the event is to be rejected, or an auth event is not known.
///
/// Spec: s2s, "Checks performed on receipt of a PDU"; rooms/v1, "Authorization rules" and its successors.
pub fn check_independent(
    rules: &AuthorizationRules,
    event: &Pdu,
    fetch: impl Fn(&EventId) -> Option<Arc<Pdu>>,
) -> Result<(), AuthError> {
    let auth_events: Vec<Arc<Pdu>> = event
        .auth_events
        .iter()
        .map(|id| fetch(id).ok_or_else(|| AuthError::MissingAuthEvent(id.clone())))
        .collect::<Result<_, _>>()?;
    let fetched = |id: &EventId| match auth_events.iter().find(|event| event.event_id == id) {
        Some(event) => Some(Arc::clone(event)),
        None => fetch(id),
    };
    state_res::check_state_independent_auth_rules(rules, event, fetched).map_err(AuthError::Refused)
}

/// Checks an event against a state: that of its auth events, that before it, or the current one.
///
/// # Errors
///
/// If the event is to be rejected, or, at the current state, to be soft-failed.
///
/// Spec: s2s, "Checks performed on receipt of a PDU"; rooms/v1, "Authorization rules" and its successors.
pub fn check(
    rules: &AuthorizationRules,
    event: &Pdu,
    fetch: impl Fn(&StateEventType, &str) -> Option<Arc<Pdu>>,
) -> Result<(), AuthError> {
    let fetch = |event_type: &StateEventType, state_key: &str| {
        let found = fetch(event_type, state_key);
        match (event_type, state_key) {
            (StateEventType::RoomJoinRules, "") => Some(sound_join_rules(found)),
            _ => found,
        }
    };
    state_res::check_state_dependent_auth_rules(rules, event, fetch).map_err(AuthError::Refused)
}

/// [`check`] with the power levels of the same state, parsed before. Of the state it asks for the sender's membership only, and it parses
/// nothing else, unless the event is one whose type has rules of its own, or something in the power levels or the create event is
/// malformed: then it is [`check`].
///
/// # Errors
///
/// If the event is to be rejected, or, at the current state, to be soft-failed.
pub fn check_with_levels(
    rules: &AuthorizationRules,
    event: &Pdu,
    levels: &PowerLevels,
    fetch: impl Fn(&StateEventType, &str) -> Option<Arc<Pdu>>,
) -> Result<(), AuthError> {
    if !levels.is_sound() || has_rules_of_its_own(rules, event) {
        return check(rules, event, fetch);
    }
    let refused = |reason: &str| Err(AuthError::Refused(reason.to_owned()));
    if !levels.admits_server_of(&event.sender) {
        return refused("the room does not federate, and the sender is of another server");
    }
    let membership = fetch(&StateEventType::RoomMember, event.sender.as_str());
    let is_joined = |member: Arc<Pdu>| {
        RoomMemberEvent::new(member)
            .membership()
            .is_ok_and(|membership| membership == MembershipState::Join)
    };
    if !membership.is_some_and(is_joined) {
        return refused("the sender is not joined");
    }
    let needed = match event.is_state() {
        true => levels.state(&event.event_type),
        false => levels.message(&event.event_type),
    };
    if levels.user(&event.sender) < needed {
        return refused("the sender has not the power to send events of this type");
    }
    match event.state_key.as_deref() {
        Some(key) if key.starts_with('@') && key != event.sender.as_str() => {
            refused("the state key is another user's ID")
        }
        _ => Ok(()),
    }
}

fn has_rules_of_its_own(rules: &AuthorizationRules, event: &Pdu) -> bool {
    match event.event_type {
        TimelineEventType::RoomCreate
        | TimelineEventType::RoomMember
        | TimelineEventType::RoomPowerLevels
        | TimelineEventType::RoomThirdPartyInvite => true,
        TimelineEventType::RoomRedaction => rules.special_case_room_redaction,
        _ => rules.special_case_room_aliases && event.event_type.to_string() == "m.room.aliases",
    }
}

/// [`check`] for an event that a local user sends, with what we refuse to send although others may: inviting a user of another server into
/// a room that does not federate, who could not join it.
///
/// # Errors
///
/// If the event is not to be sent.
pub fn check_sending(
    rules: &AuthorizationRules,
    event: &Pdu,
    fetch: impl Fn(&StateEventType, &str) -> Option<Arc<Pdu>>,
) -> Result<(), AuthError> {
    check(rules, event, &fetch)?;
    match fetch(&StateEventType::RoomCreate, "") {
        Some(create) if invites_beyond(event, &create) => Err(AuthError::Refused(
            "users of other servers cannot be invited into this room".to_owned(),
        )),
        _ => Ok(()),
    }
}

fn invites_beyond(event: &Pdu, create: &Pdu) -> bool {
    #[derive(Deserialize)]
    struct Membership {
        membership: String,
    }

    #[derive(Deserialize)]
    struct Create {
        #[serde(rename = "m.federate", default = "yes")]
        federate: bool,
    }

    fn yes() -> bool {
        true
    }

    if event.event_type != TimelineEventType::RoomMember
        || create
            .content_as()
            .is_ok_and(|create: Create| create.federate)
    {
        return false;
    }
    let invites = event
        .content_as()
        .is_ok_and(|content: Membership| content.membership == "invite");
    let target = event
        .state_key
        .as_deref()
        .and_then(|state_key| UserId::parse(state_key).ok());
    invites && target.is_some_and(|target| target.server_name() != create.sender.server_name())
}

/// The content of join rules that name a rule.
#[derive(Deserialize)]
struct JoinRules {
    #[serde(rename = "join_rule")]
    _join_rule: String,
}

/// The join rules by which a room is joined that has none, or malformed ones.
static BY_INVITATION: LazyLock<Arc<Pdu>> = LazyLock::new(|| {
    let content = r#"{"join_rule":"invite"}"#;
    Arc::new(Pdu {
        event_id: event_id!("$implicit-join-rules").to_owned(),
        room_id: None,
        sender: user_id!("@nobody:invalid").to_owned(),
        event_type: TimelineEventType::RoomJoinRules,
        state_key: Some(String::new()),
        content: RawValue::from_string(content.to_owned()).expect("the text is JSON"),
        judged: None,
        origin_server_ts: MilliSecondsSinceUnixEpoch(uint!(0)),
        depth: 0,
        prev_events: Vec::new(),
        auth_events: Vec::new(),
        redacts: None,
        rejected: false,
        json: bytes::Bytes::new(),
    })
});

/// Join rules as other servers read them.
fn sound_join_rules(found: Option<Arc<Pdu>>) -> Arc<Pdu> {
    match found {
        Some(event) if event.content_as::<JoinRules>().is_ok() => event,
        _ => Arc::clone(&BY_INVITATION),
    }
}

/// The content of join rules as other servers read it.
pub(in crate::events) fn join_rules_content(event: &Pdu) -> &RawValue {
    match event.content_as::<JoinRules>() {
        Ok(_) => &event.content,
        Err(_) => &BY_INVITATION.content,
    }
}

/// The join rules of a room without any.
pub(in crate::events) fn implicit_join_rules() -> &'static Arc<Pdu> {
    &BY_INVITATION
}

#[cfg(test)]
mod tests;

//! What joins, leaves, knocks and invites across servers have in common: why they fail, whom to ask, and how an event is
//! made from what another server proposes.

use std::borrow::Cow;

use ruma::{
    CanonicalJsonObject, MilliSecondsSinceUnixEpoch, OwnedRoomId, OwnedServerName, OwnedUserId,
    RoomVersionId, ServerName, UInt, UserId,
    canonical_json::CanonicalJsonValue,
    events::{TimelineEventType, room::member::MembershipState},
    room_version_rules::RoomVersionRules,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Error, Federation};
use crate::{
    accounts,
    events::{
        Named, NewPdu, References, Verified,
        format::{self, MAX_AUTH_EVENTS, MAX_PREV_EVENTS, Parsed},
        version,
    },
    rooms::{self, Extra, MembershipAction},
    storage,
};

/// Servers that are asked in turn to help one user into a room, or out of it.
pub(super) const MAX_CANDIDATES: usize = 10;

/// Why a membership does not come about.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// This server is not in the room, so it cannot help.
    #[error("this server is not in the room")]
    NotFound,
    #[error("{0}")]
    Forbidden(Cow<'static, str>),
    /// What another server sent is not what the endpoint is for.
    #[error("{0}")]
    Invalid(Cow<'static, str>),
    /// The room's version is none of those that the other server, or this one, can deal with.
    #[error("the room has version {0}, which is not supported")]
    IncompatibleVersion(RoomVersionId),
    /// Nobody is known who could be asked about the room.
    #[error("no server is known that is in the room")]
    NoCandidates,
    /// What another server proposed is not what was asked for.
    #[error("{server} answered nonsense: {reason}")]
    BadAnswer {
        server: OwnedServerName,
        reason: Cow<'static, str>,
    },
    #[error(transparent)]
    Federation(#[from] Error),
    #[error(transparent)]
    Rooms(#[from] rooms::Error),
    #[error(transparent)]
    Accounts(#[from] accounts::Error),
    #[error(transparent)]
    Storage(#[from] storage::Error),
}

impl MembershipError {
    pub(super) fn bad_answer(server: &ServerName, reason: impl Into<Cow<'static, str>>) -> Self {
        Self::BadAnswer {
            server: server.to_owned(),
            reason: reason.into(),
        }
    }

    /// Whether another server may do better.
    pub(super) fn may_try_another(&self) -> bool {
        match self {
            Self::Federation(Error::Rooms(_) | Error::Accounts(_) | Error::Storage(_))
            | Self::Rooms(_)
            | Self::Accounts(_)
            | Self::Storage(_) => false,
            Self::NotFound
            | Self::Forbidden(_)
            | Self::Invalid(_)
            | Self::IncompatibleVersion(_)
            | Self::NoCandidates
            | Self::BadAnswer { .. }
            | Self::Federation(_) => true,
        }
    }

    /// How much the error tells of why the user is not let in: of several, the most telling goes to the client.
    fn tells(&self) -> u8 {
        match self {
            Self::IncompatibleVersion(_) => 4,
            Self::Federation(Error::Remote { status, .. }) if *status == 403 => 4,
            Self::Federation(Error::Remote { status, .. }) if (400..500).contains(status) => 3,
            Self::Federation(Error::Remote { .. }) | Self::BadAnswer { .. } => 2,
            Self::NoCandidates => 0,
            _ => 1,
        }
    }

    /// The more telling of two.
    pub(super) fn or(self, other: Self) -> Self {
        match other.tells() > self.tells() {
            true => other,
            false => self,
        }
    }
}

/// A membership event that is made together with another server.
#[derive(Clone, Debug)]
pub(super) struct Draft<'a> {
    pub(super) room_id: &'a OwnedRoomId,
    pub(super) user: &'a UserId,
    pub(super) membership: MembershipState,
    /// Content besides the membership.
    pub(super) content: CanonicalJsonObject,
}

/// What a resident server proposes. Nothing is taken over but the place in the graph and who lets the user in.
#[derive(Deserialize)]
struct Template {
    #[serde(rename = "type")]
    event_type: String,
    room_id: OwnedRoomId,
    sender: OwnedUserId,
    state_key: String,
    content: TemplateContent,
    depth: u64,
    prev_events: References,
    auth_events: References,
}

#[derive(Deserialize)]
struct TemplateContent {
    membership: MembershipState,
    join_authorised_via_users_server: Option<OwnedUserId>,
}

impl Federation {
    /// The signed event of a draft, at the place in the graph that `template` gives it.
    pub(super) fn sign_draft(
        &self,
        server: &ServerName,
        draft: &Draft<'_>,
        template: &RawValue,
        rules: &RoomVersionRules,
    ) -> Result<Verified, MembershipError> {
        let bad = |reason: &'static str| MembershipError::bad_answer(server, reason);
        let template: Template = serde_json::from_str(template.get())
            .map_err(|error| MembershipError::bad_answer(server, error.to_string()))?;
        let is_asked = template.event_type == "m.room.member"
            && template.room_id == *draft.room_id
            && template.sender == draft.user
            && template.state_key == draft.user.as_str()
            && template.content.membership == draft.membership;
        if !is_asked {
            return Err(bad("the template is of another event"));
        }
        if template.prev_events.ids.len() > MAX_PREV_EVENTS
            || template.auth_events.ids.len() > MAX_AUTH_EVENTS
        {
            return Err(bad("the template cites too many events"));
        }
        let mut content = draft.content.clone();
        content.insert(
            "membership".to_owned(),
            draft.membership.as_str().to_owned().into(),
        );
        if let Some(user) = template.content.join_authorised_via_users_server {
            content.insert(
                "join_authorised_via_users_server".to_owned(),
                user.to_string().into(),
            );
        }
        let (prev_events, auth_events) = (template.prev_events, template.auth_events);
        let named = rules.event_format.require_event_id.then(|| Named {
            event_id: self.inner.rooms.new_event_id(),
            hashes: prev_events
                .hashes
                .into_iter()
                .chain(auth_events.hashes)
                .collect(),
        });
        let new = NewPdu {
            room_id: Some(draft.room_id.clone()),
            sender: draft.user.to_owned(),
            event_type: TimelineEventType::RoomMember,
            state_key: Some(draft.user.to_string()),
            content,
            origin_server_ts: self.now(),
            depth: template.depth,
            prev_events: prev_events.ids,
            auth_events: auth_events.ids,
            redacts: None,
            named,
        };
        let built = self.inner.signer.build(new, rules);
        Ok(built.map_err(rooms::Error::from)?)
    }

    pub(super) fn now(&self) -> MilliSecondsSinceUnixEpoch {
        MilliSecondsSinceUnixEpoch(UInt::new_saturating(self.inner.clock.now_ms()))
    }

    /// The content of a user's own membership: profile, and what the client added.
    pub(super) async fn own_content(
        &self,
        user: &UserId,
        membership: MembershipState,
        extra: Extra,
    ) -> Result<CanonicalJsonObject, MembershipError> {
        let action = MembershipAction {
            sender: user.to_owned(),
            target: user.to_owned(),
            membership,
            extra,
            before: &[],
        };
        Ok(self.inner.rooms.membership_event(&action).await?.content)
    }

    /// The servers of `named` that can be asked, each once.
    pub(super) fn askable(
        &self,
        named: impl IntoIterator<Item = OwnedServerName>,
    ) -> Vec<OwnedServerName> {
        let own = self.inner.signer.server_name();
        let mut servers: Vec<OwnedServerName> = Vec::new();
        for server in named {
            if server != own && self.is_allowed(&server) && !servers.contains(&server) {
                servers.push(server);
            }
            if servers.len() == MAX_CANDIDATES {
                break;
            }
        }
        servers
    }

    /// Signatures and hash of one event.
    pub(super) async fn verify_one(
        &self,
        parsed: Parsed,
        rules: &'static RoomVersionRules,
    ) -> Option<Verified> {
        let verified = self.keys().verify_pdus(rules, vec![parsed]).await.pop()?;
        match verified {
            Ok(event) => Some(event),
            Err(error) => {
                tracing::debug!(%error, "an event is not signed as it should be");
                None
            }
        }
    }
}

/// The rules of a room version that this server can be in.
pub(super) fn rules_of(
    version: &RoomVersionId,
) -> Result<&'static RoomVersionRules, MembershipError> {
    version::rules(version).ok_or_else(|| MembershipError::IncompatibleVersion(version.clone()))
}

/// A membership event that another server sent, and whose it is.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) parsed: Parsed,
    pub(super) sender: OwnedUserId,
    pub(super) target: OwnedUserId,
}

impl Given {
    /// Reads a membership event of this kind and this room.
    pub(super) fn read(
        text: &RawValue,
        rules: &RoomVersionRules,
        room_id: &ruma::RoomId,
        membership: &MembershipState,
    ) -> Result<Self, MembershipError> {
        let parsed = format::parse(text.get().as_bytes(), rules)
            .map_err(|error| MembershipError::Invalid(error.to_string().into()))?;
        let object = &parsed.object;
        let is_wanted = text_of(object, "type") == Some("m.room.member")
            && text_of(object, "room_id") == Some(room_id.as_str())
            && membership_in(object) == Some(membership.as_str());
        if !is_wanted {
            let text = format!("this is no {membership} of this room");
            return Err(MembershipError::Invalid(text.into()));
        }
        let user = |field| {
            let user = text_of(object, field).and_then(|user| UserId::parse(user).ok());
            user.ok_or(MembershipError::Invalid(
                "the sender or the state key is no user ID".into(),
            ))
        };
        let (sender, target) = (user("sender")?, user("state_key")?);
        Ok(Self {
            parsed,
            sender,
            target,
        })
    }

    /// A text of the content.
    pub(super) fn content(&self, key: &str) -> Option<&str> {
        match self.parsed.object.get("content") {
            Some(CanonicalJsonValue::Object(content)) => text_of(content, key),
            _ => None,
        }
    }

    pub(super) fn has_content(&self, key: &str) -> bool {
        match self.parsed.object.get("content") {
            Some(CanonicalJsonValue::Object(content)) => content.contains_key(key),
            _ => false,
        }
    }
}

pub(super) fn text_of<'a>(object: &'a CanonicalJsonObject, key: &str) -> Option<&'a str> {
    object.get(key).and_then(CanonicalJsonValue::as_str)
}

pub(super) fn membership_in(object: &CanonicalJsonObject) -> Option<&str> {
    match object.get("content") {
        Some(CanonicalJsonValue::Object(content)) => text_of(content, "membership"),
        _ => None,
    }
}

//! What this server does as one that is in the room for those that are not: templates for their users' joins, leaves and
//! knocks, and taking in what comes back signed.
//!
//! The rules are applied twice, as the state may change in between, and as nobody has to have asked for a template first.
//!
//! Spec: s2s, "Joining Rooms", "Restricted rooms", "Knocking upon a room", "Leaving Rooms (Rejecting Invites)".

use std::sync::Arc;

use bytes::Bytes;
use ruma::{
    CanonicalJsonObject, EventId, OwnedRoomId, OwnedServerName, RoomId, RoomVersionId, ServerName,
    UserId,
    events::{TimelineEventType, room::member::MembershipState},
    room_version_rules::RoomVersionRules,
};
use serde_json::value::RawValue;

use super::{
    Federation,
    membership::{Given, MembershipError, rules_of},
};
use crate::{
    events::{StateNumber, Verified},
    rooms::{
        self, Extra, Intake, MembershipAction, NewEvent, Omit, Received, Residence, RoomNumber,
        StoredEvent, flag,
    },
    storage::{Batch, Snapshot},
};

/// A template and the version of its room.
#[derive(Clone, Debug)]
pub struct Template {
    pub event: CanonicalJsonObject,
    pub version: RoomVersionId,
}

/// What a server is told that has joined.
#[derive(Clone, Debug)]
pub struct Joined {
    pub room: RoomNumber,
    /// The JSON of the join.
    pub event: Bytes,
    pub state: Vec<StateNumber>,
    pub auth_chain: Vec<StateNumber>,
    pub members_omitted: bool,
    /// Servers with joined members before the join.
    pub servers: Vec<OwnedServerName>,
}

/// A request of another server about one of its users and a room.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub origin: &'a ServerName,
    pub room_id: &'a RoomId,
}

impl Federation {
    /// A template of a join, leave or knock. `versions` are those that the other server supports.
    ///
    /// # Errors
    /// The user is of another server than the one that asks; this server is not in the room; the rules refuse the event.
    pub async fn template(
        &self,
        asked: Asked<'_>,
        user: &UserId,
        membership: MembershipState,
        versions: Option<&[RoomVersionId]>,
    ) -> Result<Template, MembershipError> {
        if user.server_name() != asked.origin {
            return Err(MembershipError::Forbidden(
                "the user is of another server".into(),
            ));
        }
        let room = self.resident_for(asked).await?;
        if membership != MembershipState::Leave {
            self.require_whole(room)?;
        }
        let mut writer = self.inner.rooms.write(room).await?;
        let version = writer.version()?;
        if versions.is_some_and(|versions| !versions.contains(&version)) {
            return Err(MembershipError::IncompatibleVersion(version));
        }
        let mut content = CanonicalJsonObject::new();
        content.insert(
            "membership".to_owned(),
            membership.as_str().to_owned().into(),
        );
        if membership == MembershipState::Join
            && let Some(authorizer) = self.inner.rooms.join_authorizer(&mut writer, user).await?
        {
            content.insert(
                "join_authorised_via_users_server".to_owned(),
                authorizer.to_string().into(),
            );
        }
        let new = NewEvent::state(
            user.to_owned(),
            TimelineEventType::RoomMember,
            user.as_str(),
            content,
        );
        let (event, version) = writer.template(new).await?;
        Ok(Template { event, version })
    }

    /// Takes in a join and answers with the state before it.
    ///
    /// # Errors
    /// The event is not a join of the server's own user, is not signed, or the rules refuse it.
    pub async fn take_join(
        &self,
        asked: Asked<'_>,
        (event_id, event): (&EventId, &RawValue),
        omit: Omit,
    ) -> Result<Joined, MembershipError> {
        let room = self.resident_for(asked).await?;
        self.require_whole(room)?;
        let (rules, mut given) =
            self.own_event(asked, room, (event_id, event), &MembershipState::Join)?;
        self.require_permit(room, &given).await?;
        self.inner
            .signer
            .countersign(&mut given.parsed, rules)
            .map_err(|error| MembershipError::Invalid(error.to_string().into()))?;
        let servers = self.servers_before(room).await?;
        let event = self.take_vouched(room, given, rules).await?;
        let rooms = self.inner.rooms.clone();
        let read = move |snapshot: &Snapshot| -> Result<_, rooms::Error> {
            let handover = rooms.handover(snapshot, room, &event, omit)?;
            Ok(Joined {
                room,
                event: event.pdu.json.clone(),
                state: handover.state,
                auth_chain: handover.auth_chain,
                members_omitted: handover.members_omitted,
                servers,
            })
        };
        Ok(self.inner.store.read(read).await?)
    }

    /// Takes in a leave: of a user who rejects an invite, takes back a knock, or leaves with others of its server staying.
    ///
    /// # Errors
    /// As [`Federation::take_join`].
    pub async fn take_leave(
        &self,
        asked: Asked<'_>,
        (event_id, event): (&EventId, &RawValue),
    ) -> Result<(), MembershipError> {
        let room = self.resident_for(asked).await?;
        let (rules, given) =
            self.own_event(asked, room, (event_id, event), &MembershipState::Leave)?;
        self.take_vouched(room, given, rules).await?;
        Ok(())
    }

    /// Takes in a knock and answers with what the user may see of the room.
    ///
    /// # Errors
    /// As [`Federation::take_join`].
    pub async fn take_knock(
        &self,
        asked: Asked<'_>,
        (event_id, event): (&EventId, &RawValue),
    ) -> Result<Vec<Box<RawValue>>, MembershipError> {
        let room = self.resident_for(asked).await?;
        self.require_whole(room)?;
        let (rules, given) =
            self.own_event(asked, room, (event_id, event), &MembershipState::Knock)?;
        let user = given.sender.clone();
        self.take_vouched(room, given, rules).await?;
        let mut writer = self.inner.rooms.write(room).await?;
        Ok(writer.shown_state(&user).await?)
    }

    /// The room, if this server is in it and the other may ask.
    ///
    /// # Errors
    /// [`MembershipError::NotFound`]; [`MembershipError::Forbidden`] by the room's server ACL.
    ///
    /// Spec: s2s, "Server Access Control Lists (ACLs)".
    pub(super) async fn resident_for(
        &self,
        asked: Asked<'_>,
    ) -> Result<RoomNumber, MembershipError> {
        let rooms = &self.inner.rooms;
        if rooms.residence(asked.room_id) != Residence::Resident {
            return Err(MembershipError::NotFound);
        }
        let room = rooms.resident(asked.room_id)?;
        let (rooms, origin) = (rooms.clone(), asked.origin.to_owned());
        let is_allowed = self
            .inner
            .store
            .read(move |snapshot| rooms.acl_allows(snapshot, room, &origin))
            .await?;
        match is_allowed {
            true => Ok(room),
            false => Err(MembershipError::Forbidden(
                "your server is denied access to this room".into(),
            )),
        }
    }

    /// Who does not know who is in the room can let nobody in.
    fn require_whole(&self, room: RoomNumber) -> Result<(), MembershipError> {
        match self.inner.rooms.is_partial(room) {
            true => Err(MembershipError::NotFound),
            false => Ok(()),
        }
    }

    /// An event of the asking server's user about itself.
    fn own_event(
        &self,
        asked: Asked<'_>,
        room: RoomNumber,
        (event_id, event): (&EventId, &RawValue),
        membership: &MembershipState,
    ) -> Result<(&'static RoomVersionRules, Given), MembershipError> {
        let version = self.inner.rooms.room_version(room)?;
        let rules = rules_of(&version)?;
        let given = Given::read(event, rules, asked.room_id, membership)?;
        if given.parsed.event_id != event_id {
            return Err(MembershipError::Invalid(
                "the path names another event".into(),
            ));
        }
        if given.sender != given.target {
            return Err(MembershipError::Invalid(
                "the sender is not the user whose membership this is".into(),
            ));
        }
        if given.sender.server_name() != asked.origin {
            return Err(MembershipError::Forbidden(
                "the user is of another server".into(),
            ));
        }
        Ok((rules, given))
    }

    /// Of a join that one of our users is said to allow: whether that is so now.
    async fn require_permit(&self, room: RoomNumber, given: &Given) -> Result<(), MembershipError> {
        let authorizer = given.content("join_authorised_via_users_server");
        let is_ours = authorizer
            .and_then(|user| <&UserId>::try_from(user).ok())
            .is_some_and(|user| self.inner.accounts.is_local(user));
        if is_ours {
            let rooms = &self.inner.rooms;
            let mut writer = rooms.write(room).await?;
            rooms.join_authorizer(&mut writer, &given.sender).await?;
        }
        Ok(())
    }

    async fn servers_before(
        &self,
        room: RoomNumber,
    ) -> Result<Vec<OwnedServerName>, MembershipError> {
        let rooms = self.inner.rooms.clone();
        let read = move |snapshot: &Snapshot| rooms.servers(snapshot, room);
        let mut servers = self.inner.store.read(read).await?;
        servers.insert(0, self.inner.signer.server_name().to_owned());
        Ok(servers)
    }

    /// Checks the signatures of an event that we vouch for, and takes it into the room. The room's other servers get it
    /// from us.
    pub(super) async fn take_vouched(
        &self,
        room: RoomNumber,
        given: Given,
        rules: &'static RoomVersionRules,
    ) -> Result<Arc<StoredEvent>, MembershipError> {
        let event = self.verify_one(given.parsed, rules).await;
        let event = event.ok_or(MembershipError::Forbidden(
            "the event is not signed as it should be".into(),
        ))?;
        self.take_in(room, event, rules).await
    }

    /// Takes an event that we vouch for into the room, with the signature of the room's policy server.
    pub(super) async fn take_in(
        &self,
        room: RoomNumber,
        event: Verified,
        rules: &'static RoomVersionRules,
    ) -> Result<Arc<StoredEvent>, MembershipError> {
        let rooms = &self.inner.rooms;
        let policy = rooms.write(room).await?.policy_server().await?;
        let event = self.approved(policy, event, rules).await?;
        let mut writer = rooms.write(room).await?;
        let received = writer.receive(event, Intake::Vouched, Batch::new()).await?;
        drop(writer);
        match received {
            Received::Settled { event, commit, .. } => {
                match commit {
                    Some(commit) => commit.await?,
                    // It was taken in before, maybe just now.
                    None => self.inner.store.submit(Batch::new()).await?,
                };
                let unwanted =
                    flag::REJECTED_BY_AUTH_EVENTS | flag::REJECTED_BY_STATE | flag::SOFT_FAILED;
                match event.meta.has(unwanted) {
                    true => Err(MembershipError::Forbidden(
                        "the event is not allowed".into(),
                    )),
                    false => Ok(event),
                }
            }
            Received::MissingAuth(_) | Received::MissingPrev(_) => Err(MembershipError::Invalid(
                "the event builds on events that this server does not have".into(),
            )),
        }
    }

    /// Changes the own membership of a user in a room that this server is in.
    pub(super) async fn change_own(
        &self,
        user: &UserId,
        room_id: &OwnedRoomId,
        membership: MembershipState,
        extra: Extra,
    ) -> Result<(), MembershipError> {
        let action = MembershipAction {
            sender: user.to_owned(),
            target: user.to_owned(),
            membership,
            extra,
            before: &[],
        };
        Ok(self.inner.rooms.set_membership(room_id, action).await?)
    }
}

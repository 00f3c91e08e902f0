//! Invites across servers, in both directions.
//!
//! An invite is signed by both servers before it is in the room, so it is made on the head, sent to the invited server,
//! and taken in when it comes back. An invite that comes to us is kept beside the user, as we are not in the room.
//!
//! Spec: s2s, "Inviting to a room".

use std::time::Duration;

use bytes::Bytes;
use ruma::{
    EventId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, RoomVersionId, ServerName, UserId,
    api::federation::membership::{RawStrippedState, create_invite},
    events::room::member::MembershipState,
    room_version_rules::RoomVersionRules,
};
use serde_json::value::RawValue;

use super::{
    Error, Federation,
    client::Limits,
    join::sending_path,
    knock::told,
    leave::as_raw,
    membership::{Given, MembershipError, membership_in, rules_of, text_of},
    resident::Asked,
};
use crate::{
    events::{Verified, canonical::Loose, format, version},
    rooms::{
        self, Class, MembershipAction, NewEvent, Outside, OutsideChange, Residence, StrippedState,
    },
    storage::Snapshot,
};

/// How long the invited server has to sign.
const INVITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Entries of the state that comes with an invite; rooms have less than ten that are of use.
const MAX_SHOWN: usize = 50;

/// An invite as another server sends it.
#[derive(Clone, Copy, Debug)]
pub struct Invitation<'a> {
    pub event_id: &'a EventId,
    pub version: &'a RoomVersionId,
    pub event: &'a RawValue,
    pub shown: &'a [RawStrippedState],
}

impl Federation {
    /// Invites a user of any server.
    ///
    /// # Errors
    /// The rules refuse the invite; the invited user's server cannot be reached or refuses it.
    pub async fn invite(
        &self,
        room_id: &RoomId,
        action: MembershipAction,
    ) -> Result<(), MembershipError> {
        let rooms = &self.inner.rooms;
        if self.inner.accounts.is_local(&action.target) {
            return Ok(rooms.set_membership(room_id, action).await?);
        }
        let event = rooms.membership_event(&action).await?;
        self.invite_with(room_id, event).await?;
        Ok(())
    }

    /// Invites a user of another server with an event of ours.
    ///
    /// # Errors
    /// As [`Federation::invite`].
    pub async fn invite_with(
        &self,
        room_id: &RoomId,
        event: NewEvent,
    ) -> Result<ruma::OwnedEventId, MembershipError> {
        let rooms = &self.inner.rooms;
        let target = event
            .state_key
            .as_deref()
            .and_then(|user| UserId::parse(user).ok());
        let target = target.ok_or(MembershipError::Invalid("there is nobody to invite".into()))?;
        let room = rooms.resident(room_id)?;
        let mut writer = rooms.write(room).await?;
        let sender = event.sender.clone();
        let proposed = writer.propose(event).await?;
        let shown = writer.shown_state(&sender).await?;
        let version = writer.version()?;
        let policy = writer.policy_server().await?;
        drop(writer);
        let rules = rules_of(&version)?;
        let proposed = self.approved(policy, proposed, rules).await?;
        let event_id = proposed.event_id.clone();
        let given = self
            .countersigned(target.server_name(), room_id, (&proposed, shown), &version)
            .await?;
        self.take_vouched(room, given, rules).await?;
        Ok(event_id)
    }

    /// The invite with the signature of the invited server.
    async fn countersigned(
        &self,
        server: &ServerName,
        room_id: &RoomId,
        (proposed, shown): (&Verified, Vec<Box<RawValue>>),
        version: &RoomVersionId,
    ) -> Result<Given, MembershipError> {
        let rules = rules_of(version)?;
        let limits = Limits {
            timeout: INVITE_TIMEOUT,
            ..self.client().default_limits()
        };
        let request = create_invite::v2::Request::new(
            room_id.to_owned(),
            proposed.event_id.clone(),
            version.clone(),
            as_raw(proposed)?,
            shown.iter().cloned().map(RawStrippedState::Pdu).collect(),
        );
        let event = match self.client().send_within(server, request, limits).await {
            Err(error) if error.is_unrecognized() && rules.event_format.require_event_id => {
                self.countersigned_v1(server, room_id, (proposed, &shown))
                    .await?
            }
            answer => answer?.event,
        };
        let given = Given::read(&event, rules, room_id, &MembershipState::Invite)
            .map_err(|error| MembershipError::bad_answer(server, error.to_string()))?;
        if given.parsed.event_id != proposed.event_id {
            let reason = "it is another event that was signed";
            return Err(MembershipError::bad_answer(server, reason));
        }
        Ok(given)
    }

    /// The same by a server that has only the first version of the endpoint, which is for rooms of versions 1 and 2.
    ///
    /// Spec: s2s, "PUT /_matrix/federation/v1/invite/{roomId}/{eventId}".
    async fn countersigned_v1(
        &self,
        server: &ServerName,
        room_id: &RoomId,
        (proposed, shown): (&Verified, &[Box<RawValue>]),
    ) -> Result<Box<RawValue>, MembershipError> {
        #[derive(serde::Deserialize)]
        struct Answer {
            event: Box<RawValue>,
        }
        let limits = Limits {
            timeout: INVITE_TIMEOUT,
            ..self.client().default_limits()
        };
        let path = sending_path("v1/invite", room_id, &proposed.event_id);
        let body = v1_body(proposed, shown);
        let client = self.client();
        let answer = client.put_canonical(server, &path, body, limits).await?;
        let answer: (u16, Answer) = serde_json::from_slice(answer.body())
            .map_err(|error| MembershipError::bad_answer(server, error.to_string()))?;
        Ok(answer.1.event)
    }

    /// Takes an invite of one of our users and signs it.
    ///
    /// # Errors
    /// The event is no invite of the server that sends it, or not signed by it; the user is not here, or is in the room.
    pub async fn take_invite(
        &self,
        asked: Asked<'_>,
        invitation: Invitation<'_>,
    ) -> Result<Box<RawValue>, MembershipError> {
        let Asked { origin, room_id } = asked;
        let rules = rules_of(invitation.version)?;
        let mut given = Given::read(invitation.event, rules, room_id, &MembershipState::Invite)?;
        self.check_invited(&given).await?;
        let by_third_party = given.has_content("third_party_invite");
        if given.sender.server_name() != origin && !by_third_party {
            return Err(MembershipError::Invalid(
                "the sender is of another server than yours".into(),
            ));
        }
        if given.parsed.event_id != invitation.event_id {
            return Err(MembershipError::Invalid(
                "the path names another event".into(),
            ));
        }
        let residence = self.inner.rooms.residence(room_id);
        if residence != Residence::Away {
            self.check_not_in_room(asked, &given.target).await?;
        }
        self.check_shown(room_id, rules, invitation.shown).await?;
        let signed = self.inner.signer.countersign(&mut given.parsed, rules);
        signed.map_err(|error| MembershipError::Invalid(error.to_string().into()))?;
        let target = given.target.clone();
        let event = self.verify_one(given.parsed, rules).await;
        let event = event.ok_or(MembershipError::Invalid(
            "the event is not signed as it should be".into(),
        ))?;
        if residence != Residence::Resident {
            let place = (target, room_id.to_owned());
            self.keep_invite(place, (origin, &event), invitation)
                .await?;
        }
        as_raw(&event)
    }

    async fn keep_invite(
        &self,
        (user, room_id): (OwnedUserId, OwnedRoomId),
        (origin, event): (&ServerName, &Verified),
        invitation: Invitation<'_>,
    ) -> Result<(), MembershipError> {
        let shown = invitation.shown.iter().map(told);
        let servers: Vec<OwnedServerName> =
            self.askable([event.sender.server_name().to_owned(), origin.to_owned()]);
        let change = OutsideChange {
            user,
            room_id,
            class: Class::Invite,
            stripped: Some(StrippedState::new(shown, event)),
            row: Outside::new(invitation.version.as_str(), event, servers),
        };
        // False: this server has come into the room meanwhile, and gets the event as the others do.
        let _changed: bool = self.inner.rooms.set_outside(change).await?;
        Ok(())
    }

    /// That the invited user has an account here that can be used.
    async fn check_invited(&self, given: &Given) -> Result<(), MembershipError> {
        if !self.inner.accounts.is_local(&given.target) {
            return Err(MembershipError::Invalid(
                "the invited user is of another server".into(),
            ));
        }
        let (accounts, user) = (self.inner.accounts.clone(), given.target.clone());
        let read = move |snapshot: &Snapshot| accounts.account_info(snapshot, &user);
        match self.inner.store.read(read).await? {
            Some(account) if !account.is_deactivated => Ok(()),
            _ => Err(MembershipError::Forbidden(
                "the invited user has no account here".into(),
            )),
        }
    }

    /// Of a room that is here: that the server may ask, and that the user is neither in it nor banned.
    async fn check_not_in_room(
        &self,
        asked: Asked<'_>,
        user: &UserId,
    ) -> Result<(), MembershipError> {
        if self.inner.rooms.residence(asked.room_id) != Residence::Resident {
            return Ok(());
        }
        let room = self.resident_for(asked).await?;
        let mut writer = self.inner.rooms.write(room).await?;
        match writer.membership(user).await? {
            Some(Class::Join | Class::Ban) => Err(MembershipError::Forbidden(
                "the user is in the room, or banned from it".into(),
            )),
            _ => Ok(()),
        }
    }

    /// The state that comes with an invite. Where the room's ID is made from the create event, that it is whole, of the
    /// room, and signed; in older versions servers still send less.
    async fn check_shown(
        &self,
        room_id: &RoomId,
        rules: &'static RoomVersionRules,
        shown: &[RawStrippedState],
    ) -> Result<(), MembershipError> {
        let Some(create) = version::implicit_create(room_id, rules) else {
            return Ok(());
        };
        let invalid = |text: &'static str| MembershipError::Invalid(text.into());
        if shown.len() > MAX_SHOWN {
            return Err(invalid("there is too much in invite_room_state"));
        }
        let mut events = Vec::with_capacity(shown.len());
        for event in shown {
            let event = format::parse(told(event).as_bytes(), rules)
                .map_err(|_malformed| invalid("invite_room_state has what is no event"))?;
            let is_of_room = match text_of(&event.object, "room_id") {
                Some(named) => named == room_id.as_str(),
                None => event.event_id == create,
            };
            if !is_of_room {
                return Err(invalid("invite_room_state has an event of another room"));
            }
            events.push(event);
        }
        if !events.iter().any(|event| event.event_id == create) {
            return Err(invalid("invite_room_state has no create event"));
        }
        let verified = self.keys().verify_pdus(rules, events).await;
        match verified.iter().all(Result::is_ok) {
            true => Ok(()),
            false => Err(invalid("invite_room_state has an event that is not signed")),
        }
    }

    /// Takes what another server sends of a room that this server is not in: the end of an invite, if who invited says so.
    ///
    /// # Errors
    /// [`rooms::Error::NotFound`] for everything else.
    pub async fn receive_outside(&self, origin: &ServerName, pdu: &RawValue) -> Result<(), Error> {
        match self.take_outside(pdu).await {
            Ok(true) => Ok(()),
            Err(MembershipError::Storage(error)) => Err(error.into()),
            Err(MembershipError::Rooms(error)) => Err(error.into()),
            Ok(false) | Err(_) => {
                tracing::debug!(%origin, "an event of a room that this server is not in");
                Err(rooms::Error::NotFound.into())
            }
        }
    }

    async fn take_outside(&self, pdu: &RawValue) -> Result<bool, MembershipError> {
        let Ok(Loose { object, .. }) = Loose::parse(pdu.get().as_bytes()) else {
            return Ok(false);
        };
        let room_id = text_of(&object, "room_id").and_then(|id| RoomId::parse(id).ok());
        let target = text_of(&object, "state_key").and_then(|id| UserId::parse(id).ok());
        let (Some(room_id), Some(target)) = (room_id, target) else {
            return Ok(false);
        };
        let membership = match membership_in(&object) {
            Some("leave") => MembershipState::Leave,
            Some("ban") => MembershipState::Ban,
            _ => return Ok(false),
        };
        if !self.inner.accounts.is_local(&target) {
            return Ok(false);
        }
        let Some((Class::Invite, row)) = self.outside(&target, &room_id).await? else {
            return Ok(false);
        };
        let rules =
            rules_of(&RoomVersionId::try_from(row.version.as_str()).unwrap_or(RoomVersionId::V1))?;
        let Ok(given) = Given::read(pdu, rules, &room_id, &membership) else {
            return Ok(false);
        };
        let inviter = row.pdu().map(|invite| invite.sender);
        if inviter.as_ref() != Some(&given.sender) {
            return Ok(false);
        }
        let Some(event) = self.verify_one(given.parsed, rules).await else {
            return Ok(false);
        };
        let change = OutsideChange {
            user: target,
            room_id,
            class: Class::of(&membership),
            row: Outside::new(&row.version, &event, row.servers),
            stripped: None,
        };
        Ok(self.inner.rooms.set_outside(change).await?)
    }
}

/// An invite with what it shows of its room beside what is signed. `unsigned` is the last key of an event.
fn v1_body(proposed: &Verified, shown: &[Box<RawValue>]) -> Bytes {
    let event = proposed.json.strip_suffix(b"}").unwrap_or(&proposed.json);
    let mut body = event.to_vec();
    body.extend_from_slice(b",\"unsigned\":{\"invite_room_state\":[");
    for (at, event) in shown.iter().enumerate() {
        if at > 0 {
            body.push(b',');
        }
        body.extend_from_slice(event.get().as_bytes());
    }
    body.extend_from_slice(b"]}}");
    body.into()
}

//! Invites by e-mail address or telephone number, once somebody has proved that the address is theirs.
//!
//! The identity server tells the homeserver of that user, which makes the invite where it is in the room, and asks the
//! server of the inviter to make it where not. Who may be invited so is for the authorization rules to say: they check what
//! the identity server has signed against the keys that the room's state has.
//!
//! Spec: s2s, "Third-party invites".

use ruma::{
    CanonicalJsonObject, OwnedRoomId, OwnedUserId,
    api::federation::thirdparty::exchange_invite,
    canonical_json::CanonicalJsonValue,
    events::{TimelineEventType, room::member::MembershipState},
    serde::Raw,
};

use super::{
    Federation,
    membership::{MembershipError, text_of},
    resident::Asked,
};
use crate::{
    events::canonical,
    rooms::{NewEvent, Residence},
};

/// An invite whose address has been bound to a user.
#[derive(Clone, Debug)]
pub struct BoundInvite {
    pub room_id: OwnedRoomId,
    pub sender: OwnedUserId,
    pub user: OwnedUserId,
    /// What the identity server has signed.
    pub signed: CanonicalJsonObject,
}

impl Federation {
    /// Makes the invite of a user of another server that proved an address, and sends it there.
    ///
    /// # Errors
    /// The content is no such invite; this server is not in the room; the rules refuse it.
    pub async fn exchange_invite(
        &self,
        asked: Asked<'_>,
        (sender, user): (OwnedUserId, OwnedUserId),
        content: &CanonicalJsonObject,
    ) -> Result<(), MembershipError> {
        if user.server_name() != asked.origin {
            return Err(MembershipError::Forbidden(
                "the invited user is of another server".into(),
            ));
        }
        let signed = match content.get("third_party_invite") {
            Some(CanonicalJsonValue::Object(invite)) => invite.get("signed"),
            _ => None,
        };
        let (Some(CanonicalJsonValue::Object(signed)), Some("invite")) =
            (signed, text_of(content, "membership"))
        else {
            return Err(MembershipError::Invalid(
                "this is no invite by a third party".into(),
            ));
        };
        self.resident_for(asked).await?;
        let invite = BoundInvite {
            room_id: asked.room_id.to_owned(),
            sender,
            user,
            signed: signed.clone(),
        };
        let event = self.bound_event(&invite).await?;
        self.invite_with(asked.room_id, event).await?;
        Ok(())
    }

    /// Makes the invite of one of our users that an identity server tells of.
    ///
    /// # Errors
    /// As [`Federation::exchange_invite`], or the inviter's server refuses it.
    pub async fn bind_invite(&self, invite: &BoundInvite) -> Result<(), MembershipError> {
        if !self.inner.accounts.is_local(&invite.user) {
            return Err(MembershipError::Forbidden(
                "the user is of another server".into(),
            ));
        }
        if self.inner.rooms.residence(&invite.room_id) != Residence::Resident {
            return self.ask_for_invite(invite).await;
        }
        let event = self.bound_event(invite).await?;
        let room = self.inner.rooms.resident(&invite.room_id)?;
        let mut writer = self.inner.rooms.write(room).await?;
        let proposed = writer.propose(event).await?;
        let rules = writer.rules();
        drop(writer);
        self.take_in(room, proposed, rules).await?;
        Ok(())
    }

    async fn ask_for_invite(&self, invite: &BoundInvite) -> Result<(), MembershipError> {
        let content = content(&invite.signed, None);
        let text = String::from_utf8(canonical::to_vec(&content)).unwrap_or_default();
        let content = Raw::from_json_string(text)
            .map_err(|error| MembershipError::Invalid(error.to_string().into()))?;
        let request = exchange_invite::v1::Request::new(
            invite.room_id.clone(),
            invite.sender.clone(),
            invite.user.clone(),
            content,
        );
        let server = invite.sender.server_name();
        self.client().send(server, request).await?;
        Ok(())
    }

    /// The invite, with the name under which the room knows the address.
    async fn bound_event(&self, invite: &BoundInvite) -> Result<NewEvent, MembershipError> {
        let token = text_of(&invite.signed, "token").unwrap_or_default();
        let room = self.inner.rooms.resident(&invite.room_id)?;
        let mut writer = self.inner.rooms.write(room).await?;
        let invited = writer.state("m.room.third_party_invite", token).await?;
        let invited = invited.and_then(|event| event.pdu.content_as::<CanonicalJsonObject>().ok());
        let invited = invited.ok_or(MembershipError::Forbidden(
            "nobody was invited with this token".into(),
        ))?;
        let name = text_of(&invited, "display_name");
        Ok(NewEvent::state(
            invite.sender.clone(),
            TimelineEventType::RoomMember,
            invite.user.as_str(),
            content(&invite.signed, name),
        ))
    }
}

fn content(signed: &CanonicalJsonObject, display_name: Option<&str>) -> CanonicalJsonObject {
    let mut third_party = CanonicalJsonObject::new();
    third_party.insert(
        "signed".to_owned(),
        CanonicalJsonValue::Object(signed.clone()),
    );
    if let Some(name) = display_name {
        third_party.insert("display_name".to_owned(), name.to_owned().into());
    }
    let mut content = CanonicalJsonObject::new();
    let membership = MembershipState::Invite.as_str().to_owned();
    content.insert("membership".to_owned(), membership.into());
    content.insert(
        "third_party_invite".to_owned(),
        CanonicalJsonValue::Object(third_party),
    );
    content
}

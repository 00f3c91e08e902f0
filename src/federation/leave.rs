//! Leaving rooms: locally where this server is in the room; through a server that is where an invite is rejected or a
//! knock taken back. If none can be told, the user is out all the same.
//!
//! Spec: s2s, "Leaving Rooms (Rejecting Invites)".

use std::time::Duration;

use ruma::{
    CanonicalJsonObject, OwnedRoomId, OwnedServerName, RoomId, RoomVersionId, UserId,
    api::federation::membership::{create_leave_event, prepare_leave_event},
    events::{TimelineEventType, room::member::MembershipState},
};
use serde_json::value::to_raw_value;

use super::{
    Federation,
    client::Limits,
    membership::{Draft, MembershipError, rules_of},
};
use crate::{
    events::{NewPdu, Verified},
    rooms::{self, Class, Extra, Outside, OutsideChange, Residence},
    storage::Snapshot,
};

/// How long the servers of a room have, together, to hear that a user does not come.
const LEAVE_DEADLINE: Duration = Duration::from_secs(15);

impl Federation {
    /// Ends a user's own membership.
    ///
    /// # Errors
    /// The user has no membership that could be ended.
    pub async fn leave(
        &self,
        user: &UserId,
        room_id: &RoomId,
        extra: Extra,
    ) -> Result<(), MembershipError> {
        let room_id = room_id.to_owned();
        let outside = self.outside(user, &room_id).await?;
        let outside = outside.filter(|(class, _)| matches!(class, Class::Invite | Class::Knock));
        let residence = self.inner.rooms.residence(&room_id);
        let Some((_, row)) = outside else {
            if residence == Residence::Away {
                return self.leave_behind(user, &room_id, extra).await;
            }
            return self
                .change_own(user, &room_id, MembershipState::Leave, extra)
                .await;
        };
        if residence == Residence::Resident {
            // The room's own state may know of the invite by now, or may never have known of it.
            let here = self.change_own(user, &room_id, MembershipState::Leave, extra);
            return match here.await {
                Ok(()) => Ok(()),
                Err(_unknown) => {
                    let row = self.untold(user, &room_id, row)?;
                    self.leave_alone(user, &room_id, row).await
                }
            };
        }
        let told = self.tell_leave(user, &room_id, &row.servers, extra).await;
        let row = match told {
            Some((version, event, server)) => Outside::new(&version, &event, vec![server]),
            None => self.untold(user, &room_id, row)?,
        };
        self.leave_alone(user, &room_id, row).await
    }

    /// A leave that no other server hears of: clients want an event all the same.
    fn untold(
        &self,
        user: &UserId,
        room_id: &OwnedRoomId,
        row: Outside,
    ) -> Result<Outside, MembershipError> {
        let Some(invite) = row.pdu() else {
            return Ok(row);
        };
        let version = RoomVersionId::try_from(row.version.as_str()).unwrap_or(RoomVersionId::V1);
        let mut content = CanonicalJsonObject::new();
        let membership = MembershipState::Leave.as_str().to_owned();
        content.insert("membership".to_owned(), membership.into());
        let rules = rules_of(&version)?;
        let named = self.inner.rooms.named(rules, [&invite])?;
        let new = NewPdu {
            room_id: Some(room_id.clone()),
            sender: user.to_owned(),
            event_type: TimelineEventType::RoomMember,
            state_key: Some(user.to_string()),
            content,
            origin_server_ts: self.now(),
            depth: invite.depth.saturating_add(1),
            prev_events: vec![invite.event_id.clone()],
            auth_events: vec![invite.event_id],
            redacts: None,
            named,
        };
        let built = self.inner.signer.build(new, rules);
        let event = built.map_err(rooms::Error::from)?;
        Ok(Outside::new(&row.version, &event, row.servers))
    }

    /// The membership of a user in a room that this server is not in.
    pub(super) async fn outside(
        &self,
        user: &UserId,
        room_id: &RoomId,
    ) -> Result<Option<(Class, Outside)>, MembershipError> {
        let Some(room) = self.inner.rooms.number(room_id) else {
            return Ok(None);
        };
        let (rooms, accounts) = (self.inner.rooms.clone(), self.inner.accounts.clone());
        let user = user.to_owned();
        let read = move |snapshot: &Snapshot| -> Result<_, MembershipError> {
            match accounts.user_number(snapshot, &user)? {
                Some(user) => Ok(rooms.outside(snapshot, user, room)?),
                None => Ok(None),
            }
        };
        self.inner.store.read(read).await
    }

    /// Leaves a room that this server once was in, and in which the user was invited or knocked then.
    async fn leave_behind(
        &self,
        user: &UserId,
        room_id: &OwnedRoomId,
        extra: Extra,
    ) -> Result<(), MembershipError> {
        if self.has_left(user, room_id).await? {
            return Ok(());
        }
        let servers = self.others_in(room_id).await?;
        match self
            .tell_leave(user, room_id, &servers, extra.clone())
            .await
        {
            Some((version, event, server)) => {
                let row = Outside::new(&version, &event, vec![server]);
                self.leave_alone(user, room_id, row).await
            }
            None => {
                self.change_own(user, room_id, MembershipState::Leave, extra)
                    .await
            }
        }
    }

    /// Whether a user has left a room that this server was in.
    async fn has_left(&self, user: &UserId, room_id: &RoomId) -> Result<bool, MembershipError> {
        let Ok(room) = self.inner.rooms.resident(room_id) else {
            return Ok(false);
        };
        let (rooms, accounts) = (self.inner.rooms.clone(), self.inner.accounts.clone());
        let user = user.to_owned();
        let read = move |snapshot: &Snapshot| -> Result<_, MembershipError> {
            let entry = match accounts.user_number(snapshot, &user)? {
                Some(user) => rooms.user_room(snapshot, user, room)?,
                None => None,
            };
            Ok(entry.is_some_and(|entry| entry.class == Class::Leave))
        };
        self.inner.store.read(read).await
    }

    async fn leave_alone(
        &self,
        user: &UserId,
        room_id: &OwnedRoomId,
        row: Outside,
    ) -> Result<(), MembershipError> {
        let change = OutsideChange {
            user: user.to_owned(),
            room_id: room_id.clone(),
            class: Class::Leave,
            row,
            stripped: None,
        };
        // False: the room's own events have ended the membership meanwhile.
        let _changed: bool = self.inner.rooms.set_outside(change).await?;
        Ok(())
    }

    /// Tells one of the servers that the user does not come; the event, the room's version and the server, if one took it.
    async fn tell_leave(
        &self,
        user: &UserId,
        room_id: &OwnedRoomId,
        servers: &[OwnedServerName],
        extra: Extra,
    ) -> Option<(String, Verified, OwnedServerName)> {
        let content = self
            .own_content(user, MembershipState::Leave, extra)
            .await
            .ok()?;
        let draft = Draft {
            room_id,
            user,
            membership: MembershipState::Leave,
            content,
        };
        let deadline = self.inner.clock.instant() + LEAVE_DEADLINE;
        for server in self.askable(servers.iter().cloned()) {
            let left = deadline.saturating_duration_since(self.inner.clock.instant());
            if left.is_zero() {
                break;
            }
            match self.leave_through(&server, &draft, left).await {
                Ok((version, event)) => return Some((version, event, server)),
                Err(error) => {
                    tracing::info!(%server, %room_id, %error, "the server does not take a leave");
                }
            }
        }
        None
    }

    async fn leave_through(
        &self,
        server: &OwnedServerName,
        draft: &Draft<'_>,
        timeout: Duration,
    ) -> Result<(String, Verified), MembershipError> {
        let limits = Limits {
            timeout,
            ..self.client().default_limits()
        };
        let (room_id, user) = (draft.room_id.clone(), draft.user.to_owned());
        let request = prepare_leave_event::v1::Request::new(room_id.clone(), user);
        let made = self.client().send_within(server, request, limits).await?;
        let version = made.room_version.unwrap_or(RoomVersionId::V1);
        let event = self.sign_draft(server, draft, &made.event, rules_of(&version)?)?;
        let pdu = as_raw(&event)?;
        let request = create_leave_event::v2::Request::new(room_id, event.event_id.clone(), pdu);
        self.client().send_within(server, request, limits).await?;
        Ok((version.to_string(), event))
    }
}

/// The JSON of an event as requests carry it.
pub(super) fn as_raw(
    event: &Verified,
) -> Result<Box<serde_json::value::RawValue>, MembershipError> {
    let object: &serde_json::value::RawValue = serde_json::from_slice(&event.json)
        .map_err(|_malformed| MembershipError::Invalid("the event is not JSON".into()))?;
    to_raw_value(object)
        .map_err(|_malformed| MembershipError::Invalid("the event is not JSON".into()))
}

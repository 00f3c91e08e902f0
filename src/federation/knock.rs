//! Knocking: locally where this server is in the room, through a server that is where not.
//!
//! Spec: s2s, "Knocking upon a room".

use ruma::{
    OwnedRoomId, OwnedServerName, RoomId, UserId,
    api::federation::membership::{RawStrippedState, create_knock_event, prepare_knock_event},
    events::room::member::MembershipState,
};

use super::{
    Federation,
    client::Limits,
    join::MAKE_TIMEOUT,
    leave::as_raw,
    membership::{Draft, MembershipError, rules_of},
};
use crate::{
    events::version,
    rooms::{Class, Extra, Outside, OutsideChange, Residence, StrippedState},
};

impl Federation {
    /// Asks to be let into a room. `via` are servers that may be in the room.
    ///
    /// # Errors
    /// The rules refuse the knock; nobody could be asked; the most telling of what those said that were.
    pub async fn knock(
        &self,
        user: &UserId,
        room_id: &RoomId,
        via: &[OwnedServerName],
        extra: Extra,
    ) -> Result<(), MembershipError> {
        let room_id = room_id.to_owned();
        let residence = self.inner.rooms.residence(&room_id);
        let via = self.askable(via.iter().cloned());
        if residence == Residence::Resident || (residence == Residence::Deserted && via.is_empty())
        {
            return self
                .change_own(user, &room_id, MembershipState::Knock, extra)
                .await;
        }
        let mut candidates = via;
        if candidates.is_empty() {
            let known = match self.outside(user, &room_id).await? {
                Some((_, row)) => row.servers,
                None => self.others_in(&room_id).await?,
            };
            let named_after = room_id.server_name().map(ToOwned::to_owned);
            candidates = self.askable(known.into_iter().chain(named_after));
        }
        let content = self
            .own_content(user, MembershipState::Knock, extra)
            .await?;
        let draft = Draft {
            room_id: &room_id,
            user,
            membership: MembershipState::Knock,
            content,
        };
        let mut failed = MembershipError::NoCandidates;
        for server in &candidates {
            match self.knock_through(server, &candidates, &draft).await {
                Ok(()) => return Ok(()),
                Err(error) if error.may_try_another() => {
                    tracing::info!(%server, %room_id, %error, "could not knock through this server");
                    failed = failed.or(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(failed)
    }

    async fn knock_through(
        &self,
        server: &OwnedServerName,
        candidates: &[OwnedServerName],
        draft: &Draft<'_>,
    ) -> Result<(), MembershipError> {
        let limits = Limits {
            timeout: MAKE_TIMEOUT,
            ..self.client().default_limits()
        };
        let (room_id, user): (OwnedRoomId, _) = (draft.room_id.clone(), draft.user.to_owned());
        let mut request = prepare_knock_event::v1::Request::new(room_id.clone(), user.clone());
        request.ver = version::SERVED.to_vec();
        let made = self.client().send_within(server, request, limits).await?;
        let rules = rules_of(&made.room_version)?;
        let event = self.sign_draft(server, draft, &made.event, rules)?;
        let event_id = event.event_id.clone();
        let request =
            create_knock_event::v1::Request::new(room_id.clone(), event_id, as_raw(&event)?);
        let taken = self.client().send(server, request).await?;
        let shown = taken.knock_room_state.iter().map(told);
        let others = candidates.iter().filter(|other| *other != server);
        let servers = std::iter::once(server).chain(others).cloned().collect();
        let change = OutsideChange {
            user,
            room_id,
            class: Class::Knock,
            stripped: Some(StrippedState::new(shown, &event)),
            row: Outside::new(made.room_version.as_str(), &event, servers),
        };
        // False: this server has come into the room meanwhile, and hears of the knock as of any event.
        let _changed: bool = self.inner.rooms.set_outside(change).await?;
        Ok(())
    }
}

/// The JSON of an event of a stripped state, in the old form or the new.
pub(super) fn told(event: &RawStrippedState) -> &str {
    match event {
        #[expect(deprecated, reason = "servers of versions before 1.16 send these")]
        RawStrippedState::Stripped(event) => event.json().get(),
        RawStrippedState::Pdu(event) => event.get(),
        _ => "",
    }
}

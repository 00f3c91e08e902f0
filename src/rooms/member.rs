//! What users do with their own and others' memberships: join, leave, invite, kick, ban, unban, knock.
//!
//! Spec: c2s, "Room membership".

use ruma::{
    CanonicalJsonObject, OwnedRoomId, OwnedUserId, RoomId, UserId,
    canonical_json::CanonicalJsonValue,
    events::{
        TimelineEventType,
        room::{join_rules::JoinRule, member::MembershipState},
    },
};

use super::{Class, Error, NewEvent, Residence, RoomNumber, RoomWriter, Rooms, StoredEvent};
use crate::events::power::Level;

/// Content keys that a client may add to a membership (`reason`, `third_party_signed`).
pub type Extra = CanonicalJsonObject;

/// Who does what to whom.
#[derive(Clone, Debug)]
pub struct MembershipAction {
    pub sender: OwnedUserId,
    pub target: OwnedUserId,
    pub membership: MembershipState,
    pub extra: Extra,
    /// Memberships of the target to start from; none: any.
    pub before: &'static [Class],
}

impl Rooms {
    /// Joins a room that this server is in; joining again changes nothing.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotAllowed`], and those of [`Self::join_authorizer`].
    pub async fn join(&self, user: &UserId, room_id: &RoomId, extra: Extra) -> Result<(), Error> {
        let room = self.resident(room_id)?;
        let mut writer = self.write(room).await?;
        let mut content = extra;
        if writer.membership(user).await? == Some(Class::Join) {
            // The join that made it so may be in flight.
            let joined = writer.all_in_flight();
            drop(writer);
            if let Some(joined) = joined {
                joined.await?;
            }
            return Ok(());
        }
        if let Some(authorizer) = self.join_authorizer(&mut writer, user).await? {
            content.insert(
                "join_authorised_via_users_server".to_owned(),
                CanonicalJsonValue::String(authorizer.to_string()),
            );
        }
        let event = self.join_event(user, &content).await?;
        self.send_in_turn(writer, event).await?.durable().await?;
        self.carry_settings(user, room).await
    }

    /// What follows a join through another server, when the room is here: the user's settings for the room's predecessor.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a room that is not here.
    pub async fn settle_in(&self, user: &UserId, room_id: &RoomId) -> Result<(), Error> {
        self.carry_settings(user, self.resident(room_id)?).await
    }

    /// Sets the membership of a user: leave, invite, ban, knock, and kick or unban by another's leave.
    ///
    /// # Errors
    /// As [`Self::send`]; [`Error::Forbidden`] where the membership before rules it out.
    pub async fn set_membership(
        &self,
        room_id: &RoomId,
        action: MembershipAction,
    ) -> Result<(), Error> {
        let room = self.resident(room_id)?;
        let mut writer = self.write(room).await?;
        if !action.before.is_empty() {
            let current = writer.membership(&action.target).await?;
            if !current.is_some_and(|current| action.before.contains(&current)) {
                return Err(Error::Forbidden(
                    "the membership of the user is not one that this changes".into(),
                ));
            }
        }
        let event = self.membership_event(&action).await?;
        self.send_in_turn(writer, event).await?.durable().await?;
        Ok(())
    }

    /// The join event of a user, with the profile of now.
    pub(super) async fn join_event(&self, user: &UserId, extra: &Extra) -> Result<NewEvent, Error> {
        let action = MembershipAction {
            sender: user.to_owned(),
            target: user.to_owned(),
            membership: MembershipState::Join,
            extra: extra.clone(),
            before: &[],
        };
        self.membership_event(&action).await
    }

    /// The invite of a user.
    pub async fn invite_event(
        &self,
        sender: &UserId,
        target: &UserId,
        is_direct: bool,
    ) -> Result<NewEvent, Error> {
        let mut extra = Extra::new();
        if is_direct {
            extra.insert("is_direct".to_owned(), CanonicalJsonValue::Bool(true));
        }
        let (sender, target) = (sender.to_owned(), target.to_owned());
        self.membership_event(&MembershipAction {
            sender,
            target,
            membership: MembershipState::Invite,
            extra,
            before: &[],
        })
        .await
    }

    /// The membership event of an action. Name and avatar are those of the target's profile, except where somebody
    /// else ends the membership.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn membership_event(&self, action: &MembershipAction) -> Result<NewEvent, Error> {
        let mut content = action.extra.clone();
        content.insert(
            "membership".to_owned(),
            CanonicalJsonValue::String(action.membership.as_str().to_owned()),
        );
        let with_profile = matches!(
            action.membership,
            MembershipState::Join | MembershipState::Invite | MembershipState::Knock
        );
        if with_profile && self.accounts.is_local(&action.target) {
            let number = self
                .accounts
                .intern(&[&action.target])
                .await?
                .first()
                .copied()
                .ok_or(Error::NotFound)?;
            let accounts = self.accounts.clone();
            let profile = self
                .store
                .read(move |snapshot| accounts.profile(snapshot, number))
                .await?;
            let profile = profile.unwrap_or_default();
            for (key, value) in [
                ("displayname", profile.displayname()),
                ("avatar_url", profile.avatar_url()),
            ] {
                if let Some(value) = value {
                    let value = CanonicalJsonValue::String(value.to_owned());
                    content.entry(key.to_owned()).or_insert(value);
                }
            }
        }
        let target = action.target.as_str().to_owned();
        Ok(NewEvent::state(
            action.sender.clone(),
            TimelineEventType::RoomMember,
            target,
            content,
        ))
    }

    /// For a restricted room: a local member who may invite, if `user` is in a room that lets them in. `None` if the user
    /// needs nobody (another join rule, or invited or joined already).
    ///
    /// # Errors
    /// [`Error::Forbidden`] if the user is in none of the rooms; [`Error::UnableToAuthorizeJoin`] if the user is in none that
    /// this server knows, but there are others; [`Error::UnableToGrantJoin`] if nobody here may let the user in.
    ///
    /// Spec: c2s, "Restricted rooms"; s2s, "Restricted rooms".
    pub async fn join_authorizer(
        &self,
        writer: &mut RoomWriter,
        user: &UserId,
    ) -> Result<Option<OwnedUserId>, Error> {
        let membership = writer.membership(user).await?;
        if !writer.rules().authorization.restricted_join_rule
            || matches!(membership, Some(Class::Invite | Class::Join))
        {
            return Ok(None);
        }
        let Some(rules) = writer.state("m.room.join_rules", "").await? else {
            return Ok(None);
        };
        let Some(allowed) = allowed_rooms(&rules) else {
            return Ok(None);
        };
        self.require_in_any(user, &allowed).await?;
        let found = self.local_inviter(writer).await?;
        found.map(Some).ok_or(Error::UnableToGrantJoin)
    }

    /// Refuses a user who is joined to none of the rooms.
    async fn require_in_any(&self, user: &UserId, allowed: &[OwnedRoomId]) -> Result<(), Error> {
        let known: Vec<RoomNumber> = allowed
            .iter()
            .filter(|room_id| self.residence(room_id) != Residence::Away)
            .filter_map(|room_id| self.number(room_id))
            .collect();
        let knows_all = known.len() == allowed.len();
        let (rooms, id) = (self.clone(), user.to_owned());
        let is_in_any = self
            .store
            .read(move |snapshot| -> Result<bool, Error> {
                let Some(user) = rooms.accounts.user_number(snapshot, &id)? else {
                    return Ok(false);
                };
                for room in known {
                    if rooms.is_joined(snapshot, user, room)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            })
            .await?;
        match (is_in_any, knows_all) {
            (true, _) => Ok(()),
            (false, false) => Err(Error::UnableToAuthorizeJoin),
            (false, true) => Err(Error::Forbidden(
                "you are in none of the rooms whose members may join this one".into(),
            )),
        }
    }

    /// A joined member of this server with the power to invite.
    async fn local_inviter(&self, writer: &mut RoomWriter) -> Result<Option<OwnedUserId>, Error> {
        let levels = writer.power_levels().await?;
        let room = writer.room();
        let rooms = self.clone();
        self.store
            .read(move |snapshot| -> Result<_, Error> {
                let mut best: Option<(Level, OwnedUserId)> = None;
                for (user, ..) in rooms.members(snapshot, room, Class::Join, MAX_MEMBERS_ASKED)? {
                    let user = rooms.accounts.user_id(snapshot, user)?;
                    if !rooms.accounts.is_local(&user) || !levels.may_invite(&user) {
                        continue;
                    }
                    let level = levels.user(&user);
                    if best.as_ref().is_none_or(|(known, _)| level > *known) {
                        best = Some((level, user));
                    }
                }
                Ok(best.map(|(_, user)| user))
            })
            .await
    }
}

/// Members among whom one is looked for who may let a user in.
const MAX_MEMBERS_ASKED: usize = 10_000;

/// The rooms whose members may join; `None` if the rule is not a restricted one.
fn allowed_rooms(rules: &StoredEvent) -> Option<Vec<OwnedRoomId>> {
    // The content itself: a flattened field could not be read, as the rule reads raw JSON.
    let rule = rules.pdu.content_as::<JoinRule>().ok()?;
    let (JoinRule::Restricted(restricted) | JoinRule::KnockRestricted(restricted)) = rule else {
        return None;
    };
    let rooms = restricted
        .allow
        .into_iter()
        .filter_map(|allow| match allow {
            ruma::events::room::join_rules::AllowRule::RoomMembership(membership) => {
                Some(membership.room_id)
            }
            _ => None,
        });
    Some(rooms.collect())
}

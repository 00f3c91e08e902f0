//! Carries profiles into rooms: when a local user's name or avatar changes, the member events of the user's rooms follow;
//! when an account has ended, the user leaves them.
//!
//! A follower of the log, so that a change is carried out also after a restart. Doing it twice changes nothing: a member
//! event that says the same already is not sent again.
//!
//! Spec: c2s, "Events on Change of Profile Information".

use std::{collections::BTreeSet, time::Duration};

use ruma::{
    CanonicalJsonObject, UserId, canonical_json::CanonicalJsonValue,
    events::room::member::MembershipState,
};

use super::{Class, Error, MembershipAction, NewEvent, RoomNumber, Rooms};
use crate::{
    accounts::{AVATAR_URL, AccountInfo, DISPLAYNAME, PROFILE_CHANGED, Profile, UserNumber},
    storage::{Batch, LogPage, Position, Snapshot, Topic},
    tasks::Stop,
};

const FOLLOWER: &str = "profiles";
/// Entries of the log that are looked at in one go.
const PAGE: usize = 1_000;
/// Changes that come within this time are looked at together; every commit wakes followers.
const GATHERING: Duration = Duration::from_millis(20);
/// Without a change the follower looks after this time.
const PAUSE: Duration = Duration::from_secs(60);
/// Accounts that are read in one go when the log does not reach back to the cursor.
const ACCOUNTS: usize = 500;
/// What a member event says of one join only.
const OF_ONE_JOIN: [&str; 3] = [
    "reason",
    "join_authorised_via_users_server",
    "third_party_invite",
];

/// A user whose rooms are to follow.
struct Subject {
    account: AccountInfo,
    profile: Profile,
    rooms: Vec<(RoomNumber, Class)>,
}

impl Rooms {
    /// Follows changes of profiles until it is told to stop.
    ///
    /// # Errors
    /// The store failed.
    pub async fn follow_profiles(&self, stop: Stop) -> Result<(), Error> {
        let read = |snapshot: &Snapshot| snapshot.cursor(FOLLOWER).map_err(Error::from);
        let mut after = self.store.read(read).await?.unwrap_or_default();
        while !stop.is_requested() {
            let tick = self.store.tick();
            let page = self.store.log(after, PAGE).await?;
            self.carry_page(&page).await?;
            if page.entries.is_empty() {
                // What woke is looked at in the next round, whatever it was.
                tokio::select! {
                    _woken = self.store.wait(&[Topic::Log], tick, PAUSE) => self.clock.sleep(GATHERING).await,
                    () = stop.requested() => {}
                }
            }
            after = page.upto;
        }
        Ok(())
    }

    async fn carry_page(&self, page: &LogPage) -> Result<(), Error> {
        let users: BTreeSet<UserNumber> = match page.has_gap {
            true => self.all_accounts().await?,
            false => page.entries.iter().filter_map(changed_user).collect(),
        };
        for user in &users {
            self.carry_profile(*user).await?;
        }
        if !users.is_empty() {
            self.set_cursor(page.upto).await?;
        }
        Ok(())
    }

    async fn set_cursor(&self, upto: Position) -> Result<(), Error> {
        let mut batch = Batch::new();
        batch.cursor(FOLLOWER, upto);
        self.store.submit(batch).await?;
        Ok(())
    }

    async fn all_accounts(&self) -> Result<BTreeSet<UserNumber>, Error> {
        let mut users = BTreeSet::new();
        let mut after = UserNumber(0);
        loop {
            let accounts = self.accounts.clone();
            let page = self
                .store
                .read(move |snapshot| accounts.accounts(snapshot, after, ACCOUNTS))
                .await?;
            let Some(last) = page.last() else {
                return Ok(users);
            };
            after = last.number;
            users.extend(page.iter().map(|account| account.number));
        }
    }

    /// Lets the rooms of `user` follow the profile of now, or the end of the account.
    async fn carry_profile(&self, user: UserNumber) -> Result<(), Error> {
        let rooms = self.clone();
        let read = move |snapshot: &Snapshot| rooms.subject(snapshot, user);
        let Some(subject) = self.store.read(read).await? else {
            return Ok(());
        };
        for (room, class) in &subject.rooms {
            let done = match (subject.account.is_deactivated, class) {
                (true, Class::Join | Class::Invite | Class::Knock) => {
                    self.leave_room(&subject.account.user, *room).await
                }
                (false, Class::Join) => {
                    self.carry_into(&subject.account.user, &subject.profile, *room)
                        .await
                }
                _ => Ok(()),
            };
            match done {
                Ok(()) => {}
                Err(error @ Error::Storage(_)) => return Err(error),
                // A room whose rules forbid it keeps the old name.
                Err(error) => {
                    tracing::debug!(room = room.0, %error, "a member event did not follow")
                }
            }
        }
        Ok(())
    }

    fn subject(&self, snapshot: &Snapshot, user: UserNumber) -> Result<Option<Subject>, Error> {
        let id = self.accounts.user_id(snapshot, user)?;
        let Some(account) = self.accounts.account_info(snapshot, &id)? else {
            return Ok(None);
        };
        let profile = self.accounts.profile(snapshot, user)?.unwrap_or_default();
        let rooms = self.rooms_of(snapshot, user)?;
        let rooms = rooms
            .iter()
            .map(|entry| (entry.room, entry.class))
            .collect();
        Ok(Some(Subject {
            account,
            profile,
            rooms,
        }))
    }

    async fn carry_into(
        &self,
        user: &UserId,
        profile: &Profile,
        room: RoomNumber,
    ) -> Result<(), Error> {
        let mut writer = self.write(room).await?;
        let Some(member) = writer.state("m.room.member", user.as_str()).await? else {
            return Ok(());
        };
        let Ok(before) = member.pdu.content_as::<CanonicalJsonObject>() else {
            return Ok(());
        };
        if before.get("membership") != Some(&CanonicalJsonValue::String("join".to_owned())) {
            return Ok(());
        }
        let Some(after) = with_profile(&before, profile) else {
            return Ok(());
        };
        let event = NewEvent::state(user.to_owned(), "m.room.member", user.as_str(), after);
        // The next room is written while this one becomes durable; what is lost in a crash is done again.
        let _sent = self.send_in_turn(writer, event).await?;
        Ok(())
    }

    async fn leave_room(&self, user: &UserId, room: RoomNumber) -> Result<(), Error> {
        let room_id = self.room_id(room).ok_or(Error::NotFound)?;
        let action = MembershipAction {
            sender: user.to_owned(),
            target: user.to_owned(),
            membership: MembershipState::Leave,
            extra: CanonicalJsonObject::new(),
            before: &[Class::Join, Class::Invite, Class::Knock],
        };
        match self.set_membership(&room_id, action).await {
            Ok(()) => Ok(()),
            // An invite into a room that this server is not in: whoever sent it will find nobody.
            Err(error) => match self.end_outside(user, room).await? {
                true => Ok(()),
                false => Err(error),
            },
        }
    }
}

fn changed_user(entry: &crate::storage::LogEntry) -> Option<UserNumber> {
    let number = u32::from_be_bytes(entry.payload.as_ref().try_into().ok()?);
    (entry.kind == PROFILE_CHANGED).then_some(UserNumber(number))
}

/// The content of a join with the name and avatar of `profile`; `None` if it has them already.
fn with_profile(before: &CanonicalJsonObject, profile: &Profile) -> Option<CanonicalJsonObject> {
    let mut after = before.clone();
    for (field, value) in [
        (DISPLAYNAME, profile.displayname()),
        (AVATAR_URL, profile.avatar_url()),
    ] {
        match value {
            Some(value) => after.insert(
                field.to_owned(),
                CanonicalJsonValue::String(value.to_owned()),
            ),
            None => after.remove(field),
        };
    }
    if after == *before {
        return None;
    }
    for field in OF_ONE_JOIN {
        after.remove(field);
    }
    Some(after)
}

#[cfg(test)]
mod tests;

//! Profiles of local users: display name, avatar, and fields that clients choose.
//!
//! Spec: c2s, "Profiles".

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Accounts, Error, PROFILE_CHANGED, UserNumber};
use crate::storage::{Batch, Family, Record, Snapshot, Table, Topic};

static PROFILES: Table<(UserNumber,), Profile> = Table::new("profiles", Family::Users, b'P');

/// Spec: c2s, "Profiles": the total profile must be under 64 KiB.
const MAX_PROFILE_BYTES: usize = 65_536;
const MAX_FIELD_NAME_BYTES: usize = 255;
/// Both are copied into a member event of every room, which has a limit of its own.
const MAX_DISPLAYNAME_CHARS: usize = 256;
const MAX_AVATAR_URL_BYTES: usize = 1_000;

pub const DISPLAYNAME: &str = "displayname";
pub const AVATAR_URL: &str = "avatar_url";

/// What a user tells everybody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// By name of the field, `displayname` and `avatar_url` among them.
    pub fields: BTreeMap<String, Value>,
}

impl Profile {
    pub fn displayname(&self) -> Option<&str> {
        self.fields.get(DISPLAYNAME).and_then(Value::as_str)
    }

    pub fn avatar_url(&self) -> Option<&str> {
        self.fields.get(AVATAR_URL).and_then(Value::as_str)
    }
}

/// JSON: what clients stored comes back as it was, also numbers.
impl Record for Profile {
    fn encode(&self, to: &mut Vec<u8>) {
        serde_json::to_writer(to, &self.fields).expect("a map of JSON values is JSON");
    }
    fn decode(from: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(from)
            .map(|fields| Self { fields })
            .map_err(|error| error.to_string())
    }
}

impl Accounts {
    /// The profile of a local user, if there ever was anything in it.
    pub fn profile(&self, snapshot: &Snapshot, user: UserNumber) -> Result<Option<Profile>, Error> {
        Ok(snapshot.get(&PROFILES, &(user,))?)
    }

    /// Sets a field, or takes it away. Says in the log that the profile changed, so that it is spread to rooms.
    ///
    /// # Errors
    /// [`Error::InvalidProfile`]; [`Error::ProfileTooLarge`]; [`Error::KeyTooLarge`].
    pub async fn set_profile_field(
        &self,
        user: UserNumber,
        name: &str,
        value: Option<Value>,
    ) -> Result<(), Error> {
        check_field(name, value.as_ref())?;
        let turn = self.inner.turns.lock(user).await;
        let row = self
            .inner
            .store
            .read(move |snapshot| Ok::<_, Error>(snapshot.get(&PROFILES, &(user,))?))
            .await?;
        let mut profile = row.unwrap_or_default();
        let before = match value {
            Some(value) => profile.fields.insert(name.to_owned(), value),
            None => profile.fields.remove(name),
        };
        if before.as_ref() == profile.fields.get(name) {
            return Ok(());
        }
        let mut batch = Batch::new();
        self.put_profile(&mut batch, user, &profile)?;
        batch.hold(turn);
        self.inner.store.submit(batch).await?;
        Ok(())
    }

    /// Adds the profile of a new user to the batch of the account.
    pub(super) fn put_first_profile(
        &self,
        batch: &mut Batch,
        user: UserNumber,
        name: &str,
    ) -> Result<(), Error> {
        let name = Value::from(name);
        check_field(DISPLAYNAME, Some(&name))?;
        let profile = Profile {
            fields: BTreeMap::from([(DISPLAYNAME.to_owned(), name)]),
        };
        self.put_profile(batch, user, &profile)
    }

    pub(super) fn put_end_of_profile(&self, batch: &mut Batch, user: UserNumber) {
        batch.delete(&PROFILES, &(user,));
        note_change(batch, user);
        self.forget_in_directory(batch, user);
    }

    fn put_profile(
        &self,
        batch: &mut Batch,
        user: UserNumber,
        profile: &Profile,
    ) -> Result<(), Error> {
        let size = serde_json::to_vec(&profile.fields).map_or(usize::MAX, |json| json.len());
        if size >= MAX_PROFILE_BYTES {
            return Err(Error::ProfileTooLarge);
        }
        batch.put(&PROFILES, &(user,), profile);
        note_change(batch, user);
        self.forget_in_directory(batch, user);
        Ok(())
    }
}

fn note_change(batch: &mut Batch, user: UserNumber) {
    batch.log(PROFILE_CHANGED, &user.0.to_be_bytes());
    batch.wake(Topic::User(user.0));
}

/// Spec: appendices, "Common Namespaced Identifier Grammar".
fn check_field(name: &str, value: Option<&Value>) -> Result<(), Error> {
    if name.len() > MAX_FIELD_NAME_BYTES {
        return Err(Error::KeyTooLarge);
    }
    match (name, value) {
        (_, None) | (DISPLAYNAME | AVATAR_URL, Some(Value::Null)) => {}
        (DISPLAYNAME, Some(Value::String(text)))
            if text.chars().count() <= MAX_DISPLAYNAME_CHARS => {}
        (DISPLAYNAME, Some(_)) => {
            return Err(Error::InvalidProfile(
                "The display name must be a text of at most 256 characters",
            ));
        }
        (AVATAR_URL, Some(Value::String(text))) if text.len() <= MAX_AVATAR_URL_BYTES => {}
        (AVATAR_URL, Some(_)) => {
            return Err(Error::InvalidProfile(
                "The avatar must be a URI of at most 1000 bytes",
            ));
        }
        _ => {}
    }
    let is_allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'.');
    match name.starts_with(|first: char| first.is_ascii_lowercase()) && name.bytes().all(is_allowed)
    {
        true => Ok(()),
        false => Err(Error::InvalidProfile(
            "The name of a profile field has a-z, 0-9, '_', '-' and '.' only",
        )),
    }
}

//! What clients keep with the account, for all rooms or for one.
//!
//! A row is found by its type; a second index by position answers what changed since a sync token in one seek. Content that
//! outgrows a value of the store is cut into parts under one key and a part number.
//!
//! Spec: c2s, "Client Config".

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use ruma::{OwnedUserId, UserId};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{ACCOUNT_DATA_CHANGED, Accounts, Error, UserNumber, own_rules::put_own_rules};
use crate::storage::{
    Batch, Family, Order, Position, PositionAt, Raw, Record, Snapshot, Table, Text, Topic,
};

static DATA: Table<(UserNumber, u32, Text, u16), Part> =
    Table::new("account_data", Family::Users, b'd');
static CHANGES: Table<(UserNumber, u64, u32, Text), Raw> =
    Table::new("account_data_changes", Family::Users, b'D');

/// The room number of what concerns no room.
pub const GLOBAL: u32 = 0;
pub const PUSH_RULES: &str = "m.push_rules";
pub const IGNORED_USERS: &str = "m.ignored_user_list";
pub const TAGS: &str = "m.tag";
/// How far a user has read a room. It is set with receipts, and not as other account data.
pub const FULLY_READ: &str = "m.fully_read";

/// Largest content of one type, in bytes of JSON: a batch holds it with its index rows.
const MAX_CONTENT_BYTES: usize = 512 * 1024;
const PART_BYTES: usize = 80_000;
const MAX_TYPE_BYTES: usize = 255;
/// The user's number in keys of the index by position comes first.
const POSITION_IN_KEY: PositionAt = PositionAt::Key(4);
const POSITION_IN_PART: PositionAt = PositionAt::Value(0);

/// Content of one type.
#[derive(Clone, Debug)]
pub struct AccountData {
    /// [`GLOBAL`], or the number of the room.
    pub room: u32,
    pub event_type: String,
    pub content: Box<RawValue>,
}

/// A part of some content, with the position at which it was set and the number of parts.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    position: Position,
    parts: u16,
    json: Bytes,
}

impl Record for Part {
    fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.position.0.to_be_bytes());
        to.extend_from_slice(&self.parts.to_be_bytes());
        to.extend_from_slice(&self.json);
    }
    fn decode(from: &[u8]) -> Result<Self, String> {
        let (position, rest) = from.split_first_chunk::<8>().ok_or("no position")?;
        let (parts, json) = rest.split_first_chunk::<2>().ok_or("no number of parts")?;
        Ok(Self {
            position: Position(u64::from_be_bytes(*position)),
            parts: u16::from_be_bytes(*parts),
            json: Bytes::copy_from_slice(json),
        })
    }
}

/// The users whom a user does not want to hear of.
pub type Ignored = Arc<BTreeSet<OwnedUserId>>;

impl Accounts {
    /// The content of `event_type` for `room` ([`GLOBAL`] for none) as it was set.
    pub fn account_data(
        &self,
        snapshot: &Snapshot,
        user: UserNumber,
        room: u32,
        event_type: &str,
    ) -> Result<Option<Box<RawValue>>, Error> {
        if event_type.len() > MAX_TYPE_BYTES {
            return Ok(None);
        }
        match snapshot.get(&DATA, &key(user, room, event_type, 0))? {
            Some(first) => Ok(Some(whole(snapshot, user, room, event_type, first)?)),
            None => Ok(None),
        }
    }

    /// Sets the content of `event_type`, whatever it is: who may set what is for the caller to decide.
    ///
    /// # Errors
    /// [`Error::AccountDataTooLarge`].
    pub async fn set_account_data(
        &self,
        user: UserNumber,
        room: u32,
        event_type: &str,
        content: &RawValue,
    ) -> Result<(), Error> {
        let content = content.to_owned();
        self.update_account_data(user, room, event_type, move |_| Ok(Some(content)))
            .await
    }

    /// Changes the content of `event_type` from what it is: `change` gets the content and gives the new one, or `None` to
    /// leave it. It runs in a read closure, with the account's turn taken.
    ///
    /// # Errors
    /// Those of `change`; [`Error::AccountDataTooLarge`].
    pub async fn update_account_data(
        &self,
        user: UserNumber,
        room: u32,
        event_type: &str,
        change: impl FnOnce(Option<Box<RawValue>>) -> Result<Option<Box<RawValue>>, Error>
        + Send
        + 'static,
    ) -> Result<(), Error> {
        if event_type.len() > MAX_TYPE_BYTES {
            return Err(Error::AccountDataTooLarge);
        }
        let turn = self.inner.turns.lock(user).await;
        let (this, wanted) = (self.clone(), event_type.to_owned());
        let read = move |snapshot: &Snapshot| {
            let before = snapshot.get(&DATA, &key(user, room, &wanted, 0))?;
            let stamp = before.as_ref().map(|part| (part.position, part.parts));
            let before = match before {
                Some(first) => Some(whole(snapshot, user, room, &wanted, first)?),
                None => None,
            };
            let Some(after) = change(before)? else {
                return Ok(None);
            };
            let mut batch = Batch::new();
            this.put_account_data(
                &mut batch,
                Place {
                    user,
                    room,
                    event_type: &wanted,
                },
                &after,
                stamp,
            )?;
            if wanted == FULLY_READ {
                // As receipts: what is lost in a crash is set again by the next one.
                batch.relaxed();
            }
            Ok::<_, Error>(Some(batch))
        };
        if let Some(mut batch) = self.inner.store.read(read).await? {
            batch.hold(turn);
            self.inner.store.submit(batch).await?;
        }
        Ok(())
    }

    fn put_account_data(
        &self,
        batch: &mut Batch,
        place: Place<'_>,
        content: &RawValue,
        before: Option<(Position, u16)>,
    ) -> Result<(), Error> {
        let Place {
            user,
            room,
            event_type,
        } = place;
        let json = content.get().as_bytes();
        if json.len() > MAX_CONTENT_BYTES {
            return Err(Error::AccountDataTooLarge);
        }
        let text = || Text(event_type.into());
        let parts = u16::try_from(json.len().div_ceil(PART_BYTES))
            .map_err(|_too_many| Error::AccountDataTooLarge)?;
        for (number, part) in (0..).zip(json.chunks(PART_BYTES)) {
            let row = Part {
                position: Position::default(),
                parts,
                json: Bytes::copy_from_slice(part),
            };
            batch.put_stamped(
                &DATA,
                &key(user, room, event_type, number),
                &row,
                POSITION_IN_PART,
            );
        }
        if let Some((position, parts_before)) = before {
            batch.delete(&CHANGES, &(user, position.0, room, text()));
            for number in parts..parts_before {
                batch.delete(&DATA, &key(user, room, event_type, number));
            }
        }
        batch.put_stamped(
            &CHANGES,
            &(user, 0, room, text()),
            &Raw(Bytes::new()),
            POSITION_IN_KEY,
        );
        let mut payload = user.0.to_be_bytes().to_vec();
        payload.extend_from_slice(&room.to_be_bytes());
        batch.log(ACCOUNT_DATA_CHANGED, &payload);
        batch.wake(Topic::User(user.0));
        self.forget_account_data(batch, user, event_type);
        Ok(())
    }

    fn forget_account_data(&self, batch: &mut Batch, user: UserNumber, event_type: &str) {
        let this = self.clone();
        batch.before_publish(move |position| this.inner.data_changed.forget(&user, position));
        let this = self.clone();
        match event_type {
            PUSH_RULES => {
                put_own_rules(batch, user);
                batch.before_publish(move |position| {
                    this.inner.push_rules.forget(&user, position);
                    this.note_own_rules(user, position);
                });
            }
            IGNORED_USERS => {
                put_own_rules(batch, user);
                batch.before_publish(move |position| {
                    this.inner.ignored.forget(&user, position);
                    this.note_own_rules(user, position);
                });
            }
            _ => {}
        }
    }

    /// Adds the end of all that a user kept to `batch`.
    pub(super) fn put_end_of_account_data(&self, batch: &mut Batch, user: UserNumber) {
        batch.delete_range(DATA.prefix(&(user,)));
        batch.delete_range(CHANGES.prefix(&(user,)));
        self.forget_account_data(batch, user, PUSH_RULES);
        self.forget_account_data(batch, user, IGNORED_USERS);
    }

    /// What was set after `since`, in the order in which it was set; one seek if nothing was. Push rules are as
    /// [`Accounts::push_rules`] has them, and part of the answer for everything (`since` 0) even if they were never changed.
    pub fn account_data_changes(
        &self,
        snapshot: &Snapshot,
        user: UserNumber,
        since: Position,
    ) -> Result<Vec<AccountData>, Error> {
        let changed = &self.inner.data_changed;
        if since > Position::default() && changed.get(&user).is_some_and(|changed| changed <= since)
        {
            return Ok(Vec::new());
        }
        let mut last = since;
        let mut changes = Vec::new();
        let mut has_push_rules = false;
        let range = CHANGES.range(&(user, since.0.saturating_add(1)), &(user, u64::MAX));
        for row in snapshot.scan(range, Order::Forward) {
            let ((_, position, room, Text(event_type)), _) = row?;
            last = last.max(Position(position));
            let content = match (room, &*event_type) {
                (GLOBAL, PUSH_RULES) => {
                    has_push_rules = true;
                    Some(self.push_rules_content(snapshot, user)?)
                }
                _ => self.account_data(snapshot, user, room, &event_type)?,
            };
            let Some(content) = content else { continue };
            changes.push(AccountData {
                room,
                event_type: event_type.into(),
                content,
            });
        }
        changed.fill(user, last, snapshot.position());
        if since == Position::default() && !has_push_rules {
            let content = self.push_rules_content(snapshot, user)?;
            changes.push(AccountData {
                room: GLOBAL,
                event_type: PUSH_RULES.to_owned(),
                content,
            });
        }
        Ok(changes)
    }

    /// Everything kept for `room`.
    pub fn room_account_data(
        &self,
        snapshot: &Snapshot,
        user: UserNumber,
        room: u32,
    ) -> Result<Vec<AccountData>, Error> {
        let mut found = Vec::new();
        for row in snapshot.scan(DATA.prefix(&(user, room)), Order::Forward) {
            let ((_, _, Text(event_type), number), part) = row?;
            if number == 0 {
                let content = whole(snapshot, user, room, &event_type, part)?;
                found.push(AccountData {
                    room,
                    event_type: event_type.into(),
                    content,
                });
            }
        }
        Ok(found)
    }

    /// Whom `user` ignores.
    ///
    /// Spec: c2s, "Ignoring Users".
    pub fn ignored_users(&self, snapshot: &Snapshot, user: UserNumber) -> Result<Ignored, Error> {
        if let Some(ignored) = self.inner.ignored.get(&user) {
            return Ok(ignored);
        }
        let content = self.account_data(snapshot, user, GLOBAL, IGNORED_USERS)?;
        let ignored = Arc::new(
            content
                .map(|content| parse_ignored(&content))
                .unwrap_or_default(),
        );
        self.inner
            .ignored
            .fill(user, Arc::clone(&ignored), snapshot.position());
        Ok(ignored)
    }
}

/// Which content is meant.
#[derive(Clone, Copy)]
struct Place<'a> {
    user: UserNumber,
    room: u32,
    event_type: &'a str,
}

fn key(user: UserNumber, room: u32, event_type: &str, part: u16) -> (UserNumber, u32, Text, u16) {
    (user, room, Text(event_type.into()), part)
}

fn whole(
    snapshot: &Snapshot,
    user: UserNumber,
    room: u32,
    event_type: &str,
    first: Part,
) -> Result<Box<RawValue>, Error> {
    let mut json = Vec::from(first.json);
    if first.parts > 1 {
        let keys: Vec<_> = (1..first.parts)
            .map(|number| key(user, room, event_type, number))
            .collect();
        for part in snapshot.get_many(&DATA, &keys)?.into_iter().flatten() {
            json.extend_from_slice(&part.json);
        }
    }
    let text = String::from_utf8(json).map_err(|_not_text| Error::DamagedAccountData)?;
    RawValue::from_string(text).map_err(|_not_json| Error::DamagedAccountData)
}

/// Users in a list that a client wrote; what cannot be understood ignores nobody.
fn parse_ignored(content: &RawValue) -> BTreeSet<OwnedUserId> {
    #[derive(Deserialize)]
    struct List {
        #[serde(default)]
        ignored_users: std::collections::BTreeMap<String, serde::de::IgnoredAny>,
    }
    let list = serde_json::from_str::<List>(content.get())
        .map(|list| list.ignored_users)
        .unwrap_or_default();
    list.into_keys()
        .filter_map(|user| UserId::parse(user).ok())
        .collect()
}

#[cfg(test)]
mod tests;

//! The numbers that stand for users in keys, local and remote ones.
//!
//! A number is given out under one lock and committed before anything uses it; it never changes, so the caches of both
//! directions never go stale.

use std::{collections::BTreeMap, sync::Arc};

use ruma::{OwnedUserId, UserId};

use super::{Accounts, Error, UserNumber};
use crate::storage::{Batch, Family, Order, Position, Record, Snapshot, Table, Text};

static NUMBERS: Table<(Text,), UserNumber> = Table::new("user_numbers", Family::Interned, b'u');
static IDS: Table<(UserNumber,), UserIdRow> = Table::new("user_ids", Family::Interned, b'U');

/// Longer user IDs, which exist in rooms of old versions only, are found by their hash.
const MAX_KEY_TEXT_BYTES: usize = 255;

/// The ID of a user as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct UserIdRow(OwnedUserId);

impl Record for UserIdRow {
    fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(self.0.as_bytes());
    }
    fn decode(from: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(from).map_err(|error| error.to_string())?;
        UserId::parse(text)
            .map(Self)
            .map_err(|error| error.to_string())
    }
}

impl Record for UserNumber {
    fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.0.to_be_bytes());
    }
    fn decode(from: &[u8]) -> Result<Self, String> {
        let bytes = from
            .try_into()
            .map_err(|_length| "a user number has 4 bytes".to_owned())?;
        Ok(Self(u32::from_be_bytes(bytes)))
    }
}

impl Accounts {
    /// The number of `user`, if anything ever mentioned that user.
    pub fn user_number(
        &self,
        snapshot: &Snapshot,
        user: &UserId,
    ) -> Result<Option<UserNumber>, Error> {
        if let Some(number) = self.inner.numbers.get(user) {
            return Ok(Some(number));
        }
        let number = snapshot.get(&NUMBERS, &key(user))?;
        if let Some(number) = number {
            self.remember_number(user, number);
        }
        Ok(number)
    }

    /// The numbers of `users`, in their order; one round trip for those not cached.
    pub fn user_numbers(
        &self,
        snapshot: &Snapshot,
        users: &[&UserId],
    ) -> Result<Vec<Option<UserNumber>>, Error> {
        let mut numbers: Vec<_> = users
            .iter()
            .map(|user| self.inner.numbers.get(*user))
            .collect();
        let unknown: Vec<_> = users
            .iter()
            .zip(&mut numbers)
            .filter(|(_, number)| number.is_none())
            .collect();
        if unknown.is_empty() {
            return Ok(numbers);
        }
        let keys: Vec<_> = unknown.iter().map(|(user, _)| key(user)).collect();
        for ((user, number), row) in unknown.into_iter().zip(snapshot.get_many(&NUMBERS, &keys)?) {
            if let Some(found) = row {
                self.remember_number(user, found);
                *number = Some(found);
            }
        }
        Ok(numbers)
    }

    /// The ID behind `number`.
    ///
    /// # Errors
    /// [`Error::UnknownNumber`] if it was never given out: then a key of ours is damaged.
    pub fn user_id(&self, snapshot: &Snapshot, number: UserNumber) -> Result<OwnedUserId, Error> {
        if let Some(user) = self.inner.ids.get(&number) {
            return Ok(user);
        }
        let UserIdRow(user) = snapshot
            .get(&IDS, &(number,))?
            .ok_or(Error::UnknownNumber(number))?;
        self.inner
            .ids
            .fill(number, user.clone(), snapshot.position());
        Ok(user)
    }

    /// The IDs behind `numbers`, in their order; one round trip for those not cached.
    ///
    /// # Errors
    /// As [`Accounts::user_id`].
    pub fn user_ids(
        &self,
        snapshot: &Snapshot,
        numbers: &[UserNumber],
    ) -> Result<Vec<OwnedUserId>, Error> {
        let cached: Vec<_> = numbers
            .iter()
            .map(|number| self.inner.ids.get(number))
            .collect();
        let unknown: Vec<_> = numbers
            .iter()
            .zip(&cached)
            .filter(|(_, id)| id.is_none())
            .map(|(number, _)| (*number,))
            .collect();
        let mut read = match unknown.is_empty() {
            true => Vec::new(),
            false => snapshot.get_many(&IDS, &unknown)?,
        }
        .into_iter();
        let mut ids = Vec::with_capacity(numbers.len());
        for (number, cached) in numbers.iter().zip(cached) {
            let id = match cached {
                Some(id) => id,
                None => {
                    let UserIdRow(id) =
                        read.next().flatten().ok_or(Error::UnknownNumber(*number))?;
                    self.inner
                        .ids
                        .fill(*number, id.clone(), snapshot.position());
                    id
                }
            };
            ids.push(id);
        }
        Ok(ids)
    }

    /// The numbers of `users`, in their order; gives out those missing and waits until they are durable.
    pub async fn intern(&self, users: &[&UserId]) -> Result<Vec<UserNumber>, Error> {
        let cached: Option<Vec<_>> = users
            .iter()
            .map(|user| self.inner.numbers.get(*user))
            .collect();
        if let Some(numbers) = cached {
            return Ok(numbers);
        }
        let giving_out = Arc::clone(&self.inner.giving_out).lock_owned().await;
        let owned: Vec<OwnedUserId> = users.iter().map(|user| (*user).to_owned()).collect();
        let this = self.clone();
        let (known, next) = self
            .inner
            .store
            .read(move |snapshot| {
                let users: Vec<&UserId> = owned.iter().map(|user| &**user).collect();
                Ok::<_, Error>((this.user_numbers(snapshot, &users)?, next_number(snapshot)?))
            })
            .await?;
        let mut batch = Batch::new();
        let mut given = BTreeMap::new();
        let mut numbers = Vec::with_capacity(users.len());
        for (user, known) in users.iter().zip(known) {
            let number = known
                .or_else(|| given.get(user).copied())
                .unwrap_or_else(|| {
                    let number = next.plus(given.len());
                    put(&mut batch, user, number);
                    given.insert(*user, number);
                    number
                });
            numbers.push(number);
        }
        if !batch.is_empty() {
            batch.hold(giving_out);
            self.inner.store.submit(batch).await?;
        }
        for (user, number) in given {
            self.remember_number(user, number);
        }
        Ok(numbers)
    }

    fn remember_number(&self, user: &UserId, number: UserNumber) {
        self.inner
            .numbers
            .fill(user.to_owned(), number, Position::default());
        self.inner
            .ids
            .fill(number, user.to_owned(), Position::default());
    }
}

impl UserNumber {
    fn plus(self, count: usize) -> Self {
        let count = u32::try_from(count).expect("a call names fewer than four billion users");
        Self(
            self.0
                .checked_add(count)
                .expect("fewer than four billion users are known"),
        )
    }
}

/// One above the last number given out. Call it with the lock for giving out held.
pub(super) fn next_number(snapshot: &Snapshot) -> Result<UserNumber, Error> {
    match snapshot.scan(IDS.all(), Order::Backward).next() {
        Some(row) => Ok(row?.0.0.plus(1)),
        // 0 is nobody: it stands for "no user" in rows.
        None => Ok(UserNumber(1)),
    }
}

/// Adds the rows that give `user` the number.
pub(super) fn put(batch: &mut Batch, user: &UserId, number: UserNumber) {
    batch.put(&NUMBERS, &key(user), &number);
    batch.put(&IDS, &(number,), &UserIdRow(user.to_owned()));
}

fn key(user: &UserId) -> (Text,) {
    let text = match user.as_str().len() {
        0..=MAX_KEY_TEXT_BYTES => user.as_str().into(),
        _ => format!("#{}", blake3::hash(user.as_bytes()).to_hex()).into(),
    };
    (Text(text),)
}

#[cfg(test)]
mod tests;

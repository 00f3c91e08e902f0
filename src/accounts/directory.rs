//! The user directory: local users by name.
//!
//! All names are in memory, read at the first search; a changed profile is read again at the next one. Who may be found by
//! whom depends on rooms, so the caller says.
//!
//! Spec: c2s, "User Directory".

use std::{collections::BTreeMap, sync::PoisonError};

use ruma::{OwnedUserId, UserId};

use super::{
    Accounts, Error, UserNumber,
    profile::Profile,
    rows::{ACCOUNTS, Account},
};
use crate::storage::{Batch, Cbor, Order, Position, Snapshot};

/// What the directory knows. Absent users are not found.
#[derive(Debug, Default)]
pub(super) struct Directory {
    is_loaded: bool,
    names: BTreeMap<UserNumber, Names>,
    /// Users whose names changed, and when.
    stale: BTreeMap<UserNumber, Position>,
}

/// What a user is found by, in small letters.
#[derive(Debug)]
struct Names {
    id: Box<str>,
    displayname: Box<str>,
}

/// How well a name fits; the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    Whole,
    Start,
    Inside,
}

/// A user who was found.
#[derive(Clone, Debug)]
pub struct Found {
    pub user: OwnedUserId,
    pub number: UserNumber,
    pub profile: Profile,
}

impl Accounts {
    /// Users whose display name or ID has `term` in it and who are `visible`, the best first; at most `limit`, and whether
    /// there are more.
    ///
    /// # Errors
    /// Those of `visible`.
    pub fn search_users<E: From<Error>>(
        &self,
        snapshot: &Snapshot,
        term: &str,
        limit: usize,
        mut visible: impl FnMut(UserNumber) -> Result<bool, E>,
    ) -> Result<(Vec<Found>, bool), E> {
        let mut found = Vec::new();
        for number in self.fitting(snapshot, &term.trim().to_lowercase())? {
            if !visible(number)? {
                continue;
            }
            if found.len() == limit {
                return Ok((found, true));
            }
            let user = self.user_id(snapshot, number)?;
            let profile = self.profile(snapshot, number)?.unwrap_or_default();
            found.push(Found {
                user,
                number,
                profile,
            });
        }
        Ok((found, false))
    }

    fn fitting(&self, snapshot: &Snapshot, term: &str) -> Result<Vec<UserNumber>, Error> {
        let mut directory = self
            .inner
            .directory
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if !directory.is_loaded {
            for row in snapshot.scan(ACCOUNTS.all(), Order::Forward) {
                let ((number,), _) = row?;
                directory.stale.insert(number, Position::default());
            }
            directory.is_loaded = true;
        }
        // What changed after this snapshot is left to those who come with a newer one.
        let changed = |(_, at): &(&UserNumber, &Position)| **at <= snapshot.position();
        let stale: Vec<_> = directory
            .stale
            .iter()
            .filter(changed)
            .map(|(number, _)| *number)
            .collect();
        for number in stale {
            match self.names(snapshot, number)? {
                Some(names) => directory.names.insert(number, names),
                None => directory.names.remove(&number),
            };
            directory.stale.remove(&number);
        }
        let fit =
            |(number, names): (&UserNumber, &Names)| names.fit(term).map(|fit| (fit, *number));
        let mut fitting: Vec<_> = directory.names.iter().filter_map(fit).collect();
        fitting.sort_unstable();
        Ok(fitting.into_iter().map(|(_, number)| number).collect())
    }

    fn names(&self, snapshot: &Snapshot, number: UserNumber) -> Result<Option<Names>, Error> {
        let Some(Cbor(account)) = snapshot.get(&ACCOUNTS, &(number,))? else {
            return Ok(None);
        };
        let Account {
            deactivated: false, ..
        } = account
        else {
            return Ok(None);
        };
        let id = self.user_id(snapshot, number)?;
        let profile = self.profile(snapshot, number)?.unwrap_or_default();
        let displayname = profile
            .displayname()
            .unwrap_or_default()
            .to_lowercase()
            .into();
        Ok(Some(Names {
            id: id.as_str().into(),
            displayname,
        }))
    }

    /// The names of `user` are read again once `batch` is published.
    pub(super) fn forget_in_directory(&self, batch: &mut Batch, user: UserNumber) {
        let this = self.clone();
        batch.before_publish(move |position| {
            let mut directory = this
                .inner
                .directory
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if directory.is_loaded {
                directory.stale.insert(user, position);
            }
        });
    }
}

impl Names {
    fn fit(&self, term: &str) -> Option<Fit> {
        let localpart = <&UserId>::try_from(&*self.id).map_or("", UserId::localpart);
        [&*self.displayname, localpart, &*self.id]
            .into_iter()
            .filter_map(|name| fit(name, term))
            .min()
    }
}

fn fit(name: &str, term: &str) -> Option<Fit> {
    match name.find(term)? {
        0 if name.len() == term.len() => Some(Fit::Whole),
        0 => Some(Fit::Start),
        _ => Some(Fit::Inside),
    }
}

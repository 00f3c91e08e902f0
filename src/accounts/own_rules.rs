//! Who has push rules or an ignore list of one's own, so that their notifications are not those of everybody.
//!
//! An index, so that the set is in memory without a look at every account. Who is in it once stays: what the rules mean is
//! for those to find out who ask.

use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError},
};

use super::{Accounts, Error, UserNumber};
use crate::storage::{Batch, Family, Order, Position, Snapshot, Table};

static OWN_RULES: Table<(UserNumber,), ()> =
    Table::new("users_with_own_rules", Family::Users, b'W');

/// The users with push rules or an ignore list of their own, as of their last change.
#[derive(Clone, Debug)]
pub struct OwnRules {
    /// When rules or an ignore list changed last, of anybody, since the process started.
    pub changed: Position,
    pub users: Arc<BTreeSet<UserNumber>>,
}

/// What is in memory of it.
#[derive(Default)]
pub(super) struct Known {
    /// The stored rows are in `users`.
    is_loaded: bool,
    changed: Position,
    users: Arc<BTreeSet<UserNumber>>,
}

pub(super) fn put_own_rules(batch: &mut Batch, user: UserNumber) {
    batch.put(&OWN_RULES, &(user,), &());
}

impl Accounts {
    /// Who has rules of their own; `None` if that is not in memory and there is no snapshot to read it from.
    pub fn own_rules(&self, snapshot: Option<&Snapshot>) -> Result<Option<OwnRules>, Error> {
        let lock = || {
            let known = self.inner.own_rules.lock();
            known.unwrap_or_else(PoisonError::into_inner)
        };
        let mut known = lock();
        if !known.is_loaded {
            drop(known);
            let Some(snapshot) = snapshot else {
                return Ok(None);
            };
            let rows = snapshot.scan(OWN_RULES.all(), Order::Forward);
            let stored = rows
                .map(|row| row.map(|((user,), ())| user))
                .collect::<Result<Vec<_>, _>>()?;
            known = lock();
            // Changes since the snapshot are there already.
            Arc::make_mut(&mut known.users).extend(stored);
            known.is_loaded = true;
        }
        Ok(Some(OwnRules {
            changed: known.changed,
            users: Arc::clone(&known.users),
        }))
    }

    /// Follows a change that was published at `position`.
    pub(super) fn note_own_rules(&self, user: UserNumber, position: Position) {
        let known = self.inner.own_rules.lock();
        let mut known = known.unwrap_or_else(PoisonError::into_inner);
        known.changed = known.changed.max(position);
        if !known.users.contains(&user) {
            Arc::make_mut(&mut known.users).insert(user);
        }
    }
}

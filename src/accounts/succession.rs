//! What a user keeps for a room, carried to the room that replaces it: the push rule, the tags, the place among the direct
//! chats.
//!
//! Spec: c2s, "Room upgrades".

use ruma::{
    RoomId, UserId,
    push::{AnyPushRuleRef, NewPushRule, NewSimplePushRule, RuleKind},
};
use serde_json::{
    Value,
    value::{RawValue, to_raw_value},
};

use super::{
    Accounts, Error, PushRuleChange, UserNumber,
    account_data::{GLOBAL, TAGS},
};
use crate::storage::Snapshot;

const DIRECT: &str = "m.direct";

/// A room by both of its names.
#[derive(Clone, Copy, Debug)]
pub struct RoomName<'a> {
    pub id: &'a RoomId,
    pub number: u32,
}

/// What there is to carry.
#[derive(Default)]
struct Luggage {
    rules: Vec<PushRuleChange>,
    tags: Option<Box<RawValue>>,
    is_direct: bool,
}

impl Accounts {
    /// Gives `user` (whose ID is `id`) in the room `to` what was kept for the room `from`, unless there is something for `to`
    /// already. What was kept for `from` stays.
    ///
    /// # Errors
    /// Those of changing account data.
    pub async fn carry_room(
        &self,
        user: UserNumber,
        id: &UserId,
        from: RoomName<'_>,
        to: RoomName<'_>,
    ) -> Result<(), Error> {
        let this = self.clone();
        let rooms = [
            (from.id.to_owned(), from.number),
            (to.id.to_owned(), to.number),
        ];
        let [(from_id, _), (to_id, _)] = rooms.clone();
        let read = move |snapshot: &Snapshot| {
            let [from, to] = &rooms;
            this.luggage(snapshot, user, (&from.0, from.1), (&to.0, to.1))
        };
        let luggage = self.inner.store.read(read).await?;
        for change in luggage.rules {
            self.change_push_rule(user, id, change).await?;
        }
        if let Some(tags) = luggage.tags {
            self.set_account_data(user, to.number, TAGS, &tags).await?;
        }
        if luggage.is_direct {
            let change = move |before: Option<Box<RawValue>>| {
                Ok(before
                    .and_then(|before| with_successor(&before, from_id.as_str(), to_id.as_str())))
            };
            self.update_account_data(user, GLOBAL, DIRECT, change)
                .await?;
        }
        Ok(())
    }

    fn luggage(
        &self,
        snapshot: &Snapshot,
        user: UserNumber,
        (from, from_number): (&RoomId, u32),
        (to, to_number): (&RoomId, u32),
    ) -> Result<Luggage, Error> {
        let mut luggage = Luggage::default();
        let rules = self.push_rules(snapshot, user)?;
        let is_new = rules.get(RuleKind::Room, to).is_none();
        if let Some(AnyPushRuleRef::Room(rule)) = rules.get(RuleKind::Room, from)
            && is_new
        {
            let new = NewSimplePushRule::new(to.to_owned(), rule.actions.clone());
            let rule_id = to.to_string();
            let enabled = rule.enabled;
            let rule = NewPushRule::Room(new);
            luggage.rules.push(PushRuleChange::Put {
                rule,
                after: None,
                before: None,
            });
            if !enabled {
                luggage.rules.push(PushRuleChange::Enable {
                    kind: RuleKind::Room,
                    rule_id,
                    enabled,
                });
            }
        }
        if self
            .account_data(snapshot, user, to_number, TAGS)?
            .is_none()
        {
            luggage.tags = self.account_data(snapshot, user, from_number, TAGS)?;
        }
        let direct = self.account_data(snapshot, user, GLOBAL, DIRECT)?;
        luggage.is_direct = direct.is_some_and(|direct| direct.get().contains(from.as_str()));
        Ok(luggage)
    }
}

/// The direct chats, with `to` beside each `from`; `None` if that changes nothing.
fn with_successor(direct: &RawValue, from: &str, to: &str) -> Option<Box<RawValue>> {
    let mut chats: serde_json::Map<String, Value> = serde_json::from_str(direct.get()).ok()?;
    let mut has_changed = false;
    for rooms in chats.values_mut().filter_map(Value::as_array_mut) {
        if rooms.iter().any(|room| room == from) && !rooms.iter().any(|room| room == to) {
            rooms.push(to.into());
            has_changed = true;
        }
    }
    if has_changed {
        to_raw_value(&chats).ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests;

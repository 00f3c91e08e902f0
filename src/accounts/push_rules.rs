//! Push rules: what is stored is the content of `m.push_rules`, what is used has the server's own rules of today in it.
//!
//! Spec: c2s, "Push Rules".

use std::sync::Arc;

use ruma::{
    UserId,
    push::{
        Action, ConditionalPushRuleInit, HighlightTweakValue, InsertPushRuleError, NewPushRule,
        PatternedPushRuleInit, PushCondition, RemovePushRuleError, RuleKind, RuleNotFoundError,
        Ruleset, SoundTweakValue, Tweak,
    },
};
use serde::Deserialize;
use serde_json::{
    Value, json,
    value::{RawValue, to_raw_value},
};

use super::{
    Accounts, Error, UserNumber,
    account_data::{GLOBAL, PUSH_RULES},
};
use crate::storage::Snapshot;

/// The kinds that clients expect to be there, also when they have no rules.
const KINDS: [&str; 5] = ["override", "content", "room", "sender", "underride"];
const MAX_RULES: usize = 1_000;

/// A change of one rule.
#[derive(Clone, Debug)]
pub enum PushRuleChange {
    Put {
        rule: NewPushRule,
        after: Option<String>,
        before: Option<String>,
    },
    Delete {
        kind: RuleKind,
        rule_id: String,
    },
    Enable {
        kind: RuleKind,
        rule_id: String,
        enabled: bool,
    },
    SetActions {
        kind: RuleKind,
        rule_id: String,
        actions: Vec<Action>,
    },
}

/// Why a push rule cannot be changed like that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushRuleError {
    #[error("the rule does not exist")]
    NotFound,
    #[error("the server's own rules cannot be added or removed")]
    ServerDefault,
    #[error("the rule ID is not valid")]
    InvalidId,
    #[error("the rule to be placed at does not exist or is one of the server")]
    UnknownPlace,
    #[error("the rule before is more important than the rule after")]
    ImpossiblePlace,
    #[error("there are too many rules")]
    TooMany,
}

impl Accounts {
    /// The rules of `user`, the server's own among them.
    pub fn push_rules(&self, snapshot: &Snapshot, user: UserNumber) -> Result<Arc<Ruleset>, Error> {
        if let Some(rules) = self.inner.push_rules.get(&user) {
            return Ok(rules);
        }
        let id = self.user_id(snapshot, user)?;
        let content = self.account_data(snapshot, user, GLOBAL, PUSH_RULES)?;
        let rules = Arc::new(rules_of(&id, content.as_deref()));
        self.inner
            .push_rules
            .fill(user, Arc::clone(&rules), snapshot.position());
        Ok(rules)
    }

    /// The rules of a user who never changed any.
    pub fn default_push_rules(&self, id: &UserId) -> Ruleset {
        server_defaults(id)
    }

    /// The content of `m.push_rules` as clients get it.
    pub fn push_rules_content(
        &self,
        snapshot: &Snapshot,
        user: UserNumber,
    ) -> Result<Box<RawValue>, Error> {
        content_of(&*self.push_rules(snapshot, user)?)
    }

    /// Changes one rule of `user`, whose ID is `id`.
    ///
    /// # Errors
    /// [`Error::PushRule`]; [`Error::AccountDataTooLarge`].
    pub async fn change_push_rule(
        &self,
        user: UserNumber,
        id: &UserId,
        change: PushRuleChange,
    ) -> Result<(), Error> {
        let id = id.to_owned();
        let change = move |before: Option<Box<RawValue>>| {
            let mut rules = rules_of(&id, before.as_deref());
            apply(&mut rules, change).map_err(Error::PushRule)?;
            match rules.iter().count() > MAX_RULES {
                true => Err(Error::PushRule(PushRuleError::TooMany)),
                false => content_of(&rules).map(Some),
            }
        };
        self.update_account_data(user, GLOBAL, PUSH_RULES, change)
            .await
    }
}

/// The rules that `content` says, with the server's own in their place.
fn rules_of(id: &UserId, content: Option<&RawValue>) -> Ruleset {
    #[derive(Deserialize)]
    struct Content {
        global: Ruleset,
    }
    let defaults = server_defaults(id);
    let Some(content) = content else {
        return defaults;
    };
    match serde_json::from_str::<Content>(content.get()) {
        Ok(Content { global: mut rules }) => {
            rules.update_with_server_default(defaults);
            rules
        }
        // Only this module writes the content, so this is a row of another version: better the defaults than nothing.
        Err(_) => defaults,
    }
}

fn server_defaults(id: &UserId) -> Ruleset {
    let mut rules = Ruleset::server_default(id);
    // They are about thread subscriptions, which the server does not have: they would silence all threads.
    rules.postcontent.clear();
    add_name_rules(&mut rules, id);
    rules
}

/// Rules that look for names in texts. They are no longer in the specification, and do not apply to events that say whom they
/// mention; bridges, bots and older clients do not say it.
///
/// Spec: c2s, "Predefined Rules", up to version 1.16.
fn add_name_rules(rules: &mut Ruleset, id: &UserId) {
    let sound = Action::SetTweak(Tweak::Sound(SoundTweakValue::Default));
    let highlight = Action::SetTweak(Tweak::Highlight(HighlightTweakValue::Yes));
    let actions = vec![Action::Notify, sound, highlight];
    #[expect(deprecated, reason = "no longer in the specification, but in use")]
    let by_display_name = ConditionalPushRuleInit {
        actions: actions.clone(),
        default: true,
        enabled: true,
        rule_id: ".m.rule.contains_display_name".to_owned(),
        conditions: vec![PushCondition::ContainsDisplayName],
    };
    let after = rules
        .override_
        .get_index_of(".m.rule.is_user_mention")
        .map_or(0, |index| index + 1);
    let (added, _) = rules.override_.insert_full(by_display_name.into());
    rules.override_.move_index(added, after);
    let by_user_name = PatternedPushRuleInit {
        actions,
        default: true,
        enabled: true,
        rule_id: ".m.rule.contains_user_name".to_owned(),
        pattern: id.localpart().to_owned(),
    };
    rules.content.insert(by_user_name.into());
}

fn content_of(rules: &Ruleset) -> Result<Box<RawValue>, Error> {
    let mut global = serde_json::to_value(rules).map_err(|_error| Error::DamagedAccountData)?;
    if let Value::Object(kinds) = &mut global {
        for kind in KINDS {
            kinds.entry(kind).or_insert_with(|| json!([]));
        }
    }
    to_raw_value(&json!({ "global": global })).map_err(|_error| Error::DamagedAccountData)
}

fn apply(rules: &mut Ruleset, change: PushRuleChange) -> Result<(), PushRuleError> {
    match change {
        PushRuleChange::Put {
            rule,
            after,
            before,
        } => Ok(rules.insert(rule, after.as_deref(), before.as_deref())?),
        PushRuleChange::Delete { kind, rule_id } => Ok(rules.remove(kind, rule_id)?),
        PushRuleChange::Enable {
            kind,
            rule_id,
            enabled,
        } => Ok(rules.set_enabled(kind, rule_id, enabled)?),
        PushRuleChange::SetActions {
            kind,
            rule_id,
            actions,
        } => Ok(rules.set_actions(kind, rule_id, actions)?),
    }
}

impl From<InsertPushRuleError> for PushRuleError {
    fn from(error: InsertPushRuleError) -> Self {
        match error {
            InsertPushRuleError::ServerDefaultRuleId => Self::ServerDefault,
            InsertPushRuleError::RelativeToServerDefaultRule
            | InsertPushRuleError::UnknownRuleId => Self::UnknownPlace,
            InsertPushRuleError::BeforeHigherThanAfter => Self::ImpossiblePlace,
            _ => Self::InvalidId,
        }
    }
}

impl From<RemovePushRuleError> for PushRuleError {
    fn from(error: RemovePushRuleError) -> Self {
        match error {
            RemovePushRuleError::ServerDefault => Self::ServerDefault,
            _ => Self::NotFound,
        }
    }
}

impl From<RuleNotFoundError> for PushRuleError {
    fn from(_: RuleNotFoundError) -> Self {
        Self::NotFound
    }
}

#[cfg(test)]
mod tests;

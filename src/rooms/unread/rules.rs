//! What push rules make of an event: by default, and by the rules of one user.
//!
//! Spec: c2s, "Push Rules".

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::FutureExt as _;
use ruma::{
    Int, OwnedRoomId, RoomId, UInt, UserId,
    power_levels::NotificationPowerLevels,
    push::{
        AnyPushRuleRef, ConditionalPushRule, FlattenedJson, PushCondition,
        PushConditionPowerLevelsCtx, PushConditionRoomCtx, RuleKind, Ruleset,
    },
    room_version_rules::{AuthorizationRules, RoomPowerLevelsRules},
    serde::Raw,
};
use serde_json::value::RawValue;

use super::{content::Look, markers::Exception};
use crate::{
    accounts::{Ignored, OwnRules, UserNumber},
    events::Pdu,
    rooms::{Error, Rooms, head::Head, state::Source},
    storage::{Position, Snapshot},
};

/// Whether somebody is notified of an event, and whether it stands out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) notify: bool,
    pub(super) highlight: bool,
}

/// The default rules for a member who is not named; in the order of the rules.
///
/// Spec: c2s, "Predefined Rules".
pub(super) fn default_verdict(pdu: &Pdu, look: &Look<'_>, may_notify_room: bool) -> Verdict {
    const NOTHING: Verdict = Verdict {
        notify: false,
        highlight: false,
    };
    const NOTIFY: Verdict = Verdict {
        notify: true,
        highlight: false,
    };
    const HIGHLIGHT: Verdict = Verdict {
        notify: true,
        highlight: true,
    };
    let event_type = pdu.event_type.to_string();
    if look.is_notice || event_type == "m.room.member" {
        return NOTHING;
    }
    let is_plain_state = pdu.state_key.as_deref() == Some("");
    if (look.mentions_room && may_notify_room)
        || (event_type == "m.room.tombstone" && is_plain_state)
    {
        return HIGHLIGHT;
    }
    if event_type == "m.reaction"
        || look.is_edit
        || (event_type == "m.room.server_acl" && is_plain_state)
    {
        return NOTHING;
    }
    match event_type.as_str() {
        "m.room.message" | "m.room.encrypted" | "m.call.invite" => NOTIFY,
        _ => NOTHING,
    }
}

/// What a user wants to hear of a room, as far as it can be told without looking at events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// As by the default rules.
    All,
    /// Only what is highlighted.
    Mentions,
    /// Nothing at all.
    Mute,
}

impl Mode {
    /// What an event with this verdict by default is to a user in this mode.
    fn of(self, default: Verdict) -> Verdict {
        match self {
            Self::All => default,
            Self::Mentions => Verdict {
                notify: default.highlight,
                highlight: default.highlight,
            },
            Self::Mute => Verdict::default(),
        }
    }
}

/// The push rules of a user, sorted into what needs evaluation and what does not.
#[derive(Debug)]
pub(super) struct Habits {
    rules: Arc<Ruleset>,
    ignored: Ignored,
    is_muted: bool,
    rooms: HashMap<OwnedRoomId, Mode>,
    /// There are rules, or ignored users, that only an evaluation does justice to.
    is_own: bool,
}

impl Habits {
    fn new(rules: Arc<Ruleset>, default: &Ruleset, ignored: Ignored) -> Self {
        let all = Arc::clone(&rules);
        let mut habits = Self {
            is_own: !ignored.is_empty(),
            is_muted: false,
            rooms: HashMap::new(),
            ignored,
            rules,
        };
        let mut mutes_come_first = true;
        for rule in all.iter() {
            habits.sort_in(rule, default, &mut mutes_come_first);
        }
        habits
    }

    fn sort_in(
        &mut self,
        rule: AnyPushRuleRef<'_>,
        default: &Ruleset,
        mutes_come_first: &mut bool,
    ) {
        if rule.is_server_default() {
            if rule.rule_id() == ".m.rule.master" {
                self.is_muted |= rule.enabled();
            } else {
                self.is_own |= !is_like_default(rule, default);
            }
            return;
        }
        if !rule.enabled() {
            return;
        }
        let is_silent = !rule.triggers_notification() && !rule.triggers_highlight();
        match rule {
            AnyPushRuleRef::Room(room) if is_silent => {
                self.rooms
                    .entry(room.rule_id.clone())
                    .or_insert(Mode::Mentions);
            }
            AnyPushRuleRef::Override(rule) => match muted_room(rule).filter(|_| is_silent) {
                Some(room) if *mutes_come_first => {
                    self.rooms.insert(room, Mode::Mute);
                }
                _ => {
                    *mutes_come_first = false;
                    self.is_own = true;
                }
            },
            _ => self.is_own = true,
        }
    }

    pub(super) fn mode(&self, room: &RoomId) -> Mode {
        match self.is_muted {
            true => Mode::Mute,
            false => self.rooms.get(room).copied().unwrap_or(Mode::All),
        }
    }

    /// Whether each event of the room has to be evaluated.
    pub(super) fn is_evaluated(&self, room: &RoomId) -> bool {
        self.is_own && self.mode(room) != Mode::Mute
    }
}

/// The room that an override rule is about, if it is about nothing else.
fn muted_room(rule: &ConditionalPushRule) -> Option<OwnedRoomId> {
    match rule.conditions.as_slice() {
        [PushCondition::EventMatch(condition)] if condition.key == "room_id" => {
            RoomId::parse(&condition.pattern).ok()
        }
        _ => None,
    }
}

/// Whether a rule of the server does what it does for everybody, sounds apart.
fn is_like_default(rule: AnyPushRuleRef<'_>, default: &Ruleset) -> bool {
    let kind = match rule {
        AnyPushRuleRef::Override(_) => RuleKind::Override,
        AnyPushRuleRef::Content(_) => RuleKind::Content,
        AnyPushRuleRef::Room(_) => RuleKind::Room,
        AnyPushRuleRef::Sender(_) => RuleKind::Sender,
        AnyPushRuleRef::Underride(_) => RuleKind::Underride,
        _ => return false,
    };
    let does = |rule: AnyPushRuleRef<'_>| {
        (
            rule.enabled(),
            rule.triggers_notification(),
            rule.triggers_highlight(),
        )
    };
    default
        .get(kind, rule.rule_id())
        .is_some_and(|default| does(default) == does(rule))
}

/// The habits of users with rules of their own, as of the last change of any rule.
#[derive(Default)]
pub(in crate::rooms) struct HabitsCache {
    users: Mutex<(Position, HashMap<UserNumber, Arc<Habits>>)>,
}

/// Users whose habits are kept.
const MAX_HABITS: usize = 10_000;

/// The habits of a user.
pub(super) fn habits(
    rooms: &Rooms,
    snapshot: Option<&Snapshot>,
    user: UserNumber,
    own: &OwnRules,
) -> Result<Arc<Habits>, Error> {
    let cache = || {
        rooms
            .habits
            .users
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    };
    {
        let mut cached = cache();
        if cached.0 < own.changed || cached.1.len() > MAX_HABITS {
            *cached = (own.changed, HashMap::new());
        }
        if let Some(habits) = cached.1.get(&user) {
            return Ok(Arc::clone(habits));
        }
    }
    let snapshot = snapshot.ok_or(Error::NotInMemory)?;
    let id = rooms.accounts.user_id(snapshot, user)?;
    let rules = rooms.accounts.push_rules(snapshot, user)?;
    let ignored = rooms.accounts.ignored_users(snapshot, user)?;
    let default = rooms.accounts.default_push_rules(&id);
    let habits = Arc::new(Habits::new(rules, &default, ignored));
    let mut cached = cache();
    // Rules read from an older snapshot may be those from before the change.
    if cached.0 == own.changed && snapshot.position() >= own.changed {
        cached.1.insert(user, Arc::clone(&habits));
    }
    Ok(habits)
}

/// An event, ready to be held against the rules of one user after the other.
pub(super) struct Evaluation<'a> {
    head: &'a Head,
    pdu: &'a Pdu,
    default: Verdict,
    may_notify_room: bool,
    event: FlattenedJson,
}

impl<'a> Evaluation<'a> {
    pub(super) fn new(
        head: &'a Head,
        pdu: &'a Pdu,
        default: Verdict,
        may_notify_room: bool,
    ) -> Self {
        let event = flattened(pdu);
        Self {
            head,
            pdu,
            default,
            may_notify_room,
            event,
        }
    }

    /// What the event is to a member beyond what it is by default.
    pub(super) fn difference(
        &self,
        rooms: &Rooms,
        source: &Source<'_>,
        user: UserNumber,
        (id, name): (&UserId, &str),
    ) -> Result<Option<Exception>, Error> {
        let own = rooms
            .accounts
            .own_rules(source.snapshot)?
            .ok_or(Error::NotInMemory)?;
        let room = &self.head.room_id;
        let (mode, verdict) = if own.users.contains(&user) {
            let habits = habits(rooms, source.snapshot, user, &own)?;
            let verdict = match habits.ignored.contains(&self.pdu.sender) {
                true => Verdict::default(),
                false => self.verdict(&habits.rules, id, name),
            };
            (habits.mode(room), verdict)
        } else {
            let rules = rooms.accounts.default_push_rules(id);
            (Mode::All, self.verdict(&rules, id, name))
        };
        if mode == Mode::Mute {
            return Ok(None);
        }
        let usual = mode.of(self.default);
        let step = |is: bool, was: bool| i8::from(is) - i8::from(was);
        let exception = Exception {
            notify: step(verdict.notify, usual.notify),
            highlight: step(verdict.highlight, usual.highlight),
            of_mentions: mode == Mode::Mentions,
            is_usual: self.default.notify && !self.default.highlight,
        };
        Ok((verdict != usual).then_some(exception))
    }

    fn verdict(&self, rules: &Ruleset, id: &UserId, name: &str) -> Verdict {
        let joined = UInt::new_saturating(self.head.row.joined);
        let context = context(&self.head.room_id, joined, (id, name));
        let levels = sender_levels(&self.pdu.sender, self.may_notify_room);
        verdict(rules, &self.event, &context.with_power_levels(levels))
    }
}

/// An event as rules see it.
pub(super) fn flattened(pdu: &Pdu) -> FlattenedJson {
    let json = String::from_utf8_lossy(&pdu.json).into_owned();
    let raw = RawValue::from_string(json).expect("a stored event is JSON");
    FlattenedJson::from_raw(&Raw::<serde_json::Value>::from_json(raw))
}

pub(super) fn context(
    room: &RoomId,
    joined: UInt,
    (id, name): (&UserId, &str),
) -> PushConditionRoomCtx {
    PushConditionRoomCtx::new(room.to_owned(), joined, id.to_owned(), name.to_owned())
}

/// Power levels by which `sender` may mention everybody or not.
pub(super) fn sender_levels(sender: &UserId, may_notify_room: bool) -> PushConditionPowerLevelsCtx {
    let level = if may_notify_room { Int::MAX } else { Int::MIN };
    PushConditionPowerLevelsCtx::new(
        [(sender.to_owned(), level)].into(),
        Int::MIN,
        NotificationPowerLevels::new(),
        RoomPowerLevelsRules::new(&AuthorizationRules::V1, []),
    )
}

/// What the first rule that applies does.
fn verdict(rules: &Ruleset, event: &FlattenedJson, context: &PushConditionRoomCtx) -> Verdict {
    let rule = matching(rules, event, context);
    rule.map_or(Verdict::default(), |rule| {
        let notify = rule.triggers_notification();
        Verdict {
            notify,
            highlight: notify && rule.triggers_highlight(),
        }
    })
}

/// The first rule that applies.
pub(super) fn matching<'a>(
    rules: &'a Ruleset,
    event: &FlattenedJson,
    context: &PushConditionRoomCtx,
) -> Option<AnyPushRuleRef<'a>> {
    // Only conditions about thread subscriptions could wait, and the server has none.
    let applies =
        |rule: &AnyPushRuleRef<'_>| rule.applies(event, context).now_or_never() == Some(true);
    rules.iter().find(applies)
}

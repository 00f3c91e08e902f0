//! What the default push rules look at in the content of an event, borrowed.

use std::borrow::Cow;

use ruma::{OwnedUserId, UserId};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::events::Pdu;

/// Users that a mention may name; more are not looked at.
const MAX_MENTIONED: usize = 100;

/// The parts of an event that decide for whom it counts.
#[derive(Debug, Default)]
pub(super) struct Look<'a> {
    pub(super) is_notice: bool,
    pub(super) is_edit: bool,
    /// There is an `m.mentions`: the text is not searched for names.
    pub(super) has_mentions: bool,
    pub(super) mentions_room: bool,
    pub(super) mentioned: Vec<OwnedUserId>,
    pub(super) body: Option<Cow<'a, str>>,
}

#[derive(Default, Deserialize)]
struct Content<'a> {
    #[serde(borrow)]
    msgtype: Option<&'a RawValue>,
    #[serde(borrow)]
    body: Option<&'a RawValue>,
    #[serde(borrow, rename = "m.mentions")]
    mentions: Option<&'a RawValue>,
    #[serde(borrow, rename = "m.relates_to")]
    relates_to: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
struct Mentions<'a> {
    #[serde(borrow)]
    room: Option<&'a RawValue>,
    #[serde(borrow)]
    user_ids: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
struct RelatesTo<'a> {
    #[serde(borrow)]
    rel_type: Option<&'a RawValue>,
}

impl<'a> Look<'a> {
    /// Whatever is of another type than it should be counts as absent.
    pub(super) fn at(pdu: &'a Pdu) -> Self {
        let content: Content<'_> = serde_json::from_str(pdu.content.get()).unwrap_or_default();
        let is_text = |raw: Option<&'a RawValue>, wanted: &str| {
            raw.and_then(text)
                .is_some_and(|text| text.eq_ignore_ascii_case(wanted))
        };
        let relation: RelatesTo<'_> = parsed(content.relates_to);
        let mentions: Mentions<'_> = parsed(content.mentions);
        let users: Vec<&RawValue> = parsed(mentions.user_ids);
        let users = users.into_iter().take(MAX_MENTIONED).filter_map(text);
        Self {
            is_notice: is_text(content.msgtype, "m.notice"),
            is_edit: relation.rel_type.and_then(text).as_deref() == Some("m.replace"),
            has_mentions: content.mentions.is_some(),
            mentions_room: mentions.room.is_some_and(|room| room.get() == "true"),
            mentioned: users
                .filter_map(|user| UserId::parse(&*user).ok())
                .collect(),
            body: content.body.and_then(text),
        }
    }
}

fn parsed<'a, T: Default + Deserialize<'a>>(raw: Option<&'a RawValue>) -> T {
    raw.and_then(|raw| serde_json::from_str(raw.get()).ok())
        .unwrap_or_default()
}

/// A JSON string; one without escapes is not copied.
fn text(raw: &RawValue) -> Option<Cow<'_, str>> {
    let inner = raw.get().strip_prefix('"')?.strip_suffix('"')?;
    match inner.contains('\\') {
        false => Some(Cow::Borrowed(inner)),
        true => serde_json::from_str(raw.get()).ok().map(Cow::Owned),
    }
}

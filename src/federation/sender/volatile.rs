//! EDUs that are worth something only now: typing, receipts, presence. In memory, the newest of each kind, user and place.
//!
//! Spec: s2s, "Typing Notifications", "Receipts", "Presence".

use std::{collections::BTreeMap, sync::Arc};

use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId};
use serde::Serialize;

use crate::ephemeral::{LocalPresence, LocalTyping};

/// Entries of one kind that wait for one server; with more the new ones are dropped.
const MAX_ENTRIES: usize = 1_000;
/// Users in one presence EDU.
const MAX_PRESENCE_IN_EDU: usize = 100;
/// Receipts in one EDU.
const MAX_RECEIPTS_IN_EDU: usize = 100;

/// How far a user has read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Receipt {
    pub(super) room: OwnedRoomId,
    pub(super) user: OwnedUserId,
    pub(super) event: OwnedEventId,
    pub(super) ts: u64,
    pub(super) thread: Option<String>,
}

/// What waits for one server.
#[derive(Debug, Default)]
pub(super) struct Volatile {
    typing: BTreeMap<(OwnedRoomId, OwnedUserId), bool>,
    receipts: BTreeMap<(OwnedRoomId, OwnedUserId, Option<String>), Arc<Receipt>>,
    presence: BTreeMap<OwnedUserId, Arc<LocalPresence>>,
}

// The fields stand in the order of canonical JSON.

#[derive(Serialize)]
struct Edu<'a, C> {
    content: C,
    edu_type: &'a str,
}

#[derive(Serialize)]
struct TypingContent<'a> {
    room_id: &'a RoomId,
    typing: bool,
    user_id: &'a UserId,
}

#[derive(Serialize)]
struct ReceiptData<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    thread_id: Option<&'a str>,
    ts: u64,
}

#[derive(Serialize)]
struct UserReceipt<'a> {
    data: ReceiptData<'a>,
    event_ids: [&'a ruma::EventId; 1],
}

#[derive(Default, Serialize)]
struct RoomReceipts<'a> {
    #[serde(rename = "m.read")]
    read: BTreeMap<&'a UserId, UserReceipt<'a>>,
}

#[derive(Serialize)]
struct PresenceContent<'a> {
    push: Vec<PresenceUpdate<'a>>,
}

#[derive(Serialize)]
struct PresenceUpdate<'a> {
    currently_active: bool,
    last_active_ago: u64,
    presence: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    status_msg: Option<&'a str>,
    user_id: &'a UserId,
}

impl Volatile {
    pub(super) fn typing(&mut self, typing: &LocalTyping, room: &RoomId) {
        let key = (room.to_owned(), typing.user.clone());
        insert(&mut self.typing, key, typing.is_typing);
    }

    pub(super) fn receipt(&mut self, receipt: &Arc<Receipt>) {
        let key = (
            receipt.room.clone(),
            receipt.user.clone(),
            receipt.thread.clone(),
        );
        insert(&mut self.receipts, key, Arc::clone(receipt));
    }

    pub(super) fn presence(&mut self, presence: &Arc<LocalPresence>) {
        let key = presence.user.clone();
        insert(&mut self.presence, key, Arc::clone(presence));
    }

    /// Adds what is newer.
    pub(super) fn extend(&mut self, newer: Self) {
        for (key, is_typing) in newer.typing {
            insert(&mut self.typing, key, is_typing);
        }
        for (key, receipt) in newer.receipts {
            insert(&mut self.receipts, key, receipt);
        }
        for (key, presence) in newer.presence {
            insert(&mut self.presence, key, presence);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.typing.is_empty() && self.receipts.is_empty() && self.presence.is_empty()
    }

    /// Takes at most `limit` EDUs off, as canonical JSON: what is soonest too old first.
    pub(super) fn take_edus(&mut self, limit: usize) -> Vec<String> {
        let mut edus = Vec::new();
        while edus.len() < limit {
            let edu = self
                .take_typing()
                .or_else(|| self.take_receipts())
                .or_else(|| self.take_presence());
            let Some(edu) = edu else { break };
            edus.push(edu);
        }
        edus
    }

    fn take_typing(&mut self) -> Option<String> {
        let ((room_id, user_id), typing) = self.typing.pop_first()?;
        let content = TypingContent {
            room_id: &room_id,
            typing,
            user_id: &user_id,
        };
        Some(edu("m.typing", content))
    }

    /// As many receipts as fit one EDU, which has room for one of each user and room.
    fn take_receipts(&mut self) -> Option<String> {
        let mut taken: BTreeMap<(OwnedRoomId, OwnedUserId), Arc<Receipt>> = BTreeMap::new();
        self.receipts.retain(|(room, user, _), receipt| {
            let key = (room.clone(), user.clone());
            let fits = taken.len() < MAX_RECEIPTS_IN_EDU && !taken.contains_key(&key);
            if fits {
                taken.insert(key, Arc::clone(receipt));
            }
            !fits
        });
        if taken.is_empty() {
            return None;
        }
        let mut content: BTreeMap<&RoomId, RoomReceipts<'_>> = BTreeMap::new();
        for receipt in taken.values() {
            let of_user = UserReceipt {
                data: ReceiptData {
                    thread_id: receipt.thread.as_deref(),
                    ts: receipt.ts,
                },
                event_ids: [&receipt.event],
            };
            let of_room = content.entry(&receipt.room).or_default();
            of_room.read.insert(&receipt.user, of_user);
        }
        Some(edu("m.receipt", content))
    }

    fn take_presence(&mut self) -> Option<String> {
        let mut taken = Vec::new();
        while taken.len() < MAX_PRESENCE_IN_EDU
            && let Some((_, presence)) = self.presence.pop_first()
        {
            taken.push(presence);
        }
        if taken.is_empty() {
            return None;
        }
        let push = taken.iter().map(|presence| PresenceUpdate {
            currently_active: presence.is_active,
            last_active_ago: presence.active_ago_ms,
            presence: presence.state,
            status_msg: presence.status.as_deref(),
            user_id: &presence.user,
        });
        let push = push.collect();
        Some(edu("m.presence", PresenceContent { push }))
    }
}

fn insert<K: Ord, V>(to: &mut BTreeMap<K, V>, key: K, value: V) {
    if to.len() < MAX_ENTRIES || to.contains_key(&key) {
        to.insert(key, value);
    }
}

fn edu(edu_type: &str, content: impl Serialize) -> String {
    serde_json::to_string(&Edu { content, edu_type }).expect("structs with text keys are JSON")
}

#[cfg(test)]
mod tests;

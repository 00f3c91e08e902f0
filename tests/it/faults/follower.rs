//! A client that syncs: it must see every event once, whatever happens to the server.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::line::Line;
use crate::room_words::escaped;

const FILTER: &str = r#"{"room":{"timeline":{"limit":500}}}"#;
const PAGE: usize = 100;

/// What a client has seen.
pub(super) struct Follower {
    user: String,
    token: String,
    since: Option<String>,
    /// Events by room.
    seen: BTreeMap<String, BTreeSet<String>>,
    /// What the messages say, which no two of them share.
    texts: BTreeSet<String>,
    /// What other devices have sent.
    told: BTreeSet<String>,
}

impl Follower {
    pub(super) fn new(user: &str, token: &str) -> Self {
        Self {
            user: user.to_owned(),
            token: token.to_owned(),
            since: None,
            seen: BTreeMap::new(),
            texts: BTreeSet::new(),
            told: BTreeSet::new(),
        }
    }

    pub(super) fn was_told(&self, text: &str) -> bool {
        self.told.contains(text)
    }

    pub(super) fn has_seen(&self, room: &str, event_id: &str) -> bool {
        self.seen
            .get(room)
            .is_some_and(|seen| seen.contains(event_id))
    }

    /// Syncs until the server is killed.
    pub(super) async fn follow(&mut self, line: &Line) {
        while self.sync(line, 2_000).await.is_some() {}
    }

    /// Syncs until there is nothing new.
    pub(super) async fn catch_up(&mut self, line: &Line) {
        while self.sync(line, 0).await.expect("nobody kills the server") > 0 {}
    }

    /// One sync; how many events it brought.
    async fn sync(&mut self, line: &Line, timeout_ms: u32) -> Option<usize> {
        let mut path = format!(
            "/_matrix/client/v3/sync?timeout={timeout_ms}&filter={}",
            escaped(FILTER)
        );
        if let Some(since) = &self.since {
            path.push_str("&since=");
            path.push_str(&escaped(since));
        }
        let body = line.get(&path, &self.token).await?.ok();
        // All or nothing, as a client would: what is cut off here is asked for again.
        let mut events = BTreeMap::new();
        for (room, section) in body["rooms"]["join"].as_object().into_iter().flatten() {
            let timeline = &section["timeline"];
            let mut found = timeline["events"].as_array().cloned().unwrap_or_default();
            if timeline["limited"] == true && !found.iter().any(|event| self.is_own_join(event)) {
                let from = timeline["prev_batch"].as_str().expect("a gap has an edge");
                found.extend(self.gap(line, room, from).await?);
            }
            events.insert(room.clone(), found);
        }
        let next = body["next_batch"].as_str().expect("a token").to_owned();
        let before = self.since.replace(next);
        let told = body["to_device"]["events"].as_array();
        let told = told.expect("there is always a list");
        for event in told {
            let text = event["content"]["body"].as_str().expect("a text");
            assert!(
                self.told.insert(text.to_owned()),
                "{} was told this again since {before:?}: {event}",
                self.user
            );
        }
        let mut count = told.len();
        for (room, events) in events {
            count += events.len();
            for event in &events {
                self.note(&room, event, before.as_deref());
            }
        }
        Some(count)
    }

    /// The events before `from` that this client does not have, and may have.
    async fn gap(&self, line: &Line, room: &str, from: &str) -> Option<Vec<Value>> {
        let mut events = Vec::new();
        let mut from = Some(from.to_owned());
        while let Some(edge) = from {
            let path = format!(
                "/_matrix/client/v3/rooms/{}/messages?dir=b&limit={PAGE}&from={}",
                escaped(room),
                escaped(&edge)
            );
            let page = line.get(&path, &self.token).await?.ok();
            for event in page["chunk"].as_array().into_iter().flatten() {
                if self.has_seen(room, id(event)) {
                    return Some(events);
                }
                events.push(event.clone());
                if self.is_own_join(event) {
                    return Some(events);
                }
            }
            from = page["end"].as_str().map(str::to_owned);
        }
        Some(events)
    }

    fn is_own_join(&self, event: &Value) -> bool {
        event["type"] == "m.room.member"
            && event["state_key"] == self.user.as_str()
            && event["content"]["membership"] == "join"
            && event["unsigned"]["prev_content"]["membership"] != "join"
    }

    fn note(&mut self, room: &str, event: &Value, since: Option<&str>) {
        let seen = self.seen.entry(room.to_owned()).or_default();
        assert!(
            seen.insert(id(event).to_owned()),
            "{} saw this in {room} again since {since:?}: {event}",
            self.user
        );
        if let Some(text) = event["content"]["body"].as_str() {
            assert!(
                self.texts.insert(text.to_owned()),
                "this was sent twice: {event}"
            );
        }
    }
}

fn id(event: &Value) -> &str {
    event["event_id"].as_str().expect("an event has an ID")
}

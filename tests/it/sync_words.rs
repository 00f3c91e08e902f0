//! Words for tests about sync.

use ruma::api::client::sync::sync_events::{
    DeviceLists,
    v3::{GlobalAccountData, Presence, Rooms, ToDevice},
};
use serde_json::Value;

use crate::{harness::User, room_words::escaped};

/// The answer to a sync.
pub(crate) struct Synced {
    pub(crate) body: Value,
    pub(crate) next: String,
}

/// All of an answer as clients' libraries read it.
#[derive(serde::Deserialize)]
#[expect(dead_code, reason = "only that it can be read matters")]
struct Typed {
    next_batch: String,
    #[serde(default)]
    rooms: Rooms,
    #[serde(default)]
    presence: Presence,
    #[serde(default)]
    account_data: GlobalAccountData,
    to_device: ToDevice,
    device_lists: DeviceLists,
}

impl User {
    /// Everything that this user may know.
    pub(crate) async fn sync(&self) -> Synced {
        self.sync_with("").await
    }

    /// What is new since an answer.
    pub(crate) async fn sync_since(&self, before: &Synced) -> Synced {
        self.sync_with(&format!("since={}", before.next)).await
    }

    /// What is new since an answer, waiting for it.
    pub(crate) async fn wait_since(&self, before: &Synced) -> Synced {
        self.sync_with(&format!("since={}&timeout=15000", before.next))
            .await
    }

    /// With a query.
    pub(crate) async fn sync_with(&self, query: &str) -> Synced {
        let answer = self.get(&format!("/_matrix/client/v3/sync?{query}")).await;
        let body = answer.ok();
        let typed: Typed = serde_json::from_str(&answer.text).expect("clients can read it");
        Synced {
            next: typed.next_batch,
            body,
        }
    }

    /// With a filter and more of a query.
    pub(crate) async fn sync_filtered(&self, filter: &Value, query: &str) -> Synced {
        let filter = escaped(&filter.to_string());
        self.sync_with(&format!("filter={filter}&{query}")).await
    }
}

impl Synced {
    /// The section of a room; null if it is not there.
    pub(crate) fn room(&self, section: &str, room: &str) -> &Value {
        &self.body["rooms"][section][room]
    }

    pub(crate) fn joined(&self, room: &str) -> &Value {
        self.room("join", room)
    }

    /// The bodies of the messages in the timeline of a joined room.
    pub(crate) fn messages(&self, room: &str) -> Vec<String> {
        bodies(self.joined(room))
    }

    /// The value of a state event in `state`, by type and key.
    pub(crate) fn state(&self, room: &str, event_type: &str, key: &str) -> Option<&Value> {
        find(&self.joined(room)["state"], event_type, key)
    }
}

/// The event of a type and key among `events`.
pub(crate) fn find<'a>(section: &'a Value, event_type: &str, key: &str) -> Option<&'a Value> {
    let events = section["events"].as_array()?;
    events
        .iter()
        .find(|event| event["type"] == event_type && event["state_key"] == key)
}

/// The bodies of the messages in the timeline of a room's section.
pub(crate) fn bodies(section: &Value) -> Vec<String> {
    let events = section["timeline"]["events"].as_array();
    let events = events.map(Vec::as_slice).unwrap_or_default();
    let messages = events
        .iter()
        .filter(|event| event["type"] == "m.room.message");
    messages
        .map(|event| {
            event["content"]["body"]
                .as_str()
                .unwrap_or("(redacted)")
                .to_owned()
        })
        .collect()
}

/// The types of the events of a section.
pub(crate) fn types(section: &Value) -> Vec<&str> {
    let events = section["events"].as_array();
    let events = events.map(Vec::as_slice).unwrap_or_default();
    events
        .iter()
        .filter_map(|event| event["type"].as_str())
        .collect()
}

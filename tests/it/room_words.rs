//! Words for tests about rooms.

use serde_json::{Value, json};

use crate::harness::{Answer, User};

/// A path of the room, with what is no part of a path escaped.
pub(crate) fn room_path(room: &str, rest: &str) -> String {
    format!("/_matrix/client/v3/rooms/{}{rest}", escaped(room))
}

/// A room, event or user ID, or an alias, in a path.
pub(crate) fn escaped(id: &str) -> String {
    let escape = |letter: char| match letter {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '_' | '.' | '~' => letter.to_string(),
        other => other
            .to_string()
            .bytes()
            .map(|byte| format!("%{byte:02X}"))
            .collect(),
    };
    id.chars().map(escape).collect()
}

impl User {
    /// A public room in which nothing is said yet.
    pub(crate) async fn create_room(&self) -> String {
        self.create_room_with(json!({ "preset": "public_chat" }))
            .await
    }

    pub(crate) async fn create_room_with(&self, options: Value) -> String {
        let answer = self.post("/_matrix/client/v3/createRoom", options).await;
        answer.ok()["room_id"]
            .as_str()
            .expect("a room ID")
            .to_owned()
    }

    pub(crate) async fn join(&self, room: &str) -> Answer {
        self.post(
            &format!("/_matrix/client/v3/join/{}", escaped(room)),
            json!({}),
        )
        .await
    }

    pub(crate) async fn leave(&self, room: &str) -> Answer {
        self.post(&room_path(room, "/leave"), json!({})).await
    }

    /// Invites, kicks, bans or unbans.
    pub(crate) async fn change_member(&self, room: &str, action: &str, target: &User) -> Answer {
        self.post(
            &room_path(room, &format!("/{action}")),
            json!({ "user_id": target.id }),
        )
        .await
    }

    /// Sends an event with a transaction ID of its own.
    pub(crate) async fn send_event(
        &self,
        room: &str,
        event_type: &str,
        txn_id: &str,
        content: Value,
    ) -> Answer {
        self.put(
            &room_path(room, &format!("/send/{event_type}/{txn_id}")),
            content,
        )
        .await
    }

    /// Says something; the ID of the event.
    pub(crate) async fn say(&self, room: &str, text: &str) -> String {
        self.say_content(room, json!({ "msgtype": "m.text", "body": text }))
            .await
    }

    pub(crate) async fn say_content(&self, room: &str, content: Value) -> String {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let txn_id = format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let answer = self
            .send_event(room, "m.room.message", &txn_id, content)
            .await;
        answer.ok()["event_id"]
            .as_str()
            .expect("an event ID")
            .to_owned()
    }

    pub(crate) async fn set_state(
        &self,
        room: &str,
        event_type: &str,
        key: &str,
        content: Value,
    ) -> Answer {
        self.put(
            &room_path(room, &format!("/state/{event_type}/{}", escaped(key))),
            content,
        )
        .await
    }

    /// The content of a state event.
    pub(crate) async fn state(&self, room: &str, event_type: &str, key: &str) -> Answer {
        self.get(&room_path(
            room,
            &format!("/state/{event_type}/{}", escaped(key)),
        ))
        .await
    }
}

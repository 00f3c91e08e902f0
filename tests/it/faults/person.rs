//! Somebody who uses a server that is killed again and again, and remembers what it has answered.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use hearth::clock::Clock;
use serde_json::{Value, json};

use super::{
    follower::Follower,
    line::{Line, Order},
};
use crate::room_words::escaped;

const PASSWORD: &str = "correct horse";
/// So that most events meet others in their room.
const MAX_ROOMS: usize = 10;
const CLIENT: &str = "/_matrix/client/v3";

/// What all people know.
#[derive(Default)]
pub(super) struct World {
    pub(super) order: Order,
    rooms: Mutex<Vec<String>>,
    events: Mutex<Vec<Acknowledged>>,
}

/// An event whose sender got a 200.
#[derive(Clone)]
pub(super) struct Acknowledged {
    room: String,
    event_id: String,
    /// When it had not been sent yet.
    before: u64,
}

impl World {
    fn rooms(&self) -> Vec<String> {
        let rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        rooms.clone()
    }

    pub(super) fn events(&self) -> Vec<Acknowledged> {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.clone()
    }

    fn add_room(&self, room: &str) {
        let mut rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        rooms.push(room.to_owned());
    }

    fn add_event(&self, room: &str, event_id: &str, before: u64) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.push(Acknowledged {
            room: room.to_owned(),
            event_id: event_id.to_owned(),
            before,
        });
    }
}

/// Something that is set and read at one path.
#[derive(Default)]
struct Setting {
    /// The last value that a 200 was the answer to.
    sure: Value,
    /// A value that was on its way when the server was killed.
    tried: Option<Value>,
}

/// A message, with what it was sent with.
struct Message {
    room: String,
    transaction: u64,
    /// `None`: there was no answer.
    event_id: Option<String>,
}

/// A device besides the first.
struct Device {
    token: String,
    /// A logout was acknowledged, or was on its way.
    ended: Option<bool>,
    /// The refresh token of the pair, where there is one.
    refresh: Option<String>,
    /// An exchange was on its way.
    is_exchanging: bool,
}

pub(super) struct Person {
    name: String,
    id: String,
    token: String,
    random: Clock,
    pub(super) follower: Follower,
    /// Rooms joined, with the moment when that was known.
    joined: BTreeMap<String, u64>,
    values: BTreeMap<String, Setting>,
    /// Of this round.
    messages: Vec<Message>,
    /// What was sent to the own devices in this round, by number.
    told: Vec<u64>,
    accounts: Vec<(String, String)>,
    devices: Vec<Device>,
    /// Numbers for what has to be new.
    next: u64,
}

impl Person {
    /// Registers.
    pub(super) async fn new(line: &Line, name: &str) -> Self {
        let token = register(line, name).await.expect("nobody kills the server");
        let id = format!("@{name}:hearth.test");
        Self {
            name: name.to_owned(),
            follower: Follower::new(&id, &token),
            id,
            token,
            random: Clock::system(),
            joined: BTreeMap::new(),
            values: BTreeMap::new(),
            messages: Vec::new(),
            told: Vec::new(),
            accounts: Vec::new(),
            devices: Vec::new(),
            next: 0,
        }
    }

    /// Does this and that until the server is killed, and syncs meanwhile.
    pub(super) async fn live(mut self, line: Line, world: &World) -> Self {
        let mut follower = std::mem::replace(&mut self.follower, Follower::new("", ""));
        tokio::join!(follower.follow(&line), async {
            while self.act(&line, world).await.is_some() {}
        });
        self.follower = follower;
        self
    }

    /// One request; `None` if it had no answer.
    async fn act(&mut self, line: &Line, world: &World) -> Option<()> {
        self.next += 1;
        match self.random.random_below(100) {
            0..3 => self.create_room(line, world).await,
            3..10 => self.join(line, world).await,
            10..16 => self.register(line).await,
            16..20 => self.log_in(line).await,
            20..23 => self.log_out(line).await,
            23..26 => self.refresh(line).await,
            26..32 => {
                self.set(line, self.path("account_data/chat.hearth.crash"))
                    .await
            }
            32..36 => {
                let displayname = format!("{CLIENT}/profile/{}/displayname", escaped(&self.id));
                self.set(line, displayname).await
            }
            36..42 => match self.some_room() {
                Some(room) => {
                    let data = format!("rooms/{}/account_data/chat.hearth.crash", escaped(&room));
                    self.set(line, self.path(&data)).await
                }
                None => Some(()),
            },
            42..52 => self.set_state(line, world).await,
            52..58 => self.tell(line).await,
            _ => self.send(line, world).await,
        }
    }

    fn path(&self, rest: &str) -> String {
        format!("{CLIENT}/user/{}/{rest}", escaped(&self.id))
    }

    fn some_room(&self) -> Option<String> {
        let count = u64::try_from(self.joined.len()).expect("a few");
        let at = usize::try_from(self.random.random_below(count.max(1))).expect("a few");
        self.joined.keys().nth(at).cloned()
    }

    async fn create_room(&mut self, line: &Line, world: &World) -> Option<()> {
        if world.rooms().len() >= MAX_ROOMS {
            return self.send(line, world).await;
        }
        let version = ["10", "11", "12"]
            .get(usize::try_from(self.next % 3).expect("a few"))
            .expect("three");
        let wanted = json!({ "preset": "public_chat", "name": "A room", "room_version": version });
        let made = line
            .post(&format!("{CLIENT}/createRoom"), &self.token, &wanted)
            .await?;
        let room = made.text("room_id");
        self.joined.insert(room.clone(), world.order.next());
        world.add_room(&room);
        Some(())
    }

    async fn join(&mut self, line: &Line, world: &World) -> Option<()> {
        let rooms = world.rooms();
        let Some(room) = rooms.iter().find(|room| !self.joined.contains_key(*room)) else {
            return self.send(line, world).await;
        };
        let path = format!("{CLIENT}/join/{}", escaped(room));
        line.post(&path, &self.token, &json!({})).await?.ok();
        self.joined.insert(room.clone(), world.order.next());
        Some(())
    }

    async fn send(&mut self, line: &Line, world: &World) -> Option<()> {
        let Some(room) = self.some_room() else {
            return Some(());
        };
        let before = world.order.next();
        self.messages.push(Message {
            room: room.clone(),
            transaction: self.next,
            event_id: None,
        });
        if self.random.random_below(10) == 0 {
            // The client goes away before the answer, and asks again.
            let patience = Duration::from_micros(self.random.random_below(5_000));
            let asked = self.put_message(line, &room, self.next);
            if let Ok(answer) = tokio::time::timeout(patience, asked).await {
                answer?;
            }
        }
        let event_id = self.put_message(line, &room, self.next).await?;
        world.add_event(&room, &event_id, before);
        if let Some(message) = self.messages.last_mut() {
            message.event_id = Some(event_id);
        }
        Some(())
    }

    /// The same number is the same message.
    async fn put_message(&self, line: &Line, room: &str, number: u64) -> Option<String> {
        let path = format!(
            "{CLIENT}/rooms/{}/send/m.room.message/t{number}",
            escaped(room)
        );
        let body = json!({ "msgtype": "m.text", "body": format!("{} {number}", self.name) });
        let sent = line.put(&path, &self.token, &body).await?;
        Some(sent.text("event_id"))
    }

    /// Sends something to all devices of this person.
    async fn tell(&mut self, line: &Line) -> Option<()> {
        self.told.push(self.next);
        self.put_told(line, self.next).await
    }

    /// The same number is the same message.
    async fn put_told(&self, line: &Line, number: u64) -> Option<()> {
        let path = format!("{CLIENT}/sendToDevice/chat.hearth.crash/d{number}");
        let content = json!({ "body": told(number) });
        let messages = json!({ "messages": { self.id.clone(): { "*": content } } });
        line.put(&path, &self.token, &messages).await?.ok();
        Some(())
    }

    async fn set_state(&mut self, line: &Line, world: &World) -> Option<()> {
        // Only who has made a room may set its state.
        let Some(room) = self.some_room() else {
            return Some(());
        };
        let path = format!(
            "{CLIENT}/rooms/{}/state/chat.hearth.crash/{}",
            escaped(&room),
            escaped(&self.id)
        );
        let before = world.order.next();
        let value = json!({ "number": self.next });
        let was = self.values.entry(path.clone()).or_default();
        was.tried = Some(value.clone());
        let answer = line.put(&path, &self.token, &value).await?;
        if answer.status == 403 {
            self.values.remove(&path);
            return Some(());
        }
        world.add_event(&room, &answer.text("event_id"), before);
        let was = self.values.entry(path).or_default();
        (was.sure, was.tried) = (value, None);
        Some(())
    }

    async fn set(&mut self, line: &Line, path: String) -> Option<()> {
        let value = match path.contains("/profile/") {
            true => json!({ "displayname": format!("{} {}", self.name, self.next) }),
            false => json!({ "number": self.next }),
        };
        let was = self.values.entry(path.clone()).or_default();
        was.tried = Some(value.clone());
        line.put(&path, &self.token, &value).await?.ok();
        (was.sure, was.tried) = (value, None);
        Some(())
    }

    async fn register(&mut self, line: &Line) -> Option<()> {
        let name = format!("{}-{}", self.name, self.next);
        let token = register(line, &name).await?;
        self.accounts.push((name, token));
        Some(())
    }

    async fn log_in(&mut self, line: &Line) -> Option<()> {
        let answer = log_in(line, &self.name).await?.ok();
        let text = |field: &str| answer[field].as_str().expect("a token").to_owned();
        self.devices.push(Device {
            token: text("access_token"),
            ended: Some(false),
            refresh: Some(text("refresh_token")),
            is_exchanging: false,
        });
        Some(())
    }

    async fn log_out(&mut self, line: &Line) -> Option<()> {
        let living = |device: &&mut Device| device.ended == Some(false);
        let Some(device) = self.devices.iter_mut().find(living) else {
            return Some(());
        };
        device.ended = None;
        let path = format!("{CLIENT}/logout");
        line.post(&path, &device.token, &json!({})).await?.ok();
        device.ended = Some(true);
        Some(())
    }

    async fn refresh(&mut self, line: &Line) -> Option<()> {
        let living = |device: &&mut Device| device.ended == Some(false);
        match self.devices.iter_mut().rfind(living) {
            Some(device) => device.exchange(line).await,
            None => Some(()),
        }
    }

    /// After the server was killed and started again: all that it had answered is so, and what it had not is so or not.
    pub(super) async fn verify(&mut self, line: &Line, world: &World) {
        self.verify_values(line).await;
        self.verify_messages(line, world).await;
        self.verify_tokens(line).await;
        let told_numbers = std::mem::take(&mut self.told);
        for number in &told_numbers {
            // Whether there was an answer or not: it is the same one again.
            let again = self.put_told(line, *number).await;
            again.expect("nobody kills the server");
        }
        let path = format!("{CLIENT}/joined_rooms");
        let found = ask(line, &path, &self.token).await.ok();
        let found = found["joined_rooms"].as_array().expect("a list").clone();
        for room in self.joined.keys() {
            assert!(
                found.iter().any(|found| found == room.as_str()),
                "{} had joined {room}",
                self.id
            );
        }
        for room in found.iter().filter_map(Value::as_str) {
            // The name is the last that a new room gets: there is no half of one.
            let path = format!("{CLIENT}/rooms/{}/state/m.room.name", escaped(room));
            ask(line, &path, &self.token).await.ok();
        }
        self.follower.catch_up(line).await;
        for number in told_numbers {
            let text = told(number);
            assert!(self.follower.was_told(&text), "{}: {text}", self.id);
        }
    }

    /// Everything that was sent after this person had joined has come with a sync.
    pub(super) fn verify_seen(&self, events: &[Acknowledged]) {
        for event in events {
            let joined = self.joined.get(&event.room);
            if joined.is_some_and(|joined| *joined < event.before) {
                assert!(
                    self.follower.has_seen(&event.room, &event.event_id),
                    "{} has never seen {} of {}",
                    self.id,
                    event.event_id,
                    event.room
                );
            }
        }
    }

    async fn verify_values(&mut self, line: &Line) {
        for (path, value) in &mut self.values {
            let answer = ask(line, path, &self.token).await;
            let found = match answer.status {
                200 => answer.body,
                _ => Value::Null,
            };
            assert!(
                found == value.sure || Some(&found) == value.tried.as_ref(),
                "{path} is {found}, was set to {}, maybe to {:?}",
                value.sure,
                value.tried
            );
            (value.sure, value.tried) = (found, None);
        }
    }

    async fn verify_messages(&mut self, line: &Line, world: &World) {
        for message in std::mem::take(&mut self.messages) {
            let before = world.order.next();
            let again = self
                .put_message(line, &message.room, message.transaction)
                .await
                .expect("nobody kills the server");
            match message.event_id {
                Some(event_id) => assert_eq!(again, event_id, "sent again"),
                None => world.add_event(&message.room, &again, before),
            }
            let path = format!(
                "{CLIENT}/rooms/{}/event/{}",
                escaped(&message.room),
                escaped(&again)
            );
            ask(line, &path, &self.token).await.ok();
        }
    }

    async fn verify_tokens(&mut self, line: &Line) {
        assert_eq!(whoami(line, &self.token).await, 200);
        for (name, token) in std::mem::take(&mut self.accounts) {
            assert_eq!(whoami(line, &token).await, 200, "{name} was registered");
            log_in(line, &name)
                .await
                .expect("nobody kills the server")
                .ok();
        }
        for device in &mut self.devices {
            if std::mem::take(&mut device.is_exchanging) && device.ended == Some(false) {
                // The same refresh token again gives a pair, whether it had been exchanged or not.
                let exchanged = device.exchange(line).await;
                exchanged.expect("nobody kills the server");
            }
            let status = whoami(line, &device.token).await;
            match device.ended {
                Some(false) => assert_eq!(status, 200, "{} was signed in", self.id),
                Some(true) => assert_eq!(status, 401, "{} was signed out", self.id),
                None => device.ended = Some(status == 401),
            }
        }
        // Those that have ended are no longer of interest.
        self.devices.retain(|device| device.ended == Some(false));
    }
}

impl Device {
    async fn exchange(&mut self, line: &Line) -> Option<()> {
        self.is_exchanging = true;
        let path = format!("{CLIENT}/refresh");
        let body = json!({ "refresh_token": self.refresh });
        let answer = line.post(&path, "", &body).await?.ok();
        let text = |field: &str| answer[field].as_str().expect("a token").to_owned();
        self.token = text("access_token");
        self.refresh = Some(text("refresh_token"));
        self.is_exchanging = false;
        Some(())
    }
}

fn told(number: u64) -> String {
    format!("told {number}")
}

async fn ask(line: &Line, path: &str, token: &str) -> super::line::Answer {
    let answer = line.get(path, token).await;
    answer.expect("nobody kills the server")
}

async fn whoami(line: &Line, token: &str) -> u16 {
    ask(line, &format!("{CLIENT}/account/whoami"), token)
        .await
        .status
}

async fn register(line: &Line, name: &str) -> Option<String> {
    let body = json!({
        "username": name,
        "password": PASSWORD,
        "auth": { "type": "m.login.dummy" },
    });
    let path = format!("{CLIENT}/register");
    Some(line.post(&path, "", &body).await?.text("access_token"))
}

async fn log_in(line: &Line, name: &str) -> Option<super::line::Answer> {
    let body = json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": name },
        "password": PASSWORD,
        "refresh_token": true,
    });
    line.post(&format!("{CLIENT}/login"), "", &body).await
}

//! The people of a simulation: what they do in their rooms.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use hearth::api::Dispatcher;
use http::Method;
use ruma::OwnedServerName;
use serde_json::{Value, json};
use tokio::task::AbortHandle;

use super::{chance::Chance, world};

/// How often each thing is done that somebody may do.
const WEIGHTS: [usize; 14] = [40, 12, 8, 8, 10, 8, 10, 4, 6, 4, 4, 1, 3, 6];
/// Rooms that there may be before none is replaced any more.
const MAX_ROOMS: usize = 4;

const VERSIONS: [&str; 7] = ["6", "7", "8", "9", "10", "11", "12"];
/// Versions with their own state resolution, with names for events, and with slashes in IDs.
const OLD_VERSIONS: [&str; 4] = ["1", "1", "2", "3"];

/// Who and what there is.
#[derive(Default)]
pub struct Town {
    pub people: Vec<Person>,
    pub rooms: Vec<String>,
    /// Rooms are of old versions.
    pub is_old: bool,
    /// Room and ID of the events that servers have answered with 200, by the server.
    pub sent: Vec<Sent>,
}

#[derive(Clone)]
pub struct Person {
    pub server: usize,
    pub id: String,
    pub token: String,
}

/// An event that a server has acknowledged.
pub struct Sent {
    pub server: usize,
    pub room: usize,
    pub event: String,
}

/// A request of a client.
pub struct Call {
    pub method: Method,
    pub path: String,
    pub body: Option<Value>,
    /// What is asked for first, and what becomes of the answer before it is sent.
    pub edit: Option<Box<dyn FnOnce(Value) -> Value + Send>>,
}

/// What somebody does.
pub struct Action {
    pub server: usize,
    person: usize,
    room: usize,
    call: Call,
}

/// What people are doing.
#[derive(Default)]
pub struct People {
    next: u64,
    running: BTreeMap<u64, Running>,
    ended: Arc<Mutex<Vec<(u64, u16, Value)>>>,
}

struct Running {
    server: usize,
    room: usize,
    name: String,
    task: AbortHandle,
}

impl Call {
    fn new(method: Method, path: String, body: Value) -> Self {
        Self {
            method,
            path,
            body: Some(body),
            edit: None,
        }
    }
}

/// Sends a request to a server.
pub async fn call(dispatcher: &Dispatcher, token: Option<&str>, call: Call) -> (u16, Value) {
    let mut body = call.body;
    if let Some(edit) = call.edit {
        let (status, before) = request(dispatcher, token, (Method::GET, &call.path, None)).await;
        if status != 200 {
            return (status, before);
        }
        body = Some(edit(before));
    }
    request(dispatcher, token, (call.method, &call.path, body)).await
}

async fn request(
    dispatcher: &Dispatcher,
    token: Option<&str>,
    (method, path, body): (Method, &str, Option<Value>),
) -> (u16, Value) {
    let mut request = http::Request::builder().method(method).uri(path);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let body = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
    let request = request.body(body).expect("a request");
    let answer = world::answer(dispatcher, request).await;
    let body = serde_json::from_slice(answer.body()).unwrap_or(Value::Null);
    (answer.status().as_u16(), body)
}

pub fn registration(name: &str) -> Call {
    let body = json!({
        "username": name,
        "password": crate::harness::PASSWORD,
        "auth": { "type": "m.login.dummy" },
    });
    Call::new(Method::POST, "/_matrix/client/v3/register".to_owned(), body)
}

pub fn join(room: &str, via: &[OwnedServerName]) -> Call {
    let via: Vec<String> = via.iter().map(|name| format!("via={name}")).collect();
    let path = format!("/_matrix/client/v3/join/{room}?{}", via.join("&"));
    Call::new(Method::POST, path, json!({}))
}

pub fn message(room: &str, transaction: u64, text: &str) -> Call {
    let path = format!("/_matrix/client/v3/rooms/{room}/send/m.room.message/{transaction}");
    Call::new(
        Method::PUT,
        path,
        json!({ "msgtype": "m.text", "body": text }),
    )
}

impl Town {
    pub fn add_person(&mut self, server: usize, id: String, token: String) {
        self.people.push(Person { server, id, token });
    }

    /// Somebody makes a room in which some others have power too, and to which they are invited or may come as they like.
    pub fn room(&self, chance: &mut Chance) -> (Person, Call) {
        let creator = chance.one_of(&self.people).clone();
        let version = match self.is_old {
            true => *chance.one_of(&OLD_VERSIONS),
            false => *chance.one_of(&VERSIONS),
        };
        let mut users = serde_json::Map::new();
        for person in &self.people {
            let level = *chance.one_of(&[0, 50, 50, 100]);
            if person.id != creator.id {
                users.insert(person.id.clone(), json!(level));
            } else if version != "12" {
                users.insert(person.id.clone(), json!(100));
            }
        }
        let mut invited = Vec::new();
        let mut preset = "public_chat";
        if chance.percent(25) {
            preset = "private_chat";
            let others = self.people.iter().filter(|person| person.id != creator.id);
            invited.extend(others.map(|person| &*person.id));
        }
        let body = json!({
            "preset": preset,
            "invite": invited,
            "room_version": version,
            "power_level_content_override": {
                "users": users,
                "events": { "m.room.name": 0, "test.state": 0, "m.room.power_levels": 50 },
            },
        });
        let path = "/_matrix/client/v3/createRoom".to_owned();
        (creator, Call::new(Method::POST, path, body))
    }
}

impl People {
    /// What somebody does next.
    pub fn choose(&mut self, town: &Town, chance: &mut Chance) -> Option<Action> {
        let person = chance.below(town.people.len());
        let room = chance.below(town.rooms.len());
        self.next += 1;
        let choice = Choice {
            town,
            own: &town.people[person],
            other: chance.one_of(&town.people),
            room,
            number: self.next,
        };
        let call = choice.call(chance)?;
        Some(Action {
            server: town.people[person].server,
            person,
            room,
            call,
        })
    }

    /// Begins an action. Answers what it is.
    pub fn start(&mut self, action: Action, dispatcher: Arc<Dispatcher>, town: &Town) -> String {
        let id = self.next;
        let person = town.people[action.person].clone();
        let path = action.call.path.trim_start_matches("/_matrix/client/v3/");
        let name = format!("#{id} {} {} {path}", person.id, action.call.method);
        let ended = Arc::clone(&self.ended);
        let task = tokio::spawn(async move {
            let (status, answer) = call(&dispatcher, Some(&person.token), action.call).await;
            let mut ended = ended.lock().unwrap_or_else(PoisonError::into_inner);
            ended.push((id, status, answer));
        });
        let running = Running {
            server: action.server,
            room: action.room,
            name: name.clone(),
            task: task.abort_handle(),
        };
        self.running.insert(id, running);
        name
    }

    /// What has ended meanwhile, a line for each.
    pub fn take_news(&mut self, town: &mut Town) -> Vec<String> {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ended = std::mem::take(&mut *ended);
        ended.sort_by_key(|(id, _, _)| *id);
        let mut lines = Vec::new();
        for (id, status, answer) in ended {
            let Some(running) = self.running.remove(&id) else {
                continue;
            };
            // Other servers may be out of reach.
            let is_answered =
                status < 500 || (matches!(status, 502 | 504) && running.name.contains("POST"));
            assert!(is_answered, "{}: {status} {answer}", running.name);
            let event = answer["event_id"].as_str().unwrap_or_default();
            let error = answer["error"].as_str().unwrap_or_default();
            lines.push(format!("#{id} ended with {status} {event}{error}"));
            if let Some(room) = answer["replacement_room"].as_str() {
                town.rooms.push(room.to_owned());
            }
            if !event.is_empty() {
                town.sent.push(Sent {
                    server: running.server,
                    room: running.room,
                    event: event.to_owned(),
                });
            }
        }
        lines
    }

    /// A server is gone, and so are the requests to it.
    pub fn killed(&mut self, server: usize) {
        self.running.retain(|_, running| {
            let is_gone = running.server == server;
            if is_gone {
                running.task.abort();
            }
            !is_gone
        });
    }

    pub fn are_busy(&self) -> bool {
        !self.running.is_empty()
    }

    pub fn busy(&self) -> Vec<&str> {
        let running = self.running.values();
        running.map(|running| running.name.as_str()).collect()
    }
}

/// Who could do what.
struct Choice<'a> {
    town: &'a Town,
    own: &'a Person,
    other: &'a Person,
    room: usize,
    number: u64,
}

impl Choice<'_> {
    fn call(&self, chance: &mut Chance) -> Option<Call> {
        let number = self.number;
        let room = &self.town.rooms[self.room];
        Some(match chance.weighted(&WEIGHTS) {
            0 => message(room, number, &format!("message {number}")),
            1 => self.state(
                "m.room.name",
                "",
                json!({ "name": format!("name {number}") }),
            ),
            2 => self.state(
                "m.room.topic",
                "",
                json!({ "topic": format!("topic {number}") }),
            ),
            3 => {
                let key = *chance.one_of(&["a", "b"]);
                self.state("test.state", key, json!({ "value": number }))
            }
            4 => self.power(*chance.one_of(&[0, 0, 50, 50, 100])),
            5 => {
                let action = *chance.one_of(&["kick", "kick", "ban", "ban", "unban", "invite"]);
                self.membership(action, json!({ "user_id": self.other.id }))
            }
            6 => {
                let servers = chance.below(3);
                let people = (0..=servers).map(|_| chance.one_of(&self.town.people));
                let names = people.filter_map(|person| person.id.split_once(':'));
                let names = names.filter_map(|(_, name)| name.try_into().ok());
                join(room, &names.collect::<Vec<_>>())
            }
            7 => self.join_rules(chance),
            8 => {
                let sent = self.town.sent.iter().filter(|sent| sent.room == self.room);
                let sent: Vec<_> = sent.collect();
                let event = &sent.get(chance.below(sent.len().max(1)))?.event;
                let path = format!("/_matrix/client/v3/rooms/{room}/redact/{event}/{number}");
                Call::new(Method::PUT, path, json!({ "reason": "simulated" }))
            }
            9 => self.membership("leave", json!({})),
            10 => {
                let path = format!("/_matrix/client/v3/profile/{}/displayname", self.own.id);
                let name = format!("{number}");
                Call::new(Method::PUT, path, json!({ "displayname": name }))
            }
            11 if self.town.rooms.len() < MAX_ROOMS => {
                let version = *chance.one_of(&VERSIONS);
                self.in_room(Method::POST, "upgrade", json!({ "new_version": version }))
            }
            11 | 12 => self.access(chance),
            _ => {
                let mut call = self.in_room(Method::GET, "messages?dir=b&limit=10", Value::Null);
                call.body = None;
                call
            }
        })
    }

    /// Who may join from now on.
    fn join_rules(&self, chance: &mut Chance) -> Call {
        let rules = ["public", "public", "invite", "restricted", "knock"];
        let rule = *chance.one_of(&rules);
        let mut content = json!({ "join_rule": rule });
        if rule == "restricted" {
            let room = chance.one_of(&self.town.rooms);
            content["allow"] = json!([{ "type": "m.room_membership", "room_id": room }]);
        }
        self.state("m.room.join_rules", "", content)
    }

    /// Shuts the server of somebody out, or lets all in.
    fn access(&self, chance: &mut Chance) -> Call {
        let (_, server) = self.other.id.split_once(':').expect("a user ID");
        let denied = match chance.percent(40) {
            true => vec![server],
            false => Vec::new(),
        };
        let content = json!({ "allow": ["*"], "deny": denied, "allow_ip_literals": true });
        self.state("m.room.server_acl", "", content)
    }

    fn membership(&self, action: &str, body: Value) -> Call {
        self.in_room(Method::POST, action, body)
    }

    fn in_room(&self, method: Method, action: &str, body: Value) -> Call {
        let room = &self.town.rooms[self.room];
        let path = format!("/_matrix/client/v3/rooms/{room}/{action}");
        Call::new(method, path, body)
    }

    fn state(&self, event_type: &str, key: &str, content: Value) -> Call {
        let room = &self.town.rooms[self.room];
        let mut path = format!("/_matrix/client/v3/rooms/{room}/state/{event_type}");
        if !key.is_empty() {
            path = format!("{path}/{key}");
        }
        Call::new(Method::PUT, path, content)
    }

    /// Gives somebody another power level.
    fn power(&self, level: i64) -> Call {
        let mut call = self.state("m.room.power_levels", "", Value::Null);
        let user = self.other.id.clone();
        call.edit = Some(Box::new(move |mut levels| {
            levels["users"][user] = json!(level);
            levels
        }));
        call
    }
}

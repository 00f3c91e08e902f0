//! Whether servers that have been through the same agree.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use hearth::{
    rooms::{Class, Placed, RoomNumber, StoredEvent, flag},
    server::Server,
    storage::{Order, Snapshot},
};
use ruma::RoomId;

use super::{people, world::World};

/// Messages from every server after which all must agree.
const ROUNDS: u64 = 5;
const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

/// What a server takes a room to be.
#[derive(Debug, PartialEq, Eq)]
struct View {
    extremities: BTreeSet<String>,
    /// Event IDs by type and state key.
    state: BTreeMap<(String, String), String>,
    joined: BTreeSet<String>,
}

impl World {
    /// Everybody who can says one more thing in every room, until all agree on what comes last.
    pub async fn agree(&mut self) {
        for round in 0..ROUNDS {
            // What failed is not tried again at once.
            self.advance(DAY_MS);
            self.settle().await;
            for room in 0..self.town.rooms.len() {
                for server in 0..self.slots.len() {
                    self.say(room, server, round).await;
                }
            }
            self.settle().await;
            if self.disagreement(true).is_none() {
                break;
            }
        }
    }

    /// Somebody of a server says something in a room, if anybody there can. Nothing is delivered meanwhile.
    async fn say(&mut self, room: usize, server: usize, round: u64) {
        if !self.is_in(room, server) {
            return;
        }
        let index = u64::try_from(room).expect("few rooms");
        let transaction = 1_000_000 + round * 100 + index;
        for person in self.town.people.clone() {
            if person.server != server {
                continue;
            }
            let call = people::message(&self.town.rooms[room], transaction, "done");
            let (status, _) = self.ask_alone(server, person.token, call).await;
            if status == 200 {
                self.mute.remove(&(room, server));
                return;
            }
        }
        self.mute.insert((room, server));
    }

    fn is_in(&self, room: usize, server: usize) -> bool {
        let server = self.server(server);
        let room_id = RoomId::parse(&self.town.rooms[room]).expect("a room ID");
        let number = server.rooms.number(&room_id);
        let published = number.and_then(|number| server.rooms.published(number));
        published.is_some_and(|published| published.head.local > 0)
    }

    fn server(&self, index: usize) -> &Server {
        let live = self.slots[index].live.as_ref();
        &live.expect("the server runs").server
    }

    /// Asserts that all servers agree on every room that they are in, and that each agrees with itself.
    pub fn judge(&self) {
        if let Some(text) = self.disagreement(false) {
            panic!("{text}");
        }
        for (index, slot) in self.slots.iter().enumerate() {
            let server = self.server(index);
            let snapshot = server.store.snapshot().expect("a snapshot");
            for room in server.rooms.all() {
                let found = server
                    .rooms
                    .verify(&snapshot, room)
                    .expect("it can be read");
                if !found.is_empty() {
                    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
                    let events = timeline(server, &snapshot, room).expect("it can be read");
                    panic!("{}: {found:#?}\n{events}", slot.name);
                }
            }
        }
        for sent in &self.town.sent {
            let server = self.server(sent.server);
            let snapshot = server.store.snapshot().expect("a snapshot");
            let event_id = ruma::EventId::parse(&sent.event).expect("an event ID");
            let found = server.rooms.event_by_id(&snapshot, &event_id);
            assert!(
                found.expect("it can be read").is_some(),
                "{} has lost {event_id}",
                self.slots[sent.server].name
            );
        }
    }

    /// How two servers in a room differ; `only_extremities`: in what comes last.
    fn disagreement(&self, only_extremities: bool) -> Option<String> {
        for (index, room) in self.town.rooms.iter().enumerate() {
            let mut views = self.views(index).into_iter();
            let Some((first, expected)) = views.next() else {
                continue;
            };
            for (other, view) in views {
                let is_alike = match only_extremities {
                    true => view.extremities == expected.extremities,
                    false => view == expected,
                };
                if !is_alike {
                    let mut text = expected.differences(&view);
                    let ends = expected.extremities.symmetric_difference(&view.extremities);
                    for end in ends {
                        text += &self.known_of(room, end);
                    }
                    if std::env::var_os("HEARTH_SIMULATION_TRACE").is_some() {
                        text += &self.timelines(room);
                    }
                    return Some(format!(
                        "servers {first} and {other} disagree on {room}:\n{text}"
                    ));
                }
            }
        }
        None
    }

    /// What the servers in a room take it to be, but those that are shut out of it.
    fn views(&self, index: usize) -> Vec<(usize, View)> {
        let mut servers = self.heard(index);
        let heard = servers.clone();
        servers.retain(|server| !self.knows_alone(index, &heard, *server));
        let view = |server: &usize| {
            let mut view = self.view(&self.town.rooms[index], *server);
            view.extremities
                .retain(|event| !self.stays_loose(index, &servers, event));
            (*server, view)
        };
        servers.iter().map(view).collect()
    }

    /// The servers in a room that let each other in. Who is shut out hears something else; of two that shut out each other it is
    /// the one that more do.
    fn heard(&self, index: usize) -> Vec<usize> {
        let room = &self.town.rooms[index];
        let inside = (0..self.slots.len()).filter(|server| self.is_in(index, *server));
        let mut heard: Vec<_> = inside.collect();
        loop {
            let shut_out_by = |server: usize| {
                let others = heard.iter().filter(|other| **other != server);
                others
                    .filter(|other| !self.lets_in(room, **other, server))
                    .count()
            };
            let most = heard.iter().copied();
            let most = most.max_by_key(|server| shut_out_by(*server));
            let most = most.filter(|server| shut_out_by(*server) > 0);
            match most {
                Some(most) => heard.retain(|server| *server != most),
                None => return heard,
            }
        }
    }

    /// Whether a server that may not speak goes by an event of one that is shut out, of which nobody who may speak has heard: no
    /// other can be told of it.
    fn knows_alone(&self, index: usize, servers: &[usize], server: usize) -> bool {
        let is_mute = |server: usize| self.mute.contains(&(index, server));
        let is_shut_out = |server: usize| self.is_in(index, server) && !servers.contains(&server);
        let goes_unheard = |event: &String| {
            let found = self.find(server, event).expect("it is an end of the graph");
            let mut names = self.slots.iter().map(|slot| &slot.name);
            let sender = names.position(|name| name == found.pdu.sender.server_name());
            let mut speakers = servers.iter().filter(|other| !is_mute(**other));
            sender.is_some_and(is_shut_out)
                && speakers.all(|other| self.find(*other, event).is_none())
        };
        let view = self.view(&self.town.rooms[index], server);
        is_mute(server) && view.extremities.iter().any(goes_unheard)
    }

    /// Whether an event cannot be tied any more: only who has accepted it could cite it, and of those nobody may speak.
    fn stays_loose(&self, index: usize, servers: &[usize], event: &str) -> bool {
        let may_speak = |server: &&usize| !self.mute.contains(&(index, **server));
        let mut speakers = servers.iter().filter(may_speak).peekable();
        match speakers.peek() {
            Some(_) => speakers.all(|server| self.has_soft_failed(*server, event)),
            None => servers
                .iter()
                .any(|server| self.has_soft_failed(*server, event)),
        }
    }

    /// Whether the access list of a room, as `server` has it, lets another in.
    fn lets_in(&self, room: &str, server: usize, other: usize) -> bool {
        let name = &self.slots[other].name;
        let server = self.server(server);
        let snapshot = server.store.snapshot().expect("a snapshot");
        let room_id = RoomId::parse(room).expect("a room ID");
        let number = server.rooms.number(&room_id).expect("the room is known");
        let allowed = server.rooms.acl_allows(&snapshot, number, name);
        allowed.expect("the room can be read")
    }

    fn has_soft_failed(&self, server: usize, event: &str) -> bool {
        let found = self.find(server, event);
        found.is_some_and(|event| event.meta.has(flag::SOFT_FAILED))
    }

    /// An event as a server has it.
    fn find(&self, server: usize, event: &str) -> Option<Arc<StoredEvent>> {
        let event_id = ruma::EventId::parse(event).expect("an event ID");
        let server = self.server(server);
        let snapshot = server.store.snapshot().expect("a snapshot");
        let found = server.rooms.event_by_id(&snapshot, &event_id);
        found.expect("it can be read").map(|(_, event)| event)
    }

    /// The timelines of a room as all servers have them.
    fn timelines(&self, room: &str) -> String {
        let room_id = RoomId::parse(room).expect("a room ID");
        let mut text = String::new();
        for (index, slot) in self.slots.iter().enumerate() {
            let server = self.server(index);
            let snapshot = server.store.snapshot().expect("a snapshot");
            if let Some(number) = server.rooms.number(&room_id) {
                let events = timeline(server, &snapshot, number).expect("it can be read");
                text += &format!("{}:\n{events}", slot.name);
            }
        }
        text
    }

    /// What the servers know of an event.
    fn known_of(&self, room: &str, event: &str) -> String {
        let mut text = format!("{room} {event}:");
        for index in 0..self.slots.len() {
            let what = match self.find(index, event) {
                Some(event) => format!("{} {:b}", event.pdu.sender, event.meta.flags),
                None => "unknown".to_owned(),
            };
            text += &format!("\n    {index}: {what}");
        }
        text + "\n"
    }

    fn view(&self, room: &str, server: usize) -> View {
        let server = self.server(server);
        let snapshot = server.store.snapshot().expect("a snapshot");
        let room_id = RoomId::parse(room).expect("a room ID");
        view(server, &snapshot, &room_id).expect("the room can be read")
    }
}

fn view(
    server: &Server,
    snapshot: &Snapshot,
    room_id: &RoomId,
) -> Result<View, hearth::rooms::Error> {
    let rooms = &server.rooms;
    let room = rooms.number(room_id).expect("the room is known");
    let head = rooms.head(snapshot, room)?.expect("it has a head");
    let extremities = rooms.events(snapshot, room, &head.extremities)?;
    let extremities = extremities.into_iter().flatten();
    let mut state = rooms.core_state(snapshot, room, head.root)?;
    state.extend(rooms.member_state(snapshot, room, head.root)?);
    let state = state.into_iter().map(|event| {
        let key = event.pdu.state_key.clone().unwrap_or_default();
        let key = (event.pdu.event_type.to_string(), key);
        (key, event.event_id().to_string())
    });
    let joined = rooms.members(snapshot, room, Class::Join, usize::MAX)?;
    let mut names = BTreeSet::new();
    for (user, _, _) in joined {
        names.insert(server.accounts.user_id(snapshot, user)?.to_string());
    }
    Ok(View {
        extremities: extremities
            .map(|event| event.event_id().to_string())
            .collect(),
        state: state.collect(),
        joined: names,
    })
}

/// The timeline of a room, a line for each event.
fn timeline(
    server: &Server,
    snapshot: &Snapshot,
    room: RoomNumber,
) -> Result<String, hearth::rooms::Error> {
    let order = Order::Forward;
    let rows = server
        .rooms
        .timeline(snapshot, room, i64::MIN, order, 10_000)?;
    let line = |row: &Placed| {
        let meta = &row.event.meta;
        format!(
            "{} event {} at {} flags {:b} after {:?}: {} of {} {}\n",
            row.index,
            row.event.number.0,
            row.position.0,
            meta.flags,
            meta.prev_events,
            row.event.pdu.event_type,
            row.event.pdu.sender,
            row.event.event_id(),
        )
    };
    Ok(rows.iter().map(line).collect())
}

impl View {
    fn differences(&self, other: &Self) -> String {
        let mut text = String::new();
        if self.extremities != other.extremities {
            text += &format!("last: {:?}, {:?}\n", self.extremities, other.extremities);
        }
        let keys: BTreeSet<_> = self.state.keys().chain(other.state.keys()).collect();
        for key in keys {
            let (one, two) = (self.state.get(key), other.state.get(key));
            if one != two {
                text += &format!("{key:?}: {one:?}, {two:?}\n");
            }
        }
        if self.joined != other.joined {
            text += &format!("joined: {:?}, {:?}\n", self.joined, other.joined);
        }
        text
    }
}

//! The servers of a simulation, and what happens to them, one thing at a time.
//!
//! Whatever happens next is picked when nothing moves any more: so it does not depend on how fast anything was.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use hearth::{
    api::{self, Dispatcher, Peer, limits::Limits},
    clock::Clock,
    config::sections::Resource,
    run,
    server::Server,
    storage::Store,
    tasks::Stage,
};
use http_body_util::{BodyExt as _, Full};
use ruma::{OwnedServerName, ServerName};
use tokio::task::AbortHandle;

use super::{
    chance::{self, Chance},
    idle::Idle,
    network::{Item, Network, Process, What},
    people::{People, Town},
};
use crate::harness;

/// When simulations begin, in milliseconds since the Unix epoch.
const BEGINNING_MS: u64 = 1_800_000_000_000;
/// Deliveries and moves of the clock after which all must have come to rest.
const MAX_SETTLING: usize = 30_000;
/// How far the clock goes at most while all comes to rest.
const MAX_SETTLING_MS: u64 = 7 * 24 * 60 * 60 * 1_000;

/// From this seed on rooms are of old versions.
pub const FIRST_OLD_SEED: u64 = 1 << 40;

/// What goes wrong in one simulation, each in a hundred.
pub struct Faults {
    loss: usize,
    duplicates: usize,
    has_partitions: bool,
    has_kills: bool,
    has_skew: bool,
}

/// A server, whether it runs or not.
pub struct Slot {
    pub name: OwnedServerName,
    pub clock: Clock,
    pub store: Store,
    life: u32,
    pub live: Option<Live>,
}

/// A server that runs.
pub struct Live {
    pub server: Arc<Server>,
    pub dispatcher: Arc<Dispatcher>,
    /// Requests that are being answered.
    answering: Vec<AbortHandle>,
}

pub struct World {
    pub seed: u64,
    step: u64,
    idle: Idle,
    network: Network,
    pub slots: Vec<Slot>,
    pub town: Town,
    pub people: People,
    faults: Faults,
    /// Pairs of servers that do not reach each other, the smaller first.
    cuts: BTreeSet<(usize, usize)>,
    is_calm: bool,
    /// Rooms and servers of which nobody may say anything there, as of the last try.
    pub mute: BTreeSet<(usize, usize)>,
    /// What happened, a line for each step.
    pub trace: Vec<String>,
}

impl Faults {
    fn new(seed: u64) -> Self {
        let mut chance = Chance::new(seed, u64::MAX);
        Self {
            loss: *chance.one_of(&[0, 2, 10, 25]),
            duplicates: *chance.one_of(&[0, 5, 20]),
            has_partitions: chance.percent(60),
            has_kills: chance.percent(50),
            has_skew: chance.percent(50),
        }
    }
}

impl World {
    /// Servers with people in rooms that all have joined.
    pub async fn new(seed: u64, idle: Idle) -> Self {
        let mut chance = Chance::new(seed, 0);
        let count = 2 + chance.below(4);
        let name = |index: usize| {
            ServerName::parse(format!("s{index}.test")).expect("it is a server name")
        };
        let names: Vec<OwnedServerName> = (0..count).map(name).collect();
        let faults = Faults::new(seed);
        let skew = |chance: &mut Chance| match faults.has_skew {
            true => u64::try_from(chance.below(600_000)).expect("some minutes"),
            false => 0,
        };
        let mut slots = Vec::new();
        for (index, name) in (0_u64..).zip(&names) {
            let own_seed = chance::hash(seed, &[b"server", &index.to_le_bytes()]);
            let clock = Clock::seeded(BEGINNING_MS + skew(&mut chance), own_seed);
            slots.push(Slot {
                name: name.clone(),
                store: Store::stepped(clock.clone()),
                clock,
                life: 0,
                live: None,
            });
        }
        let mut world = Self {
            seed,
            step: 0,
            idle,
            network: Network::new(seed, names),
            slots,
            town: Town {
                is_old: seed >= FIRST_OLD_SEED,
                ..Town::default()
            },
            people: People::default(),
            faults,
            cuts: BTreeSet::new(),
            mute: BTreeSet::new(),
            is_calm: true,
            trace: Vec::new(),
        };
        for index in 0..count {
            world.start(index).await;
        }
        world.settle_people().await;
        world
    }

    /// So many times something happens, good or bad.
    pub async fn live_through(&mut self, actions: usize) {
        self.is_calm = false;
        let mut left = actions;
        while left > 0 {
            self.step += 1;
            let mut chance = Chance::new(self.seed, self.step);
            let weights = match self.network.under_way() {
                0 => [0, 70, 20, 10],
                _ => [74, 19, 5, 2],
            };
            match chance.weighted(&weights) {
                0 => self.deliver_next(),
                1 => {
                    left -= 1;
                    self.act(&mut chance);
                }
                2 => self.pass_time(&mut chance),
                _ => self.go_wrong(&mut chance).await,
            }
            self.quiet().await;
        }
    }

    /// Nothing goes wrong any more, and all servers run.
    pub async fn heal(&mut self) {
        self.is_calm = true;
        self.cuts.clear();
        self.note("all is well again");
        for index in 0..self.slots.len() {
            if self.slots[index].live.is_none() {
                self.start(index).await;
            }
        }
    }

    /// Everything is delivered, and time passes until nobody has anything left to do.
    pub async fn settle(&mut self) {
        let mut left_ms = MAX_SETTLING_MS;
        for _ in 0..MAX_SETTLING {
            self.quiet().await;
            self.step += 1;
            if self.network.under_way() > 0 {
                self.deliver_next();
                continue;
            }
            if self.is_settled() {
                return;
            }
            let Some(time_ms) = self.next_wait_ms() else {
                panic!(
                    "nobody waits for anything, and not all is done: {}",
                    self.unsettled()
                );
            };
            assert!(
                time_ms <= left_ms,
                "it takes too long: {}",
                self.unsettled()
            );
            left_ms -= time_ms;
            self.advance(time_ms);
        }
        panic!("it does not come to rest: {}", self.unsettled());
    }

    fn is_settled(&self) -> bool {
        !self.people.are_busy() && self.slots.iter().all(|slot| slot.is_settled())
    }

    fn unsettled(&self) -> String {
        let mut text = String::new();
        for slot in &self.slots {
            if let Some(live) = &slot.live {
                let destinations = live.server.federation.destinations();
                text += &format!("{}: {destinations:?}; ", slot.name);
            }
        }
        text + &format!("busy: {:?}", self.people.busy())
    }

    pub fn note(&mut self, text: &str) {
        let line = format!("{}: {text}", self.step);
        if std::env::var_os("HEARTH_SIMULATION_TRACE").is_some() {
            eprintln!("[{}] {line}", self.seed);
        }
        self.trace.push(line);
    }

    /// Waits until nothing moves: every task waits for the network or for the clock, and everything is durable.
    pub async fn quiet(&mut self) {
        loop {
            self.idle.reached().await;
            let mut has_moved = false;
            for slot in &self.slots {
                has_moved |= slot.store.step();
            }
            if !has_moved {
                break;
            }
        }
        for line in self.people.take_news(&mut self.town) {
            self.note(&line);
        }
    }

    /// Delivers what is next, or loses it.
    fn deliver_next(&mut self) {
        let Some(item) = self.network.pick(self.step) else {
            return;
        };
        let fate = chance::hash(self.seed, &[b"fate", &item.key.to_le_bytes()]);
        let mut fate = Chance::new(fate, 0);
        let (asker, asked) = (item.asker, item.asked);
        let way = match item.is_request() {
            true => format!("{} -> {asked} {}", asker.server, item.name),
            false => format!("{} <- {asked} {}", asker.server, item.name),
        };
        let pair = (asker.server.min(asked), asker.server.max(asked));
        let is_cut = self.cuts.contains(&pair);
        if is_cut || (!self.is_calm && fate.percent(self.faults.loss)) {
            self.note(&format!("lost {way} {:x}", item.key));
            self.lose(item, fate.percent(30));
            return;
        }
        self.note(&format!("{way} {:x}", item.key));
        let again = !self.is_calm && fate.percent(self.faults.duplicates);
        match item.what {
            What::Request(request) => {
                if again {
                    self.serve((asker, asked, item.name.clone()), request.clone(), None);
                }
                self.serve((asker, asked, item.name), request, item.reply);
            }
            What::Answer(answer) => {
                if let Some(reply) = item.reply {
                    // Who has given up does not listen.
                    let _unheard = reply.send(Ok(answer));
                }
            }
        }
    }

    fn lose(&mut self, item: Item, is_silent: bool) {
        if is_silent {
            self.network.silence(item.asker, item.reply);
        } else if let Some(reply) = item.reply {
            let _unheard = reply.send(Err("the connection broke".into()));
        }
    }

    /// Has a server answer a request.
    fn serve(
        &mut self,
        about: (Process, usize, String),
        request: http::Request<Bytes>,
        reply: Option<super::network::Reply>,
    ) {
        let Some(live) = &mut self.slots[about.1].live else {
            if let Some(reply) = reply {
                let _unheard = reply.send(Err("the connection was refused".into()));
            }
            return;
        };
        let (dispatcher, network) = (Arc::clone(&live.dispatcher), self.network.clone());
        let task = tokio::spawn(async move {
            let answer = answer(&dispatcher, request).await;
            network.put_answer(about, answer, reply);
        });
        live.answering.retain(|task| !task.is_finished());
        live.answering.push(task.abort_handle());
    }

    fn act(&mut self, chance: &mut Chance) {
        let Some(action) = self.people.choose(&self.town, chance) else {
            return;
        };
        let Some(live) = &self.slots[action.server].live else {
            return;
        };
        let dispatcher = Arc::clone(&live.dispatcher);
        let line = self.people.start(action, dispatcher, &self.town);
        self.note(&line);
    }

    /// Moves all clocks, sometimes just to the moment that somebody waits for.
    fn pass_time(&mut self, chance: &mut Chance) {
        let some_ms = u64::try_from(chance.below(20_000)).expect("some seconds");
        match self.next_wait_ms() {
            Some(wait_ms) if chance.percent(50) && wait_ms < 3_600_000 => self.advance(wait_ms),
            _ => self.advance(some_ms),
        }
    }

    fn next_wait_ms(&self) -> Option<u64> {
        let waits = self.slots.iter().filter_map(|slot| {
            let until_ms = slot.clock.next_wait()?;
            Some(until_ms.saturating_sub(slot.clock.now_ms()))
        });
        waits.min()
    }

    pub fn advance(&mut self, time_ms: u64) {
        self.note(&format!("{time_ms} ms pass"));
        for slot in &self.slots {
            slot.clock.advance(Duration::from_millis(time_ms));
        }
    }

    async fn go_wrong(&mut self, chance: &mut Chance) {
        let count = self.slots.len();
        let (one, other) = (chance.below(count), chance.below(count));
        let down = (0..count).find(|index| self.slots[*index].live.is_none());
        match chance.below(4) {
            0 if self.faults.has_partitions && one != other => {
                let pair = (one.min(other), one.max(other));
                self.note(&format!("{pair:?} do not reach each other"));
                self.cuts.insert(pair);
            }
            1 if self.faults.has_partitions => {
                self.note("everybody can reach everybody");
                self.cuts.clear();
            }
            2 if self.faults.has_kills => match down {
                Some(index) => self.start(index).await,
                None => self.kill_amid(one, chance).await,
            },
            3 if self.faults.has_skew => {
                let time_ms = u64::try_from(chance.below(120_000)).expect("some minutes");
                self.note(&format!("the clock of {one} jumps by {time_ms} ms"));
                let time = Duration::from_millis(time_ms);
                self.slots[one].clock.advance(time);
            }
            _ => {}
        }
    }

    /// Kills a server while something is being done.
    async fn kill_amid(&mut self, index: usize, chance: &mut Chance) {
        self.step += 1;
        match chance.percent(50) {
            true => self.deliver_next(),
            false => self.act(chance),
        }
        for _ in 0..chance.below(5) {
            self.idle.reached().await;
            for slot in &self.slots {
                slot.store.step();
            }
        }
        self.idle.reached().await;
        self.note(&format!("{index} is killed"));
        let slot = &mut self.slots[index];
        if let Some(live) = slot.live.take() {
            for stage in [Stage::Listeners, Stage::Requests, Stage::Followers] {
                live.server.tasks.signal(stage);
            }
            for task in &live.answering {
                task.abort();
            }
        }
        slot.store = slot.store.kill().expect("the store is in memory");
        slot.life += 1;
        self.network.killed(index);
        self.people.killed(index);
    }

    /// Starts a server on what its store has.
    async fn start(&mut self, index: usize) {
        let slot = &self.slots[index];
        let process = Process {
            server: index,
            life: slot.life,
        };
        let name = format!("server.name={}", slot.name);
        let mut config = harness::config(&[&name]);
        config.listeners.clear();
        let building = Server::build_simulated(
            config,
            slot.clock.clone(),
            slot.store.clone(),
            self.network.transport(process),
        );
        self.note(&format!("{index} starts"));
        let built = tokio::spawn(building);
        while !built.is_finished() {
            self.quiet().await;
        }
        let server = built.await.expect("no panic").expect("the server is built");
        let limits = Arc::new(Limits::new(
            server.clock.clone(),
            server.config.rate_limits.clone(),
            &server.metrics,
        ));
        let routes = api::routes(&[Resource::Client, Resource::Federation]);
        let dispatcher = Dispatcher::new(Arc::clone(&server), limits, routes);
        let running = run::start(server).expect("it has no listeners that could fail");
        self.slots[index].live = Some(Live {
            server: running.server,
            dispatcher: Arc::new(dispatcher),
            answering: Vec::new(),
        });
        self.quiet().await;
    }

    /// Registers people, makes rooms, and has everybody join them.
    async fn settle_people(&mut self) {
        let mut chance = Chance::new(self.seed, u64::MAX - 1);
        for server in 0..self.slots.len() {
            for name in ["ada", "ben"] {
                let user = format!("@{name}:{}", self.slots[server].name);
                let call = super::people::registration(name);
                let answer = self.ask(server, None, call).await;
                let token = answer["access_token"].as_str().expect("a token").to_owned();
                self.town.add_person(server, user, token);
            }
        }
        let names: Vec<_> = self.slots.iter().map(|slot| slot.name.clone()).collect();
        for _ in 0..=chance.below(2) {
            let (creator, call) = self.town.room(&mut chance);
            let (server, token) = (creator.server, creator.token.clone());
            let made = self.ask(server, Some(token), call).await;
            let room = made["room_id"].as_str().expect("a room").to_owned();
            self.note(&format!("{} made {room}", creator.id));
            for person in self.town.people.clone() {
                if person.id != creator.id {
                    let call = super::people::join(&room, &names[server..=server]);
                    let token = Some(person.token.clone());
                    self.ask(person.server, token, call).await;
                }
            }
            self.town.rooms.push(room);
        }
        self.settle().await;
    }

    /// Asks a server something that must succeed, while all else goes on.
    pub async fn ask(
        &mut self,
        server: usize,
        token: Option<String>,
        call: super::people::Call,
    ) -> serde_json::Value {
        let what = format!("{} {}", call.method, call.path);
        let (status, answer) = self.try_asking(server, token, call).await;
        assert_eq!(status, 200, "{what}: {answer}");
        answer
    }

    /// Asks a server while nothing is delivered.
    pub async fn ask_alone(
        &mut self,
        server: usize,
        token: String,
        call: super::people::Call,
    ) -> (u16, serde_json::Value) {
        let live = self.slots[server].live.as_ref().expect("the server runs");
        let dispatcher = Arc::clone(&live.dispatcher);
        let asked =
            tokio::spawn(async move { super::people::call(&dispatcher, Some(&token), call).await });
        self.quiet().await;
        match asked.is_finished() {
            true => asked.await.expect("no panic"),
            false => panic!("a message waits for other servers"),
        }
    }

    async fn try_asking(
        &mut self,
        server: usize,
        token: Option<String>,
        call: super::people::Call,
    ) -> (u16, serde_json::Value) {
        let live = self.slots[server].live.as_ref().expect("the server runs");
        let dispatcher = Arc::clone(&live.dispatcher);
        let asked =
            tokio::spawn(
                async move { super::people::call(&dispatcher, token.as_deref(), call).await },
            );
        while !asked.is_finished() {
            self.quiet().await;
            if self.network.under_way() > 0 {
                self.step += 1;
                self.deliver_next();
            } else if !asked.is_finished() {
                // Passwords are hashed on a thread of their own.
                tokio::task::spawn_blocking(|| ())
                    .await
                    .expect("it does nothing");
            }
        }
        asked.await.expect("no panic")
    }
}

impl Slot {
    fn is_settled(&self) -> bool {
        let Some(live) = &self.live else { return false };
        live.server.federation.destinations().is_empty()
    }
}

/// What a server answers.
pub async fn answer(
    dispatcher: &Dispatcher,
    request: http::Request<Bytes>,
) -> http::Response<Bytes> {
    let answer = dispatcher.answer(request.map(Full::new), Peer::Local).await;
    let (head, body) = answer.into_parts();
    let body = body.collect().await.expect("it is there already");
    http::Response::from_parts(head, body.to_bytes())
}

//! The network between the servers of a simulation: requests and answers lie here until one of them is picked.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use hearth::federation::Simulated;
use ruma::OwnedServerName;
use tokio::sync::oneshot;

use super::chance;

type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub type Answered = Result<http::Response<Bytes>, BoxError>;
pub type Reply = oneshot::Sender<Answered>;

/// A process of a server: it is started again after a kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    pub server: usize,
    /// How often the server had been started before.
    pub life: u32,
}

/// A request or an answer that is under way.
pub struct Item {
    /// Follows from what it is, and how often the same was sent before.
    pub key: u64,
    /// Whose request it is, or to whose request the answer belongs.
    pub asker: Process,
    pub asked: usize,
    /// For the trace.
    pub name: String,
    pub what: What,
    /// `None`: nobody waits for the answer.
    pub reply: Option<Reply>,
}

pub enum What {
    Request(http::Request<Bytes>),
    Answer(http::Response<Bytes>),
}

impl Item {
    pub fn is_request(&self) -> bool {
        matches!(self.what, What::Request(_))
    }

    fn is_awaited(&self) -> bool {
        self.reply.as_ref().is_some_and(|reply| !reply.is_closed())
    }
}

/// What is under way. Clones share it.
#[derive(Clone)]
pub struct Network {
    seed: u64,
    names: Arc<Vec<OwnedServerName>>,
    wires: Arc<Mutex<Wires>>,
}

#[derive(Default)]
struct Wires {
    items: Vec<Item>,
    /// How often each message was seen.
    seen: BTreeMap<u64, u64>,
    /// Requests that are never answered.
    silent: Vec<(Process, Reply)>,
}

impl Network {
    pub fn new(seed: u64, names: Vec<OwnedServerName>) -> Self {
        Self {
            seed,
            names: Arc::new(names),
            wires: Arc::default(),
        }
    }

    /// What a process uses to reach others.
    pub fn transport(&self, asker: Process) -> Simulated {
        let network = self.clone();
        Arc::new(move |name, request| {
            let asked = network.names.iter().position(|other| *other == name);
            let Some(asked) = asked else {
                let error: BoxError = format!("there is no server {name}").into();
                return std::future::ready(Err(error)).boxed();
            };
            let (reply, answer) = oneshot::channel();
            network.put_request(asker, asked, request, reply);
            let broken = |_gone| -> BoxError { "the connection broke".into() };
            async move { answer.await.map_err(broken)? }.boxed()
        })
    }

    fn put_request(
        &self,
        asker: Process,
        asked: usize,
        request: http::Request<Bytes>,
        reply: Reply,
    ) {
        let target = request.uri().to_string();
        let name = format!("{} {}", request.method(), short(&target));
        let parts: [&[u8]; 4] = [name.as_bytes(), target.as_bytes(), b"?", request.body()];
        let key = self.key(asker, asked, &parts);
        self.lock().items.push(Item {
            key,
            asker,
            asked,
            name,
            what: What::Request(request),
            reply: Some(reply),
        });
    }

    /// Sends an answer to the request that it answers.
    pub fn put_answer(
        &self,
        request: (Process, usize, String),
        answer: http::Response<Bytes>,
        reply: Option<Reply>,
    ) {
        let (asker, asked, name) = request;
        let status = answer.status().as_u16();
        let name = format!("{status} to {name}");
        let parts: [&[u8]; 3] = [name.as_bytes(), b"!", answer.body()];
        let key = self.key(asker, asked, &parts);
        self.lock().items.push(Item {
            key,
            asker,
            asked,
            name,
            what: What::Answer(answer),
            reply,
        });
    }

    fn key(&self, asker: Process, asked: usize, parts: &[&[u8]]) -> u64 {
        let ends = format!("{}.{}>{asked}", asker.server, asker.life);
        let first = chance::hash(self.seed, &[&[ends.as_bytes()], parts].concat());
        let mut wires = self.lock();
        let seen = wires.seen.entry(first).or_default();
        *seen += 1;
        chance::hash(first, &[&seen.to_le_bytes()])
    }

    /// How much is under way. What nobody waits for any more is swept away before.
    pub fn under_way(&self) -> usize {
        let mut wires = self.lock();
        wires
            .items
            .retain(|item| item.is_request() || item.is_awaited());
        wires.silent.retain(|(_, reply)| !reply.is_closed());
        wires.items.len()
    }

    /// Takes out the message whose turn it is in a step: it follows from what the messages are, not from when they came.
    pub fn pick(&self, step: u64) -> Option<Item> {
        let turn =
            |item: &Item| chance::hash(self.seed, &[&step.to_le_bytes(), &item.key.to_le_bytes()]);
        let mut wires = self.lock();
        let numbered = wires.items.iter().enumerate();
        let (index, _) = numbered.min_by_key(|(_, item)| turn(item))?;
        Some(wires.items.swap_remove(index))
    }

    /// Leaves a request without an answer, until the asker gives up.
    pub fn silence(&self, asker: Process, reply: Option<Reply>) {
        let mut wires = self.lock();
        wires.silent.extend(reply.map(|reply| (asker, reply)));
    }

    /// A server was killed. What it has sent is still under way; nobody waits for the answers.
    pub fn killed(&self, server: usize) {
        let mut wires = self.lock();
        wires.silent.retain(|(asker, _)| asker.server != server);
        for item in &mut wires.items {
            if item.asker.server == server {
                item.reply = None;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Wires> {
        self.wires.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A target as the trace shows it.
fn short(target: &str) -> &str {
    target
        .trim_start_matches("/_matrix/")
        .trim_start_matches("federation/")
}

//! Servers that write at the same time, and get what the others write in any order, agree in the end.

use super::*;

/// A world of servers and what is under way between them.
struct World {
    servers: Vec<Peer>,
    random: StdRng,
    /// How many events were sent.
    sent: usize,
    by_id: HashMap<OwnedEventId, Arc<Pdu>>,
    /// Those that made the room.
    old: BTreeSet<OwnedEventId>,
    /// By server: events that have not come yet.
    waiting: Vec<Vec<OwnedEventId>>,
}

impl World {
    fn pick(&mut self, below: usize) -> usize {
        self.random.random_range(0..below)
    }

    async fn step(&mut self) {
        let from = self.pick(self.servers.len());
        let to = self.pick(self.servers.len());
        let (user, other) = (
            self.servers[from].user.clone(),
            self.servers[to].user.clone(),
        );
        let event = match self.pick(10) {
            0 | 1 => topic(&user, &format!("topic {}", self.sent)),
            2 => membership(&user, &other, "ban"),
            3 => membership(&user, &other, "leave"),
            4 => membership(&user, &other, "invite"),
            5 => joined(&user),
            6 => {
                let level = [0, 50, 100][self.pick(3)];
                let first = self.servers[0].user.clone();
                let mut users = serde_json::Map::new();
                users.insert(first.to_string(), json!(100));
                users.insert(user.to_string(), json!(100));
                users.insert(
                    other.to_string(),
                    json!(if other == first { 100 } else { level }),
                );
                let content = object(json!({ "users": users })).unwrap();
                NewEvent::state(user, "m.room.power_levels", "", content)
            }
            7 => {
                let rule = ["public", "invite"][self.pick(2)];
                let content = object(json!({ "join_rule": rule })).unwrap();
                NewEvent::state(user, "m.room.join_rules", "", content)
            }
            _ => message(&user, &format!("message {}", self.sent)),
        };
        // What the rules do not allow where it is sent is not sent.
        if let Ok(pdu) = self.servers[from].send(event).await
            && !self.old.contains(&pdu.event_id)
            && self
                .by_id
                .insert(pdu.event_id.clone(), Arc::clone(&pdu))
                .is_none()
        {
            self.sent += 1;
            for (server, waiting) in self.waiting.iter_mut().enumerate() {
                if server != from {
                    waiting.push(pdu.event_id.clone());
                }
            }
        }
    }

    /// Carries an event to a server, and before it what that lacks.
    async fn carry(&self, server: usize, id: &OwnedEventId) {
        let mut stack = vec![id.clone()];
        while let Some(id) = stack.last().cloned() {
            match self.servers[server].receive(&self.by_id[&id]).await {
                Received::Settled { .. } => {
                    stack.pop();
                }
                Received::MissingAuth(missing) | Received::MissingPrev(missing) => {
                    stack.extend(missing);
                }
            }
        }
    }

    async fn deliver(&mut self, percent: usize) {
        for server in 0..self.servers.len() {
            let mut waiting = std::mem::take(&mut self.waiting[server]);
            waiting.shuffle(&mut self.random);
            let now = (waiting.len() * percent).div_ceil(100);
            let later = waiting.split_off(now);
            for id in waiting {
                self.carry(server, &id).await;
            }
            self.waiting[server] = later;
        }
    }

    fn compare(&self) -> usize {
        let mut agree = 0;
        let first = &self.servers[0];
        let graph = first.graph();
        for other in &self.servers[1..] {
            let theirs = other.graph();
            for id in self.by_id.keys() {
                let (here, there) = (&graph[id], &theirs[id]);
                assert_eq!(here.meta.is_rejected(), there.meta.is_rejected(), "{id}");
                assert_eq!(
                    first.state_ids(here.meta.root_after),
                    other.state_ids(there.meta.root_after),
                    "the state after {id}"
                );
            }
            if other.extremities() == first.extremities() {
                agree += 1;
                assert_eq!(first.state_ids(first.root()), other.state_ids(other.root()));
            }
        }
        for server in &self.servers {
            server.check();
        }
        agree
    }
}

async fn converge(seed: u64, version: RoomVersionId) -> usize {
    let servers = servers(3, version).await;
    let mut world = World {
        waiting: vec![Vec::new(); servers.len()],
        old: servers[0].graph().into_keys().collect(),
        servers,
        random: StdRng::seed_from_u64(seed),
        sent: 0,
        by_id: HashMap::new(),
    };
    let levels = world
        .servers
        .iter()
        .map(|server| (server.user.to_string(), json!(100)));
    let users: serde_json::Map<_, _> = levels.collect();
    let content = object(json!({ "users": users })).unwrap();
    let user = world.servers[0].user.clone();
    if let Ok(levels) = world.servers[0]
        .send(NewEvent::state(user, "m.room.power_levels", "", content))
        .await
    {
        world
            .by_id
            .insert(levels.event_id.clone(), Arc::clone(&levels));
        for server in [1, 2] {
            world.carry(server, &levels.event_id).await;
        }
    }
    for _ in 0..6 {
        for _ in 0..5 {
            world.step().await;
        }
        world.deliver(50).await;
    }
    world.deliver(100).await;
    world.compare()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 0, ..ProptestConfig::default() })]
    #[test]
    fn servers_that_hear_the_same_in_any_order_agree(seed: u64, is_newest: bool) {
        let version = if is_newest { RoomVersionId::V12 } else { RoomVersionId::V11 };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(converge(seed, version));
    }
}

//! Counts against a naive model: the rules of each user, evaluated for each event, summed up after the markers.

use std::collections::{BTreeMap, HashMap};

use ruma::{
    OwnedEventId, OwnedRoomId, RoomVersionId, events::TimelineEventType,
    events::room::power_levels::RoomPowerLevels, int, push, user_id,
};
use serde_json::{Value, json};

use super::{super::tests, Count, ReadThread, markers::THREADS};
use crate::{
    accounts::{GLOBAL, IGNORED_USERS, PushRuleChange, UserNumber},
    events::EventNumber,
    rooms::{Extra, NewEvent, Preset, RoomNumber, Rooms, object},
    storage::{Batch, Order, Snapshot},
};

/// A small random sequence.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % sides
    }
    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.roll(of.len())]
    }
}

/// What the model knows of an event.
struct Known {
    id: OwnedEventId,
    number: EventNumber,
    index: i64,
    thread: Option<EventNumber>,
    relates: bool,
    /// By user: notified, highlighted.
    verdicts: HashMap<String, (bool, bool)>,
}

struct Model {
    rooms: Rooms,
    room_id: OwnedRoomId,
    room: RoomNumber,
    users: Vec<(ruma::OwnedUserId, UserNumber)>,
    events: Vec<Known>,
    /// By user and thread.
    markers: HashMap<(String, u32), i64>,
}

const NAMES: [&str; 6] = ["alice", "bob", "carol", "dave", "erin", "frank"];

impl Model {
    async fn new() -> Self {
        let rooms = tests::rooms().await;
        let alice = user_id!("@alice:example.org");
        let plan = tests::plan(alice, Preset::PublicChat, RoomVersionId::V11);
        let room_id = rooms.create(plan).await.unwrap();
        let room = rooms.resident(&room_id).unwrap();
        let mut users = Vec::new();
        for name in NAMES {
            let id = ruma::UserId::parse(format!("@{name}:example.org")).unwrap();
            rooms.join(&id, &room_id, Extra::new()).await.unwrap();
            let number = rooms.accounts.intern(&[&id]).await.unwrap()[0];
            users.push((id, number));
        }
        let mut model = Self {
            rooms,
            room_id,
            room,
            users,
            events: Vec::new(),
            markers: HashMap::new(),
        };
        model.set_rules().await;
        model
    }

    /// Carol wants mentions only, dave nothing, erin hears of lemons and ignores frank.
    async fn set_rules(&mut self) {
        let room = push::NewSimplePushRule::new(self.room_id.clone(), vec![]);
        self.rule(2, push::NewPushRule::Room(room)).await;
        let condition =
            push::EventMatchConditionData::new("room_id".to_owned(), self.room_id.to_string());
        let conditions = vec![push::PushCondition::EventMatch(condition)];
        let mute = push::NewConditionalPushRule::new("quiet".to_owned(), conditions, vec![]);
        self.rule(3, push::NewPushRule::Override(mute)).await;
        self.keyword(4, "lemon*").await;
        let ignored = json!({ "ignored_users": { "@frank:example.org": {} } });
        let ignored = serde_json::value::to_raw_value(&ignored).unwrap();
        let accounts = &self.rooms.accounts;
        let erin = self.users[4].1;
        accounts
            .set_account_data(erin, GLOBAL, IGNORED_USERS, &ignored)
            .await
            .unwrap();
    }

    async fn keyword(&self, user: usize, pattern: &str) {
        let highlight =
            push::Action::SetTweak(push::Tweak::Highlight(push::HighlightTweakValue::Yes));
        let actions = vec![push::Action::Notify, highlight];
        let rule = push::NewPatternedPushRule::new(pattern.to_owned(), pattern.to_owned(), actions);
        self.rule(user, push::NewPushRule::Content(rule)).await;
    }

    async fn rule(&self, user: usize, rule: push::NewPushRule) {
        let (id, number) = &self.users[user];
        let change = PushRuleChange::Put {
            rule,
            after: None,
            before: None,
        };
        self.rooms
            .accounts
            .change_push_rule(*number, id, change)
            .await
            .unwrap();
    }

    async fn send(&mut self, sender: usize, event_type: &str, content: Value) {
        let sender = self.users[sender].0.clone();
        let event = NewEvent {
            sender: sender.clone(),
            event_type: TimelineEventType::from(event_type),
            state_key: None,
            content: object(content).unwrap(),
            redacts: None,
            transaction: None,
            timestamp: None,
        };
        let id = self.rooms.send(&self.room_id, event).await.unwrap();
        let snapshot = self.rooms.store.snapshot().unwrap();
        let stored = self
            .rooms
            .event_in_room(&snapshot, self.room, &id)
            .unwrap()
            .unwrap();
        let mut verdicts = HashMap::new();
        for (user, number) in &self.users {
            let verdict = self.evaluate(&snapshot, (user, *number), &stored.pdu).await;
            verdicts.insert(user.to_string(), verdict);
        }
        let thread = stored.meta.thread_root;
        if stored.meta.has(super::flag::NOTIFIES) {
            let key = thread.map_or(ReadThread::Main, ReadThread::Root).key();
            self.markers
                .insert((sender.to_string(), key), stored.meta.index);
        }
        let number = stored.number;
        self.events.push(Known {
            id,
            number,
            index: stored.meta.index,
            thread,
            relates: stored.meta.relation.is_some(),
            verdicts,
        });
    }

    async fn evaluate(
        &self,
        snapshot: &Snapshot,
        (user, number): (&ruma::UserId, UserNumber),
        pdu: &crate::events::Pdu,
    ) -> (bool, bool) {
        let accounts = &self.rooms.accounts;
        if accounts
            .ignored_users(snapshot, number)
            .unwrap()
            .contains(&pdu.sender)
        {
            return (false, false);
        }
        let rules = accounts.push_rules(snapshot, number).unwrap();
        let name = user.localpart().to_owned();
        let members = ruma::UInt::from(6_u32);
        let context =
            push::PushConditionRoomCtx::new(self.room_id.clone(), members, user.to_owned(), name);
        let authorization = ruma::room_version_rules::AuthorizationRules::V11;
        let mut levels = RoomPowerLevels::new(
            ruma::events::room::power_levels::RoomPowerLevelsSource::None,
            &authorization,
            [],
        );
        levels.users.insert(self.users[0].0.clone(), int!(100));
        levels.users_default = int!(0);
        let context = context.with_power_levels(levels.into());
        let raw =
            serde_json::value::RawValue::from_string(String::from_utf8(pdu.json.to_vec()).unwrap());
        let raw = ruma::serde::Raw::<Value>::from_json(raw.unwrap());
        let actions = rules.get_actions(&raw, &context).await;
        let notify = actions.iter().any(push::Action::should_notify);
        (
            notify,
            notify && actions.iter().any(push::Action::is_highlight),
        )
    }

    async fn read(&mut self, user: usize, thread: ReadThread, event: usize) {
        let (id, number) = self.users[user].clone();
        let snapshot = self.rooms.store.snapshot().unwrap();
        let event = &self.events[event];
        let stored = self
            .rooms
            .event_in_room(&snapshot, self.room, &event.id)
            .unwrap()
            .unwrap();
        let mut batch = Batch::new();
        let who = (number, self.room);
        self.rooms
            .read_up_to(&snapshot, &mut batch, who, (thread, &stored))
            .unwrap();
        self.rooms.store.submit(batch).await.unwrap();
        let marker = self
            .markers
            .entry((id.to_string(), thread.key()))
            .or_insert(i64::MIN);
        *marker = (*marker).max(event.index);
    }

    fn is_unread(&self, user: &str, event: &Known) -> bool {
        let thread = event
            .thread
            .map_or(ReadThread::Main, ReadThread::Root)
            .key();
        let marker = |thread: u32| self.markers.get(&(user.to_owned(), thread)).copied();
        let read = marker(thread).max(marker(ReadThread::All.key()));
        read.is_none_or(|read| event.index > read)
    }

    /// The counts by thread; `None` is the main timeline.
    fn naive(&self, user: &str) -> BTreeMap<Option<OwnedEventId>, Count> {
        let mut counts = BTreeMap::new();
        for event in self
            .events
            .iter()
            .filter(|event| self.is_unread(user, event))
        {
            let root = event.thread.map(|root| {
                let root = self.events.iter().find(|event| event.number == root);
                root.unwrap().id.clone()
            });
            let (notify, highlight) = event.verdicts[user];
            let count: &mut Count = counts.entry(root).or_default();
            count.notifications += u64::from(notify);
            count.highlights += u64::from(highlight);
        }
        counts.retain(|_, count| *count != Count::default());
        counts
    }

    fn check(&self, step: &str) {
        let snapshot = self.rooms.store.snapshot().unwrap();
        for (user, number) in &self.users {
            let wanted = self.naive(user.as_str());
            let by_thread = self
                .rooms
                .unread_threads(&snapshot, *number, self.room)
                .unwrap();
            let mut found: BTreeMap<_, _> = by_thread
                .threads
                .into_iter()
                .map(|(root, count)| (Some(root), count))
                .collect();
            found.insert(None, by_thread.main);
            found.retain(|_, count| *count != Count::default());
            assert_eq!(found, wanted, "{user} after {step}");
            let total = self
                .rooms
                .unread(&snapshot, *number, self.room)
                .unwrap()
                .total;
            let sum = |of: fn(&Count) -> u64| wanted.values().map(of).sum::<u64>();
            let wanted = Count {
                notifications: sum(|count| count.notifications),
                highlights: sum(|count| count.highlights),
            };
            assert_eq!(total, wanted, "{user} in all after {step}");
        }
    }

    async fn step(&mut self, dice: &mut Dice) -> String {
        let user = dice.roll(NAMES.len());
        if self.events.len() > 3 && dice.roll(3) == 0 {
            let event = dice.roll(self.events.len());
            let known = &self.events[event];
            let thread = match (dice.roll(3), known.thread) {
                (0, _) => ReadThread::All,
                (1, Some(root)) => ReadThread::Root(root),
                (2, Some(_)) => ReadThread::All,
                _ => ReadThread::Main,
            };
            self.read(user, thread, event).await;
            return format!("{} read {thread:?} up to {event}", NAMES[user]);
        }
        if dice.roll(40) == 0 {
            let pattern = ["melon", "plum", "fig"][dice.roll(3)];
            self.keyword(dice.pick(&[1, 4]).to_owned(), pattern).await;
            return format!("keyword {pattern}");
        }
        let (event_type, content) = self.content(dice);
        let step = format!("{} sent {event_type} {content}", NAMES[user]);
        self.send(user, event_type, content).await;
        step
    }

    fn content(&self, dice: &mut Dice) -> (&'static str, Value) {
        const BODIES: [&str; 9] = [
            "hello",
            "lemonade and plum",
            "Hi BOB!",
            "frank and carol",
            "a melon",
            "erinys",
            "@dave:example.org: fig",
            "(alice)",
            "",
        ];
        let mut content = json!({ "msgtype": "m.text", "body": *dice.pick(&BODIES) });
        if dice.roll(6) == 0 {
            content["msgtype"] = json!("m.notice");
        }
        match dice.roll(6) {
            0 => {
                let users: Vec<_> = (0..dice.roll(3))
                    .map(|_| format!("@{}:example.org", dice.pick(&NAMES)))
                    .collect();
                content["m.mentions"] = json!({ "user_ids": users });
            }
            1 => content["m.mentions"] = json!({ "room": true }),
            _ => {}
        }
        if let Some(parent) = self
            .events
            .len()
            .checked_sub(1)
            .map(|_| dice.pick(&self.events))
        {
            let relation = match dice.roll(8) {
                0..3 => "m.thread",
                3 => "m.replace",
                4 => "m.reference",
                _ => "",
            };
            // A thread hangs on an event that relates to no other.
            if !relation.is_empty() && (relation != "m.thread" || !parent.relates) {
                content["m.relates_to"] = json!({ "rel_type": relation, "event_id": parent.id });
            }
        }
        let types = [
            "m.room.message",
            "m.room.message",
            "m.room.message",
            "m.room.encrypted",
            "m.sticker",
            "m.reaction",
            "m.call.invite",
        ];
        (*dice.pick(types.as_slice()), content)
    }
}

#[tokio::test]
async fn counts_equal_a_naive_evaluation_of_everybodys_rules() {
    for seed in 1..=12 {
        let mut dice = Dice(seed);
        let mut model = Model::new().await;
        for (_, number) in &model.users {
            let snapshot = model.rooms.store.snapshot().unwrap();
            let unread = model.rooms.unread(&snapshot, *number, model.room).unwrap();
            assert_eq!(
                unread.total,
                Count::default(),
                "who joins has read what was before"
            );
        }
        for at in 0..60 {
            if at % 25 == 24 {
                // What is in memory of the room and of the rules is read again.
                let (store, clock) = (model.rooms.store.clone(), model.rooms.clock.clone());
                model.rooms = tests::on(store, clock).await;
            }
            let step = model.step(&mut dice).await;
            model.check(&format!("seed {seed} step {at}: {step}"));
        }
        let snapshot = model.rooms.store.snapshot().unwrap();
        assert_eq!(model.rooms.verify(&snapshot, model.room).unwrap(), []);
    }
}

#[tokio::test]
async fn only_threads_keep_ordinals_of_their_own() {
    let mut model = Model::new().await;
    model
        .send(
            0,
            "m.room.message",
            json!({ "msgtype": "m.text", "body": "root" }),
        )
        .await;
    let root = model.events[0].id.clone();
    let relation = json!({ "rel_type": "m.thread", "event_id": root });
    let reply = json!({ "msgtype": "m.text", "body": "reply", "m.relates_to": relation });
    model.send(0, "m.room.message", reply).await;

    let snapshot = model.rooms.store.snapshot().unwrap();
    let rows = snapshot.scan(THREADS.all(), Order::Forward);
    let rows: Vec<_> = rows.map(|row| row.unwrap()).collect();
    let place = &model.events[1];
    assert_eq!(rows.len(), 1);
    assert_eq!(
        (rows[0].0.1, rows[0].0.2.0),
        (model.events[0].number, place.index)
    );
}

#[test]
fn rows_keep_their_bytes() {
    use crate::storage::Record as _;
    let mut bytes = Vec::new();
    let exception = super::Exception {
        notify: -1,
        highlight: 1,
        of_mentions: true,
        is_usual: true,
    };
    exception.encode(&mut bytes);
    assert_eq!(bytes, [255, 1, 3]);
    assert_eq!(super::Exception::decode(&bytes).unwrap(), exception);
    bytes.clear();
    let marker = super::Marker {
        index: -2,
        ord_all: 3,
        ord_thread: 2,
        ord_room: 1,
    };
    marker.encode(&mut bytes);
    assert_eq!(bytes[..8], [255, 255, 255, 255, 255, 255, 255, 254]);
    assert_eq!(
        bytes[8..],
        [
            0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1
        ]
    );
    assert_eq!(super::Marker::decode(&bytes).unwrap(), marker);
}

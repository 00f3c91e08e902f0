//! Events without a place in the graph: the auth events of others, and states as other servers tell them.

use std::collections::{HashMap, HashSet, VecDeque};

use ruma::{OwnedEventId, UserId, events::TimelineEventType};

use super::{Intake, Place, Verdict, judge};
use crate::{
    events::Verified,
    rooms::{
        Error, RoomWriter,
        draft::Draft,
        event, head, partial, state, stubs,
        writer::place::{self, Prepared, Was},
    },
    storage::Batch,
};

/// Events judged and written at once, and their bytes.
const CHUNK_EVENTS: usize = 500;
const CHUNK_BYTES: usize = 400_000;

impl RoomWriter {
    /// Takes in auth and state events without a place in the timeline, in the order of their auth events. The answer names
    /// those left out, because an auth event of theirs is neither known nor among them, or because they are no state events
    /// of this room.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn receive_outliers(
        &mut self,
        events: Vec<Verified>,
    ) -> Result<Vec<OwnedEventId>, Error> {
        let (mut sorted, mut left_out) = by_auth_order(events);
        // From version 12 on no event cites it, and all need it.
        sorted.sort_by_key(|event| event.event_type != TimelineEventType::RoomCreate);
        let mut chunk = Vec::new();
        let mut bytes = 0;
        for event in sorted {
            if !event.is_state() || self.check_room(&event).is_err() {
                left_out.push(event.event_id.clone());
                continue;
            }
            bytes += event.json.len();
            chunk.push(event);
            if chunk.len() >= CHUNK_EVENTS || bytes >= CHUNK_BYTES {
                left_out.extend(self.take_outliers(std::mem::take(&mut chunk)).await?);
                bytes = 0;
            }
        }
        left_out.extend(self.take_outliers(chunk).await?);
        Ok(left_out)
    }

    async fn take_outliers(&mut self, chunk: Vec<Verified>) -> Result<Vec<OwnedEventId>, Error> {
        if chunk.is_empty() {
            return Ok(Vec::new());
        }
        self.rooms().store.has_room().await;
        self.intern_all(&chunk).await?;
        let mut arrivals = Vec::with_capacity(chunk.len());
        for event in chunk {
            let mut arrival = self.arrival(event.into_pdu(), Intake::Live, None).await?;
            arrival.place = Place::Outlier;
            arrivals.push(arrival);
        }
        let (prepared, left_out) = self
            .with_source(move |head, source| {
                let draft = Draft::new(head);
                let source = source.with_draft(&draft);
                let (mut prepared, mut left_out) = (Vec::new(), Vec::new());
                for arrival in &arrivals {
                    match judge::judge_outlier(head, &source, &draft, arrival)? {
                        Verdict::Settled(settled, _) => prepared.push(*settled),
                        Verdict::Known(_) => {}
                        Verdict::MissingAuth(_) | Verdict::MissingPrev(_) => {
                            left_out.push(arrival.pdu.event_id.clone());
                        }
                    }
                }
                Ok((prepared, left_out))
            })
            .await?;
        self.append_outliers(prepared);
        self.head_mut().settle();
        Ok(left_out)
    }

    /// Gives numbers to all users that the events name, at once.
    async fn intern_all(&self, events: &[Verified]) -> Result<(), Error> {
        let mut users: HashSet<&UserId> = HashSet::new();
        for event in events {
            users.insert(&event.sender);
            if event.event_type == TimelineEventType::RoomMember {
                users.extend(place::member_of(event));
            }
        }
        let mut users: Vec<_> = users.into_iter().collect();
        users.sort_unstable();
        self.rooms().accounts.intern(&users).await?;
        Ok(())
    }

    /// Writes outliers. Nobody is told of them.
    fn append_outliers(&mut self, prepared: Vec<Prepared>) {
        let Some(last) = prepared.last() else { return };
        let next = last.next;
        let rooms = self.rooms().clone();
        let head = self.head_mut();
        let room = head.room;
        next.write(&mut head.row);
        let mut batch = Batch::new();
        for outlier in &prepared {
            event::insert_past(&mut batch, room, &outlier.event, &outlier.id);
            partial::note(&mut batch, room, &outlier.event, None);
            if let Some(state) = &outlier.state {
                state::insert(&mut batch, room, state, &outlier.id);
            }
            if outlier
                .turn
                .as_ref()
                .is_some_and(|turn| turn.was == Was::Stub)
            {
                stubs::remove(&mut batch, room, &outlier.id);
            }
        }
        if !head.extremities.is_empty() {
            head::insert(&mut batch, room, &head.row);
            rooms.publish_head(&mut batch, room, head.row.clone(), Vec::new());
        }
        head.count(&mut batch);
        for outlier in prepared {
            head.remember_apart(outlier);
        }
        drop(self.submit(batch));
    }
}

/// Events after those of their auth events that are among them. What is left belongs to a cycle, which no event can.
fn by_auth_order(events: Vec<Verified>) -> (Vec<Verified>, Vec<OwnedEventId>) {
    let mut waiting: HashMap<OwnedEventId, (Verified, usize)> = HashMap::new();
    let mut order = Vec::with_capacity(events.len());
    for event in events {
        let id = event.event_id.clone();
        if waiting.insert(id.clone(), (event, 0)).is_none() {
            order.push(id);
        }
    }
    let mut dependents: HashMap<OwnedEventId, Vec<OwnedEventId>> = HashMap::new();
    let mut ready = VecDeque::new();
    for id in &order {
        let Some((event, _)) = waiting.get(id) else {
            continue;
        };
        let auth_events: HashSet<&OwnedEventId> = event.auth_events.iter().collect();
        let among: Vec<_> = auth_events
            .into_iter()
            .filter(|auth| waiting.contains_key(*auth))
            .cloned()
            .collect();
        let count = among.len();
        for auth in among {
            dependents.entry(auth).or_default().push(id.clone());
        }
        match waiting.get_mut(id) {
            Some((_, missing)) if count > 0 => *missing = count,
            _ => ready.push_back(id.clone()),
        }
    }
    let mut sorted = Vec::with_capacity(order.len());
    while let Some(id) = ready.pop_front() {
        let Some((event, _)) = waiting.remove(&id) else {
            continue;
        };
        sorted.push(event);
        for dependent in dependents.remove(&id).unwrap_or_default() {
            if let Some((_, missing)) = waiting.get_mut(&dependent) {
                *missing -= 1;
                if *missing == 0 {
                    ready.push_back(dependent);
                }
            }
        }
    }
    let left: Vec<_> = order
        .into_iter()
        .filter(|id| waiting.contains_key(id))
        .collect();
    (sorted, left)
}

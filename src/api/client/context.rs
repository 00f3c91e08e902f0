//! What was said around an event.
//!
//! Spec: c2s, "Event context".

use std::sync::Arc;

use ruma::api::client::context::get_context;

use super::{events::Reader, history, wanted::Wanted};
use crate::{
    accounts::Session,
    api::{
        error::Error,
        routes::{RawJson, Routes},
    },
    rooms::{Gap, PageQuery, Place, Sight, StoredEvent, client_event::write_text},
    server::Server,
    storage::{Order, Snapshot},
};

pub(super) fn routes() -> Routes {
    Routes::default().endpoint(get_context)
}

async fn get_context(
    server: Arc<Server>,
    session: Arc<Session>,
    request: get_context::v3::Request,
) -> Result<RawJson, Error> {
    let reader = Reader::new(&server, session, request.room_id.clone())?;
    let read = move |snapshot: &Snapshot| -> Result<_, Error> {
        let mut sight = reader.sight(snapshot)?;
        let event = reader.event(snapshot, &mut sight, &request.event_id)?;
        let wanted = Wanted::new(&request.filter, &reader.room_id, request.limit);
        around(&reader, snapshot, &mut sight, &wanted, &event)
    };
    history::read_whole(&server, read).await
}

/// The answer: half of the events before, half after. And the gap that those before meet.
fn around(
    reader: &Reader,
    snapshot: &Snapshot,
    sight: &mut Sight,
    wanted: &Wanted,
    event: &Arc<StoredEvent>,
) -> Result<(RawJson, Option<Gap>), Error> {
    let (index, limit) = (event.meta.index, wanted.limit);
    let query = |order, from, limit| PageQuery {
        order,
        from,
        to: None,
        limit,
    };
    let mut page = |query| {
        reader
            .rooms
            .page(snapshot, sight, query, |event| wanted.accepts(event))
    };
    let backwards = query(Order::Backward, Place::before(index), limit / 2);
    let mut before = page(backwards)?;
    let after = page(query(Order::Forward, Place(index), limit.div_ceil(2)))?;
    let gap = match limit / 2 {
        0 => None,
        _ => reader.gap_in(snapshot, backwards, &mut before)?,
    };
    let start = before.events.last().map_or(index, |placed| placed.index);
    let end = after.events.last().map_or(index, |placed| placed.index);
    let [before, after] = [before, after].map(|page| {
        page.events
            .into_iter()
            .map(|placed| placed.event)
            .collect::<Vec<_>>()
    });
    let last = after.last().unwrap_or(event);
    let all: Vec<_> = before
        .iter()
        .chain([event])
        .chain(&after)
        .cloned()
        .collect();
    let state = state(reader, snapshot, wanted, (last, &all))?;

    let mut json = b"{\"end\":".to_vec();
    write_text(&mut json, &Place(end).to_string());
    json.extend_from_slice(b",\"event\":");
    json.extend(reader.single(snapshot, sight, Arc::clone(event))?);
    json.extend_from_slice(b",\"events_after\":");
    json.extend(reader.array(snapshot, sight, &after)?);
    json.extend_from_slice(b",\"events_before\":");
    json.extend(reader.array(snapshot, sight, &before)?);
    json.extend_from_slice(b",\"start\":");
    write_text(&mut json, &Place::before(start).to_string());
    json.extend_from_slice(b",\"state\":");
    json.extend(reader.state_array(snapshot, &state)?);
    json.push(b'}');
    Ok((RawJson(json.into()), gap))
}

/// The state at the last event; of lazy members those who said something.
fn state(
    reader: &Reader,
    snapshot: &Snapshot,
    wanted: &Wanted,
    (last, all): (&StoredEvent, &[Arc<StoredEvent>]),
) -> Result<Vec<Arc<StoredEvent>>, Error> {
    let root = last.meta.root_after;
    let mut state = reader.rooms.core_state(snapshot, reader.room, root)?;
    state.extend(match wanted.has_lazy_members {
        true => reader.members_of(snapshot, root, all)?,
        false => reader.rooms.member_state(snapshot, reader.room, root)?,
    });
    state.retain(|event| wanted.accepts(event));
    Ok(state)
}

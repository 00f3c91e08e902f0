//! What relates to an event.
//!
//! Spec: c2s, "Relationships API".

use std::sync::Arc;

use ruma::{
    OwnedEventId, OwnedRoomId, UInt,
    api::{
        Direction,
        client::relations::{
            get_relating_events, get_relating_events_with_rel_type,
            get_relating_events_with_rel_type_and_event_type,
        },
    },
};

use super::events::{self, Reader};
use crate::{
    accounts::Session,
    api::{
        error::Error,
        routes::{RawJson, Routes},
    },
    rooms::{MAX_RELATION_DEPTH, RelationQuery, client_event::write_text},
    server::Server,
    storage::Snapshot,
};

/// Events of a page for which no limit is asked.
const DEFAULT_LIMIT: usize = 50;

pub(super) fn routes() -> Routes {
    Routes::default()
        .endpoint(all)
        .endpoint(with_rel_type)
        .endpoint(with_rel_type_and_event_type)
}

/// What the three endpoints have in common.
struct Asked {
    room_id: OwnedRoomId,
    event_id: OwnedEventId,
    rel_type: Option<String>,
    event_type: Option<String>,
    from: Option<String>,
    to: Option<String>,
    dir: Direction,
    limit: Option<UInt>,
    recurse: bool,
}

async fn all(
    server: Arc<Server>,
    session: Arc<Session>,
    request: get_relating_events::v1::Request,
) -> Result<RawJson, Error> {
    let asked = Asked {
        room_id: request.room_id,
        event_id: request.event_id,
        rel_type: None,
        event_type: None,
        from: request.from,
        to: request.to,
        dir: request.dir,
        limit: request.limit,
        recurse: request.recurse,
    };
    answer(&server, session, asked).await
}

async fn with_rel_type(
    server: Arc<Server>,
    session: Arc<Session>,
    request: get_relating_events_with_rel_type::v1::Request,
) -> Result<RawJson, Error> {
    let asked = Asked {
        room_id: request.room_id,
        event_id: request.event_id,
        rel_type: Some(request.rel_type.to_string()),
        event_type: None,
        from: request.from,
        to: request.to,
        dir: request.dir,
        limit: request.limit,
        recurse: request.recurse,
    };
    answer(&server, session, asked).await
}

async fn with_rel_type_and_event_type(
    server: Arc<Server>,
    session: Arc<Session>,
    request: get_relating_events_with_rel_type_and_event_type::v1::Request,
) -> Result<RawJson, Error> {
    let asked = Asked {
        room_id: request.room_id,
        event_id: request.event_id,
        rel_type: Some(request.rel_type.to_string()),
        event_type: Some(request.event_type.to_string()),
        from: request.from,
        to: request.to,
        dir: request.dir,
        limit: request.limit,
        recurse: request.recurse,
    };
    answer(&server, session, asked).await
}

async fn answer(server: &Server, session: Arc<Session>, asked: Asked) -> Result<RawJson, Error> {
    let reader = Reader::new(server, session, asked.room_id.clone())?;
    server
        .store
        .read(move |snapshot: &Snapshot| page(&reader, snapshot, &asked))
        .await
}

fn page(reader: &Reader, snapshot: &Snapshot, asked: &Asked) -> Result<RawJson, Error> {
    let mut sight = reader.sight(snapshot)?;
    let parent = reader.event(snapshot, &mut sight, &asked.event_id)?;
    let place = |token: &Option<String>| {
        token
            .as_deref()
            .map(|token| reader.place(snapshot, token))
            .transpose()
    };
    let query = RelationQuery {
        parent: parent.number,
        rel_type: asked.rel_type.clone(),
        event_type: asked.event_type.clone(),
        order: events::order(asked.dir),
        from: place(&asked.from)?,
        to: place(&asked.to)?,
        limit: events::limit(asked.limit, DEFAULT_LIMIT),
        is_recursive: asked.recurse,
    };
    let (found, rest) = reader.rooms.relations(snapshot, &mut sight, &query)?;
    let found: Vec<_> = found.into_iter().map(|placed| placed.event).collect();
    let mut json = b"{\"chunk\":".to_vec();
    json.extend(reader.array(snapshot, &mut sight, &found)?);
    if let Some(rest) = rest {
        json.extend_from_slice(b",\"next_batch\":");
        write_text(&mut json, &rest.to_string());
    }
    if let Some(from) = &asked.from {
        json.extend_from_slice(b",\"prev_batch\":");
        write_text(&mut json, from);
    }
    if asked.recurse {
        json.extend_from_slice(format!(",\"recursion_depth\":{MAX_RELATION_DEPTH}").as_bytes());
    }
    json.push(b'}');
    Ok(RawJson(json.into()))
}

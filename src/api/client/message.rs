//! Sending messages, and paging through those of a room.
//!
//! Spec: c2s, "Sending events to a room".

use std::sync::Arc;

use ruma::{
    CanonicalJsonObject, OwnedEventId, OwnedRoomId, RoomId,
    api::{
        IncomingRequest as _,
        client::message::{get_message_events, send_message_event},
        error::DeserializationError,
    },
    events::TimelineEventType,
};

use super::{
    events::{self, Reader},
    history,
    wanted::Wanted,
};
use crate::{
    accounts::Session,
    api::{
        content::{self, Read, Reading},
        error::Error,
        limits::Bucket,
        routes::{RawJson, Routes},
    },
    rooms::{Gap, NewEvent, Page, PageQuery, Place, Sight, Transaction, client_event::write_text},
    server::Server,
    storage::{Order, Snapshot},
};

pub(super) fn routes() -> Routes {
    Routes::default()
        .limited(Bucket::Message, send_message_event)
        .endpoint(get_messages)
}

async fn send_message_event(
    server: Arc<Server>,
    session: Arc<Session>,
    request: send_message_event::v3::Request,
) -> Result<send_message_event::v3::Response, Error> {
    super::require_active(&session)?;
    let content = content::content(&request.body)?;
    let event_type = TimelineEventType::from(request.event_type.to_string());
    let event = NewEvent {
        sender: session.user.clone(),
        redacts: target_of(&event_type, &content),
        event_type,
        state_key: None,
        content,
        transaction: Some(Transaction {
            user: session.user_number,
            device: session.device_hash,
            id: request.txn_id,
        }),
        timestamp: None,
    };
    let event_id = super::send(&server, &request.room_id, event).await?;
    Ok(send_message_event::v3::Response::new(event_id))
}

/// The event that a redaction targets which was sent like any other event.
fn target_of(
    event_type: &TimelineEventType,
    content: &CanonicalJsonObject,
) -> Option<OwnedEventId> {
    match event_type {
        TimelineEventType::RoomRedaction => content.get("redacts")?.as_str()?.try_into().ok(),
        _ => None,
    }
}

/// A request for a page of the timeline. Whether the caller may look at the room comes before what is wrong with the rest.
struct GetMessages {
    room_id: OwnedRoomId,
    request: Result<get_message_events::v3::Request, DeserializationError>,
}

impl Reading for GetMessages {
    type Of = get_message_events::v3::Request;

    fn read(
        request: http::Request<&[u8]>,
        path_args: &[&str],
    ) -> Result<Self, DeserializationError> {
        let room_id = RoomId::parse(path_args.first().copied().unwrap_or_default())?;
        let request =
            get_message_events::v3::Request::try_from_http_request_inner(request, path_args);
        Ok(Self { room_id, request })
    }
}

async fn get_messages(
    server: Arc<Server>,
    session: Arc<Session>,
    Read(request): Read<GetMessages>,
) -> Result<RawJson, Error> {
    let reader = Reader::new(&server, session, request.room_id)?;
    let request = match request.request {
        Ok(request) => request,
        Err(error) => {
            let look = move |snapshot: &Snapshot| look(&reader, snapshot).map(|_sight| ());
            server.store.read(look).await?;
            return Err(Error::unreadable(error.into(), b""));
        }
    };
    history::read_whole(&server, move |snapshot| page(&reader, snapshot, &request)).await
}

/// What the reader sees of a room that there is something to see of.
fn look(reader: &Reader, snapshot: &Snapshot) -> Result<Sight, Error> {
    let sight = reader.sight(snapshot)?;
    sight.until().ok_or_else(super::not_in_room)?;
    Ok(sight)
}

/// A page as it is known here, and the gap that it meets.
fn page(
    reader: &Reader,
    snapshot: &Snapshot,
    request: &get_message_events::v3::Request,
) -> Result<(RawJson, Option<Gap>), Error> {
    let mut sight = look(reader, snapshot)?;
    let place = |token: &Option<String>| {
        token
            .as_deref()
            .map(|token| reader.place(snapshot, token))
            .transpose()
    };
    let order = events::order(request.dir);
    let from = match place(&request.from)? {
        Some(from) => from,
        None if order == Order::Forward => Place(i64::MIN),
        None => reader.latest(snapshot)?,
    };
    let wanted = Wanted::new(&request.filter, &reader.room_id, request.limit);
    let query = PageQuery {
        order,
        from,
        to: place(&request.to)?,
        limit: wanted.limit,
    };
    let mut page = reader
        .rooms
        .page(snapshot, &mut sight, query, |event| wanted.accepts(event))?;
    let gap = reader.gap_in(snapshot, query, &mut page)?;
    let start = request.from.clone().unwrap_or_else(|| from.to_string());
    let answer = written(reader, snapshot, &mut sight, &wanted, (start, page))?;
    Ok((answer, gap))
}

/// The answer of `/messages`.
fn written(
    reader: &Reader,
    snapshot: &Snapshot,
    sight: &mut Sight,
    wanted: &Wanted,
    (start, page): (String, Page),
) -> Result<RawJson, Error> {
    let events: Vec<_> = page.events.into_iter().map(|placed| placed.event).collect();
    let mut json = b"{\"chunk\":".to_vec();
    json.extend(reader.array(snapshot, sight, &events)?);
    if let Some(end) = page.end {
        json.extend_from_slice(b",\"end\":");
        write_text(&mut json, &end.to_string());
    }
    json.extend_from_slice(b",\"start\":");
    write_text(&mut json, &start);
    if wanted.has_lazy_members
        && let Some(newest) = events.iter().max_by_key(|event| event.meta.index)
    {
        let members = reader.members_of(snapshot, newest.meta.root_after, &events)?;
        json.extend_from_slice(b",\"state\":");
        json.extend(reader.state_array(snapshot, &members)?);
    }
    json.push(b'}');
    Ok(RawJson(json.into()))
}

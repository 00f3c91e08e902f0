//! The server-server API, in files named after the modules of ruma's federation API.

mod authorization;
mod backfill;
mod device;
mod directory;
mod discovery;
mod event;
mod keys;
mod membership;
mod openid;
mod query;
mod space;
mod states;
mod thirdparty;
mod transactions;

use std::time::Duration;

use ruma::{OwnedEventId, RoomId, ServerName};

use super::{auth::Origin, error::Error, routes::Routes};
use crate::{
    rooms::{RoomNumber, Rooms},
    server::Server,
    storage::Snapshot,
    tasks::Stage,
};

/// Every endpoint of the server-server API.
pub(super) fn routes() -> Routes {
    Routes::default()
        .join(discovery::routes())
        .join(event::routes())
        .join(authorization::routes())
        .join(backfill::routes())
        .join(query::routes())
        .join(directory::routes())
        .join(space::routes())
        .join(openid::routes())
        .join(device::routes())
        .join(keys::routes())
        .join(membership::routes())
        .join(thirdparty::routes())
        .join(transactions::routes())
}

/// Runs `read` on a room that the server which asks may look into: it has joined members, and the room's access list lets
/// it in.
///
/// # Errors
/// 404 for a room that is not here; 403 for one that the server is not in or shut out of.
async fn read_room<T: Send + 'static>(
    server: &Server,
    origin: Origin,
    room_id: &RoomId,
    read: impl FnOnce(&Rooms, &Snapshot, RoomNumber, &ServerName) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    read_room_at(server, origin, (room_id, Vec::new()), read).await
}

/// As [`read_room`], also for a server that has left since and was in the room at all of the events.
///
/// # Errors
/// As [`read_room`].
async fn read_room_at<T: Send + 'static>(
    server: &Server,
    Origin(origin): Origin,
    (room_id, at): (&RoomId, Vec<OwnedEventId>),
    read: impl FnOnce(&Rooms, &Snapshot, RoomNumber, &ServerName) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let not_found = || Error::not_found("This room is not known here");
    let room = server
        .rooms
        .resident(room_id)
        .map_err(|_unknown| not_found())?;
    let rooms = server.rooms.clone();
    let closure = move |snapshot: &Snapshot| -> Result<T, Error> {
        if !rooms.acl_allows(snapshot, room, &origin)? {
            return Err(Error::forbidden("Your server is banned from this room"));
        }
        if !rooms.is_server_joined(snapshot, room, &origin)?
            && !rooms.was_server_joined(snapshot, room, &origin, &at)?
        {
            return Err(Error::forbidden("Your server is not in this room"));
        }
        read(&rooms, snapshot, room, &origin)
    };
    server.store.read(closure).await
}

/// Waits until all members of a room are known, on account of a server that may look into it. What cannot be answered after
/// that is not there.
///
/// # Errors
/// As [`read_room`].
async fn whole_room(server: &Server, origin: &Origin, room_id: &RoomId) -> Result<(), Error> {
    let room = server.rooms.number(room_id);
    let Some(room) = room.filter(|room| server.rooms.is_partial(*room)) else {
        return Ok(());
    };
    read_room(server, origin.clone(), room_id, |_, _, _, _| Ok(())).await?;
    let closing = server.tasks.stop_signal(Stage::Requests);
    tokio::select! {
        _is_whole = server.rooms.completed(room, WHOLE_TIMEOUT) => {}
        () = closing.requested() => {}
    }
    Ok(())
}

/// How long another server waits for the state of a room that was joined just now.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(20);

/// `{"origin": …, "origin_server_ts": …, "pdus": […]}`: events as a transaction holds them.
///
/// Spec: s2s, "Transactions".
fn write_transaction<'a>(server: &Server, pdus: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let head = serde_json::json!({
        "origin": server.rooms.own_name(),
        "origin_server_ts": server.clock.now_ms(),
    });
    let mut json = head.to_string().into_bytes();
    json.pop();
    json.extend_from_slice(b",\"pdus\":[");
    write_list(&mut json, pdus);
    json.extend_from_slice(b"]}");
    json
}

/// JSON values with commas between them.
fn write_list<'a>(json: &mut Vec<u8>, values: impl IntoIterator<Item = &'a [u8]>) {
    for (at, value) in values.into_iter().enumerate() {
        if at > 0 {
            json.push(b',');
        }
        json.extend_from_slice(value);
    }
}

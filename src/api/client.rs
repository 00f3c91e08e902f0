//! The client-server API, in files named after the modules of ruma's client API.

mod account;
mod admin;
pub(super) mod alias;
mod capabilities;
mod config;
mod context;
mod device;
pub(super) mod directory;
mod discovery;
pub(super) mod events;
mod filter;
mod history;
mod keys;
mod membership;
mod message;
mod presence;
pub(super) mod profile;
mod push;
mod read_marker;
mod receipt;
mod redact;
mod relations;
mod room;
mod session;
mod space;
mod state;
mod sync;
mod tag;
mod threads;
mod to_device;
mod typing;
mod uiaa;
mod user_directory;
mod wanted;

use std::time::Duration;

use ruma::{OwnedEventId, RoomId, UserId};

use super::{error::Error, routes::Routes};
use crate::{
    accounts::Session,
    ephemeral::Who,
    rooms::{self, NewEvent, Residence, RoomNumber},
    server::Server,
    tasks::Stage,
};

/// Every endpoint of the client-server API.
pub(super) fn routes() -> Routes {
    Routes::default()
        .join(discovery::routes())
        .join(account::routes())
        .join(session::routes())
        .join(device::routes())
        .join(profile::routes())
        .join(filter::routes())
        .join(config::routes())
        .join(push::routes())
        .join(capabilities::routes())
        .join(tag::routes())
        .join(user_directory::routes())
        .join(admin::routes())
        .join(room::routes())
        .join(membership::routes())
        .join(message::routes())
        .join(state::routes())
        .join(redact::routes())
        .join(context::routes())
        .join(sync::routes())
        .join(receipt::routes())
        .join(read_marker::routes())
        .join(typing::routes())
        .join(presence::routes())
        .join(alias::routes())
        .join(directory::routes())
        .join(space::routes())
        .join(relations::routes())
        .join(threads::routes())
        .join(to_device::routes())
        .join(keys::routes())
}

/// The user of a session.
fn who(session: &Session) -> Who {
    Who {
        number: session.user_number,
        id: session.user.clone(),
    }
}

/// Refuses what one user asks about another's account.
fn require_self(session: &Session, user: &UserId) -> Result<(), Error> {
    match session.user == user {
        true => Ok(()),
        false => Err(Error::forbidden("This is another user's account")),
    }
}

/// Refuses what a suspended user may not do.
///
/// Spec: c2s, "Account suspension".
fn require_active(session: &Session) -> Result<(), Error> {
    match session.is_suspended {
        true => Err(Error::user_suspended()),
        false => Ok(()),
    }
}

/// The number of a room that a user may be in.
///
/// # Errors
/// As for a room that the user is not in: who asks must not learn which rooms there are.
fn known_room(server: &Server, room_id: &RoomId) -> Result<RoomNumber, Error> {
    server
        .rooms
        .resident(room_id)
        .map_err(|_unknown| not_in_room())
}

/// Waits until all members of a room are known. A room that nobody of this server is in any more is taken as it is.
///
/// # Errors
/// 503 if that takes too long.
async fn all_members(server: &Server, room: RoomNumber) -> Result<(), Error> {
    let rooms = &server.rooms;
    if !rooms.is_partial(room) || rooms.residence_of(room) != Residence::Resident {
        return Ok(());
    }
    let closing = server.tasks.stop_signal(Stage::Requests);
    let is_whole = tokio::select! {
        is_whole = rooms.completed(room, MEMBERS_TIMEOUT) => is_whole,
        () = closing.requested() => false,
    };
    match is_whole {
        true => Ok(()),
        false => Err(Error::unavailable(MEMBERS_RETRY)),
    }
}

/// How long a request waits for the members of a room that was joined just now.
const MEMBERS_TIMEOUT: Duration = Duration::from_secs(120);
const MEMBERS_RETRY: Duration = Duration::from_secs(10);

/// 403 `M_FORBIDDEN`: the user may not look into the room, or there is none.
fn not_in_room() -> Error {
    Error::forbidden("You are not in this room")
}

/// Sends an event.
async fn send(server: &Server, room_id: &RoomId, event: NewEvent) -> Result<OwnedEventId, Error> {
    match server.rooms.send(room_id, event).await {
        Ok(event_id) => Ok(event_id),
        Err(rooms::Error::NotFound) => {
            known_room(server, room_id)?;
            Err(Error::not_found("There is no such event in this room"))
        }
        Err(error) => Err(error.into()),
    }
}

/// The number of a room that this server has heard of.
fn room_number(server: &Server, room_id: &RoomId) -> Result<RoomNumber, Error> {
    let number = server.rooms.number(room_id);
    number.ok_or_else(|| Error::not_found("The room is not known"))
}

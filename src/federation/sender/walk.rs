//! What a server has missed, found again in the timelines of the rooms that it is in.
//!
//! All of it if it is not too much and not too old; else the newest event of each room, from which the server finds the rest by
//! itself. engine.md section 13.

use super::{
    destinations::{Behind, MAX_QUEUED, Queued},
    rows,
};
use crate::{
    federation::{Error, Federation},
    rooms::{RoomNumber, ServerNumber},
    storage::{Position, Snapshot},
};

/// Events of a timeline that are looked at in one room.
const MAX_WALKED: usize = 5_000;
/// Of these, events of ours that are tried to find the newest that the server gets.
const MAX_TRIED: usize = 50;

/// How much of what is missing is wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Depth {
    Everything,
    Newest,
}

impl Federation {
    /// What `server` has missed up to `upto`, in the order of positions.
    pub(super) fn missed(
        &self,
        snapshot: &Snapshot,
        server: ServerNumber,
        behind: Behind,
        upto: Position,
    ) -> Result<Vec<Queued>, Error> {
        let max_age_ms = self.inner.config.queue_max_age.0.as_millis();
        let age_ms = self.inner.clock.now_ms().saturating_sub(behind.since_ms);
        let everything = match u128::from(age_ms) > max_age_ms {
            true => None,
            false => self.walk(snapshot, server, (behind.after, upto), Depth::Everything)?,
        };
        let mut missed = match everything {
            Some(missed) => missed,
            None => self
                .walk(snapshot, server, (behind.after, upto), Depth::Newest)?
                .unwrap_or_default(),
        };
        missed.extend(rows::partings(snapshot, server, upto, MAX_QUEUED)?);
        // While others of the server are in the room, a walk finds a parting too.
        missed.sort_by_key(|event| (event.position, event.room, event.event, !event.is_parting));
        missed.dedup_by_key(|event| (event.position, event.room, event.event));
        Ok(missed)
    }

    /// `None` if it is too much to send everything.
    fn walk(
        &self,
        snapshot: &Snapshot,
        server: ServerNumber,
        (after, upto): (Position, Position),
        depth: Depth,
    ) -> Result<Option<Vec<Queued>>, Error> {
        let mut missed = Vec::new();
        let rooms = self
            .inner
            .rooms
            .rooms_with_server(snapshot, server, after)?;
        for room in rooms {
            self.walk_room(snapshot, (server, room), (after, upto), depth, &mut missed)?;
            if depth == Depth::Everything && missed.len() > MAX_QUEUED {
                return Ok(None);
            }
        }
        Ok(Some(missed))
    }

    fn walk_room(
        &self,
        snapshot: &Snapshot,
        (server, room): (ServerNumber, RoomNumber),
        span: (Position, Position),
        depth: Depth,
        to: &mut Vec<Queued>,
    ) -> Result<(), Error> {
        let limit = match depth {
            Depth::Everything => MAX_QUEUED + 1,
            Depth::Newest => MAX_TRIED,
        };
        let limits = (limit, MAX_WALKED);
        for event in self
            .inner
            .rooms
            .outgoing_since(snapshot, room, span, limits)?
        {
            let servers = self.servers_of(snapshot, (room, event.root))?;
            if !servers.contains(&server) {
                continue;
            }
            to.push(Queued {
                position: event.position,
                room,
                event: event.event,
                is_parting: false,
            });
            if depth == Depth::Newest {
                break;
            }
        }
        Ok(())
    }
}

//! Answers that hold whole states. They are read while they are sent: a large room's state has a hundred megabytes.
//!
//! The events of a state never change, so each part of an answer is read from a snapshot of its own.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};

use crate::{
    api::{error::Error, routes::StreamedJson},
    events::StateNumber,
    rooms::{self, RoomNumber},
    server::Server,
    storage::Snapshot,
};

/// Events of one answer that are in memory at the same time: some 250 kB, and 16 MB if all are as large as can be.
const EVENTS_AT_ONCE: usize = 250;

/// A part of an answer.
pub(super) enum Part {
    Text(Bytes),
    /// Events with commas between them.
    States(Vec<StateNumber>),
}

/// What is read at once.
enum Piece {
    Text(Bytes),
    States {
        states: Vec<StateNumber>,
        is_first: bool,
    },
}

impl From<&'static [u8]> for Part {
    fn from(text: &'static [u8]) -> Self {
        Self::Text(Bytes::from_static(text))
    }
}

impl Part {
    fn pieces(self) -> Vec<Piece> {
        let states = match self {
            Self::Text(text) => return vec![Piece::Text(text)],
            Self::States(states) => states,
        };
        let pieces = states.chunks(EVENTS_AT_ONCE).enumerate();
        pieces
            .map(|(number, states)| Piece::States {
                states: states.to_vec(),
                is_first: number == 0,
            })
            .collect()
    }
}

impl Piece {
    async fn read(self, server: Arc<Server>, room: RoomNumber) -> Result<Bytes, Error> {
        let (states, is_first) = match self {
            Self::Text(text) => return Ok(text),
            Self::States { states, is_first } => (states, is_first),
        };
        let rooms = server.rooms.clone();
        let read = move |snapshot: &Snapshot| -> Result<_, rooms::Error> {
            let mut json = Vec::new();
            rooms.each_state_event(snapshot, room, &states, |event| {
                if !(is_first && json.is_empty()) {
                    json.push(b',');
                }
                json.extend_from_slice(event);
            })?;
            Ok(json.into())
        };
        Ok(server.store.read(read).await?)
    }
}

/// An answer of these parts.
pub(super) fn answer(server: Arc<Server>, room: RoomNumber, parts: Vec<Part>) -> StreamedJson {
    let pieces = parts.into_iter().flat_map(Part::pieces);
    let read = move |piece: Piece| piece.read(Arc::clone(&server), room);
    StreamedJson(stream::iter(pieces).then(read).boxed())
}

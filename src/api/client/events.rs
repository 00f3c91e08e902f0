//! Who reads a room, and events written for that reader.

use std::{collections::BTreeSet, sync::Arc};

use ruma::{OwnedRoomId, UInt, api::Direction};

use crate::{
    accounts::Session,
    api::error::Error,
    events::RootNumber,
    rooms::{
        Place, Rendering, RoomNumber, Rooms, Sight, StoredEvent,
        client_event::{EventForm, Unsigned, Viewer, write_event},
    },
    server::Server,
    storage::{Order, Snapshot},
    sync::token::Token,
};

/// A request to read a room.
pub(super) struct Reader {
    pub(super) rooms: Rooms,
    pub(super) room: RoomNumber,
    pub(super) room_id: OwnedRoomId,
    session: Arc<Session>,
    now_ms: u64,
}

impl Reader {
    /// # Errors
    /// 403 for a room that does not exist, as for one that the reader is not in.
    pub(super) fn new(
        server: &Server,
        session: Arc<Session>,
        room_id: OwnedRoomId,
    ) -> Result<Self, Error> {
        let room = super::known_room(server, &room_id)?;
        let (rooms, now_ms) = (server.rooms.clone(), server.clock.now_ms());
        Ok(Self {
            rooms,
            room,
            room_id,
            session,
            now_ms,
        })
    }

    /// Waits until all members of the room are known.
    ///
    /// # Errors
    /// 503 if that takes too long.
    pub(super) async fn all_members(&self, server: &Server) -> Result<(), Error> {
        super::all_members(server, self.room).await
    }

    /// Whether the reader is `user`.
    pub(super) fn is_user(&self, user: &str) -> bool {
        self.session.user.as_str() == user
    }

    /// What the reader may see.
    pub(super) fn sight(&self, snapshot: &Snapshot) -> Result<Sight, Error> {
        let session = &self.session;
        Ok(self
            .rooms
            .sight(snapshot, &session.user, session.user_number, self.room)?)
    }

    /// An event that the reader may see.
    ///
    /// # Errors
    /// 404 for any other, be it unknown or hidden.
    pub(super) fn event(
        &self,
        snapshot: &Snapshot,
        sight: &mut Sight,
        event_id: &ruma::EventId,
    ) -> Result<Arc<StoredEvent>, Error> {
        let event = self.rooms.event_in_room(snapshot, self.room, event_id)?;
        match event {
            Some(event) if self.rooms.may_see(snapshot, sight, &event)? => Ok(event),
            _ => Err(Error::not_found("There is no such event that you may see")),
        }
    }

    /// The place that a token of `/messages` or of `/sync` names.
    ///
    /// # Errors
    /// 400 `M_INVALID_PARAM` for any other text.
    pub(super) fn place(&self, snapshot: &Snapshot, token: &str) -> Result<Place, Error> {
        if let Ok(place) = token.parse() {
            return Ok(place);
        }
        let token: Token = token
            .parse()
            .map_err(|_malformed| Error::invalid_param("The token is not valid"))?;
        Ok(self.rooms.place_at(snapshot, self.room, token.position)?)
    }

    /// The place after all that there is.
    pub(super) fn latest(&self, snapshot: &Snapshot) -> Result<Place, Error> {
        let head = self.rooms.head(snapshot, self.room)?;
        Ok(Place(head.map_or(0, |head| head.high)))
    }

    /// The membership events of the senders of `events` in a state.
    pub(super) fn members_of(
        &self,
        snapshot: &Snapshot,
        root: RootNumber,
        events: &[Arc<StoredEvent>],
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        let senders: BTreeSet<&str> = events
            .iter()
            .map(|event| event.pdu.sender.as_str())
            .collect();
        let keys: Vec<_> = senders
            .into_iter()
            .map(|sender| ("m.room.member", sender))
            .collect();
        Ok(self
            .rooms
            .state_events(snapshot, (self.room, root), &keys)?)
    }

    /// Events with all that the reader is told of them, as elements of a JSON array.
    pub(super) fn array(
        &self,
        snapshot: &Snapshot,
        sight: &mut Sight,
        events: &[Arc<StoredEvent>],
    ) -> Result<Vec<u8>, Error> {
        let mut unsigned = self.rooms.unsigned(snapshot, self.room, events)?;
        let viewer = Viewer {
            user: self.session.user_number,
            device: self.session.device_hash,
        };
        self.rooms
            .transaction_ids(snapshot, self.room, viewer, events, &mut unsigned)?;
        let rendering = Rendering {
            form: EventForm::Client(&self.room_id),
            now_ms: self.now_ms,
        };
        self.rooms
            .bundle(snapshot, sight, rendering, events, &mut unsigned)?;
        for (event, unsigned) in events.iter().zip(&mut unsigned) {
            unsigned.membership = Some(self.rooms.membership_when(snapshot, sight, event)?);
        }
        let mut json =
            Vec::with_capacity(events.iter().map(|event| event.pdu.json.len() + 64).sum());
        json.push(b'[');
        for (at, (event, unsigned)) in events.iter().zip(&unsigned).enumerate() {
            if at > 0 {
                json.push(b',');
            }
            write_event(
                &mut json,
                event,
                EventForm::Client(&self.room_id),
                unsigned,
                self.now_ms,
            );
        }
        json.push(b']');
        Ok(json)
    }

    /// One event as [`Self::array`] has it.
    pub(super) fn single(
        &self,
        snapshot: &Snapshot,
        sight: &mut Sight,
        event: Arc<StoredEvent>,
    ) -> Result<Vec<u8>, Error> {
        let mut json = self.array(snapshot, sight, &[event])?;
        json.pop();
        json.remove(0);
        Ok(json)
    }

    /// State events, of which less is told, as a JSON array.
    pub(super) fn state_array(
        &self,
        snapshot: &Snapshot,
        events: &[Arc<StoredEvent>],
    ) -> Result<Vec<u8>, Error> {
        // What a state event replaced is not told here: it would cost a look-up each.
        let is_redacted = events.iter().any(|event| event.meta.redacted_by.is_some());
        let unsigned = match is_redacted {
            true => self.rooms.unsigned(snapshot, self.room, events)?,
            false => vec![Unsigned::default(); events.len()],
        };
        let mut json = Vec::with_capacity(events.len() * 512);
        json.push(b'[');
        for (at, (event, unsigned)) in events.iter().zip(&unsigned).enumerate() {
            if at > 0 {
                json.push(b',');
            }
            write_event(
                &mut json,
                event,
                EventForm::Client(&self.room_id),
                unsigned,
                self.now_ms,
            );
        }
        json.push(b']');
        Ok(json)
    }
}

/// The order of a direction.
pub(in crate::api) fn order(direction: Direction) -> Order {
    match direction {
        Direction::Forward => Order::Forward,
        Direction::Backward => Order::Backward,
    }
}

/// How many events a client gets that asked for `limit`.
pub(super) fn limit(limit: Option<UInt>, default: usize) -> usize {
    const MAX_EVENTS: usize = 500;
    let limit = limit.map(|limit| usize::try_from(u64::from(limit)).unwrap_or(MAX_EVENTS));
    limit.unwrap_or(default).min(MAX_EVENTS)
}

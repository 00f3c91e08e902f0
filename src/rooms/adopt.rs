//! Coming to a room that other servers have: their state and auth chain, checked, and the join that lets us in.
//!
//! Everything but the join is stored first, as events without a place in the graph. Nothing of it is a room yet: the one
//! write that holds the join, the memberships and the head makes it one. If that is never reached, what is stored is used
//! the next time. engine.md section 6.5.

use std::collections::HashSet;

use ruma::{
    EventId, OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomVersionId,
    events::TimelineEventType,
};

use super::{
    Class, Error, Intake, Received, RoomNumber, RoomWriter, Rooms, StoredEvent, TypeNumber,
    draft::Counters,
    event::{METAS, flag},
    head::Head,
    receive::judge::Place,
    state::{self, GRAPH},
};
use crate::{
    events::{AuthError, Verified, version},
    storage::{Batch, Order, Snapshot},
};

/// What another server answers to a join.
#[derive(Debug)]
pub struct Adoption {
    pub room_id: OwnedRoomId,
    pub version: RoomVersionId,
    pub join: Verified,
    /// The state before the join.
    pub state: Vec<Verified>,
    pub auth_chain: Vec<Verified>,
    /// Members were left out of the state: the servers that are in the room.
    pub partial: Option<Vec<OwnedServerName>>,
}

impl Rooms {
    /// Makes a room ours by a join that other servers have accepted, or comes back to one that was left. Waits until it is
    /// durable. A room in which users of this server are joined already just receives the join.
    ///
    /// # Errors
    /// [`Error::NotAllowed`] if the rules or the state do not allow the join, or if the user is not in the room with it, as
    /// others do not know yet that the user left; [`Error::Invalid`] if the answer is not one about this room,
    /// [`Error::UnsupportedVersion`].
    pub async fn adopt(&self, adoption: Adoption) -> Result<RoomNumber, Error> {
        version::rules(&adoption.version).ok_or(Error::UnsupportedVersion)?;
        check_create(&adoption)?;
        let room = self.numbers.intern_room(&adoption.room_id);
        let mut writer = match self.published(room) {
            Some(_) => self.write(room).await?,
            None => self.write_adopted(room, &adoption).await?,
        };
        if let Some(servers) = &adoption.partial {
            self.keep_told_servers(room, servers);
        }
        let user = adoption.join.sender.clone();
        let is_whole = adoption.partial.is_none();
        let commit = writer.take_up(adoption).await?;
        let is_joined = writer.membership(&user).await? == Some(Class::Join);
        drop(writer);
        if let Received::Settled { commit, .. } = commit
            && let Some(commit) = commit
        {
            commit.await?;
        }
        match is_joined || !is_whole {
            true => Ok(room),
            false => {
                let error = "the user has left, which others have not heard of yet";
                Err(Error::NotAllowed(AuthError::Refused(error.to_owned())))
            }
        }
    }

    /// The writer of a room that this server is not in yet, unless somebody was faster.
    async fn write_adopted(
        &self,
        room: RoomNumber,
        adoption: &Adoption,
    ) -> Result<RoomWriter, Error> {
        let head = Head::unborn(room, adoption.room_id.clone(), &adoption.version)?;
        let mut writer = self.write_unborn(head).await;
        // The last writer may have something in flight.
        self.store.submit(Batch::new()).await?;
        if self.published(room).is_some() {
            drop(writer);
            return self.write(room).await;
        }
        let found = self
            .store
            .read(move |snapshot| leftovers(snapshot, room))
            .await?;
        if let Some(counters) = found {
            let head = writer.head_mut();
            counters.write(&mut head.row);
            head.unborn = false;
        }
        Ok(writer)
    }
}

/// The free numbers of a room that was begun before, and did not become one.
fn leftovers(snapshot: &Snapshot, room: RoomNumber) -> Result<Option<Counters>, Error> {
    let Some(((_, event), _)) = snapshot.first(METAS.prefix(&(room,)), Order::Backward)? else {
        return Ok(None);
    };
    let state = snapshot.first(GRAPH.prefix(&(room,)), Order::Backward)?;
    let key = snapshot.first(state::KEYS.prefix(&(room,)), Order::Backward)?;
    let after = |number: u32| number.saturating_add(1);
    Ok(Some(Counters {
        event: after(event.0),
        state: state.map_or(1, |((_, state), _)| after(state.0)),
        key: key.map_or(1, |((_, key), _)| after(key.0)),
        // Nodes and states are written with the join, or not at all.
        node: 1,
        root: 1,
    }))
}

impl RoomWriter {
    /// Takes in all of an answer.
    async fn take_up(&mut self, adoption: Adoption) -> Result<Received, Error> {
        let is_back = self.head().row.local == 0;
        let place = match is_back {
            true if self.has_unheard(&adoption).await? => Place::Returning,
            true => Place::TakingUp,
            false => Place::Live,
        };
        let Adoption {
            join,
            state,
            auth_chain,
            partial,
            ..
        } = adoption;
        let mut ids: Vec<OwnedEventId> = state.iter().map(|event| event.event_id.clone()).collect();
        let outliers = auth_chain.into_iter().chain(state).collect();
        let left_out = self.receive_outliers(outliers).await?;
        let left_out: HashSet<_> = left_out.into_iter().collect();
        ids.retain(|id| !left_out.contains(id));
        let mut arrival = self
            .arrival(join.into_pdu(), Intake::Answered, Some(ids))
            .await?;
        arrival.lacks_members = partial.is_some();
        arrival.place = place;
        match self.take_in(arrival, Batch::new()).await? {
            Received::MissingAuth(_) => Err(Error::Invalid(
                "the auth events of the join are not in the answer".into(),
            )),
            Received::MissingPrev(_) => Err(Error::Invalid(
                "the events before the join are not known".into(),
            )),
            settled => Ok(settled),
        }
    }
}

impl RoomWriter {
    /// Whether a membership that was ended here came too late for the server that lets a user in: it takes the user, or
    /// another one of this server, to be what they were before. What follows a membership of a user cites it, so one that
    /// was heard of stands in the state or in its auth chain.
    async fn has_unheard(&mut self, adoption: &Adoption) -> Result<bool, Error> {
        let told = adoption.state.iter().chain(&adoption.auth_chain);
        let mut told: HashSet<OwnedEventId> = told.map(|event| event.event_id.clone()).collect();
        let join = &adoption.join;
        told.extend(join.auth_events.iter().chain(&join.prev_events).cloned());
        let user: OwnedUserId = join.sender.clone();
        let is_whole = adoption.partial.is_none();
        let key = self.rooms().state_key("m.room.member", user.as_str());
        self.with_source(move |head, source| {
            if head.extremities.is_empty() {
                return Ok(false);
            }
            let is_unheard = |event: &StoredEvent| {
                let meta = &event.meta;
                let is_own = meta.event_type == TypeNumber::MEMBER && meta.has(flag::LOCAL);
                let id: &EventId = &event.pdu.event_id;
                is_own && !told.contains(id)
            };
            if let Some(key) = &key
                && let Some((_, membership)) = head.state(source, key)?
                && is_unheard(&membership)
            {
                return Ok(true);
            }
            // A state without its members does not tell of others.
            for (end, _) in head.extremities.iter().filter(|_| is_whole) {
                if source.event(*end)?.is_some_and(|event| is_unheard(&event)) {
                    return Ok(true);
                }
            }
            Ok(false)
        })
        .await
    }
}

/// The answer must hold the create event of the room, of the version that it says.
fn check_create(adoption: &Adoption) -> Result<(), Error> {
    #[derive(serde::Deserialize)]
    struct Content {
        room_version: Option<RoomVersionId>,
    }
    let is_create = |event: &&Verified| event.event_type == TimelineEventType::RoomCreate;
    let mut creates = adoption.state.iter().filter(is_create);
    let (Some(create), None) = (creates.next(), creates.next()) else {
        return Err(Error::Invalid("the state has no create event".into()));
    };
    let version = create.content_as::<Content>().ok();
    let version = version.and_then(|content| content.room_version);
    if version.unwrap_or(RoomVersionId::V1) != adoption.version {
        return Err(Error::Invalid("the room is of another version".into()));
    }
    Ok(())
}

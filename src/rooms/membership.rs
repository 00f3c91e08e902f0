//! Who is in which room: the current memberships by room and by user, the servers of a room, and what an invited or
//! knocking user may see.
//!
//! The rows follow the current state of the room, not single events. engine.md section 5.5.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ruma::{OwnedServerName, UserId, events::room::member::MembershipState};

use super::{Error, RoomNumber, Rooms, ServerNumber, outside, state::Source};
use crate::{
    accounts::UserNumber,
    events::{EventNumber, Pdu, RootNumber, StateNumber, trie},
    storage::{
        Batch, Counter, Family, KeyError, KeyPart, Order, Position, PositionAt, Snapshot, Stamped,
        Table, Topic,
    },
};

static BY_ROOM: Table<(RoomNumber, Class, UserNumber), Stamped<MemberRow>> =
    Table::new("members_by_room", Family::Membership, b'R');
static BY_USER: Table<(UserNumber, Class, RoomNumber), Stamped<UserRow>> =
    Table::new("members_by_user", Family::Membership, b'U');
static SERVERS: Table<(RoomNumber, ServerNumber), Counter> =
    Table::new("room_servers", Family::Membership, b'S');
static STRIPPED: Table<(UserNumber, RoomNumber), String> =
    Table::new("stripped_state", Family::Membership, b'I');

/// The membership of a user in a room, as a part of keys.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[repr(u8)]
pub enum Class {
    Join = 1,
    Invite = 2,
    Knock = 3,
    Leave = 4,
    Ban = 5,
}

impl Class {
    pub const ALL: [Self; 5] = [
        Self::Join,
        Self::Invite,
        Self::Knock,
        Self::Leave,
        Self::Ban,
    ];

    /// The class of a `membership`; unknown values count as having left.
    pub fn of(membership: &MembershipState) -> Self {
        match membership {
            MembershipState::Join => Self::Join,
            MembershipState::Invite => Self::Invite,
            MembershipState::Knock => Self::Knock,
            MembershipState::Ban => Self::Ban,
            _ => Self::Leave,
        }
    }

    /// The `membership` of this class.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Join => "join",
            Self::Invite => "invite",
            Self::Knock => "knock",
            Self::Leave => "leave",
            Self::Ban => "ban",
        }
    }
}

impl KeyPart for Class {
    fn encode(&self, to: &mut Vec<u8>) {
        to.push(*self as u8);
    }
    fn decode(from: &mut &[u8]) -> Result<Self, KeyError> {
        let byte = u8::decode(from)?;
        Self::ALL
            .into_iter()
            .find(|class| *class as u8 == byte)
            .ok_or(KeyError)
    }
}

/// The class of a membership event.
pub fn class_of(pdu: &Pdu) -> Class {
    #[derive(serde::Deserialize)]
    struct Content {
        membership: MembershipState,
    }
    pdu.content_as::<Content>()
        .map_or(Class::Leave, |content| Class::of(&content.membership))
}

/// A member of a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MemberRow {
    pub event: EventNumber,
    pub state: StateNumber,
}

/// A room of a user of this server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct UserRow {
    /// The membership event; zero if this server is not in the room and only the stripped state is known.
    pub event: EventNumber,
    /// The user does not want to hear of the room any more.
    pub forgotten: bool,
}

/// A change of one membership in the current state.
#[derive(Clone, Debug)]
pub(super) struct MembershipChange {
    pub(super) user: UserNumber,
    pub(super) is_local: bool,
    pub(super) server: ServerNumber,
    pub(super) before: Option<Class>,
    /// `None`: the state says nothing of the user any more.
    pub(super) after: Option<Class>,
    /// The event that says so; without one, that which said what is no more.
    pub(super) event: EventNumber,
    pub(super) state: StateNumber,
    pub(super) pdu: Arc<Pdu>,
    /// What an invited or knocking local user is shown.
    pub(super) stripped: Option<String>,
}

impl MembershipChange {
    pub(super) fn is_join(&self) -> bool {
        self.after == Some(Class::Join) && self.before != Some(Class::Join)
    }

    /// By how much the number of joined members grows.
    pub(super) fn joined(&self) -> i64 {
        let is_joined = |class| class == Some(Class::Join);
        i64::from(is_joined(self.after)) - i64::from(is_joined(self.before))
    }
}

/// Adds the rows of a change.
pub(super) fn insert(batch: &mut Batch, room: RoomNumber, change: &MembershipChange) {
    let at = PositionAt::Value(0);
    if let Some(before) = change.before.filter(|before| Some(*before) != change.after) {
        batch.delete(&BY_ROOM, &(room, before, change.user));
    }
    if let Some(after) = change.after {
        let member = MemberRow {
            event: change.event,
            state: change.state,
        };
        let row = Stamped(Position(0), member);
        batch.put_stamped(&BY_ROOM, &(room, after, change.user), &row, at);
    }
    if change.is_local {
        let place = (change.user, room);
        // Of whom the state says nothing has no part in the room any more.
        let after = change.after.unwrap_or(Class::Leave);
        insert_own(batch, place, after, change.event);
        show(batch, place, change.stripped.as_deref());
        outside::remove(batch, change.user, room);
    }
    if change.joined() != 0 {
        batch.add(&SERVERS, &(room, change.server), change.joined());
    }
}

/// Adds the rows of a membership in a room that this server is not in, so that no event of the room is stored.
pub(super) fn insert_outside(
    batch: &mut Batch,
    place: (UserNumber, RoomNumber),
    class: Class,
    stripped: Option<&str>,
) {
    insert_own(batch, place, class, EventNumber::default());
    show(batch, place, stripped);
}

/// The row of a user of this server. Those of all other classes go: what the user was before may not have been told by
/// the room's state, if this server was not in the room then.
fn insert_own(
    batch: &mut Batch,
    (user, room): (UserNumber, RoomNumber),
    class: Class,
    event: EventNumber,
) {
    for other in Class::ALL.into_iter().filter(|other| *other != class) {
        batch.delete(&BY_USER, &(user, other, room));
    }
    let row = UserRow {
        event,
        forgotten: false,
    };
    let at = PositionAt::Value(0);
    batch.put_stamped(
        &BY_USER,
        &(user, class, room),
        &Stamped(Position(0), row),
        at,
    );
    batch.wake(Topic::User(user.0));
}

/// What an invited or knocking user is shown of the room.
fn show(batch: &mut Batch, place: (UserNumber, RoomNumber), stripped: Option<&str>) {
    match stripped {
        Some(stripped) => batch.put(&STRIPPED, &place, &stripped.to_owned()),
        None => batch.delete(&STRIPPED, &place),
    }
}

/// A room of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserRoom {
    pub room: RoomNumber,
    pub class: Class,
    pub event: EventNumber,
    /// When the membership became what it is.
    pub position: Position,
    /// The user has left it and does not want to hear of it any more.
    pub is_forgotten: bool,
}

/// The joined members of each server of a room, also of those with none left.
pub(super) fn server_counts(
    snapshot: &Snapshot,
    room: RoomNumber,
) -> Result<Vec<(ServerNumber, i64)>, Error> {
    let rows = snapshot.scan(SERVERS.prefix(&(room,)), Order::Forward);
    rows.map(|row| Ok(row.map(|((_, server), Counter(joined))| (server, joined))?))
        .collect()
}

/// Those of `rooms` where the server has joined members, in their order.
pub(super) fn rooms_with(
    snapshot: &Snapshot,
    rooms: &[RoomNumber],
    server: ServerNumber,
) -> Result<Vec<RoomNumber>, Error> {
    let keys: Vec<_> = rooms.iter().map(|room| (*room, server)).collect();
    let counts = snapshot.get_many(&SERVERS, &keys)?;
    let joined = rooms.iter().zip(counts);
    let joined = joined.filter(|(_, count)| matches!(count, Some(Counter(1..))));
    Ok(joined.map(|(room, _)| *room).collect())
}

/// Those of `rooms` to which the user is joined, in their order.
pub(super) fn joined_among(
    snapshot: &Snapshot,
    user: UserNumber,
    rooms: &[RoomNumber],
) -> Result<Vec<RoomNumber>, Error> {
    let keys: Vec<_> = rooms
        .iter()
        .map(|room| (*room, Class::Join, user))
        .collect();
    let rows = snapshot.get_many(&BY_ROOM, &keys)?;
    let joined = rooms.iter().zip(rows).filter(|(_, row)| row.is_some());
    Ok(joined.map(|(room, _)| *room).collect())
}

/// Those of `rooms` to which the user is joined, with the position and the event of the membership.
pub(super) fn joins_among(
    snapshot: &Snapshot,
    user: UserNumber,
    rooms: &[RoomNumber],
) -> Result<Vec<(RoomNumber, Position, EventNumber)>, Error> {
    let keys: Vec<_> = rooms
        .iter()
        .map(|room| (*room, Class::Join, user))
        .collect();
    let rows = snapshot.get_many(&BY_ROOM, &keys)?;
    let joins = rooms.iter().zip(rows).filter_map(|(room, row)| {
        let Stamped(position, row) = row?;
        Some((*room, position, row.event))
    });
    Ok(joins.collect())
}

/// The joined members of one server.
pub(super) fn joined_of(
    snapshot: &Snapshot,
    room: RoomNumber,
    server: ServerNumber,
) -> Result<i64, Error> {
    let row = snapshot.get(&SERVERS, &(room, server))?;
    Ok(row.map_or(0, |Counter(joined)| joined))
}

/// Whether a server has joined members, or once had.
pub(super) fn has_been_joined(
    snapshot: &Snapshot,
    room: RoomNumber,
    server: ServerNumber,
) -> Result<bool, Error> {
    Ok(snapshot.has(&SERVERS, &(room, server))?)
}

/// Every row of a user for a room; more than one is a fault.
pub(super) fn rows_of(
    snapshot: &Snapshot,
    user: UserNumber,
    room: RoomNumber,
) -> Result<Vec<(Class, EventNumber)>, Error> {
    let mut rows = Vec::new();
    for class in Class::ALL {
        let row = snapshot.get(&BY_USER, &(user, class, room))?;
        rows.extend(row.map(|Stamped(_, row)| (class, row.event)));
    }
    Ok(rows)
}

impl Rooms {
    /// The rooms of a user of this server: joined, invited, knocked, left and banned, also forgotten ones.
    pub fn rooms_of(
        &self,
        snapshot: &Snapshot,
        user: UserNumber,
    ) -> Result<Arc<Vec<UserRoom>>, Error> {
        if let Some((read_at, rooms)) = self.caches.user_rooms.get(&user)
            && snapshot.position() >= read_at
        {
            // Entries newer than the snapshot cannot be told from older ones; they are only a little early.
            return Ok(rooms);
        }
        let mut rooms = Vec::new();
        for row in snapshot.scan(BY_USER.prefix(&(user,)), Order::Forward) {
            let ((_, class, room), Stamped(position, row)) = row?;
            rooms.push(UserRoom {
                room,
                class,
                event: row.event,
                position,
                is_forgotten: row.forgotten,
            });
        }
        let rooms = Arc::new(rooms);
        let weight = rooms.len() * size_of::<UserRoom>() + 128;
        let read_at = snapshot.position();
        let entry = (read_at, Arc::clone(&rooms));
        self.caches.user_rooms.put_if(user, entry, weight, || {
            let changed = self
                .caches
                .membership_changed
                .load(std::sync::atomic::Ordering::Acquire);
            read_at.0 >= changed
        });
        Ok(rooms)
    }

    /// The current membership of a user of this server in a room; none in a room that is forgotten.
    pub fn user_room(
        &self,
        snapshot: &Snapshot,
        user: UserNumber,
        room: RoomNumber,
    ) -> Result<Option<UserRoom>, Error> {
        Ok(self
            .rooms_of(snapshot, user)?
            .iter()
            .find(|entry| entry.room == room && !entry.is_forgotten)
            .cloned())
    }

    /// Whether a user of any server is joined now.
    pub fn is_joined(
        &self,
        snapshot: &Snapshot,
        user: UserNumber,
        room: RoomNumber,
    ) -> Result<bool, Error> {
        Ok(snapshot
            .get(&BY_ROOM, &(room, Class::Join, user))?
            .is_some())
    }

    /// The current membership of a user of any server.
    pub fn class_of(
        &self,
        snapshot: &Snapshot,
        user: UserNumber,
        room: RoomNumber,
    ) -> Result<Option<Class>, Error> {
        for class in Class::ALL {
            if snapshot.get(&BY_ROOM, &(room, class, user))?.is_some() {
                return Ok(Some(class));
            }
        }
        Ok(None)
    }

    /// The users of a class in the current state, with the position of their membership, by number; at most `limit`.
    pub fn members(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        class: Class,
        limit: usize,
    ) -> Result<Vec<(UserNumber, Position, MemberRow)>, Error> {
        let rows = snapshot
            .scan(BY_ROOM.prefix(&(room, class)), Order::Forward)
            .take(limit);
        rows.map(|row| row.map(|((_, _, user), Stamped(position, row))| (user, position, row)))
            .collect::<Result<_, _>>()
            .map_err(Error::from)
    }

    /// The stripped state that an invited or knocking user of this server was shown: a JSON array.
    pub fn stripped_state(
        &self,
        snapshot: &Snapshot,
        user: UserNumber,
        room: RoomNumber,
    ) -> Result<Option<String>, Error> {
        Ok(snapshot.get(&STRIPPED, &(user, room))?)
    }

    /// The other servers with joined members.
    pub fn servers(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
    ) -> Result<Vec<OwnedServerName>, Error> {
        let mut servers = Vec::new();
        for (server, joined) in server_counts(snapshot, room)? {
            if joined > 0 {
                servers.extend(self.server_name(server));
            }
        }
        for server in self.told_servers(snapshot, room)? {
            if !servers.contains(&server) {
                servers.push(server);
            }
        }
        servers.retain(|server| server != self.own_name());
        Ok(servers)
    }

    /// The other servers with joined members in a state.
    ///
    /// Those of now, and the difference between the members then and now: who asks, asks about a state of a moment ago.
    pub fn servers_at(
        &self,
        snapshot: &Snapshot,
        (room, root): (RoomNumber, RootNumber),
    ) -> Result<Vec<OwnedServerName>, Error> {
        let head = self.head(snapshot, room)?.ok_or(Error::NotFound)?;
        let source = self.source(snapshot, room);
        let (now, then) = (source.root(head.root)?, source.root(root)?);
        let counts = server_counts(snapshot, room)?;
        let mut counts: BTreeMap<ServerNumber, i64> = counts.into_iter().collect();
        for change in trie::diff(&source, now.members, then.members)? {
            for (state, joined) in [(change.before, -1), (change.after, 1)] {
                let Some(state) = state else { continue };
                if let Some(server) = self.server_of_joined(&source, state)? {
                    *counts.entry(server).or_default() += joined;
                }
            }
        }
        let servers = counts.into_iter().filter(|(_, joined)| *joined > 0);
        let mut names: BTreeSet<OwnedServerName> = servers
            .filter_map(|(server, _)| self.server_name(server))
            .collect();
        names.extend(self.told_servers(snapshot, room)?);
        names.remove(self.own_name());
        Ok(names.into_iter().collect())
    }

    /// The server of the user of whom a membership event says that the user is joined.
    fn server_of_joined(
        &self,
        source: &Source<'_>,
        state: StateNumber,
    ) -> Result<Option<ServerNumber>, Error> {
        let number = source.graph(state)?.event;
        let event = source.event(number)?;
        let event = event.ok_or_else(|| Error::corrupt("bodies", "a state event is missing"))?;
        let user = event.pdu.state_key.as_deref().map(<&UserId>::try_from);
        Ok(match user {
            Some(Ok(user)) if class_of(&event.pdu) == Class::Join => {
                Some(self.server_number(user.server_name()))
            }
            _ => None,
        })
    }

    /// Marks a room as forgotten by a user who has left it.
    ///
    /// # Errors
    /// [`Error::Forbidden`] if the user is still in the room.
    pub async fn forget(&self, user: &UserId, room: RoomNumber) -> Result<(), Error> {
        let Some(number) = self.accounts.intern(&[user]).await?.first().copied() else {
            return Err(Error::NotFound);
        };
        let turn = self.locks.lock(room).await;
        // What the last writer has in flight may concern this user.
        self.store.submit(Batch::new()).await?;
        let rooms = self.clone();
        let found = self
            .store
            .read(move |snapshot| -> Result<_, Error> { rooms.user_room(snapshot, number, room) })
            .await?;
        let found = found.ok_or(Error::NotFound)?;
        if !matches!(found.class, Class::Leave | Class::Ban) {
            return Err(Error::Forbidden(
                "you are still in this room; leave it first".into(),
            ));
        }
        let mut batch = Batch::new();
        let row = UserRow {
            event: found.event,
            forgotten: true,
        };
        batch.put(
            &BY_USER,
            &(number, found.class, room),
            &Stamped(found.position, row),
        );
        outside::remove(&mut batch, number, room);
        batch.wake(Topic::User(number.0));
        self.invalidate_user_rooms(&mut batch, number);
        batch.hold(turn);
        self.store.submit(batch).await?;
        Ok(())
    }

    /// Drops what is cached of a user's rooms when `batch` becomes visible.
    pub(super) fn invalidate_user_rooms(&self, batch: &mut Batch, user: UserNumber) {
        let rooms = self.clone();
        batch.before_publish(move |position| {
            let caches = &rooms.caches;
            caches
                .membership_changed
                .fetch_max(position.0, std::sync::atomic::Ordering::AcqRel);
            caches.user_rooms.remove(&user);
        });
    }
}

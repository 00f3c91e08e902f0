//! Room aliases: names of rooms that can be moved from one room to another.

use ruma::{
    CanonicalJsonObject, OwnedRoomAliasId, OwnedUserId, RoomAliasId, UserId,
    canonical_json::CanonicalJsonValue, events::TimelineEventType,
};

use super::{Class, Error, NewEvent, RoomNumber, RoomWriter, Rooms};
use crate::storage::{Batch, Cbor, Family, Guard, Order, Snapshot, Table, Text};

static ALIASES: Table<(Text,), Cbor<AliasRow>> = Table::new("aliases", Family::RoomHeads, b'a');
static BY_ROOM: Table<(RoomNumber, Text), ()> =
    Table::new("aliases_by_room", Family::RoomHeads, b'A');

/// Where an alias leads, and who made it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct AliasRow {
    pub room: RoomNumber,
    pub creator: OwnedUserId,
}

fn key(alias: &RoomAliasId) -> Text {
    Text(alias.as_str().into())
}

/// Adds an alias that was reserved.
pub(super) fn insert(batch: &mut Batch, alias: &RoomAliasId, room: RoomNumber, creator: &UserId) {
    let row = AliasRow {
        room,
        creator: creator.to_owned(),
    };
    batch.put(&ALIASES, &(key(alias),), &Cbor(row));
    batch.put(&BY_ROOM, &(room, key(alias)), &());
}

/// Takes an alias away.
pub(super) fn remove(batch: &mut Batch, alias: &RoomAliasId, room: RoomNumber) {
    batch.delete(&ALIASES, &(key(alias),));
    batch.delete(&BY_ROOM, &(room, key(alias)));
}

/// Holds an alias that is free until dropped.
pub(super) struct ReservedAlias {
    _turn: Guard<String>,
}

impl Rooms {
    /// Holds an alias of this server, so that nobody else takes it until the answer is dropped.
    ///
    /// # Errors
    /// [`Error::AliasInUse`]; [`Error::Invalid`] for an alias of another server.
    pub(super) async fn reserve_alias(&self, alias: &RoomAliasId) -> Result<ReservedAlias, Error> {
        if alias.server_name() != self.own_name() {
            return Err(Error::Invalid("the alias is of another server".into()));
        }
        let turn = self.alias_locks.lock(alias.as_str().to_owned()).await;
        let (rooms, wanted) = (self.clone(), alias.to_owned());
        let taken = self
            .store
            .read(move |snapshot| rooms.alias(snapshot, &wanted))
            .await?;
        match taken {
            Some(_) => Err(Error::AliasInUse),
            None => Ok(ReservedAlias { _turn: turn }),
        }
    }

    /// Where an alias of this server leads.
    pub fn alias(
        &self,
        snapshot: &Snapshot,
        alias: &RoomAliasId,
    ) -> Result<Option<AliasRow>, Error> {
        Ok(snapshot.get(&ALIASES, &(key(alias),))?.map(|Cbor(row)| row))
    }

    /// The aliases of a room, in alphabetical order.
    pub fn aliases_of(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
    ) -> Result<Vec<OwnedRoomAliasId>, Error> {
        let mut aliases = Vec::new();
        for row in snapshot.scan(BY_ROOM.prefix(&(room,)), Order::Forward) {
            let ((_, alias), ()) = row?;
            let alias = RoomAliasId::parse(&*alias.0)
                .map_err(|_invalid| Error::corrupt("aliases_by_room", "not an alias"))?;
            aliases.push(alias);
        }
        Ok(aliases)
    }

    /// Makes an alias of this server lead to a room that `creator` is in.
    ///
    /// # Errors
    /// [`Error::AliasInUse`]; [`Error::Invalid`] for an alias of another server; [`Error::Forbidden`] if the user is not in
    /// the room.
    pub async fn add_alias(
        &self,
        alias: &RoomAliasId,
        room: RoomNumber,
        creator: &UserId,
    ) -> Result<(), Error> {
        let reserved = self.reserve_alias(alias).await?;
        self.require_joined(room, creator).await?;
        let mut batch = Batch::new();
        insert(&mut batch, alias, room, creator);
        batch.hold(reserved);
        self.store.submit(batch).await?;
        Ok(())
    }

    /// Takes an alias away, and out of the room's canonical alias if the user may change that.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Forbidden`] if the user neither made the alias nor may name the room.
    pub async fn remove_alias(&self, alias: &RoomAliasId, user: &UserId) -> Result<(), Error> {
        let turn = self.alias_locks.lock(alias.as_str().to_owned()).await;
        let (rooms, wanted) = (self.clone(), alias.to_owned());
        let row = self
            .store
            .read(move |snapshot| rooms.alias(snapshot, &wanted))
            .await?;
        let row = row.ok_or(Error::NotFound)?;
        let mut writer = self.write(row.room).await?;
        let may_name = writer.membership(user).await? == Some(Class::Join)
            && writer
                .power_levels()
                .await?
                .may_send_state(user, &TimelineEventType::RoomCanonicalAlias);
        if row.creator != user && !may_name {
            return Err(Error::Forbidden("you may not remove this alias".into()));
        }
        let mut batch = Batch::new();
        remove(&mut batch, alias, row.room);
        batch.hold(turn);
        self.store.submit(batch).await?;
        if may_name && let Some(event) = unnaming(&mut writer, alias, user).await? {
            self.send_in_turn(writer, event).await?.durable().await?;
        }
        Ok(())
    }

    /// Refuses a canonical alias that names what does not lead to the room. Names that stood there before may stay. Answers
    /// the new names of other servers, which these must be asked about.
    ///
    /// # Errors
    /// [`Error::BadAlias`]; [`Error::InvalidAlias`] for what is no alias at all.
    ///
    /// Spec: c2s, "m.room.canonical_alias".
    pub fn check_canonical_alias(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        content: &CanonicalJsonObject,
    ) -> Result<Vec<OwnedRoomAliasId>, Error> {
        let head = self.head(snapshot, room)?.ok_or(Error::NotFound)?;
        let current =
            self.state_event(snapshot, (room, head.root), "m.room.canonical_alias", "")?;
        let current = current.and_then(|event| event.pdu.content_as::<CanonicalJsonObject>().ok());
        let known = current.as_ref().map(named).unwrap_or_default();
        let mut of_others = Vec::new();
        for name in named(content) {
            let alias = RoomAliasId::parse(name).map_err(|_invalid| Error::InvalidAlias)?;
            if known.contains(&name) {
                continue;
            }
            if alias.server_name() != self.own_name() {
                of_others.push(alias);
            } else if self
                .alias(snapshot, &alias)?
                .is_none_or(|row| row.room != room)
            {
                return Err(Error::BadAlias);
            }
        }
        Ok(of_others)
    }

    /// # Errors
    /// [`Error::Forbidden`] if the user is not joined.
    pub(super) async fn require_joined(
        &self,
        room: RoomNumber,
        user: &UserId,
    ) -> Result<(), Error> {
        let number = self.accounts.intern(&[user]).await?.first().copied();
        let number = number.ok_or(Error::NotFound)?;
        let rooms = self.clone();
        let is_joined = self
            .store
            .read(move |snapshot| rooms.is_joined(snapshot, number, room))
            .await?;
        match is_joined {
            true => Ok(()),
            false => Err(Error::Forbidden("you are not in this room".into())),
        }
    }
}

/// The aliases that a canonical alias names; values that are no text are left out.
fn named(content: &CanonicalJsonObject) -> Vec<&str> {
    let main = content.get("alias").and_then(CanonicalJsonValue::as_str);
    let others = match content.get("alt_aliases") {
        Some(CanonicalJsonValue::Array(others)) => others.as_slice(),
        _ => &[],
    };
    main.into_iter()
        .filter(|alias| !alias.is_empty())
        .chain(others.iter().filter_map(CanonicalJsonValue::as_str))
        .collect()
}

/// The canonical alias without `alias`, if it names it.
async fn unnaming(
    writer: &mut RoomWriter,
    alias: &RoomAliasId,
    user: &UserId,
) -> Result<Option<NewEvent>, Error> {
    let Some(current) = writer.state("m.room.canonical_alias", "").await? else {
        return Ok(None);
    };
    let Ok(mut content) = current.pdu.content_as::<CanonicalJsonObject>() else {
        return Ok(None);
    };
    if !named(&content).contains(&alias.as_str()) {
        return Ok(None);
    }
    let is_it = |value: &CanonicalJsonValue| value.as_str() == Some(alias.as_str());
    if content.get("alias").is_some_and(is_it) {
        content.remove("alias");
    }
    if let Some(CanonicalJsonValue::Array(others)) = content.get_mut("alt_aliases") {
        others.retain(|other| !is_it(other));
        if others.is_empty() {
            content.remove("alt_aliases");
        }
    }
    let event = NewEvent::state(
        user.to_owned(),
        TimelineEventType::RoomCanonicalAlias,
        "",
        content,
    );
    Ok(Some(event))
}

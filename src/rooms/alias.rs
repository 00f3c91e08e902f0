//! Room aliases: names of rooms that can be moved from one room to another.

use ruma::{OwnedRoomAliasId, OwnedUserId, RoomAliasId, UserId};

use super::{Error, RoomNumber, Rooms};
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
}

//! A room that replaces another: its members keep for it what they kept for the old one.
//!
//! It is done when a user joins, so it makes no difference how the room came to have a predecessor.

use ruma::UserId;

use super::{Error, RoomNumber, Rooms};
use crate::{accounts::RoomName, storage::Snapshot};

impl Rooms {
    /// Carries what `user`, who has just joined `room`, keeps for its predecessor.
    pub(super) async fn carry_settings(
        &self,
        user: &UserId,
        room: RoomNumber,
    ) -> Result<(), Error> {
        let rooms = self.clone();
        let read = move |snapshot: &Snapshot| rooms.predecessor(snapshot, room);
        let Some(old_id) = self.store.read(read).await? else {
            return Ok(());
        };
        let (Some(old), Some(new_id)) = (self.number(&old_id), self.room_id(room)) else {
            return Ok(());
        };
        let Some(number) = self.accounts.intern(&[user]).await?.first().copied() else {
            return Ok(());
        };
        let from = RoomName {
            id: &old_id,
            number: old.0,
        };
        let to = RoomName {
            id: &new_id,
            number: room.0,
        };
        Ok(self.accounts.carry_room(number, user, from, to).await?)
    }
}

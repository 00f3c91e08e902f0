//! Changes of lists of devices that can be told only when all members of a partial room are known.
//!
//! A change of a user of whom it is not known whether a room is shared is kept, one row a user, until the members are known:
//! who then turns out to share a room has changed. So has who was taken for gone, or for a member, and is not.

use std::collections::BTreeMap;

use ruma::{OwnedUserId, ServerName, UserId};

use super::{Error, Federation};
use crate::{
    accounts::UserNumber,
    encryption::RemoteChange,
    rooms::{Class, RoomNumber, ServerNumber},
    storage::{Batch, Family, Order, Position, Snapshot, Table},
};

/// Users whose lists have changed, by server and hash of the ID.
static KEPT: Table<LateKey, String> = Table::new("late_device_lists", Family::Federation, b'l');

type LateKey = (ServerNumber, [u8; 32]);

/// Users that are kept, and of them those of one server.
const MAX_KEPT: usize = 20_000;
const MAX_KEPT_OF_SERVER: usize = 1_000;

/// The turn of who adds to what is kept, or deals with it.
#[derive(Default)]
pub(in crate::federation) struct LateLists {
    /// How many users are kept, once somebody has counted.
    kept: tokio::sync::Mutex<Option<usize>>,
}

/// What is known of the rooms that a user of another server shares with users of this one.
#[derive(Debug, Default)]
pub(super) struct Sharing {
    /// Never empty.
    pub(super) known: Option<(UserNumber, Vec<RoomNumber>)>,
    /// There may be others: members of some rooms are not known yet.
    pub(super) may_be_more: bool,
}

/// Of users of other servers, whether they were taken for joined to a room of which not all members were known.
pub(in crate::federation) type Believed = BTreeMap<UserNumber, bool>;

impl Federation {
    /// Those of the rooms of a user's server that the user shares with users of this one.
    fn sharing(
        &self,
        snapshot: &Snapshot,
        user: &UserId,
        all: &[RoomNumber],
    ) -> Result<Sharing, Error> {
        let rooms = &self.inner.rooms;
        let number = self.inner.accounts.user_number(snapshot, user)?;
        let mut sharing = Sharing::default();
        if let Some(number) = number {
            let shared = rooms.joined_among(snapshot, number, all)?;
            sharing.known = (!shared.is_empty()).then_some((number, shared));
        }
        for room in all.iter().filter(|room| rooms.is_partial(**room)) {
            let class = match number {
                Some(number) => rooms.class_of(snapshot, number, *room)?,
                None => None,
            };
            sharing.may_be_more |= class.is_none();
        }
        Ok(sharing)
    }

    async fn sharing_now(&self, server: &ServerName, user: &UserId) -> Result<Sharing, Error> {
        let (federation, server, user) = (self.clone(), server.to_owned(), user.to_owned());
        let read = move |snapshot: &Snapshot| -> Result<_, Error> {
            let rooms = &federation.inner.rooms;
            let all = match rooms.known_server(&server) {
                Some(server) => rooms.rooms_with_server(snapshot, server, Position::default())?,
                None => Vec::new(),
            };
            federation.sharing(snapshot, &user, &all)
        };
        self.inner.store.read(read).await
    }

    /// The rooms that a user shares whose list has changed. If there may be more, the change is kept for them.
    pub(super) async fn sharing_or_kept(
        &self,
        server: &ServerName,
        user: &UserId,
    ) -> Result<Sharing, Error> {
        let sharing = self.sharing_now(server, user).await?;
        if !sharing.may_be_more {
            return Ok(sharing);
        }
        let mut kept = self.inner.late_lists.kept.lock().await;
        // The members may have become known before it was our turn.
        let sharing = self.sharing_now(server, user).await?;
        if !sharing.may_be_more {
            return Ok(sharing);
        }
        let server = self.inner.rooms.server_number(server);
        let key = (server, *blake3::hash(user.as_bytes()).as_bytes());
        let counted = *kept;
        let read = move |snapshot: &Snapshot| -> Result<_, Error> {
            let all = match counted {
                Some(all) => all,
                None => snapshot.scan(KEPT.all(), Order::Forward).count(),
            };
            let of_server = snapshot.scan(KEPT.prefix(&(server,)), Order::Forward);
            let of_server = of_server.take(MAX_KEPT_OF_SERVER).count();
            Ok((snapshot.has(&KEPT, &key)?, all, of_server))
        };
        let (is_kept, all, of_server) = self.inner.store.read(read).await?;
        *kept = Some(all);
        if is_kept {
            return Ok(sharing);
        }
        if all >= MAX_KEPT || of_server >= MAX_KEPT_OF_SERVER {
            tracing::warn!(%user, "too many lists of devices have changed while members of rooms are fetched");
            return Ok(sharing);
        }
        let mut batch = Batch::new();
        batch.put(&KEPT, &key, &user.to_string());
        self.inner.store.submit(batch).await?;
        *kept = Some(all + 1);
        Ok(sharing)
    }

    /// Deals with what was kept, as far as it is known by now who shares a room.
    pub(in crate::federation) async fn tell_late_lists(&self) -> Result<(), Error> {
        let mut kept = self.inner.late_lists.kept.lock().await;
        let federation = self.clone();
        let read = move |snapshot: &Snapshot| federation.late_lists(snapshot);
        let late = self.inner.store.read(read).await?;
        let mut left = 0;
        for (key, sharing) in late {
            if let Some((user, rooms)) = sharing.known {
                self.list_has_changed(user, &rooms).await?;
            }
            if sharing.may_be_more {
                left += 1;
                continue;
            }
            let mut batch = Batch::new();
            batch.delete(&KEPT, &key);
            drop(self.inner.store.submit(batch));
        }
        *kept = Some(left);
        Ok(())
    }

    fn late_lists(&self, snapshot: &Snapshot) -> Result<Vec<(LateKey, Sharing)>, Error> {
        let mut late = Vec::new();
        let mut all: (Option<ServerNumber>, Vec<RoomNumber>) = Default::default();
        for row in snapshot.scan(KEPT.all(), Order::Forward) {
            let (key, user) = row?;
            let (server, _) = key;
            if all.0 != Some(server) {
                let rooms = &self.inner.rooms;
                let shared = rooms.rooms_with_server(snapshot, server, Position::default())?;
                all = (Some(server), shared);
            }
            let sharing = match OwnedUserId::try_from(user) {
                Ok(user) => self.sharing(snapshot, &user, &all.1)?,
                Err(_) => Sharing::default(),
            };
            late.push((key, sharing));
        }
        Ok(late)
    }

    /// Notes that what is known of the list of a user of another server cannot be relied on any more.
    async fn list_has_changed(&self, user: UserNumber, rooms: &[RoomNumber]) -> Result<(), Error> {
        let change = RemoteChange::default();
        let encryption = &self.inner.encryption;
        Ok(encryption.remote_change(user, rooms, change).await?)
    }

    /// Who of other servers is taken for joined to a partial room, or for gone.
    pub(in crate::federation) fn believed(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
    ) -> Result<Believed, Error> {
        let mut believed = Believed::new();
        for class in Class::ALL {
            let members = self
                .inner
                .rooms
                .members(snapshot, room, class, usize::MAX)?;
            let is_joined = class == Class::Join;
            believed.extend(members.into_iter().map(|(user, ..)| (user, is_joined)));
        }
        Ok(believed)
    }

    /// Whose lists are to be looked up anew, as it was wrong what was believed of them while a room was partial.
    pub(in crate::federation) async fn correct_lists(
        &self,
        room: RoomNumber,
        believed: Believed,
    ) -> Result<(), Error> {
        let federation = self.clone();
        let read = move |snapshot: &Snapshot| -> Result<_, Error> {
            let inner = &federation.inner;
            let mut wrong = Vec::new();
            for (user, was_joined) in believed {
                if inner.rooms.is_joined(snapshot, user, room)? != was_joined
                    && !inner
                        .accounts
                        .is_local(&inner.accounts.user_id(snapshot, user)?)
                {
                    wrong.push(user);
                }
            }
            Ok(wrong)
        };
        for user in self.inner.store.read(read).await? {
            self.list_has_changed(user, &[room]).await?;
        }
        Ok(())
    }
}

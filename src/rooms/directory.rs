//! The room directory: which rooms of this server are listed, found by name, most members first.
//!
//! Spec: c2s, "Published room directory".

use ruma::{
    UserId,
    directory::{PublicRoomsChunk, PublicRoomsChunkInit, RoomTypeFilter},
    events::TimelineEventType,
    room::RoomSummary,
};

use super::{Class, Error, RoomNumber, Rooms};
use crate::storage::{Batch, Family, Order, Snapshot, Table};

static PUBLISHED: Table<(RoomNumber,), ()> = Table::new("published_rooms", Family::RoomHeads, b'p');

/// The room directory.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(default)]
pub struct Config {
    /// Show the published rooms to other servers, whose users then find them. Default `false`.
    pub public_rooms_federated: bool,
}

/// Lists a room.
pub(super) fn publish(batch: &mut Batch, room: RoomNumber) {
    batch.put(&PUBLISHED, &(room,), &());
}

/// Takes a room off the list.
pub(super) fn hide(batch: &mut Batch, room: RoomNumber) {
    batch.delete(&PUBLISHED, &(room,));
}

/// What is looked for in the directory.
#[derive(Clone, Debug, Default)]
pub struct DirectoryQuery {
    /// Part of the name, topic or alias, in any case.
    pub term: Option<String>,
    /// Empty: rooms of every type.
    pub types: Vec<RoomTypeFilter>,
    /// `None`: as many as a page may have.
    pub limit: Option<usize>,
    /// Rooms before the page.
    pub offset: usize,
}

/// A page of the directory.
#[derive(Clone, Debug)]
pub struct DirectoryPage {
    pub rooms: Vec<PublicRoomsChunk>,
    pub next: Option<usize>,
    pub previous: Option<usize>,
    pub total: usize,
}

/// Rooms of a page when none or more are asked for.
const MAX_PAGE: usize = 10_000;

impl Rooms {
    /// Whether a room is listed.
    pub fn is_published(&self, snapshot: &Snapshot, room: RoomNumber) -> Result<bool, Error> {
        Ok(snapshot.get(&PUBLISHED, &(room,))?.is_some())
    }

    /// Lists a room, or takes it off the list.
    ///
    /// # Errors
    /// [`Error::Forbidden`] unless the user is in the room and may name it, or administers the server.
    pub async fn set_published(
        &self,
        room: RoomNumber,
        (user, is_admin): (&UserId, bool),
        listed: Listed,
    ) -> Result<(), Error> {
        let mut writer = self.write(room).await?;
        let may = is_admin
            || (writer.membership(user).await? == Some(Class::Join)
                && writer
                    .power_levels()
                    .await?
                    .may_send_state(user, &TimelineEventType::RoomCanonicalAlias));
        if !may {
            return Err(Error::Forbidden("you may not list this room".into()));
        }
        let mut batch = Batch::new();
        match listed {
            Listed::Yes => publish(&mut batch, room),
            Listed::No => hide(&mut batch, room),
        }
        self.store.submit(batch).await?;
        Ok(())
    }

    /// A page of the directory, most members first.
    pub fn directory(
        &self,
        snapshot: &Snapshot,
        query: &DirectoryQuery,
    ) -> Result<DirectoryPage, Error> {
        let mut listed = Vec::new();
        for row in snapshot.scan(PUBLISHED.all(), Order::Forward) {
            let ((room,), ()) = row?;
            let Some(head) = self.head(snapshot, room)? else {
                continue;
            };
            listed.push((std::cmp::Reverse(head.joined), room));
        }
        listed.sort_unstable();
        let mut found = Vec::new();
        for (_, room) in listed {
            let summary = self.summary(snapshot, room)?.shown;
            if query.matches(&summary) {
                found.push(chunk(summary));
            }
        }
        let limit = query.limit.unwrap_or(MAX_PAGE).min(MAX_PAGE);
        let (total, end) = (found.len(), query.offset.saturating_add(limit));
        Ok(DirectoryPage {
            rooms: found.into_iter().skip(query.offset).take(limit).collect(),
            next: (end < total && limit > 0).then_some(end),
            previous: (query.offset > 0).then(|| query.offset.saturating_sub(limit)),
            total,
        })
    }
}

/// Whether a room stands in the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listed {
    Yes,
    No,
}

impl DirectoryQuery {
    fn matches(&self, room: &RoomSummary) -> bool {
        let of_type = self.types.is_empty()
            || self
                .types
                .contains(&RoomTypeFilter::from(room.room_type.clone()));
        let Some(term) = self.term.as_deref().filter(|term| !term.is_empty()) else {
            return of_type;
        };
        let term = term.to_lowercase();
        let has = |text: Option<&str>| text.is_some_and(|text| text.to_lowercase().contains(&term));
        let alias = room.canonical_alias.as_ref().map(|alias| alias.as_str());
        of_type && (has(room.name.as_deref()) || has(room.topic.as_deref()) || has(alias))
    }
}

fn chunk(room: RoomSummary) -> PublicRoomsChunk {
    let mut chunk = PublicRoomsChunk::from(PublicRoomsChunkInit {
        num_joined_members: room.num_joined_members,
        room_id: room.room_id,
        world_readable: room.world_readable,
        guest_can_join: room.guest_can_join,
    });
    chunk.canonical_alias = room.canonical_alias;
    chunk.name = room.name;
    chunk.topic = room.topic;
    chunk.avatar_url = room.avatar_url;
    chunk.join_rule = room.join_rule.as_str().into();
    chunk.room_type = room.room_type;
    chunk
}

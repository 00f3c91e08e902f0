//! Rooms and spaces that this server is not in, as other servers tell of them.
//!
//! Spec: s2s, "Spaces".

use std::{collections::BTreeMap, num::NonZeroUsize, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use ruma::{
    OwnedRoomId, OwnedServerName, RoomId, api::federation::space::get_hierarchy, room::RoomType,
};

use super::{
    Error, Federation,
    query::{Lately, within},
};
use crate::{
    accounts::UserNumber,
    rooms::{Hierarchy, HierarchyQuery, RemoteRoom, RemoteRooms},
};

/// How long what was told of a room is taken as it was.
const LIFETIME: Duration = Duration::from_secs(300);
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(2_000).expect("two thousand is not zero");
/// The largest answer about one space.
const MAX_BYTES: usize = 1 << 20;
/// Servers asked about one room.
const MAX_ASKED: usize = 3;
/// Rooms asked about at the same time.
const CONCURRENT: usize = 8;
/// Walks of one request: a space whose children are told by others takes one for each level.
const MAX_WALKS: usize = 8;
/// Rooms that others are asked about for one request.
const MAX_ROOMS_ASKED: usize = 100;
/// How long one request waits for other servers, all together.
const DEADLINE: Duration = Duration::from_secs(20);

/// What a server told of a room and its children. `None`: a room that nobody of this server gets into.
type Told = BTreeMap<OwnedRoomId, Option<Arc<RemoteRoom>>>;

/// The answers of late, by the room that was asked about: what is said of the children counts below that room only.
pub(super) struct Spaces(Lately<OwnedRoomId, Arc<Told>>);

impl Default for Spaces {
    fn default() -> Self {
        Self(Lately::new(REMEMBERED, LIFETIME))
    }
}

impl Federation {
    /// The rooms of a space that a user may see; of those that are not here, other servers are asked.
    ///
    /// # Errors
    /// [`crate::rooms::Error::Forbidden`] if the user may not see the space itself, or nobody knows it.
    pub async fn hierarchy(
        &self,
        space: &RoomId,
        user: UserNumber,
        query: HierarchyQuery,
    ) -> Result<Hierarchy, Error> {
        let deadline = tokio::time::Instant::now() + DEADLINE;
        let mut told = Arc::new(RemoteRooms::new());
        let mut walks = 0;
        loop {
            walks += 1;
            let (rooms, space, so_far) = (
                self.inner.rooms.clone(),
                space.to_owned(),
                Arc::clone(&told),
            );
            let found = self
                .inner
                .store
                .read(move |snapshot| rooms.hierarchy(snapshot, &space, user, query, &so_far))
                .await?;
            if found.missing.is_empty() {
                return Ok(found);
            }
            let told = Arc::make_mut(&mut told);
            if walks < MAX_WALKS && told.len() < MAX_ROOMS_ASKED {
                let asked = self.ask_about(&found.missing, told);
                // What does not come in time is left out.
                let _in_time = tokio::time::timeout_at(deadline, asked).await.is_ok();
            }
            for (room_id, _) in found.missing {
                told.entry(room_id).or_insert(None);
            }
        }
    }

    /// A room as one of `servers` tells it.
    pub async fn remote_room(
        &self,
        room_id: &RoomId,
        servers: &[OwnedServerName],
    ) -> Option<Arc<RemoteRoom>> {
        let mut told = RemoteRooms::new();
        let room = [(room_id.to_owned(), servers.to_vec())];
        self.ask_about(&room, &mut told).await;
        told.remove(room_id).flatten()
    }

    /// Adds what other servers tell of `rooms`, and of their children, to `told`.
    async fn ask_about(
        &self,
        rooms: &[(OwnedRoomId, Vec<OwnedServerName>)],
        told: &mut RemoteRooms,
    ) {
        let mut questions = Vec::new();
        for (room_id, servers) in rooms.iter().take(MAX_ROOMS_ASKED) {
            questions.push(self.ask_in_turn(room_id, servers));
        }
        let mut answers = stream::iter(questions).buffer_unordered(CONCURRENT);
        while let Some(answer) = answers.next().await {
            for (room_id, room) in answer.iter() {
                told.entry(room_id.clone()).or_insert_with(|| room.clone());
            }
        }
    }

    /// What the first server tells that knows a room.
    async fn ask_in_turn(&self, room_id: &OwnedRoomId, servers: &[OwnedServerName]) -> Arc<Told> {
        let (spaces, now) = (&self.inner.answers.spaces.0, self.inner.clock.instant());
        if let Some(told) = spaces.get(room_id, now) {
            return told;
        }
        let own_name = self.inner.signer.server_name();
        let of_room = room_id.server_name().into_iter();
        let mut asked: Vec<OwnedServerName> = Vec::new();
        for server in servers.iter().map(|server| &**server).chain(of_room) {
            if server == own_name || asked.iter().any(|asked| asked == server) {
                continue;
            }
            if asked.len() == MAX_ASKED {
                break;
            }
            asked.push(server.to_owned());
            let request = get_hierarchy::v1::Request::new(room_id.clone());
            let limits = within(MAX_BYTES);
            match self.client().send_within(server, request, limits).await {
                Ok(answer) if answer.room.summary.room_id == *room_id => {
                    let told = Arc::new(told_by(answer));
                    spaces.put(room_id.clone(), Arc::clone(&told), now);
                    return told;
                }
                Ok(_other) => tracing::debug!(%server, %room_id, "told of another room"),
                Err(error) => tracing::debug!(%server, %room_id, %error, "nothing is told"),
            }
        }
        Arc::default()
    }
}

/// The rooms of an answer. Of a child that is a space itself its own children are not told, so that it is asked about when
/// a walk comes to it.
fn told_by(answer: get_hierarchy::v1::Response) -> Told {
    let children = answer.children.into_iter();
    let mut told: Told = children
        .filter(|child| child.room_type != Some(RoomType::Space))
        .map(|summary| {
            let room = RemoteRoom {
                summary,
                children: Vec::new(),
            };
            (room.summary.room_id.clone(), Some(Arc::new(room)))
        })
        .collect();
    told.extend(
        answer
            .inaccessible_children
            .into_iter()
            .map(|id| (id, None)),
    );
    let is_space = answer.room.summary.room_type == Some(RoomType::Space);
    let room = RemoteRoom {
        summary: answer.room.summary,
        children: match is_space {
            true => answer.room.children_state,
            false => Vec::new(),
        },
    };
    told.insert(room.summary.room_id.clone(), Some(Arc::new(room)));
    told
}

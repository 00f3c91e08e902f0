//! The rooms of a space, walked depth first.
//!
//! Spec: c2s, "Querying the rooms of a space".

use std::{collections::HashSet, sync::Arc};

use ruma::{
    OwnedRoomId, RoomId, events::space::child::HierarchySpaceChildEvent, room::RoomType, serde::Raw,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Error, RoomNumber, Rooms, StoredEvent, Summary};
use crate::{accounts::UserNumber, events::RootNumber, storage::Snapshot};

/// What part of a space is asked for.
#[derive(Clone, Copy, Debug)]
pub struct HierarchyQuery {
    /// Rooms of a page.
    pub limit: usize,
    /// Levels below the space; `None`: as deep as the server goes.
    pub max_depth: Option<usize>,
    pub suggested_only: bool,
    /// Rooms before the page.
    pub offset: usize,
}

/// A page of a space.
#[derive(Clone, Debug, Default)]
pub struct Hierarchy {
    /// Each room with the `m.space.child` events that its place in the answer allows.
    pub rooms: Vec<(Summary, Vec<Raw<HierarchySpaceChildEvent>>)>,
    pub next: Option<usize>,
}

/// Levels below a space that are walked.
const MAX_DEPTH: usize = 32;
/// Rooms that one walk looks at.
const MAX_WALKED: usize = 10_000;
/// Rooms of a page at most.
pub(super) const MAX_PAGE: usize = 200;

/// A room still to be visited.
struct Step {
    room_id: OwnedRoomId,
    depth: usize,
}

/// A child of a space.
struct Child {
    room_id: OwnedRoomId,
    order: Option<String>,
    event: Arc<StoredEvent>,
    suggested: bool,
}

impl Rooms {
    /// The rooms of a space that a user may see. Rooms that only other servers know are left out.
    ///
    /// # Errors
    /// [`Error::Forbidden`] if the user may not see the space itself, or there is none.
    pub fn hierarchy(
        &self,
        snapshot: &Snapshot,
        space: &RoomId,
        user: UserNumber,
        query: HierarchyQuery,
    ) -> Result<Hierarchy, Error> {
        let max_depth = query.max_depth.unwrap_or(MAX_DEPTH).min(MAX_DEPTH);
        let mut answer = Hierarchy::default();
        let mut visited = HashSet::new();
        let mut stack = vec![Step {
            room_id: space.to_owned(),
            depth: 0,
        }];
        let mut passed = 0;
        while let Some(step) = stack.pop() {
            if visited.len() == MAX_WALKED || !visited.insert(step.room_id.clone()) {
                continue;
            }
            let Some(summary) = self.visible_summary(snapshot, &step.room_id, user)? else {
                if step.depth == 0 {
                    return Err(Error::Forbidden("you may not see this space".into()));
                }
                continue;
            };
            let mut children = self.children(snapshot, &summary)?;
            children.retain(|child| child.suggested || !query.suggested_only);
            if step.depth < max_depth {
                let next = children.iter().rev();
                stack.extend(next.map(|child| Step {
                    room_id: child.room_id.clone(),
                    depth: step.depth + 1,
                }));
            }
            if passed >= query.offset {
                if answer.rooms.len() == query.limit.clamp(1, MAX_PAGE) {
                    answer.next = Some(passed);
                    break;
                }
                let shown = children
                    .iter()
                    .filter_map(|child| stripped(&child.event))
                    .collect();
                answer.rooms.push((summary, shown));
            }
            passed += 1;
        }
        Ok(answer)
    }

    fn visible_summary(
        &self,
        snapshot: &Snapshot,
        room_id: &RoomId,
        user: UserNumber,
    ) -> Result<Option<Summary>, Error> {
        let Ok(room) = self.resident(room_id) else {
            return Ok(None);
        };
        let summary = self.summary(snapshot, room)?;
        Ok(self
            .may_see_summary(snapshot, &summary, Some(user))?
            .then_some(summary))
    }

    /// The children of a space, in the order of the specification.
    fn children(&self, snapshot: &Snapshot, summary: &Summary) -> Result<Vec<Child>, Error> {
        if summary.shown.room_type != Some(RoomType::Space) {
            return Ok(Vec::new());
        }
        let head = self.head(snapshot, summary.room)?.ok_or(Error::NotFound)?;
        let mut children = self.child_events(snapshot, (summary.room, head.root))?;
        // Those with an order first, by it; then by when they were added, then by room ID.
        children.sort_by(|a, b| {
            (
                a.order.is_none(),
                &a.order,
                a.event.meta.timestamp,
                &a.room_id,
            )
                .cmp(&(
                    b.order.is_none(),
                    &b.order,
                    b.event.meta.timestamp,
                    &b.room_id,
                ))
        });
        Ok(children)
    }

    fn child_events(
        &self,
        snapshot: &Snapshot,
        at: (RoomNumber, RootNumber),
    ) -> Result<Vec<Child>, Error> {
        #[derive(Deserialize)]
        struct Content {
            via: Vec<String>,
            order: Option<serde_json::Value>,
            #[serde(default)]
            suggested: serde_json::Value,
        }
        let events = self.core_state(snapshot, at.0, at.1)?;
        let children = events.into_iter().filter_map(|event| {
            if event.pdu.event_type.to_string() != "m.space.child" {
                return None;
            }
            let content: Content = event.pdu.content_as().ok()?;
            let room_id = RoomId::parse(event.pdu.state_key.as_deref()?).ok()?;
            let order = content
                .order
                .and_then(|order| order.as_str().map(str::to_owned));
            let order = order.filter(|order| is_order(order));
            let suggested = content.suggested == serde_json::Value::Bool(true);
            (!content.via.is_empty()).then_some(Child {
                room_id,
                order,
                event,
                suggested,
            })
        });
        Ok(children.collect())
    }
}

/// Whether a text may order children: at most 50 characters from space to `~`.
fn is_order(order: &str) -> bool {
    order.len() <= 50 && order.bytes().all(|byte| (0x20..=0x7e).contains(&byte))
}

/// The event as the answer shows it.
fn stripped(event: &StoredEvent) -> Option<Raw<HierarchySpaceChildEvent>> {
    #[derive(Serialize)]
    struct Shown<'a> {
        content: &'a RawValue,
        origin_server_ts: u64,
        sender: &'a ruma::UserId,
        state_key: &'a str,
        r#type: &'a str,
    }
    let shown = Shown {
        content: &event.pdu.content,
        origin_server_ts: event.meta.timestamp,
        sender: &event.pdu.sender,
        state_key: event.pdu.state_key.as_deref()?,
        r#type: "m.space.child",
    };
    let json = serde_json::value::to_raw_value(&shown).ok()?;
    Some(Raw::from_json(json))
}

//! The rooms of a space, walked depth first; and one step of such a walk, for another server.
//!
//! Rooms that this server is not in are told by others. Nothing here asks them: a walk answers which rooms it lacks, and is
//! repeated with what was found.
//!
//! Spec: c2s, "Querying the rooms of a space".

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use ruma::{
    OwnedRoomId, OwnedServerName, RoomId, ServerName,
    events::space::child::HierarchySpaceChildEvent,
    room::{JoinRuleSummary, RoomSummary, RoomType},
    serde::Raw,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Class, Error, RoomNumber, Rooms, StoredEvent, Summary};
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
    pub rooms: Vec<(RoomSummary, Vec<Raw<HierarchySpaceChildEvent>>)>,
    pub next: Option<usize>,
    /// Rooms that are not here and of which nothing was told, with servers that may know them. The page lacks them.
    pub missing: Vec<(OwnedRoomId, Vec<OwnedServerName>)>,
}

/// A room as another server tells it.
#[derive(Clone, Debug)]
pub struct RemoteRoom {
    pub summary: RoomSummary,
    pub children: Vec<Raw<HierarchySpaceChildEvent>>,
}

/// Rooms that others were asked about; `None`: nobody tells anything.
pub type RemoteRooms = HashMap<OwnedRoomId, Option<Arc<RemoteRoom>>>;

/// A space as another server is told of it.
#[derive(Clone, Debug)]
pub struct ServedHierarchy {
    pub room: RoomSummary,
    pub children_state: Vec<Raw<HierarchySpaceChildEvent>>,
    pub children: Vec<RoomSummary>,
    /// Rooms that are here and that the other server's users cannot get into.
    pub inaccessible: Vec<OwnedRoomId>,
}

/// Levels below a space that are walked.
const MAX_DEPTH: usize = 32;
/// Rooms that one walk looks at.
const MAX_WALKED: usize = 10_000;
/// Rooms of a page at most.
pub(super) const MAX_PAGE: usize = 200;
/// Children of a space that another server is told of.
const MAX_SERVED_CHILDREN: usize = 200;
/// Servers taken from one child event.
const MAX_VIA: usize = 10;
/// Invited users of whom one may be of the asking server.
const MAX_INVITED_LOOKED_AT: usize = 1_000;

/// A room still to be visited.
struct Step {
    room_id: OwnedRoomId,
    depth: usize,
    via: Vec<OwnedServerName>,
}

/// A child of a space.
struct Child {
    room_id: OwnedRoomId,
    order: Option<String>,
    timestamp: u64,
    suggested: bool,
    via: Vec<OwnedServerName>,
    shown: Raw<HierarchySpaceChildEvent>,
}

/// What a walk finds at a step.
enum Visited {
    Here(Box<RoomSummary>, Vec<Child>),
    Hidden,
    Missing,
}

impl Rooms {
    /// The rooms of a space that a user may see. Of rooms that are not here `remote` is taken.
    ///
    /// # Errors
    /// [`Error::Forbidden`] if the user may not see the space itself, or there is none.
    pub fn hierarchy(
        &self,
        snapshot: &Snapshot,
        space: &RoomId,
        user: UserNumber,
        query: HierarchyQuery,
        remote: &RemoteRooms,
    ) -> Result<Hierarchy, Error> {
        let max_depth = query.max_depth.unwrap_or(MAX_DEPTH).min(MAX_DEPTH);
        let mut answer = Hierarchy::default();
        let mut visited = HashSet::new();
        let mut stack = vec![Step {
            room_id: space.to_owned(),
            depth: 0,
            via: Vec::new(),
        }];
        let mut passed = 0;
        while let Some(step) = stack.pop() {
            if visited.len() == MAX_WALKED || !visited.insert(step.room_id.clone()) {
                continue;
            }
            let (summary, mut children) = match self.visit(snapshot, &step, user, remote)? {
                Visited::Here(summary, children) => (summary, children),
                Visited::Missing => {
                    answer.missing.push((step.room_id, step.via));
                    continue;
                }
                Visited::Hidden if step.depth == 0 => {
                    return Err(Error::Forbidden("you may not see this space".into()));
                }
                Visited::Hidden => continue,
            };
            children.retain(|child| child.suggested || !query.suggested_only);
            if step.depth < max_depth {
                let next = children.iter().rev();
                stack.extend(next.map(|child| Step {
                    room_id: child.room_id.clone(),
                    depth: step.depth + 1,
                    via: child.via.clone(),
                }));
            }
            if passed >= query.offset {
                if answer.rooms.len() == query.limit.clamp(1, MAX_PAGE) {
                    answer.next = Some(passed);
                    break;
                }
                let shown = children.into_iter().map(|child| child.shown).collect();
                answer.rooms.push((*summary, shown));
            }
            passed += 1;
        }
        Ok(answer)
    }

    /// A room with its children, as far as the user may see it.
    fn visit(
        &self,
        snapshot: &Snapshot,
        step: &Step,
        user: UserNumber,
        remote: &RemoteRooms,
    ) -> Result<Visited, Error> {
        let room = self.resident(&step.room_id).ok();
        let told = remote.get(&step.room_id);
        // What a room was like when the last user of this server left it is only the second best answer.
        let is_current = match room {
            Some(room) => self
                .head(snapshot, room)?
                .is_some_and(|head| head.local > 0),
            None => false,
        };
        match (room, told) {
            (Some(room), _) if is_current => self.visit_local(snapshot, room, user),
            (_, Some(Some(told))) => self.visit_remote(snapshot, told, user),
            (Some(room), Some(None)) => self.visit_local(snapshot, room, user),
            (None, Some(None)) => Ok(Visited::Hidden),
            (_, None) => Ok(Visited::Missing),
        }
    }

    fn visit_local(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        user: UserNumber,
    ) -> Result<Visited, Error> {
        let summary = self.summary(snapshot, room)?;
        if !self.may_see_summary(snapshot, &summary, Some(user))? {
            return Ok(Visited::Hidden);
        }
        let children = self.children(snapshot, &summary)?;
        Ok(Visited::Here(Box::new(summary.shown), children))
    }

    fn visit_remote(
        &self,
        snapshot: &Snapshot,
        told: &RemoteRoom,
        user: UserNumber,
    ) -> Result<Visited, Error> {
        if !self.may_see_remote(snapshot, &told.summary, Some(user))? {
            return Ok(Visited::Hidden);
        }
        let mut children: Vec<_> = told.children.iter().filter_map(child).collect();
        sort(&mut children);
        Ok(Visited::Here(Box::new(told.summary.clone()), children))
    }

    /// Whether a user may see the summary of a room that another server tells of: who may join or knock, who is invited, or
    /// everybody if the room is open to all eyes. `None`: somebody without an account.
    pub fn may_see_remote(
        &self,
        snapshot: &Snapshot,
        summary: &RoomSummary,
        user: Option<UserNumber>,
    ) -> Result<bool, Error> {
        let allowed = match &summary.join_rule {
            JoinRuleSummary::Public
            | JoinRuleSummary::Knock
            | JoinRuleSummary::KnockRestricted(_) => return Ok(true),
            _ if summary.world_readable => return Ok(true),
            JoinRuleSummary::Restricted(restricted) => restricted.allowed_room_ids.as_slice(),
            _ => &[],
        };
        let Some(user) = user else { return Ok(false) };
        if let Some(room) = self.number(&summary.room_id)
            && let Some(own) = self.user_room(snapshot, user, room)?
            && matches!(own.class, Class::Join | Class::Invite)
        {
            return Ok(true);
        }
        for room in allowed.iter().filter_map(|room_id| self.number(room_id)) {
            if self.is_joined(snapshot, user, room)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A space with its children that are here, as far as the users of another server could get in. `None`: not into the
    /// space itself, or it is not here.
    ///
    /// Spec: s2s, "Spaces".
    pub fn served_hierarchy(
        &self,
        snapshot: &Snapshot,
        space: &RoomId,
        server: &ServerName,
        suggested_only: bool,
    ) -> Result<Option<ServedHierarchy>, Error> {
        let Ok(room) = self.resident(space) else {
            return Ok(None);
        };
        let summary = self.summary(snapshot, room)?;
        if !self.server_may_see_summary(snapshot, &summary, server)? {
            return Ok(None);
        }
        let mut children = self.children(snapshot, &summary)?;
        children.retain(|child| child.suggested || !suggested_only);
        let mut served = ServedHierarchy {
            room: summary.shown,
            children_state: Vec::new(),
            children: Vec::new(),
            inaccessible: Vec::new(),
        };
        for child in children.into_iter().take(MAX_SERVED_CHILDREN) {
            if let Ok(room) = self.resident(&child.room_id) {
                let summary = self.summary(snapshot, room)?;
                match self.server_may_see_summary(snapshot, &summary, server)? {
                    true => served.children.push(summary.shown),
                    false => served.inaccessible.push(child.room_id),
                }
            }
            served.children_state.push(child.shown);
        }
        Ok(Some(served))
    }

    /// Whether users of a server could get into a room, or are in it.
    fn server_may_see_summary(
        &self,
        snapshot: &Snapshot,
        summary: &Summary,
        server: &ServerName,
    ) -> Result<bool, Error> {
        if self.may_see_summary(snapshot, summary, None)?
            || self.is_server_joined(snapshot, summary.room, server)?
        {
            return Ok(true);
        }
        let allowed = summary.allowed.iter().filter_map(|id| self.number(id));
        for room in allowed {
            if self.is_server_joined(snapshot, room, server)? {
                return Ok(true);
            }
        }
        let invited = self.members(snapshot, summary.room, Class::Invite, MAX_INVITED_LOOKED_AT)?;
        let invited: Vec<_> = invited.into_iter().map(|(user, ..)| user).collect();
        let invited = self.accounts.user_ids(snapshot, &invited)?;
        Ok(invited.iter().any(|user| user.server_name() == server))
    }

    /// The children of a space, in the order of the specification.
    fn children(&self, snapshot: &Snapshot, summary: &Summary) -> Result<Vec<Child>, Error> {
        if summary.shown.room_type != Some(RoomType::Space) {
            return Ok(Vec::new());
        }
        let head = self.head(snapshot, summary.room)?.ok_or(Error::NotFound)?;
        let mut children = self.child_events(snapshot, (summary.room, head.root))?;
        sort(&mut children);
        Ok(children)
    }

    fn child_events(
        &self,
        snapshot: &Snapshot,
        at: (RoomNumber, RootNumber),
    ) -> Result<Vec<Child>, Error> {
        let events = self.core_state(snapshot, at.0, at.1)?;
        let events = events
            .iter()
            .filter(|event| event.pdu.event_type.to_string() == "m.space.child");
        Ok(events
            .filter_map(|event| child(&stripped(event)?))
            .collect())
    }
}

/// Those with an order first, by it; then by when they were added, then by room ID.
fn sort(children: &mut [Child]) {
    children.sort_by(|a, b| {
        (a.order.is_none(), &a.order, a.timestamp, &a.room_id).cmp(&(
            b.order.is_none(),
            &b.order,
            b.timestamp,
            &b.room_id,
        ))
    });
}

/// The child that an event names; `None` if it names none any more.
fn child(event: &Raw<HierarchySpaceChildEvent>) -> Option<Child> {
    #[derive(Deserialize)]
    struct Fields {
        content: Content,
        state_key: String,
        origin_server_ts: u64,
    }
    #[derive(Deserialize)]
    struct Content {
        via: Vec<String>,
        order: Option<serde_json::Value>,
        #[serde(default)]
        suggested: serde_json::Value,
    }
    let fields: Fields = serde_json::from_str(event.json().get()).ok()?;
    let content = fields.content;
    let order = content
        .order
        .and_then(|order| order.as_str().map(str::to_owned));
    if content.via.is_empty() {
        return None;
    }
    let via = content.via.into_iter();
    Some(Child {
        room_id: RoomId::parse(fields.state_key).ok()?,
        order: order.filter(|order| is_order(order)),
        timestamp: fields.origin_server_ts,
        suggested: content.suggested == serde_json::Value::Bool(true),
        via: via
            .filter_map(|server| ServerName::parse(server).ok())
            .take(MAX_VIA)
            .collect(),
        shown: event.clone(),
    })
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

//! Bundled aggregations: what an event is told to be replaced by, referred to by, and the root of.
//!
//! All events of a page are served by few reads: their relations lie next to each other, as the numbers of events that are
//! near in time do. Only what the reader may see counts. State events have no aggregations.
//!
//! Spec: c2s, "Aggregations of child events".

use std::{collections::BTreeMap, sync::Arc};

use serde_json::value::RawValue;

use super::{
    Error, RoomNumber, Rooms, Sight, StoredEvent, TypeNumber,
    client_event::{EventForm, Unsigned, write_event, write_number, write_text},
    event::{Relation, flag},
    relations::{RELATIONS, RelationRow, are_near},
    threads::ThreadRow,
};
use crate::{
    accounts::UserNumber,
    events::EventNumber,
    storage::{Order, Snapshot},
};

/// The form of the events inside of aggregations, and the time that their age is counted to.
#[derive(Clone, Copy)]
pub struct Rendering<'a> {
    pub form: EventForm<'a>,
    pub now_ms: u64,
}

/// The latest edits among which the most recent one is looked for: their own times may order them otherwise.
const MAX_EDITS: usize = 20;
/// References of one event that are told.
const MAX_REFERENCES: usize = 100;
/// Latest events of a thread among which the first is looked for that the reader may see.
const MAX_LATEST: usize = 8;
/// Events of a thread that are counted one by one, for readers who ignore somebody.
const MAX_COUNTED: usize = 10_000;
/// Rows that one scan over all parents reads.
const MAX_ROWS: usize = 3_000;

/// Whether what an event is told of is its own thread, too.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Depth {
    Page,
    /// Inside a thread's latest event, which is no root.
    Latest,
}

/// The events that relate to one parent, as rows, each list with the newest last.
#[derive(Default)]
struct Children {
    edits: Vec<RelationRow>,
    references: Vec<RelationRow>,
    thread: Vec<RelationRow>,
}

impl Rooms {
    /// Fills in [`Unsigned::relations`] of `events`, all of one room.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn bundle(
        &self,
        snapshot: &Snapshot,
        sight: &mut Sight,
        rendering: Rendering<'_>,
        events: &[Arc<StoredEvent>],
        unsigned: &mut [Unsigned],
    ) -> Result<(), Error> {
        self.bundle_at(snapshot, sight, (rendering, Depth::Page), events, unsigned)
    }

    fn bundle_at(
        &self,
        snapshot: &Snapshot,
        sight: &mut Sight,
        (rendering, depth): (Rendering<'_>, Depth),
        events: &[Arc<StoredEvent>],
        unsigned: &mut [Unsigned],
    ) -> Result<(), Error> {
        let mut parents: Vec<_> = events
            .iter()
            .filter(|event| !event.meta.has(flag::STATE))
            .map(|event| event.number)
            .collect();
        parents.sort_unstable();
        let children = self.children_of(snapshot, sight.room(), &parents)?;
        if children.is_empty() {
            return Ok(());
        }
        let related = self.related(snapshot, sight, &children)?;
        let mut bundles = BTreeMap::new();
        let mut roots = Vec::new();
        for event in events {
            let Some(children) = children.get(&event.number) else {
                continue;
            };
            let bundle = Bundle::new(event, children, &related);
            if depth == Depth::Page && !children.thread.is_empty() {
                roots.push(Arc::clone(event));
            }
            bundles.insert(event.number, bundle);
        }
        self.add_threads(
            snapshot,
            sight,
            rendering,
            (&roots, &children, &related),
            &mut bundles,
        )?;
        for (event, unsigned) in events.iter().zip(unsigned) {
            let bundle = bundles.get(&event.number);
            unsigned.relations = bundle.and_then(|bundle| bundle.write(rendering));
        }
        Ok(())
    }

    /// The visible ones among the children that may be shown.
    fn related(
        &self,
        snapshot: &Snapshot,
        sight: &mut Sight,
        children: &BTreeMap<EventNumber, Children>,
    ) -> Result<Related, Error> {
        let rows = children.values().flat_map(|children| {
            let latest = children.thread.iter().rev().take(MAX_LATEST);
            children
                .edits
                .iter()
                .chain(&children.references)
                .chain(latest)
        });
        let mut numbers: Vec<_> = rows.map(|row| row.event).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let mut related = Related::new();
        for event in self
            .events(snapshot, sight.room(), &numbers)?
            .into_iter()
            .flatten()
        {
            if self.may_see(snapshot, sight, &event)? {
                related.insert(event.number, event);
            }
        }
        Ok(related)
    }

    /// Adds to `bundles` what is to be told of the threads of `roots`.
    fn add_threads(
        &self,
        snapshot: &Snapshot,
        sight: &mut Sight,
        rendering: Rendering<'_>,
        (roots, children, related): (
            &[Arc<StoredEvent>],
            &BTreeMap<EventNumber, Children>,
            &Related,
        ),
        bundles: &mut BTreeMap<EventNumber, Bundle>,
    ) -> Result<(), Error> {
        if roots.is_empty() {
            return Ok(());
        }
        let numbers: Vec<_> = roots.iter().map(|root| root.number).collect();
        let rows = self.threads_of(snapshot, sight.room(), &numbers)?;
        let takes_part = self.takes_part(snapshot, sight, roots)?;
        let (mut threads, mut latest) = (Vec::new(), Vec::new());
        for ((root, row), takes_part) in roots.iter().zip(rows).zip(takes_part) {
            let Some((row, children)) = row.zip(children.get(&root.number)) else {
                continue;
            };
            let newest = children
                .thread
                .iter()
                .rev()
                .find_map(|row| related.get(&row.event));
            let Some(newest) = newest else { continue };
            let count = self.thread_count(snapshot, sight, (root.number, row))?;
            threads.push((root.number, count, takes_part));
            latest.push(Arc::clone(newest));
        }
        let mut unsigned = self.unsigned(snapshot, sight.room(), &latest)?;
        self.bundle_at(
            snapshot,
            sight,
            (rendering, Depth::Latest),
            &latest,
            &mut unsigned,
        )?;
        for ((root, count, takes_part), (latest, unsigned)) in
            threads.into_iter().zip(latest.into_iter().zip(unsigned))
        {
            if let Some(bundle) = bundles.get_mut(&root) {
                bundle.thread = Some(ThreadBundle {
                    count,
                    takes_part,
                    latest,
                    unsigned,
                });
            }
        }
        Ok(())
    }

    /// Events of a thread, those of ignored users not among them.
    fn thread_count(
        &self,
        snapshot: &Snapshot,
        sight: &Sight,
        (root, row): (EventNumber, ThreadRow),
    ) -> Result<u64, Error> {
        if sight.ignored().is_empty() {
            return Ok(row.count);
        }
        let users: Vec<_> = sight.ignored().iter().map(|user| &**user).collect();
        let ignored: Vec<UserNumber> = self
            .accounts
            .user_numbers(snapshot, &users)?
            .into_iter()
            .flatten()
            .collect();
        let prefix = (sight.room(), root, Relation::Thread as u8);
        let mut hidden = 0;
        for row in snapshot
            .scan(RELATIONS.prefix(&prefix), Order::Backward)
            .take(MAX_COUNTED)
        {
            let (_, row) = row?;
            hidden += u64::from(ignored.contains(&row.sender));
        }
        Ok(row.count.saturating_sub(hidden))
    }

    /// The rows that relate to `parents`, which are sorted; only of those that have any.
    fn children_of(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        parents: &[EventNumber],
    ) -> Result<BTreeMap<EventNumber, Children>, Error> {
        let mut children = BTreeMap::new();
        let (Some(first), Some(last)) = (parents.first(), parents.last()) else {
            return Ok(children);
        };
        let mut apart = parents;
        if are_near(parents) {
            apart = &[];
            let range = RELATIONS.from(&(room, *first), &(room,));
            for (read, row) in snapshot.scan(range, Order::Forward).enumerate() {
                let ((_, parent, relation, _), row) = row?;
                if parent > *last {
                    break;
                }
                if read == MAX_ROWS {
                    // The one that the scan stopped at is read again as a whole.
                    children.remove(&parent);
                    let from = parents.partition_point(|known| *known < parent);
                    apart = parents.get(from..).unwrap_or_default();
                    break;
                }
                if parents.binary_search(&parent).is_ok() {
                    children
                        .entry(parent)
                        .or_insert_with(Children::default)
                        .add(relation, row);
                }
            }
        }
        for parent in apart {
            if let Some(found) = children_of_one(snapshot, room, *parent)? {
                children.insert(*parent, found);
            }
        }
        Ok(children)
    }
}

/// The rows that relate to one parent, as far as they are shown.
fn children_of_one(
    snapshot: &Snapshot,
    room: RoomNumber,
    parent: EventNumber,
) -> Result<Option<Children>, Error> {
    let read = |relation: Relation, order, limit| -> Result<Vec<RelationRow>, Error> {
        let range = RELATIONS.prefix(&(room, parent, relation as u8));
        let rows = snapshot.scan(range, order).take(limit);
        Ok(rows
            .map(|row| row.map(|(_, row)| row))
            .collect::<Result<_, _>>()?)
    };
    let mut edits = read(Relation::Replace, Order::Backward, MAX_EDITS)?;
    edits.reverse();
    let references = read(Relation::Reference, Order::Forward, MAX_REFERENCES)?;
    let mut thread = read(Relation::Thread, Order::Backward, MAX_LATEST)?;
    thread.reverse();
    let is_empty = edits.is_empty() && references.is_empty() && thread.is_empty();
    Ok((!is_empty).then_some(Children {
        edits,
        references,
        thread,
    }))
}

impl Children {
    fn add(&mut self, relation: u8, row: RelationRow) {
        let (list, limit) = match relation {
            byte if byte == Relation::Replace as u8 => (&mut self.edits, MAX_EDITS),
            byte if byte == Relation::Thread as u8 => (&mut self.thread, MAX_LATEST),
            byte if byte == Relation::Reference as u8 => {
                if self.references.len() < MAX_REFERENCES {
                    self.references.push(row);
                }
                return;
            }
            _ => return,
        };
        if list.len() == limit {
            list.remove(0);
        }
        list.push(row);
    }
}

type Related = BTreeMap<EventNumber, Arc<StoredEvent>>;

/// What one event is told.
struct Bundle {
    edit: Option<Arc<StoredEvent>>,
    references: Vec<Arc<StoredEvent>>,
    thread: Option<ThreadBundle>,
}

struct ThreadBundle {
    count: u64,
    takes_part: bool,
    latest: Arc<StoredEvent>,
    unsigned: Unsigned,
}

impl Bundle {
    fn new(parent: &StoredEvent, children: &Children, related: &Related) -> Self {
        let edits = children
            .edits
            .iter()
            .filter_map(|row| related.get(&row.event));
        let edit = edits
            .filter(|edit| is_valid_edit(parent, edit))
            .max_by_key(|edit| (edit.meta.timestamp, edit.event_id().to_owned()));
        let references = children
            .references
            .iter()
            .filter_map(|row| related.get(&row.event));
        Self {
            edit: edit.cloned(),
            references: references.cloned().collect(),
            thread: None,
        }
    }

    /// The content of `m.relations`; `None` if there is nothing to be told.
    fn write(&self, rendering: Rendering<'_>) -> Option<Box<RawValue>> {
        let mut json = Vec::new();
        if !self.references.is_empty() {
            json.extend_from_slice(b",\"m.reference\":{\"chunk\":[");
            for (at, reference) in self.references.iter().enumerate() {
                json.extend_from_slice(if at > 0 {
                    b",{\"event_id\":"
                } else {
                    b"{\"event_id\":"
                });
                write_text(&mut json, reference.event_id().as_str());
                json.push(b'}');
            }
            json.extend_from_slice(b"]}");
        }
        if let Some(edit) = &self.edit {
            json.extend_from_slice(b",\"m.replace\":");
            write_event(
                &mut json,
                edit,
                rendering.form,
                &Unsigned::default(),
                rendering.now_ms,
            );
        }
        if let Some(thread) = &self.thread {
            json.extend_from_slice(b",\"m.thread\":{\"count\":");
            write_number(&mut json, thread.count);
            json.extend_from_slice(b",\"current_user_participated\":");
            json.extend_from_slice(if thread.takes_part { b"true" } else { b"false" });
            json.extend_from_slice(b",\"latest_event\":");
            write_event(
                &mut json,
                &thread.latest,
                rendering.form,
                &thread.unsigned,
                rendering.now_ms,
            );
            json.push(b'}');
        }
        let first = json.first_mut()?;
        *first = b'{';
        json.push(b'}');
        let text = String::from_utf8(json).expect("it is put together from text");
        Some(RawValue::from_string(text).expect("it is put together as JSON"))
    }
}

/// Whether an event replaces another.
///
/// Spec: c2s, "Validity of replacement events".
fn is_valid_edit(parent: &StoredEvent, edit: &StoredEvent) -> bool {
    #[derive(serde::Deserialize)]
    struct Content {
        #[serde(rename = "m.new_content")]
        new_content: Option<serde::de::IgnoredAny>,
    }
    let (old, new) = (&parent.meta, &edit.meta);
    let has_content = || {
        new.event_type == TypeNumber::ENCRYPTED
            || edit
                .pdu
                .content_as::<Content>()
                .is_ok_and(|content| content.new_content.is_some())
    };
    old.sender == new.sender
        && parent.pdu.event_type == edit.pdu.event_type
        && !old.has(flag::STATE | flag::REDACTED)
        && !new.has(flag::STATE)
        && !matches!(old.relation, Some((Relation::Replace, _)))
        && has_content()
}

//! Relations between events: what replaces, annotates or refers to an event, or is said in its thread.
//!
//! A row stands for a relation that counts: when the event that relates is redacted its row goes. engine.md section 5.4.

use std::collections::BTreeMap;

use ruma::{CanonicalJsonObject, EventId, canonical_json::CanonicalJsonValue};

use super::{
    Error, EventMeta, Placed, RoomNumber, Rooms, Sight, StoredEvent, TypeNumber,
    event::{Reader, Relation},
    page::Place,
    redact::Redacted,
    state::Source,
    threads::{self, ThreadChange},
};
use crate::{
    accounts::UserNumber,
    events::{EventNumber, Pdu},
    storage::{Batch, Family, Index, Order, Record, Snapshot, Table},
};

/// Events that relate to a parent, by relation, in timeline order.
pub(super) static RELATIONS: Table<(RoomNumber, EventNumber, u8, Index), RelationRow> =
    Table::new("relations", Family::Timeline, b'r');

/// An event that relates to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RelationRow {
    pub(super) event: EventNumber,
    pub(super) sender: UserNumber,
    pub(super) event_type: TypeNumber,
}

impl Record for RelationRow {
    fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.event.0.to_be_bytes());
        to.extend_from_slice(&self.sender.0.to_be_bytes());
        to.extend_from_slice(&self.event_type.0.to_be_bytes());
    }
    fn decode(from: &[u8]) -> Result<Self, String> {
        let mut reader = Reader(from);
        Ok(Self {
            event: EventNumber(reader.u32()?),
            sender: UserNumber(reader.u32()?),
            event_type: TypeNumber(reader.u16()?),
        })
    }
}

/// The relation of an event's content and the ID of the event it points at.
///
/// Spec: c2s, "Forming relationships between events".
pub(super) fn relates_to(content: &CanonicalJsonObject) -> Option<(Relation, &EventId)> {
    let CanonicalJsonValue::Object(relates_to) = content.get("m.relates_to")? else {
        return None;
    };
    let CanonicalJsonValue::String(rel_type) = relates_to.get("rel_type")? else {
        return None;
    };
    let CanonicalJsonValue::String(event_id) = relates_to.get("event_id")? else {
        return None;
    };
    let event_id = <&EventId>::try_from(event_id.as_str()).ok()?;
    Some((Relation::of(rel_type), event_id))
}

/// As much of the content of an event as says what it relates to.
pub(super) fn relating(pdu: &Pdu) -> Option<CanonicalJsonObject> {
    // Only this: the rest may hold numbers that canonical JSON lacks.
    #[derive(serde::Deserialize)]
    struct Relating {
        #[serde(rename = "m.relates_to")]
        relates_to: CanonicalJsonValue,
    }
    let Relating { relates_to } = pdu.content_as().ok()?;
    Some(CanonicalJsonObject::from([(
        "m.relates_to".to_owned(),
        relates_to,
    )]))
}

/// What an event relates to that the room has mentioned.
pub(super) fn of(source: &Source<'_>, pdu: &Pdu) -> Result<Option<(Relation, EventNumber)>, Error> {
    let content = relating(pdu);
    let Some((relation, parent)) = content.as_ref().and_then(relates_to) else {
        return Ok(None);
    };
    let number = source.event_number(parent)?;
    Ok(number.map(|number| (relation, number)))
}

/// Adds the rows of an event that relates to another.
pub(super) fn insert(
    batch: &mut Batch,
    room: RoomNumber,
    event: &StoredEvent,
    thread: Option<&ThreadChange>,
) {
    if let Some((relation, parent)) = event.meta.relation {
        let row = RelationRow {
            event: event.number,
            sender: event.meta.sender,
            event_type: event.meta.event_type,
        };
        let key = (room, parent, relation as u8, Index(event.meta.index));
        batch.put(&RELATIONS, &key, &row);
    }
    if let Some(change) = thread {
        threads::insert(batch, room, change);
    }
}

/// Takes away the row of an event that is redacted.
pub(super) fn remove(batch: &mut Batch, room: RoomNumber, redacted: &Redacted) {
    if let Some((relation, parent)) = redacted.relation {
        let index = Index(redacted.event.meta.index);
        batch.delete(&RELATIONS, &(room, parent, relation as u8, index));
    }
}

/// Takes away the row of an event that should not have been shown.
pub(super) fn retract(batch: &mut Batch, room: RoomNumber, event: &StoredEvent) {
    if let Some((relation, parent)) = event.meta.relation {
        let index = Index(event.meta.index);
        batch.delete(&RELATIONS, &(room, parent, relation as u8, index));
    }
}

/// Where the rows differ from what the events say.
pub(super) fn differences(
    snapshot: &Snapshot,
    room: RoomNumber,
    metas: &BTreeMap<EventNumber, EventMeta>,
) -> Result<Vec<String>, Error> {
    let mut expected = BTreeMap::new();
    for (event, meta) in metas {
        if let Some((relation, parent)) = meta.relation {
            let row = RelationRow {
                event: *event,
                sender: meta.sender,
                event_type: meta.event_type,
            };
            expected.insert((parent, relation as u8, meta.index), row);
        }
    }
    let mut found = Vec::new();
    for row in snapshot.scan(RELATIONS.prefix(&(room,)), Order::Forward) {
        let ((_, parent, relation, Index(index)), row) = row?;
        if expected.remove(&(parent, relation, index)) != Some(row) {
            found.push(format!(
                "event {} does not relate to {} so",
                row.event.0, parent.0
            ));
        }
    }
    let missing = expected.into_iter();
    found.extend(
        missing.map(|((parent, ..), row)| {
            format!("{} lacks its relation to {}", row.event.0, parent.0)
        }),
    );
    Ok(found)
}

/// Annotations of one event that are looked at for a duplicate.
const MAX_ANNOTATIONS_SEARCHED: usize = 10_000;

/// Refuses what a client may not relate: a thread that starts from an event which is itself related, and the same
/// annotation a second time.
///
/// Spec: c2s, "Validation of m.thread relationships", "Avoiding duplicate annotations".
pub(super) fn check(
    source: &Source<'_>,
    (sender, event_type): (UserNumber, TypeNumber),
    content: &CanonicalJsonObject,
    (relation, parent): (Relation, &StoredEvent),
) -> Result<(), Error> {
    match relation {
        Relation::Thread if parent.meta.relation.is_some() => Err(Error::NoThreadRoot),
        Relation::Annotation => {
            let Some(key) = annotation_key(content) else {
                return Ok(());
            };
            for event in own_annotations(source, (sender, event_type), parent.number)? {
                let other: Option<CanonicalJsonObject> = event.pdu.content_as().ok();
                if other.as_ref().and_then(annotation_key) == Some(key) {
                    return Err(Error::DuplicateAnnotation);
                }
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

fn annotation_key(content: &CanonicalJsonObject) -> Option<&str> {
    match content.get("m.relates_to")? {
        CanonicalJsonValue::Object(relates_to) => relates_to.get("key")?.as_str(),
        _ => None,
    }
}

/// The annotations of this type by this user on an event, in flight or published.
fn own_annotations(
    source: &Source<'_>,
    (sender, event_type): (UserNumber, TypeNumber),
    parent: EventNumber,
) -> Result<Vec<std::sync::Arc<StoredEvent>>, Error> {
    let in_flight = source.fresh.iter().flat_map(|fresh| fresh.events.values());
    let is_wanted = |event: &&std::sync::Arc<StoredEvent>| {
        let meta = &event.meta;
        meta.relation == Some((Relation::Annotation, parent))
            && meta.sender == sender
            && meta.event_type == event_type
    };
    let mut found: Vec<_> = in_flight.filter(is_wanted).cloned().collect();
    let snapshot = source.snapshot()?;
    let prefix = (source.room, parent, Relation::Annotation as u8);
    let mut numbers = Vec::new();
    for row in snapshot
        .scan(RELATIONS.prefix(&prefix), Order::Backward)
        .take(MAX_ANNOTATIONS_SEARCHED)
    {
        let (_, row) = row?;
        if row.sender == sender && row.event_type == event_type {
            numbers.push(row.event);
        }
    }
    found.extend(
        source
            .rooms
            .events(snapshot, source.room, &numbers)?
            .into_iter()
            .flatten(),
    );
    Ok(found)
}

/// Which events that relate to a parent are asked for.
#[derive(Clone, Debug)]
pub struct RelationQuery {
    pub parent: EventNumber,
    /// A `rel_type`; any if absent.
    pub rel_type: Option<String>,
    pub event_type: Option<String>,
    pub order: Order,
    pub from: Option<Place>,
    pub to: Option<Place>,
    pub limit: usize,
    /// Also what relates to what relates to the parent, and so on.
    pub is_recursive: bool,
}

/// How deep recursion goes.
pub const MAX_RELATION_DEPTH: u32 = 3;
/// Events that recursion collects.
const MAX_RECURSED: usize = 5_000;
/// Rows read at once of each relation, at least.
const MIN_ROWS_READ: usize = 30;
/// Rounds of reading for one page, while most events are not wanted.
const MAX_ROUNDS: usize = 50;

const ALL: [Relation; 5] = [
    Relation::Replace,
    Relation::Annotation,
    Relation::Reference,
    Relation::Thread,
    Relation::Other,
];

impl Rooms {
    /// A page of the events that relate to another and that the user may see; where to go on if there are more.
    pub fn relations(
        &self,
        snapshot: &Snapshot,
        sight: &mut Sight,
        query: &RelationQuery,
    ) -> Result<(Vec<Placed>, Option<Place>), Error> {
        let mut page = Vec::new();
        let mut window = Window::new(query);
        for _ in 0..MAX_ROUNDS {
            let (rows, rest) = match query.is_recursive {
                true => (
                    self.descendants(snapshot, sight.room(), query, &window)?,
                    None,
                ),
                false => self.relation_rows(snapshot, sight.room(), query, &window)?,
            };
            let numbers: Vec<_> = rows.iter().map(|(_, row)| row.event).collect();
            let events = self.events(snapshot, sight.room(), &numbers)?;
            for ((index, _), event) in rows.iter().zip(events) {
                let Some(event) = event else { continue };
                if !query.wants(&event) || !self.may_see(snapshot, sight, &event)? {
                    continue;
                }
                if page.len() == query.limit {
                    return Ok((page, Some(query.place_before(*index))));
                }
                page.push(Placed {
                    index: *index,
                    position: event.meta.position,
                    event,
                });
            }
            match rest {
                Some(rest) => window = rest,
                None => return Ok((page, None)),
            }
        }
        let rest = query.place_before(window.first(query.order));
        Ok((page, Some(rest)))
    }

    /// Rows of one parent in order, and the window in which there may be more.
    fn relation_rows(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        query: &RelationQuery,
        window: &Window,
    ) -> Result<(Rows, Option<Window>), Error> {
        let read = query.limit.saturating_add(1).max(MIN_ROWS_READ);
        let mut rows = Rows::new();
        // What lies beyond the last row of a relation that was not read to its end is not in order yet.
        let mut bound: Option<i64> = None;
        for relation in query.relations() {
            let range = window.range(room, query.parent, relation);
            let mut last = None;
            let mut count = 0;
            for row in snapshot.scan(range, query.order).take(read) {
                let ((.., Index(index)), row) = row?;
                rows.push((index, row));
                last = Some(index);
                count += 1;
            }
            if let (true, Some(last)) = (count == read, last) {
                bound = Some(match (bound, query.order) {
                    (None, _) => last,
                    (Some(bound), Order::Backward) => bound.max(last),
                    (Some(bound), Order::Forward) => bound.min(last),
                });
            }
        }
        sort(&mut rows, query.order);
        let Some(bound) = bound else {
            return Ok((rows, None));
        };
        rows.retain(|(index, _)| match query.order {
            Order::Backward => *index >= bound,
            Order::Forward => *index <= bound,
        });
        Ok((rows, Some(window.beyond(bound, query.order))))
    }

    /// Rows of a parent, of what relates to it, and so on, in order and within the window.
    fn descendants(
        &self,
        snapshot: &Snapshot,
        room: RoomNumber,
        query: &RelationQuery,
        window: &Window,
    ) -> Result<Rows, Error> {
        let wanted: Vec<u8> = query.relations().map(|relation| relation as u8).collect();
        let mut found: BTreeMap<i64, RelationRow> = BTreeMap::new();
        let mut parents = vec![query.parent];
        for _ in 0..MAX_RELATION_DEPTH {
            let rows = rows_under(snapshot, room, &parents)?;
            parents.clear();
            for (relation, index, row) in rows {
                let is_new = wanted.contains(&relation) && found.len() < MAX_RECURSED;
                if is_new && found.insert(index, row).is_none() {
                    parents.push(row.event);
                }
            }
            parents.sort_unstable();
        }
        let mut rows: Rows = found
            .into_iter()
            .filter(|(index, _)| window.holds(*index))
            .collect();
        sort(&mut rows, query.order);
        Ok(rows)
    }
}

type Rows = Vec<(i64, RelationRow)>;

/// Whether sorted parents lie so near to each other that one scan over all between them is cheaper than one each.
pub(super) fn are_near(parents: &[EventNumber]) -> bool {
    let (Some(first), Some(last)) = (parents.first(), parents.last()) else {
        return true;
    };
    let span = usize::try_from(last.0.saturating_sub(first.0)).unwrap_or(usize::MAX);
    span <= parents.len() * 16 + 64
}

/// All that relates to sorted parents: relation, index, row.
fn rows_under(
    snapshot: &Snapshot,
    room: RoomNumber,
    parents: &[EventNumber],
) -> Result<Vec<(u8, i64, RelationRow)>, Error> {
    let ranges: Vec<_> = match (parents.first(), parents.last()) {
        (Some(first), Some(last)) if are_near(parents) => {
            vec![RELATIONS.range(
                &(room, *first),
                &(room, EventNumber(last.0.saturating_add(1))),
            )]
        }
        _ => parents
            .iter()
            .map(|parent| RELATIONS.prefix(&(room, *parent)))
            .collect(),
    };
    let mut rows = Vec::new();
    for range in ranges {
        for row in snapshot.scan(range, Order::Forward).take(MAX_RECURSED) {
            let ((_, parent, relation, Index(index)), row) = row?;
            if parents.binary_search(&parent).is_ok() {
                rows.push((relation, index, row));
            }
        }
    }
    Ok(rows)
}

fn sort(rows: &mut Rows, order: Order) {
    rows.sort_unstable_by_key(|(index, _)| *index);
    if order == Order::Backward {
        rows.reverse();
    }
}

impl RelationQuery {
    fn relations(&self) -> impl Iterator<Item = Relation> {
        let wanted = self.rel_type.as_deref().map(Relation::of);
        ALL.into_iter()
            .filter(move |relation| wanted.is_none_or(|wanted| wanted == *relation))
    }

    /// Rows do not tell relations apart that have no number of their own, nor types that have none.
    fn wants(&self, event: &StoredEvent) -> bool {
        if let Some(wanted) = &self.event_type
            && event.pdu.event_type.to_string() != *wanted
        {
            return false;
        }
        match &self.rel_type {
            Some(wanted) if Relation::of(wanted) == Relation::Other => {
                rel_type(event).as_deref() == Some(wanted)
            }
            _ => true,
        }
    }

    /// The place at which a page goes on with the event of `index`.
    fn place_before(&self, index: i64) -> Place {
        match self.order {
            Order::Backward => Place(index),
            Order::Forward => Place::before(index),
        }
    }
}

fn rel_type(event: &StoredEvent) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Content {
        #[serde(rename = "m.relates_to")]
        relates_to: RelatesTo,
    }
    #[derive(serde::Deserialize)]
    struct RelatesTo {
        rel_type: String,
    }
    let content: Content = event.pdu.content_as().ok()?;
    Some(content.relates_to.rel_type)
}

/// Indexes from the first to the last, both included.
#[derive(Clone, Copy, Debug)]
struct Window {
    low: i64,
    high: i64,
}

impl Window {
    fn new(query: &RelationQuery) -> Self {
        let after =
            |place: Option<Place>| place.map_or(i64::MIN, |place| place.0.saturating_add(1));
        let until = |place: Option<Place>| place.map_or(i64::MAX, |place| place.0);
        match query.order {
            Order::Backward => Self {
                low: after(query.to),
                high: until(query.from),
            },
            Order::Forward => Self {
                low: after(query.from),
                high: until(query.to),
            },
        }
    }

    fn holds(&self, index: i64) -> bool {
        (self.low..=self.high).contains(&index)
    }

    fn first(&self, order: Order) -> i64 {
        match order {
            Order::Backward => self.high,
            Order::Forward => self.low,
        }
    }

    /// What is left of the window after the event at `index`.
    fn beyond(&self, index: i64, order: Order) -> Self {
        match order {
            Order::Backward => Self {
                high: index.saturating_sub(1),
                ..*self
            },
            Order::Forward => Self {
                low: index.saturating_add(1),
                ..*self
            },
        }
    }

    fn range(
        &self,
        room: RoomNumber,
        parent: EventNumber,
        relation: Relation,
    ) -> crate::storage::TableRange<(RoomNumber, EventNumber, u8, Index), RelationRow> {
        let relation = relation as u8;
        // The highest index of all is no event's.
        let end = self.high.saturating_add(1);
        let start = self.low.min(end);
        RELATIONS.range(
            &(room, parent, relation, Index(start)),
            &(room, parent, relation, Index(end)),
        )
    }
}

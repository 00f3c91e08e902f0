//! Redactions that turn out otherwise once the whole state of a room is known: what was taken back by somebody who may not is
//! put back, and what was not, is taken back.
//!
//! What was redacted when it came, as its redaction was here before it, is not known in any other form.

use std::sync::Arc;

use super::RoomNumber;
use crate::{
    events::{EventNumber, redact::target},
    rooms::{
        Error, StoredEvent,
        event::{METAS, flag},
        head::Head,
        redact::{self, Redacted},
        relations,
        state::Source,
        threads::ThreadChange,
        writer::place::{self, Basis},
    },
    storage::{Batch, Order},
};

/// What becomes of the target of a redaction.
pub(super) enum Redress {
    /// It is as it was, and its thread gains by it.
    Restored(StoredEvent, Option<ThreadChange>),
    /// It stays redacted, by another redaction.
    Kept(StoredEvent),
    Redacted(Box<Redacted>),
}

/// What becomes of the target of an event that has been judged again, if it is a redaction and was judged otherwise.
pub(super) fn redress(
    head: &Head,
    source: &Source<'_>,
    before: &StoredEvent,
    after: &mut StoredEvent,
) -> Result<Option<Redress>, Error> {
    match (before.meta.is_accepted(), after.meta.is_accepted()) {
        (true, false) => restored(source, before),
        (false, true) => redacted(head, source, after),
        _ => Ok(None),
    }
}

fn restored(source: &Source<'_>, redaction: &StoredEvent) -> Result<Option<Redress>, Error> {
    let Some(number) = redaction.meta.redacts else {
        return Ok(None);
    };
    let by_this = |event: &Arc<StoredEvent>| event.meta.redacted_by == Some(redaction.number);
    let Some(event) = source.event(number)?.filter(by_this) else {
        return Ok(None);
    };
    let mut event = StoredEvent::clone(&event);
    if let Some(other) = other_redaction(source, redaction.number, number)? {
        event.meta.redacted_by = Some(other);
        return Ok(Some(Redress::Kept(event)));
    }
    let Some(pdu) = redact::original(source.snapshot()?, source.room, &event)? else {
        return Ok(None);
    };
    event.pdu = Arc::new(pdu);
    event.meta.flags &= !flag::REDACTED;
    event.meta.redacted_by = None;
    let mut thread = None;
    if event.meta.is_visible() {
        event.meta.relation = relations::of(source, &event.pdu)?;
        thread = ThreadChange::by(source, &event)?;
    }
    Ok(Some(Redress::Restored(event, thread)))
}

/// Another redaction of the same event that stands, as far as has been judged.
fn other_redaction(
    source: &Source<'_>,
    own: EventNumber,
    target: EventNumber,
) -> Result<Option<EventNumber>, Error> {
    let snapshot = source.snapshot()?;
    for row in snapshot.scan(METAS.prefix(&(source.room,)), Order::Forward) {
        let ((_, number), meta) = row?;
        if meta.redacts != Some(target) || number == own {
            continue;
        }
        let event = place::event(source, number)?;
        if event.meta.is_accepted() && !event.meta.has(flag::HIDDEN) {
            return Ok(Some(number));
        }
    }
    Ok(None)
}

fn redacted(
    head: &Head,
    source: &Source<'_>,
    redaction: &mut StoredEvent,
) -> Result<Option<Redress>, Error> {
    let known = match target(&redaction.pdu, &head.rules.redaction) {
        Some(id) => source.event_number(&id)?,
        None => None,
    };
    let event = match known {
        Some(number) => source.event(number)?,
        None => None,
    };
    let Some(event) = event else {
        return Ok(None);
    };
    redaction.meta.redacts = Some(event.number);
    let root = redaction.meta.root_before;
    let at: Basis = (root, source.root(root)?).into();
    let may = redact::may_redact(head, source, (&redaction.pdu, &event.pdu), &at)?;
    if !may || event.meta.has(flag::REDACTED) {
        return Ok(None);
    }
    let mut redacted = redact::redacted(&event, head.rules)?;
    redacted.thread = ThreadChange::without(source, &event)?;
    redacted.event.meta.redacted_by = Some(redaction.number);
    Ok(Some(Redress::Redacted(Box::new(redacted))))
}

impl Redress {
    /// The event that becomes another.
    pub(super) fn event(&self) -> EventNumber {
        match self {
            Self::Restored(event, _) | Self::Kept(event) => event.number,
            Self::Redacted(redacted) => redacted.event.number,
        }
    }

    pub(super) fn insert(&self, batch: &mut Batch, room: RoomNumber) {
        match self {
            Self::Restored(event, thread) => {
                redact::restore(batch, room, event);
                relations::insert(batch, room, event, thread.as_ref());
            }
            Self::Kept(event) => batch.put(&METAS, &(room, event.number), &event.meta),
            Self::Redacted(redacted) => redact::insert(batch, room, redacted),
        }
    }
}

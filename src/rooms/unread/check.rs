//! Whether the rows that counts are made of agree with the events.

use std::collections::{BTreeMap, HashMap};

use super::markers::{MENTIONS, THREADS};
use crate::{
    events::EventNumber,
    rooms::{Error, EventMeta, HeadRow, RoomNumber, flag},
    storage::{Index, Order, Snapshot},
};

/// What is wrong with the ordinals of a room: `live` are its events that were not backfilled, by their place.
pub(in crate::rooms) fn verify(
    snapshot: &Snapshot,
    room: RoomNumber,
    head: &HeadRow,
    live: &BTreeMap<i64, &EventMeta>,
) -> Result<Vec<String>, Error> {
    let mut found = Vec::new();
    let (mut all, mut main, mut mentions) = (0, 0, 0);
    let mut threads: HashMap<EventNumber, u64> = HashMap::new();
    for (index, meta) in live {
        let added = u64::from(meta.has(flag::NOTIFIES));
        all += added;
        let thread = match meta.thread_root {
            Some(root) => threads.entry(root).or_default(),
            None => &mut main,
        };
        *thread += added;
        let is_mention = meta.ord_room > mentions;
        mentions += u64::from(is_mention);
        if (meta.ord_all, meta.ord_thread, meta.ord_room) != (all, *thread, mentions) {
            found.push(format!("the ordinals at index {index} are not the sums"));
            return Ok(found);
        }
        if is_mention != snapshot.has(&MENTIONS, &(room, Index(*index)))? {
            found.push(format!(
                "index {index} is not where the room is mentioned, or is"
            ));
        }
    }
    if (head.ord_all, head.ord_main, head.ord_room) != (all, main, mentions) {
        found.push("the ordinals of the head are not those of the last event".to_owned());
    }
    for row in snapshot.scan(THREADS.prefix(&(room,)), Order::Forward) {
        let ((_, root, Index(index)), ordinal) = row?;
        let is_right = live.get(&index).is_some_and(|meta| {
            meta.thread_root == Some(root) && meta.ord_thread == ordinal && meta.has(flag::NOTIFIES)
        });
        if !is_right {
            found.push(format!(
                "the thread of event {} has a wrong ordinal at index {index}",
                root.0
            ));
        }
    }
    let in_threads = live
        .values()
        .filter(|meta| meta.thread_root.is_some() && meta.has(flag::NOTIFIES));
    let rows = snapshot.scan(THREADS.prefix(&(room,)), Order::Forward);
    if in_threads.count() != rows.count() {
        found.push("an event of a thread is not counted there".to_owned());
    }
    Ok(found)
}

//! Events that wait.

use ruma::owned_server_name;

use super::*;
use crate::storage::Record as _;

fn row() -> InboxRow {
    InboxRow {
        origin: owned_server_name!("a.test"),
        event_id: ruma::owned_event_id!("$a"),
        json: "{}".to_owned(),
        rejected: false,
    }
}

#[test]
fn the_stored_form_of_an_event_that_waits_stays() {
    let mut bytes = Vec::new();
    Cbor(row()).encode(&mut bytes);
    let wanted: &[u8] = b"\xa4forigin\x66a.testhevent_id\x62$adjson\x62{}hrejected\xf4";
    assert_eq!(bytes, wanted);
    assert_eq!(Cbor::decode(&bytes), Ok(Cbor(row())));
}

#[test]
fn what_an_earlier_process_left_is_found_in_its_order() {
    let store = Store::memory();
    let mut batch = Batch::new();
    for (room, sequence) in [(2, 9), (1, 8), (1, 3)] {
        batch.put(&INBOX, &(RoomNumber(room), sequence), &Cbor(row()));
    }
    let commit = store.submit(batch);
    commit.wait_blocking().expect("the store works");

    let inbox = Inbox::open(store, &Metrics::new()).expect("the rows can be read");
    assert_eq!(inbox.waiting.get(), 3);
    assert_eq!(inbox.waiting(RoomNumber(1)), 2);
    let first = inbox.pop(RoomNumber(1)).expect("an event waits");
    assert_eq!(first.sequence, 3);
    assert!(!inbox.leave(RoomNumber(1)));
    let second = inbox.pop(RoomNumber(1)).expect("an event waits");
    assert_eq!(second.sequence, 8);
    inbox.settled(RoomNumber(1), &first);
    inbox.settled(RoomNumber(1), &second);
    assert!(inbox.leave(RoomNumber(1)));
    assert_eq!(inbox.waiting.get(), 1);
    assert_eq!(inbox.next.load(Ordering::SeqCst), 10);
}

#[test]
fn only_so_much_is_kept_in_memory() {
    let mut queues = Queues::default();
    let room = RoomNumber(1);
    for sequence in 0..3 {
        let mut entry = Entry::new(sequence, owned_server_name!("a.test"), None);
        entry.bytes = MAX_BYTES_IN_MEMORY / 2;
        queues.push(room, entry);
    }
    assert_eq!(queues.events, 3);
    assert_eq!(queues.bytes, MAX_BYTES_IN_MEMORY / 2 * 2);
}

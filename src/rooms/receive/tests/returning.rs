//! A server that comes back to a room before the others have heard how it left.

use std::time::Duration;

use super::*;

/// Two servers in a room. The user of the second leaves unheard, and is let in again by the first, which takes the user to be
/// a member all the time. What the second makes of that.
async fn left_and_let_in([a, b]: [&Peer; 2], version: RoomVersionId) -> (Arc<Pdu>, Error, bool) {
    let leave = b.send(membership(&b.user, &b.user, "leave")).await.unwrap();
    a.rooms.clock.advance(Duration::from_secs(1));
    a.send(message(&a.user, "b is here")).await.unwrap();
    let join = a.template(joined(&b.user)).await;
    let adopted = b.rooms.adopt(a.answer(&join, version)).await;
    a.receive_as(&join, Intake::Vouched).await.unwrap();
    assert_eq!(a.outcome(&leave).await, Outcome::Accepted);
    let is_let_in = adopted.is_ok();
    (leave, adopted.err().unwrap_or(Error::NotFound), is_let_in)
}

fn agree([a, b]: [&Peer; 2]) {
    assert_eq!(a.extremities(), b.extremities());
    assert_eq!(a.state_ids(a.root()), b.state_ids(b.root()));
    assert_eq!(a.class(&b.user), b.class(&b.user));
    a.check();
    b.check();
}

#[tokio::test]
async fn a_leave_that_others_have_not_heard_of_counts_when_its_server_comes_back() {
    for version in [RoomVersionId::V10, RoomVersionId::V11, RoomVersionId::V12] {
        let all = servers(2, version.clone()).await;
        let both = [&all[0], &all[1]];
        let [a, b] = both;
        let (leave, _, is_let_in) = left_and_let_in(both, version).await;

        assert!(is_let_in);
        assert!(b.extremities().contains(&leave.event_id));
        assert_eq!(b.class(&b.user), Some(Class::Join));
        agree(both);
        let back = b.send(message(&b.user, "back")).await.unwrap();
        assert_eq!(back.prev_events.len(), 2);
        assert_eq!(a.outcome(&back).await, Outcome::Accepted);
        agree(both);
    }
}

#[tokio::test]
async fn who_has_left_a_room_that_is_closed_to_others_is_not_let_in_by_who_has_not_heard_of_it() {
    let all = servers(2, RoomVersionId::V11).await;
    let both = [&all[0], &all[1]];
    let [a, b] = both;
    let rules = object(json!({ "join_rule": "invite" })).unwrap();
    let rules = NewEvent::state(a.user.clone(), "m.room.join_rules", "", rules);
    let rules = a.send(rules).await.unwrap();
    assert_eq!(b.outcome(&rules).await, Outcome::Accepted);

    let (_, error, is_let_in) = left_and_let_in(both, RoomVersionId::V11).await;

    assert!(!is_let_in);
    assert!(matches!(error, Error::NotAllowed(_)), "{error}");
    assert_eq!(b.class(&b.user), Some(Class::Leave));
    agree(both);
}

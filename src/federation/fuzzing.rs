//! What fuzz targets read: texts of other servers, as far as nothing else is needed to judge them.

use ruma::{
    OwnedEventId, RoomId,
    api::{
        IncomingRequestExt as _, Metadata as _,
        federation::transactions::send_transaction_message::v1::Request,
    },
    room_version_rules::RoomVersionRules,
};

use super::{join, receive};

/// The IDs of the events in the body of a transaction, if it is one.
pub fn transaction(body: &[u8], rules: &'static RoomVersionRules) -> Option<Vec<OwnedEventId>> {
    let request = http::Request::builder()
        .method(Request::METHOD)
        .uri("/_matrix/federation/v1/send/1")
        .body(body)
        .ok()?;
    let request = Request::try_from_http_request(request, &["1"]).ok()?;
    let read = |pdu| receive::event_id_of(pdu, rules);
    Some(request.pdus.iter().filter_map(|pdu| read(pdu)).collect())
}

/// The IDs of the events in the answer to `send_join`, if it is one.
pub fn send_join(
    body: &[u8],
    room_id: &RoomId,
    rules: &'static RoomVersionRules,
) -> Option<Vec<OwnedEventId>> {
    join::events_of_answer(body, room_id, rules)
}

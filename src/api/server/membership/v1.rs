//! The first versions of endpoints, which ruma does not have: requests are as in the second, answers are pairs of a status
//! and an object.

use ruma::{
    OwnedEventId, OwnedRoomId,
    api::{
        IncomingRequest,
        error::DeserializationError,
        federation::membership::{RawStrippedState, create_leave_event},
    },
};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::api::{routes::RawJson, server::states::Part};

/// An answer as a pair.
pub(super) fn pair(object: &[u8]) -> RawJson {
    let json = [b"[200,".as_slice(), object, b"]"].concat();
    RawJson(json.into())
}

/// What an invite shows of its room: in this version it lies in the event, beside what is signed.
pub(super) fn shown_state(invite: &RawValue) -> Vec<RawStrippedState> {
    #[derive(Default, Deserialize)]
    struct Unsigned {
        #[serde(default)]
        invite_room_state: Vec<RawStrippedState>,
    }
    #[derive(Deserialize)]
    struct Invite {
        #[serde(default)]
        unsigned: Unsigned,
    }
    // What is no event is refused when the event is read.
    let invite: Result<Invite, _> = serde_json::from_str(invite.get());
    invite.map_or_else(
        |_malformed| Vec::new(),
        |invite| invite.unsigned.invite_room_state,
    )
}

/// Makes an answer a pair.
pub(super) fn pair_of(object: &mut Vec<Part>) {
    object.insert(0, Part::from(b"[200,".as_slice()));
    object.push(Part::from(b"]".as_slice()));
}

/// A request with an event as its body.
pub(super) struct EventRequest {
    pub(super) room_id: OwnedRoomId,
    pub(super) event_id: OwnedEventId,
    pub(super) pdu: Box<RawValue>,
}

impl EventRequest {
    fn read(
        request: http::Request<&[u8]>,
        path_args: &[&str],
    ) -> Result<Self, DeserializationError> {
        let read =
            create_leave_event::v2::Request::try_from_http_request_inner(request, path_args)?;
        Ok(Self {
            room_id: read.room_id,
            event_id: read.event_id,
            pdu: read.pdu,
        })
    }
}

/// Requests with an event as their body, by path.
macro_rules! event_request {
    ($name:ident, $path:literal) => {
        pub(super) mod $name {
            use ruma::{
                api::{
                    IncomingRequest,
                    error::DeserializationError,
                    federation::{
                        authentication::ServerSignatures, membership::create_leave_event,
                    },
                },
                metadata,
            };

            use super::EventRequest;

            metadata! {
                method: PUT,
                rate_limited: false,
                authentication: ServerSignatures,
                path: $path,
            }

            pub(in crate::api::server::membership) struct Request(
                pub(in crate::api::server::membership) EventRequest,
            );

            impl IncomingRequest for Request {
                type EndpointError =
                    <create_leave_event::v2::Request as IncomingRequest>::EndpointError;
                type OutgoingResponse = create_leave_event::v2::Response;

                fn try_from_http_request_inner(
                    request: http::Request<&[u8]>,
                    path_args: &[&str],
                ) -> Result<Self, DeserializationError> {
                    EventRequest::read(request, path_args).map(Self)
                }
            }
        }
    };
}

event_request!(
    send_join,
    "/_matrix/federation/v1/send_join/{room_id}/{event_id}"
);
event_request!(
    send_leave,
    "/_matrix/federation/v1/send_leave/{room_id}/{event_id}"
);
event_request!(invite, "/_matrix/federation/v1/invite/{room_id}/{event_id}");

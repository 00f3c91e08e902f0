//! Who is typing.
//!
//! Spec: c2s, "Typing Notifications".

use std::sync::Arc;

use super::{require_active, require_self, who};
use crate::{
    accounts::Session,
    api::{
        content::{self, Read, Reading},
        error::Error,
        routes::Routes,
    },
    server::Server,
};
use ruma::api::{
    IncomingRequest as _,
    client::typing::create_typing_event::v3::{Request, Response, Typing},
    error::DeserializationError,
};

/// How long somebody types who does not say how long.
const DEFAULT_TIMEOUT_MS: u64 = 30_000;

pub(super) fn routes() -> Routes {
    Routes::default().endpoint(create_typing_event)
}

/// What was sent. ruma's type asks for the timeout, which the specification does not.
struct CreateTyping(Request);

impl Reading for CreateTyping {
    type Of = Request;

    fn read(
        request: http::Request<&[u8]>,
        path_args: &[&str],
    ) -> Result<Self, DeserializationError> {
        let mut body = content::fields(request.body())?;
        body.entry("timeout").or_insert(DEFAULT_TIMEOUT_MS.into());
        let body = serde_json::to_vec(&body)?;
        let request = request.map(|_| body.as_slice());
        Request::try_from_http_request_inner(request, path_args).map(Self)
    }
}

async fn create_typing_event(
    server: Arc<Server>,
    session: Arc<Session>,
    Read(CreateTyping(request)): Read<CreateTyping>,
) -> Result<Response, Error> {
    require_self(&session, &request.user_id)?;
    require_active(&session)?;
    let timeout = match request.state {
        Typing::Yes(info) => Some(info.timeout),
        Typing::No => None,
    };
    let user = who(&session);
    server
        .ephemeral
        .set_typing(&user, &request.room_id, timeout)
        .await?;
    Ok(Response::new())
}

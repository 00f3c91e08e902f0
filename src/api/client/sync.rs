//! Classic sync.
//!
//! Spec: c2s, "Syncing".

use std::{sync::Arc, time::Duration};

use ruma::{
    api::{
        IncomingRequest,
        auth_scheme::AccessToken,
        client::{filter::FilterDefinition, sync::sync_events},
        error::DeserializationError,
    },
    exports::serde_html_form,
    metadata,
    presence::PresenceState,
};
use serde::Deserialize;

use crate::{
    accounts::Session,
    api::{
        error::Error,
        routes::{RawJson, Routes},
    },
    rooms::client_event::Viewer,
    server::Server,
    sync::{self, Filter, StatePlace},
};

pub(super) fn routes() -> Routes {
    Routes::default().endpoint(sync_events)
}

metadata! {
    method: GET,
    rate_limited: false,
    authentication: AccessToken,
    history: {
        1.0 => "/_matrix/client/r0/sync",
        1.1 => "/_matrix/client/v3/sync",
    }
}

/// As ruma has it, with what clients ask for under the name that a proposal had.
#[derive(Debug, Deserialize)]
struct Request {
    filter: Option<String>,
    since: Option<String>,
    #[serde(default)]
    full_state: bool,
    #[serde(default)]
    set_presence: PresenceState,
    /// In milliseconds.
    #[serde(default)]
    timeout: u64,
    #[serde(default)]
    use_state_after: bool,
    /// MSC4222.
    #[serde(default, rename = "org.matrix.msc4222.use_state_after")]
    unstable_use_state_after: bool,
}

impl IncomingRequest for Request {
    type EndpointError = <sync_events::v3::Request as IncomingRequest>::EndpointError;
    type OutgoingResponse = sync_events::v3::Response;

    fn try_from_http_request_inner(
        request: http::Request<&[u8]>,
        _path_args: &[&str],
    ) -> Result<Self, DeserializationError> {
        let query = request.uri().query().unwrap_or_default();
        Ok(serde_html_form::from_str(query)?)
    }
}

async fn sync_events(
    server: Arc<Server>,
    session: Arc<Session>,
    request: Request,
) -> Result<RawJson, Error> {
    let filter = filter(&server, &session, request.filter)?;
    let state_place = match (request.use_state_after, request.unstable_use_state_after) {
        (true, _) => StatePlace::End,
        (false, true) => StatePlace::UnstableEnd,
        (false, false) => StatePlace::Start,
    };
    // As long as this lives the user counts as being here.
    let _syncing = server
        .ephemeral
        .syncing(&super::who(&session), &request.set_presence);
    let request = sync::Request {
        user: session.user.clone(),
        viewer: Viewer {
            user: session.user_number,
            device: session.device_hash,
        },
        // Some clients send an empty one for none.
        since: request.since.filter(|since| !since.is_empty()),
        filter: Arc::new(filter),
        is_full_state: request.full_state,
        state_place,
        timeout: Duration::from_millis(request.timeout),
    };
    Ok(RawJson(server.sync.sync(request).await?))
}

/// The filter that a client sends or names by its ID.
///
/// Spec: c2s, "GET /_matrix/client/v3/sync": it is JSON if it starts with a brace.
fn filter(server: &Server, session: &Session, filter: Option<String>) -> Result<Filter, Error> {
    match filter {
        None => Ok(Filter::default()),
        Some(json) if json.starts_with('{') => {
            let definition: FilterDefinition = serde_json::from_str(&json)
                .map_err(|error| Error::from_json(&error, json.as_bytes()))?;
            Ok(Filter::new(&definition))
        }
        Some(id) => {
            let (accounts, user) = (&server.accounts, session.user_number);
            let definition = accounts.filter(&server.store.snapshot()?, user, &id)?;
            let definition =
                definition.ok_or_else(|| Error::invalid_param("There is no such filter"))?;
            Ok(Filter::new(&definition))
        }
    }
}

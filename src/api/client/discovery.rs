//! What a client asks first: which versions and features there are, and where the server is.

use std::{collections::BTreeMap, sync::Arc};

use http::{HeaderValue, Method, StatusCode, header};
use serde_json::{Map, Value, json};

use crate::{
    api::{
        error::Error,
        routes::{self, PlainRequest, Response, Routes},
    },
    server::Server,
};

/// The versions of the specification whose client-server API is served. Clients look for the features of a version by its
/// number, so that all up to the newest are listed.
const VERSIONS: [&str; 20] = [
    "r0.6.1", "v1.1", "v1.2", "v1.3", "v1.4", "v1.5", "v1.6", "v1.7", "v1.8", "v1.9", "v1.10",
    "v1.11", "v1.12", "v1.13", "v1.14", "v1.15", "v1.16", "v1.17", "v1.18", "v1.19",
];

/// Features that clients look for under the name of their proposal.
const UNSTABLE_FEATURES: [&str; 3] = [
    "org.matrix.msc3026.busy_presence",
    "org.matrix.msc3440.stable",
    "org.matrix.msc4222",
];

/// How long others may keep a well-known file.
const WELL_KNOWN_CACHE: HeaderValue = HeaderValue::from_static("max-age=3600");

pub(super) fn routes() -> Routes {
    Routes::default()
        .plain(Method::GET, "/_matrix/client/versions", supported_versions)
        .plain(Method::GET, "/.well-known/matrix/client", well_known_client)
        .plain(Method::GET, "/.well-known/matrix/server", well_known_server)
        .plain(
            Method::GET,
            "/.well-known/matrix/support",
            well_known_support,
        )
}

/// Spec: c2s, "API Versions". The same for all, so that nobody's token is looked at.
async fn supported_versions(
    _server: Arc<Server>,
    _request: PlainRequest,
) -> Result<Response, Error> {
    let unstable_features: BTreeMap<&str, bool> =
        UNSTABLE_FEATURES.iter().map(|name| (*name, true)).collect();
    routes::json(
        StatusCode::OK,
        &json!({ "versions": VERSIONS, "unstable_features": unstable_features }),
    )
}

/// Spec: c2s, "Well-known URIs".
async fn well_known_client(server: Arc<Server>, _request: PlainRequest) -> Result<Response, Error> {
    let mut file = server.config.well_known.client_extra.clone();
    file.insert(
        "m.homeserver".to_owned(),
        json!({ "base_url": server.config.base_url() }),
    );
    well_known(&Value::Object(file))
}

/// Spec: s2s, "Resolving server names".
async fn well_known_server(server: Arc<Server>, _request: PlainRequest) -> Result<Response, Error> {
    match &server.config.well_known.server {
        Some(delegate) => well_known(&json!({ "m.server": delegate })),
        None => Err(Error::not_found("This server name is not delegated")),
    }
}

/// Spec: c2s, "Getting support contact information".
async fn well_known_support(
    server: Arc<Server>,
    _request: PlainRequest,
) -> Result<Response, Error> {
    let config = &server.config.well_known;
    let mut file = Map::new();
    if !config.support_contacts.is_empty() {
        file.insert("contacts".to_owned(), json!(config.support_contacts));
    }
    if let Some(page) = &config.support_page {
        file.insert("support_page".to_owned(), json!(page));
    }
    if file.is_empty() {
        return Err(Error::not_found("No support contact is known"));
    }
    well_known(&Value::Object(file))
}

fn well_known(file: &Value) -> Result<Response, Error> {
    let mut response = routes::json(StatusCode::OK, file)?;
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, WELL_KNOWN_CACHE);
    Ok(response)
}

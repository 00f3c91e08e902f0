//! Health and metrics, for those who watch over the server.

use std::sync::Arc;

use http::{HeaderValue, Method, StatusCode, header};
use serde_json::json;

use super::{
    error::Error,
    routes::{self, Body, PlainRequest, Response, Routes},
};
use crate::server::Server;

const OPENMETRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// Whether the server lives and whether it can serve.
pub(super) fn health() -> Routes {
    Routes::default()
        .plain(Method::GET, "/health/live", live)
        .plain(Method::GET, "/health/ready", ready)
}

pub(super) fn metrics() -> Routes {
    Routes::default().plain(Method::GET, "/metrics", print_metrics)
}

async fn live(_server: Arc<Server>, _request: PlainRequest) -> Result<Response, Error> {
    routes::json(StatusCode::OK, &json!({ "status": "ok" }))
}

/// Ready while the database answers and nobody has told the server to stop.
async fn ready(server: Arc<Server>, _request: PlainRequest) -> Result<Response, Error> {
    let checks = server.checks().await;
    let is_ready = checks.iter().all(|check| check.is_ok);
    let (code, status) = if is_ready {
        (StatusCode::OK, "ok")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "unavailable")
    };
    let checks: serde_json::Map<_, _> = checks
        .into_iter()
        .map(|check| {
            (
                check.name.to_owned(),
                json!({ "status": if check.is_ok { "ok" } else { "failed" } }),
            )
        })
        .collect();
    routes::json(
        code,
        &json!({ "status": status, "version": env!("CARGO_PKG_VERSION"), "checks": checks }),
    )
}

async fn print_metrics(server: Arc<Server>, _request: PlainRequest) -> Result<Response, Error> {
    let page = server.metrics.encode().map_err(Error::internal)?;
    let mut response = Response::new(Body::from(page));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, OPENMETRICS);
    Ok(response)
}

//! HTTP: the tables of endpoints, authentication, limits, errors. The only module that knows status codes.
//!
//! A handler takes the request apart, calls one part of the server, and puts the answer together.

mod admin;
pub mod auth;
mod client;
mod command;
mod content;
pub mod error;
mod health;
pub mod limits;
pub mod routes;
mod server;
mod web;

pub use self::{
    error::Error,
    routes::{Dispatcher, Peer, Routes},
};
use crate::config::sections::Resource;

/// The endpoints of a listener that serves `resources`.
pub fn routes(resources: &[Resource]) -> Routes {
    let mut routes = Routes::default();
    if resources.contains(&Resource::Client) {
        routes = routes.join(client::routes()).join(admin::routes());
    }
    if resources.contains(&Resource::Federation) {
        routes = routes.join(server::routes());
    }
    if resources.contains(&Resource::Web) {
        routes = routes.join(web::routes());
    }
    if resources.contains(&Resource::Health) {
        routes = routes.join(health::health());
    }
    if resources.contains(&Resource::Metrics) {
        routes = routes.join(health::metrics());
    }
    routes
}

/// What the command line asks on the admin socket.
pub fn socket_routes() -> Routes {
    command::routes()
        .join(health::health())
        .join(health::metrics())
}

//! HTTP: the tables of endpoints, authentication, limits, errors. The only module that knows status codes.
//!
//! A handler takes the request apart, calls one part of the server, and puts the answer together.

pub mod auth;
mod client;
pub mod error;
pub mod limits;
pub mod routes;

use std::sync::Arc;

pub use self::{
    error::Error,
    routes::{Dispatcher, Peer, Routes},
};
use crate::server::Server;

/// Everything that is served on the public listeners.
pub fn dispatcher(server: Arc<Server>) -> Dispatcher {
    Dispatcher::new(server, client::routes())
}

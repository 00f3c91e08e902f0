//! The server: owns every part and builds them from the foundation up.

use std::sync::Arc;

use crate::{
    config::Config,
    tasks::{Stage, Stop, Tasks},
    telemetry::Metrics,
};

/// Every part of a running server, in the order in which they are built.
pub struct Server {
    pub config: Config,
    pub metrics: Metrics,
    pub tasks: Tasks,
    /// Requests that wait for news answer what they have when this is requested.
    pub closing: Stop,
}

impl Server {
    /// Builds all parts.
    pub fn new(config: Config) -> Arc<Self> {
        let metrics = Metrics::new();
        let tasks = Tasks::new(&metrics);
        let closing = tasks.stop_signal(Stage::Requests);
        Arc::new(Self {
            config,
            metrics,
            tasks,
            closing,
        })
    }
}

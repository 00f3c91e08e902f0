//! The server: owns every part and builds them from the foundation up.

use std::sync::Arc;

use crate::{
    config::Config,
    tasks::{Stage, Stop, Tasks},
    telemetry::Metrics,
};

/// Why the parts of a server could not be built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the data directory {path} cannot be made: {source}")]
    DataDir {
        path: String,
        source: std::io::Error,
    },
}

/// Every part of a running server, in the order in which they are built.
pub struct Server {
    pub config: Config,
    pub metrics: Metrics,
    pub tasks: Tasks,
    /// Requests that wait for news answer what they have when this is requested.
    pub closing: Stop,
}

/// One thing that a server needs to serve.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    pub name: &'static str,
    pub is_ok: bool,
}

impl Server {
    /// Opens the store of `config` and builds all parts on it.
    ///
    /// # Errors
    /// The data directory or the store cannot be opened.
    pub async fn open(config: Config) -> Result<Arc<Self>, Error> {
        let metrics = Metrics::new();
        let tasks = Tasks::new(&metrics);
        let closing = tasks.stop_signal(Stage::Requests);
        Ok(Arc::new(Self {
            config,
            metrics,
            tasks,
            closing,
        }))
    }

    /// What the server needs to serve, each looked at now.
    pub async fn checks(&self) -> Vec<Check> {
        vec![Check {
            name: "running",
            is_ok: !self.closing.is_requested(),
        }]
    }

    /// Ends what has to end last. Nothing uses the server any more.
    pub async fn close(&self) {}
}

//! Hearth: a Matrix homeserver in one process. The module map is in `docs/development.md`.

pub mod accounts;
pub mod admin;
pub mod api;
pub mod cli;
pub mod clock;
pub mod config;
pub mod encryption;
pub mod ephemeral;
pub mod events;
pub mod federation;
pub mod outbound;
pub mod push;
pub mod rooms;
pub mod run;
pub mod server;
pub mod storage;
pub mod sync;
pub mod tasks;
pub mod telemetry;
pub mod units;

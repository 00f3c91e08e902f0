//! Feature tests: a real server in process, reached through HTTP.

mod accounts;
mod command_line;
mod harness;
mod layers;
mod requests;
mod resolution;
mod setup;
mod tidy;
mod vectors;

//! Feature tests: a real server in process, reached through HTTP.

mod accounts;
mod harness;
mod layers;
mod requests;
mod resolution;
mod tidy;
mod vectors;

//! Feature tests: a real server in process, reached through HTTP.

mod harness;
mod layers;
mod requests;
mod resolution;
mod tidy;
mod vectors;

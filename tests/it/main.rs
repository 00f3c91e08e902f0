//! Feature tests: a real server in process, reached through HTTP.

mod account_data;
mod accounts;
mod command_line;
mod harness;
mod history;
mod layers;
mod people_in_rooms;
mod listeners;
mod profile;
mod requests;
mod resolution;
mod room_words;
mod rooms;
mod setup;
mod tidy;
mod vectors;

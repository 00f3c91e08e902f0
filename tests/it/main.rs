//! Feature tests: a real server in process, reached through HTTP.

#![allow(
    clippy::cloned_ref_to_slice_refs,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    unreachable_pub,
    reason = "a helper that panics is a test that fails, and tests speak to the network and wait"
)]

mod account_data;
mod accounts;
mod command_line;
mod device_keys;
mod device_lists;
mod directory;
mod far_room;
mod faults;
mod federation_keys;
mod federation_members;
mod federation_partial_join;
mod federation_partial_recheck;
mod federation_policy;
mod federation_reading;
mod federation_sending;
mod federation_sync;
mod federation_third_party;
mod guest;
mod harness;
mod history;
mod hostile;
mod layers;
mod listeners;
mod moment;
mod netns;
mod notices;
mod peer;
mod people_in_rooms;
mod profile;
mod pushers;
mod read;
mod relations;
mod requests;
mod resolution;
mod room_versions;
mod room_words;
mod rooms;
mod setup;
mod simulation;
mod sync;
mod sync_memberships;
mod sync_words;
mod tidy;
mod to_device;
mod vectors;

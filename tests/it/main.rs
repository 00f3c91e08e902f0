//! Feature tests: a real server in process, reached through HTTP.

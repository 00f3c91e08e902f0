//! Hearth: a Matrix homeserver in one process. The module map is in `docs/development.md`.

pub mod storage;

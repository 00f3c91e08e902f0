//! The schema of the database: refuses what is newer than this program.

use super::{Error, Result};

/// The schema this program writes.
pub(super) const SCHEMA: u32 = 1;

/// Whether the database is new.
///
/// # Errors
/// [`Error::Open`] if a newer program has written it.
pub(super) fn check(stored: Option<u32>) -> Result<bool> {
    match stored {
        None => Ok(true),
        Some(SCHEMA) => Ok(false),
        Some(other) => Err(Error::Open(format!(
            "it has schema {other}; this version of Hearth knows {SCHEMA}"
        ))),
    }
}

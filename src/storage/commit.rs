//! The committer: one thread that makes batches durable, in order, and then visible.

use super::{Position, Result};

/// Resolves when the batch is durable and published, or was refused ([`super::Error::Conflict`]).
/// Dropping it cancels nothing.
pub struct Commit {}

impl Future for Commit {
    type Output = Result<Position>;
    fn poll(self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        todo!()
    }
}

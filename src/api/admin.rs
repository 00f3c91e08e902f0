//! The admin API that other servers' tools know, under `/_synapse/admin`.

mod register;

use super::routes::Routes;

/// Every endpoint of the compatible admin API.
pub(super) fn routes() -> Routes {
    Routes::default().join(register::routes())
}

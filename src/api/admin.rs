//! The admin API that other servers' tools know, under `/_synapse/admin`.

mod notices;
mod register;

use super::routes::Routes;

/// Every endpoint of the compatible admin API.
pub(super) fn routes() -> Routes {
    Routes::default()
        .join(register::routes())
        .join(notices::routes())
}

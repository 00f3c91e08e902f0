//! The client-server API, in files named after the modules of ruma's client API.

mod discovery;

use super::routes::Routes;

/// Every endpoint of the client-server API.
pub(super) fn routes() -> Routes {
    Routes::default().join(discovery::routes())
}

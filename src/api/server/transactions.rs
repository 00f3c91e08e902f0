//! What other servers send us.

use std::sync::Arc;

use ruma::api::federation::transactions::send_transaction_message;

use crate::{
    api::{auth::Origin, error::Error, routes::Routes},
    federation::Transaction,
    server::Server,
};

pub(super) fn routes() -> Routes {
    Routes::default()
        .endpoint(send_transaction_message)
        .with_bodies_up_to(MAX_TRANSACTION_BYTES)
}

/// Fifty events and a hundred other units of the size of the largest event fit, with what holds them together.
const MAX_TRANSACTION_BYTES: usize = 160 * 65_536;

/// Spec: s2s, "Transactions".
async fn send_transaction_message(
    server: Arc<Server>,
    Origin(origin): Origin,
    request: send_transaction_message::v1::Request,
) -> Result<send_transaction_message::v1::Response, Error> {
    let transaction = Transaction {
        id: request.transaction_id,
        pdus: request.pdus,
        edus: request.edus,
    };
    let answer = server
        .federation
        .receive_transaction(&origin, transaction)
        .await
        .map_err(Error::of_transaction)?;
    Ok(send_transaction_message::v1::Response::new(answer))
}

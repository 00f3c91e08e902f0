//! Several marks of how far a user has read, in one request.
//!
//! Spec: c2s, "Fully read markers".

use std::sync::Arc;

use ruma::api::client::read_marker::set_read_marker::v3::{Request, Response};

use super::who;
use crate::{
    accounts::Session,
    api::{error::Error, routes::Routes},
    ephemeral::{NewReceipt, ReceiptKind, ReceiptThread},
    server::Server,
};

pub(super) fn routes() -> Routes {
    Routes::default().endpoint(set_read_marker)
}

async fn set_read_marker(
    server: Arc<Server>,
    session: Arc<Session>,
    request: Request,
) -> Result<Response, Error> {
    let receipts = [
        (ReceiptKind::Public, request.read_receipt),
        (ReceiptKind::Private, request.private_read_receipt),
    ];
    let receipts = receipts.into_iter().filter_map(|(kind, event)| {
        Some(NewReceipt {
            kind,
            event: event?,
            thread: ReceiptThread::Unthreaded,
        })
    });
    let user = who(&session);
    let (ephemeral, receipts) = (&server.ephemeral, receipts.collect());
    ephemeral
        .read_up_to(&user, &request.room_id, receipts, request.fully_read)
        .await?;
    Ok(Response::new())
}

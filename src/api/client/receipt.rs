//! How far a user has read a room or a thread.
//!
//! Spec: c2s, "Receipts".

use std::sync::Arc;

use ruma::{
    api::client::receipt::create_receipt::v3::{ReceiptType, Request, Response},
    events::receipt::ReceiptThread as Thread,
};

use super::who;
use crate::{
    accounts::Session,
    api::{error::Error, routes::Routes},
    ephemeral::{NewReceipt, ReceiptKind, ReceiptThread},
    server::Server,
};

pub(super) fn routes() -> Routes {
    Routes::default().endpoint(create_receipt)
}

async fn create_receipt(
    server: Arc<Server>,
    session: Arc<Session>,
    request: Request,
) -> Result<Response, Error> {
    let kind = match request.receipt_type {
        ReceiptType::Read => Some(ReceiptKind::Public),
        ReceiptType::ReadPrivate => Some(ReceiptKind::Private),
        ReceiptType::FullyRead => None,
        _ => return Err(Error::invalid_param("There is no such type of receipts")),
    };
    let thread = match request.thread {
        Thread::Unthreaded => ReceiptThread::Unthreaded,
        Thread::Main => ReceiptThread::Main,
        Thread::Thread(root) => ReceiptThread::Root(root),
        _ => {
            return Err(Error::invalid_param(
                "thread_id is neither an event nor main",
            ));
        }
    };
    let (mut receipts, mut fully_read) = (Vec::new(), None);
    match kind {
        Some(kind) => receipts.push(NewReceipt {
            kind,
            event: request.event_id,
            thread,
        }),
        None if thread == ReceiptThread::Unthreaded => fully_read = Some(request.event_id),
        None => return Err(Error::invalid_param("m.fully_read has no thread_id")),
    }
    let user = who(&session);
    let ephemeral = &server.ephemeral;
    ephemeral
        .read_up_to(&user, &request.room_id, receipts, fully_read)
        .await?;
    Ok(Response::new())
}

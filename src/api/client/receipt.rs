//! How far a user has read a room or a thread.
//!
//! Spec: c2s, "Receipts".

use std::sync::Arc;

use ruma::{
    EventId,
    api::{
        IncomingRequest as _,
        client::receipt::create_receipt::v3::{ReceiptType, Request, Response},
        error::DeserializationError,
    },
};
use serde_json::Value;

use super::who;
use crate::{
    accounts::Session,
    api::{
        content::{self, Read, Reading},
        error::Error,
        routes::Routes,
    },
    ephemeral::{NewReceipt, ReceiptKind, ReceiptThread},
    server::Server,
};

pub(super) fn routes() -> Routes {
    Routes::default().endpoint(create_receipt)
}

/// A receipt as it was sent. In ruma's type a thread that is no text is bad JSON, in the specification an invalid parameter.
struct CreateReceipt {
    request: Request,
    thread: Option<Value>,
}

impl Reading for CreateReceipt {
    type Of = Request;

    fn read(
        request: http::Request<&[u8]>,
        path_args: &[&str],
    ) -> Result<Self, DeserializationError> {
        let mut body = content::fields(request.body())?;
        let thread = body.remove("thread_id");
        let request = request.map(|_| b"{}".as_slice());
        let request = Request::try_from_http_request_inner(request, path_args)?;
        Ok(Self { request, thread })
    }
}

async fn create_receipt(
    server: Arc<Server>,
    session: Arc<Session>,
    Read(CreateReceipt { request, thread }): Read<CreateReceipt>,
) -> Result<Response, Error> {
    let kind = match request.receipt_type {
        ReceiptType::Read => Some(ReceiptKind::Public),
        ReceiptType::ReadPrivate => Some(ReceiptKind::Private),
        ReceiptType::FullyRead => None,
        _ => return Err(Error::invalid_param("There is no such type of receipts")),
    };
    let (mut receipts, mut fully_read) = (Vec::new(), None);
    match kind {
        Some(kind) => receipts.push(NewReceipt {
            kind,
            event: request.event_id,
            thread: thread_of(thread)?,
        }),
        None if thread.is_none() => fully_read = Some(request.event_id),
        None => return Err(Error::invalid_param("m.fully_read has no thread_id")),
    }
    let user = who(&session);
    let ephemeral = &server.ephemeral;
    ephemeral
        .read_up_to(&user, &request.room_id, receipts, fully_read)
        .await?;
    Ok(Response::new())
}

fn thread_of(thread: Option<Value>) -> Result<ReceiptThread, Error> {
    let invalid = || Error::invalid_param("thread_id is neither an event ID nor main");
    match thread {
        None => Ok(ReceiptThread::Unthreaded),
        Some(Value::String(main)) if main == "main" => Ok(ReceiptThread::Main),
        Some(Value::String(root)) => {
            let root = EventId::parse(root).map_err(|_not_an_id| invalid())?;
            Ok(ReceiptThread::Root(root))
        }
        Some(_) => Err(invalid()),
    }
}

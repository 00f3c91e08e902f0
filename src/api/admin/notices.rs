//! Notices to users: `/_synapse/admin/v1/send_server_notice`.

use std::sync::Arc;

use http::{Method, StatusCode};
use ruma::{
    CanonicalJsonObject, OwnedTransactionId, OwnedUserId,
    api::auth_scheme::{AccessToken, AuthScheme as _},
};
use serde::Deserialize;
use serde_json::json;

use crate::{
    accounts::{self, LocalUser, Session},
    api::{
        auth::Authenticate as _,
        error::Error,
        routes::{self, PlainRequest, Response, Routes},
    },
    rooms::Transaction,
    server::{Notice, Server},
};

#[derive(Deserialize)]
struct Body {
    user_id: OwnedUserId,
    content: CanonicalJsonObject,
    #[serde(rename = "type", default = "message")]
    event_type: String,
}

fn message() -> String {
    "m.room.message".to_owned()
}

pub(super) fn routes() -> Routes {
    let path = "/_synapse/admin/v1/send_server_notice";
    let with_transaction = "/_synapse/admin/v1/send_server_notice/{txn_id}";
    Routes::default()
        .plain(Method::POST, path, send)
        .plain(Method::PUT, with_transaction, send)
}

async fn send(server: Arc<Server>, request: PlainRequest) -> Result<Response, Error> {
    let session = administrator(&server, &request).await?;
    let body: Body = request.json()?;
    let to = find(&server, body.user_id).await?;
    let id = request.args.get(0);
    let transaction = (!id.is_empty()).then(|| Transaction {
        user: session.user_number,
        device: session.device_hash,
        id: OwnedTransactionId::from(id),
    });
    let notice = Notice {
        to,
        event_type: body.event_type.into(),
        content: body.content,
        transaction,
    };
    let event_id = server.notices.send(&server, notice).await?;
    routes::json(StatusCode::OK, &json!({ "event_id": event_id }))
}

async fn administrator(server: &Server, request: &PlainRequest) -> Result<Arc<Session>, Error> {
    let token =
        AccessToken::extract_authentication(&request.request).map_err(AccessToken::refused)?;
    let session =
        AccessToken::authenticate(server, token, &request.request, &request.client).await?;
    match session.is_admin {
        true => Ok(session),
        false => Err(Error::forbidden("This is for administrators")),
    }
}

async fn find(server: &Server, user: OwnedUserId) -> Result<LocalUser, Error> {
    if !server.accounts.is_local(&user) {
        return Err(Error::invalid_param("This is a user of another server"));
    }
    let accounts = server.accounts.clone();
    let read = server
        .store
        .read(move |snapshot| accounts.account_info(snapshot, &user));
    let account = read.await?.filter(|account| !account.is_deactivated);
    let account = account.ok_or(accounts::Error::UnknownUser)?;
    Ok(LocalUser {
        id: account.user,
        number: account.number,
    })
}

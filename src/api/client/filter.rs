//! Filters that clients store.
//!
//! Spec: c2s, "Filtering".

use std::sync::Arc;

use ruma::api::client::filter::{create_filter, get_filter};

use crate::{
    accounts::Session,
    api::{error::Error, routes::Routes},
    server::Server,
};

pub(super) fn routes() -> Routes {
    Routes::default()
        .endpoint(create_filter)
        .endpoint(get_filter)
}

async fn create_filter(
    server: Arc<Server>,
    session: Arc<Session>,
    request: create_filter::v3::Request,
) -> Result<create_filter::v3::Response, Error> {
    super::require_self(&session, &request.user_id)?;
    let id = server
        .accounts
        .put_filter(session.user_number, request.filter)
        .await?;
    Ok(create_filter::v3::Response::new(id))
}

async fn get_filter(
    server: Arc<Server>,
    session: Arc<Session>,
    request: get_filter::v3::Request,
) -> Result<get_filter::v3::Response, Error> {
    super::require_self(&session, &request.user_id)?;
    let (accounts, user) = (server.accounts.clone(), session.user_number);
    let read = server
        .store
        .read(move |snapshot| accounts.filter(snapshot, user, &request.filter_id));
    let filter = read
        .await?
        .ok_or_else(|| Error::not_found("There is no such filter"))?;
    Ok(get_filter::v3::Response::new(filter.as_ref().clone()))
}

//! Whose devices have changed.
//!
//! Spec: c2s, "Tracking the device list for a user".

use std::sync::Arc;

use ruma::{OwnedUserId, api::client::keys::get_key_changes};

use crate::{
    accounts::{Session, UserNumber},
    api::{error::Error, routes::Routes},
    encryption::Asker,
    server::Server,
    storage::Snapshot,
    sync::token::Token,
};

pub(super) fn routes() -> Routes {
    Routes::default().endpoint(get_key_changes)
}

/// What has changed up to now: also what has changed after `to`, which the caller is told then once more.
///
/// Spec: c2s, "GET /_matrix/client/v3/keys/changes".
async fn get_key_changes(
    server: Arc<Server>,
    session: Arc<Session>,
    request: get_key_changes::v3::Request,
) -> Result<get_key_changes::v3::Response, Error> {
    let token = |text: &str| {
        text.parse::<Token>()
            .map_err(|error| Error::invalid_param(error.to_string()))
    };
    let (from, _to) = (token(&request.from)?, token(&request.to)?);
    // A moment that was lost with a backup put back means nothing any more.
    let known = Some(from.position).filter(|position| server.store.has_published(*position));
    let (encryption, accounts) = (server.encryption.clone(), server.accounts.clone());
    let read = move |snapshot: &Snapshot| -> Result<_, Error> {
        let asker = Asker {
            user: session.user_number,
            id: &session.user,
            since: known.unwrap_or_default(),
        };
        let lists = encryption.all_device_lists(snapshot, asker)?;
        let ids = |users: std::collections::BTreeSet<UserNumber>| {
            let users: Vec<UserNumber> = users.into_iter().collect();
            accounts.user_ids(snapshot, &users)
        };
        Ok((ids(lists.changed)?, ids(lists.left)?))
    };
    let (changed, left): (Vec<OwnedUserId>, Vec<OwnedUserId>) = server.store.read(read).await?;
    Ok(get_key_changes::v3::Response::new(changed, left))
}

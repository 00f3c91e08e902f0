//! The search for users.
//!
//! Spec: c2s, "User Directory".

use std::sync::Arc;

use ruma::api::client::user_directory::search_users;

use crate::{
    accounts::{Found, Session},
    api::{error::Error, limits::Bucket, routes::Routes},
    rooms::{self, VisibleUsers},
    server::Server,
    storage::Snapshot,
};

const MAX_RESULTS: usize = 50;

pub(super) fn routes() -> Routes {
    Routes::default().limited(Bucket::UserDirectory, search_users)
}

async fn search_users(
    server: Arc<Server>,
    session: Arc<Session>,
    request: search_users::v3::Request,
) -> Result<search_users::v3::Response, Error> {
    let limit = usize::try_from(u64::from(request.limit))
        .unwrap_or(MAX_RESULTS)
        .min(MAX_RESULTS);
    let (accounts, searcher) = (server.accounts.clone(), session.user_number);
    let rooms = server.rooms.clone();
    let search = move |snapshot: &Snapshot| {
        let mut visible = VisibleUsers::new(&rooms, snapshot, searcher)?;
        let may_find = |user| Ok::<_, rooms::Error>(user != searcher && visible.has(user)?);
        accounts.search_users(snapshot, &request.search_term, limit, may_find)
    };
    let (found, limited) = server.store.read(search).await?;
    Ok(search_users::v3::Response::new(
        found.into_iter().map(user).collect(),
        limited,
    ))
}

fn user(found: Found) -> search_users::v3::User {
    let mut user = search_users::v3::User::new(found.user);
    user.display_name = found.profile.displayname().map(ToOwned::to_owned);
    user.avatar_url = found
        .profile
        .avatar_url()
        .filter(|url| !url.is_empty())
        .map(Into::into);
    user
}

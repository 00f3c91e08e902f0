//! The search for users.
//!
//! Spec: c2s, "User Directory".

use std::sync::Arc;

use ruma::{OwnedMxcUri, OwnedUserId, api::client::user_directory::search_users};
use serde::Deserialize;

use crate::{
    accounts::{Found, Session},
    api::{error::Error, limits::Bucket, routes::Routes},
    rooms::{self, StoredEvent, VisibleUsers},
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
        let may_find = |user| visible.has(user);
        let term = &request.search_term;
        let (found, limited) = accounts.search_users(snapshot, term, limit, may_find)?;
        let mut users: Vec<_> = found.into_iter().map(user).collect();
        // One more, to know whether there are more.
        let wanted = limit.saturating_sub(users.len()).saturating_add(1);
        let others = visible.of_others(term, wanted)?;
        users.extend(others.iter().filter_map(|member| member_of(member)));
        let limited = limited || users.len() > limit;
        users.truncate(limit);
        Ok::<_, rooms::Error>((users, limited))
    };
    let (users, limited) = server.store.read(search).await?;
    Ok(search_users::v3::Response::new(users, limited))
}

/// A user of another server, as a membership shows it.
fn member_of(event: &StoredEvent) -> Option<search_users::v3::User> {
    #[derive(Deserialize)]
    struct Content {
        displayname: Option<String>,
        avatar_url: Option<OwnedMxcUri>,
    }
    let id = OwnedUserId::try_from(event.pdu.state_key.as_deref()?).ok()?;
    let content = event.pdu.content_as::<Content>().ok();
    let mut user = search_users::v3::User::new(id);
    if let Some(content) = content {
        user.display_name = content.displayname;
        user.avatar_url = content.avatar_url.filter(|url| !url.as_str().is_empty());
    }
    Some(user)
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

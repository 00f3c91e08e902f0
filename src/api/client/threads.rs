//! The threads of a room.
//!
//! Spec: c2s, "Querying threads in a room".

use std::sync::Arc;

use ruma::api::client::threads::get_threads::{self, v1::IncludeThreads};

use super::events::{self, Reader};
use crate::{
    accounts::Session,
    api::{
        error::Error,
        routes::{RawJson, Routes},
    },
    rooms::{ThreadQuery, client_event::write_text},
    server::Server,
    storage::Snapshot,
};

/// Threads of a page for which no limit is asked.
const DEFAULT_LIMIT: usize = 20;

pub(super) fn routes() -> Routes {
    Routes::default().endpoint(get_threads)
}

async fn get_threads(
    server: Arc<Server>,
    session: Arc<Session>,
    request: get_threads::v1::Request,
) -> Result<RawJson, Error> {
    let reader = Reader::new(&server, session, request.room_id)?;
    let is_participated = match request.include {
        IncludeThreads::All => false,
        IncludeThreads::Participated => true,
        _ => return Err(Error::invalid_param("`include` is `all` or `participated`")),
    };
    let limit = events::limit(request.limit, DEFAULT_LIMIT);
    if limit == 0 {
        return Err(Error::invalid_param("`limit` must be greater than zero"));
    }
    let read = move |snapshot: &Snapshot| -> Result<_, Error> {
        let mut sight = reader.sight(snapshot)?;
        sight.until().ok_or_else(super::not_in_room)?;
        let from = request
            .from
            .as_deref()
            .map(|token| reader.place(snapshot, token))
            .transpose()?;
        let query = ThreadQuery {
            is_participated,
            from,
            limit,
        };
        let (roots, rest) = reader.rooms.threads(snapshot, &mut sight, query)?;
        let mut json = b"{\"chunk\":".to_vec();
        json.extend(reader.array(snapshot, &mut sight, &roots)?);
        if let Some(rest) = rest {
            json.extend_from_slice(b",\"next_batch\":");
            write_text(&mut json, &rest.to_string());
        }
        json.push(b'}');
        Ok(RawJson(json.into()))
    };
    server.store.read(read).await
}

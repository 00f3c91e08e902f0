//! The database as administrators see it.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Error;
use crate::{
    server::Server,
    storage::{self, Snapshot, Store},
};

/// What can be done with the database.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DatabaseCommand {
    /// How large it is and what it does.
    Stats,
    /// Looks for what cannot be.
    Check,
    /// Rewrites the files without what was deleted.
    Compact,
}

pub(super) async fn run(server: &Server, command: DatabaseCommand) -> Result<Value, Error> {
    match command {
        DatabaseCommand::Stats => Ok(stats(&server.store)),
        DatabaseCommand::Check => check(server).await,
        DatabaseCommand::Compact => {
            let before = server.store.disk_bytes();
            blocking(&server.store, |store| {
                store.compact();
                Ok(())
            })
            .await?;
            Ok(json!({ "bytes_before": before, "bytes_after": server.store.disk_bytes() }))
        }
    }
}

fn stats(store: &Store) -> Value {
    let stats = store.stats();
    let families: Vec<Value> = stats
        .engine
        .families
        .iter()
        .map(|family| json!({ "family": family.family, "disk_bytes": family.disk_bytes, "rows": family.rows }))
        .collect();
    json!({
        "position": stats.position.0,
        "disk_bytes": store.disk_bytes(),
        "cache_bytes": stats.engine.cache_bytes,
        "write_buffer_bytes": stats.engine.write_buffer_bytes,
        "batches": stats.commits,
        "writes": stats.groups,
        "families": families,
    })
}

async fn check(server: &Server) -> Result<Value, Error> {
    let rows = blocking(&server.store, Store::check_integrity)
        .await
        .map_err(|error| Error::Problems(vec![error.to_string()]))?;
    let mut problems = Vec::new();
    let rooms = server.rooms.all();
    for room in &rooms {
        // A snapshot of its own for each room: none may live long.
        let (rooms, room) = (server.rooms.clone(), *room);
        let found = server
            .store
            .read(move |snapshot| rooms.verify(snapshot, room))
            .await;
        match found {
            Ok(found) => problems.extend(found.iter().map(ToString::to_string)),
            Err(error) => problems.push(format!("room {}: {error}", room.0)),
        }
    }
    let encryption = server.encryption.clone();
    let read = move |snapshot: &Snapshot| encryption.verify(snapshot);
    match server.store.read(read).await {
        Ok(found) => problems.extend(found),
        Err(error) => problems.push(format!("device lists: {error}")),
    }
    if problems.is_empty() {
        Ok(json!({ "rows": rows, "rooms": rooms.len(), "problems": 0 }))
    } else {
        Err(Error::Problems(problems))
    }
}

async fn blocking<T: Send + 'static>(
    store: &Store,
    work: impl FnOnce(&Store) -> storage::Result<T> + Send + 'static,
) -> storage::Result<T> {
    let store = store.clone();
    match tokio::task::spawn_blocking(move || work(&store)).await {
        Ok(done) => done,
        Err(_panicked) => Err(storage::Error::Closed),
    }
}

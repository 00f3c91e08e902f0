//! The keys that sign what this server sends.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Error;
use crate::{rooms::identity, server::Server, storage::Snapshot};

/// What can be done with the signing keys.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeysCommand {
    /// The key in use, the one that follows, and those of earlier times.
    Show,
    /// Makes the key that is used from the next start on.
    Rotate,
}

pub(super) async fn run(server: &Server, command: KeysCommand) -> Result<Value, Error> {
    match command {
        KeysCommand::Show => show(server).await,
        KeysCommand::Rotate => {
            let name = server.rooms.own_name().to_owned();
            let next = identity::rotate(&server.store, &server.clock, name).await?;
            Ok(json!({
                "next": next.key_id(),
                "verify_key": next.verify_key(),
                "used": "from the next start on",
            }))
        }
    }
}

async fn show(server: &Server) -> Result<Value, Error> {
    let read = |snapshot: &Snapshot| -> Result<_, crate::rooms::Error> {
        Ok((
            identity::next_key_id(snapshot)?,
            identity::old_keys(snapshot)?,
        ))
    };
    let (next, old) = server.store.read(read).await?;
    let signer = server.rooms.signer();
    Ok(json!({
        "current": signer.key_id(),
        "verify_key": signer.verify_key(),
        "next": next,
        "old": old,
    }))
}

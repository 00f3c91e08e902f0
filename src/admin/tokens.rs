//! Registration tokens.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Error;
use crate::server::Server;

/// What can be done with registration tokens.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenCommand {
    /// Without a text one is made.
    Create {
        token: Option<String>,
        /// Registrations it is good for; any number if absent.
        uses: Option<u64>,
        /// How long it is good, in milliseconds.
        lifetime_ms: Option<u64>,
    },
    List,
    Revoke {
        token: String,
    },
}

pub(super) async fn run(server: &Server, command: TokenCommand) -> Result<Value, Error> {
    match command {
        TokenCommand::Create {
            token,
            uses,
            lifetime_ms,
        } => {
            let expiry = lifetime_ms.map(|lifetime| server.clock.now_ms().saturating_add(lifetime));
            let made = server
                .accounts
                .create_registration_token(token, uses, expiry)
                .await?;
            Ok(json!(made))
        }
        TokenCommand::List => {
            let accounts = server.accounts.clone();
            let tokens = server
                .store
                .read(move |snapshot| accounts.registration_tokens(snapshot))
                .await?;
            Ok(json!(tokens))
        }
        TokenCommand::Revoke { token } => {
            match server.accounts.delete_registration_token(&token).await? {
                true => Ok(json!({ "token": token, "revoked": true })),
                false => Err(Error::NotFound("such token".to_owned())),
            }
        }
    }
}

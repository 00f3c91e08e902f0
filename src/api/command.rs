//! What the command line asks a running server. Served on the admin socket only, which its owner alone reaches.

use std::sync::Arc;

use http::{Method, StatusCode};
use ruma::api::error::ErrorCode;
use serde_json::json;

use super::{
    error::Error,
    routes::{self, PlainRequest, Response, Routes},
};
use crate::{admin, server::Server};

pub(super) fn routes() -> Routes {
    Routes::default().plain(Method::POST, "/_hearth/v1/command", command)
}

async fn command(server: Arc<Server>, request: PlainRequest) -> Result<Response, Error> {
    let answer = admin::run(&server, request.json()?).await?;
    routes::json(StatusCode::OK, &answer)
}

impl From<admin::Error> for Error {
    fn from(error: admin::Error) -> Self {
        match error {
            admin::Error::NotFound(_) => Self::not_found(error.to_string()),
            admin::Error::Refused(_) => Self::new(
                StatusCode::CONFLICT,
                ErrorCode::from("CHAT.HEARTH.CONFLICT"),
                error.to_string(),
            ),
            admin::Error::Problems(problems) => {
                let code = ErrorCode::from("CHAT.HEARTH.PROBLEMS");
                Self::new(StatusCode::CONFLICT, code, "There are problems")
                    .with("problems", json!(problems))
            }
            admin::Error::Failed(source) => Self::internal(source),
        }
    }
}

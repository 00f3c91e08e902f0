//! The page on which the first administrator is made. It exists for who has the token that the server printed.

use std::sync::Arc;

use http::{Method, StatusCode};

use super::{escape, page, style};
use crate::{
    admin,
    api::{
        error::Error,
        routes::{PlainRequest, Response, Routes},
    },
    server::Server,
};

pub(super) fn routes() -> Routes {
    Routes::default()
        .plain(Method::GET, "/setup", show)
        .plain(Method::POST, "/setup", create)
        .plain(Method::GET, "/setup/style.css", |_server, _request| async {
            Ok(style())
        })
}

async fn show(server: Arc<Server>, request: PlainRequest) -> Result<Response, Error> {
    let token = request.query("token").unwrap_or_default();
    match server.setup.admits(&token) {
        true => Ok(form(StatusCode::OK, &token, "", None)),
        false => Ok(closed()),
    }
}

async fn create(server: Arc<Server>, request: PlainRequest) -> Result<Response, Error> {
    let token = request.form("token").unwrap_or_default();
    if !server.setup.admits(&token) {
        return Ok(closed());
    }
    let name = request.form("name").unwrap_or_default();
    let password = request.form("password").unwrap_or_default();
    match admin::create_first_admin(&server, &name, &password).await {
        Ok(_made) => Ok(done(&server, &name)),
        Err(admin::Error::Refused(reason)) => {
            Ok(form(StatusCode::BAD_REQUEST, &token, &name, Some(&reason)))
        }
        Err(error) => Err(Error::internal(error)),
    }
}

fn form(status: StatusCode, token: &str, name: &str, wrong: Option<&str>) -> Response {
    let wrong = wrong
        .map(|reason| format!("<p class=\"wrong\" role=\"alert\">{}</p>", escape(reason)))
        .unwrap_or_default();
    let (token, name) = (escape(token), escape(name));
    let body = format!(
        "{wrong}<p>This server has no accounts yet. Make the first one: it administers the server.</p>\
         <form method=\"post\" action=\"/setup\"><input type=\"hidden\" name=\"token\" value=\"{token}\">\
         <label>User name <input name=\"name\" value=\"{name}\" required autocomplete=\"username\" \
         autocapitalize=\"none\"></label>\
         <label>Password <input name=\"password\" type=\"password\" required autocomplete=\"new-password\"></label>\
         <button>Create account</button></form>"
    );
    page(status, "First account", &body)
}

fn done(server: &Server, name: &str) -> Response {
    let user = escape(&format!(
        "@{}:{}",
        name.to_ascii_lowercase(),
        server.config.server_name()
    ));
    let base = escape(&server.config.base_url());
    let body = format!(
        "<p>The account <strong>{user}</strong> is ready. Sign in with any Matrix client; if it asks for a homeserver, \
         enter <strong>{base}</strong>.</p>"
    );
    page(StatusCode::OK, "Done", &body)
}

fn closed() -> Response {
    let body = "<p>This page opens only with the link that the server printed at its start, once, and while there is no \
                account. Start the server again for a new link.</p>";
    page(StatusCode::FORBIDDEN, "Closed", body)
}

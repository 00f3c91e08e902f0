//! Signing in and out.

use std::sync::Arc;

use ruma::api::{
    IncomingRequest as _,
    client::{
        session::{
            get_login_token, get_login_types, login, login::v3::LoginInfo, logout, logout_all,
            refresh_token,
        },
        uiaa::UserIdentifier,
    },
    error::DeserializationError,
};
use serde::{Deserialize, de};

use super::uiaa::{self, WithAuth};
use crate::{
    accounts::{NewDevice, Session},
    api::{
        content::{Read, Reading},
        error::Error,
        limits::Bucket,
        routes::Routes,
    },
    server::Server,
};

pub(super) fn routes() -> Routes {
    Routes::default()
        .endpoint(get_login_types)
        .limited(Bucket::Login, login)
        .limited(Bucket::Login, get_login_token)
        .limited(Bucket::Login, refresh_token)
        .endpoint(logout)
        .endpoint(logout_all)
}

/// Spec: c2s, "Login".
async fn get_login_types(
    _server: Arc<Server>,
    (): (),
    _request: get_login_types::v3::Request,
) -> Result<get_login_types::v3::Response, Error> {
    use get_login_types::v3::{LoginType, PasswordLoginType, Response, TokenLoginType};
    let mut token = TokenLoginType::new();
    token.get_login_token = true;
    Ok(Response::new(vec![
        LoginType::Password(PasswordLoginType::new()),
        LoginType::Token(token),
    ]))
}

/// A login with a type: ruma expects that somebody looked.
struct Login(login::v3::Request);

impl Reading for Login {
    type Of = login::v3::Request;

    fn read(
        request: http::Request<&[u8]>,
        path_args: &[&str],
    ) -> Result<Self, DeserializationError> {
        #[derive(Deserialize)]
        struct Typed {
            #[serde(rename = "type")]
            login_type: Option<de::IgnoredAny>,
        }
        let body: &[u8] = if request.body().is_empty() {
            b"{}"
        } else {
            request.body()
        };
        if serde_json::from_slice::<Typed>(body)?.login_type.is_none() {
            return Err(<serde_json::Error as de::Error>::missing_field("type").into());
        }
        login::v3::Request::try_from_http_request_inner(request, path_args).map(Self)
    }
}

/// Spec: c2s, "Login".
async fn login(
    server: Arc<Server>,
    (): (),
    Read(Login(request)): Read<Login>,
) -> Result<login::v3::Response, Error> {
    let user = match &request.login_info {
        LoginInfo::Password(password) => {
            let name = user_name(password)?;
            server.accounts.log_in(name, &password.password).await?
        }
        LoginInfo::Token(token) => {
            let number = server.accounts.redeem_login_token(&token.token).await?;
            server.accounts.check_may_sign_in(number).await?
        }
        LoginInfo::ApplicationService(_) => {
            return Err(Error::forbidden(
                "The token is not one of an application service",
            ));
        }
        other => return Err(Error::unknown_login_type(other.login_type())),
    };
    let device = NewDevice {
        id: request.device_id,
        display_name: request.initial_device_display_name,
        refreshable: request.refresh_token.into(),
    };
    let issued = server.accounts.sign_in(user.number, device).await?;
    let mut response = login::v3::Response::new(user.id, issued.access_token, issued.device);
    response.refresh_token = issued.refresh_token;
    response.expires_in = issued.expires_in;
    Ok(response)
}

/// The user that a password login names: in an identifier, or in the field from before there were identifiers.
#[expect(deprecated, reason = "clients still send it")]
fn user_name(password: &login::v3::Password) -> Result<&str, Error> {
    match (&password.identifier, &password.user) {
        (Some(UserIdentifier::Matrix(identifier)), _) => Ok(&identifier.user),
        (None, Some(user)) => Ok(user),
        (Some(_), _) => Err(Error::forbidden("Only user names can sign in")),
        (None, None) => Err(Error::missing_param("Missing parameter: identifier")),
    }
}

/// Spec: c2s, "Login".
async fn get_login_token(
    server: Arc<Server>,
    session: Arc<Session>,
    WithAuth(request): WithAuth<get_login_token::v1::Request>,
) -> Result<get_login_token::v1::Response, Error> {
    let passed = uiaa::confirm(
        &server,
        &session,
        request.auth.as_ref(),
        "get_login_token",
        &[],
    )
    .await?;
    let (token, expires_in) = server
        .accounts
        .create_login_token(session.user_number)
        .await?;
    server.accounts.spend(&passed).await?;
    Ok(get_login_token::v1::Response::new(expires_in, token))
}

/// Spec: c2s, "Refreshing access tokens".
async fn refresh_token(
    server: Arc<Server>,
    (): (),
    request: refresh_token::v3::Request,
) -> Result<refresh_token::v3::Response, Error> {
    let issued = server.accounts.refresh(&request.refresh_token).await?;
    let mut response = refresh_token::v3::Response::new(issued.access_token);
    response.refresh_token = issued.refresh_token;
    response.expires_in_ms = issued.expires_in;
    Ok(response)
}

/// Spec: c2s, "Logout".
async fn logout(
    server: Arc<Server>,
    session: Arc<Session>,
    _request: logout::v3::Request,
) -> Result<logout::v3::Response, Error> {
    server
        .accounts
        .delete_devices(session.user_number, session.device.as_slice())
        .await?;
    Ok(logout::v3::Response::new())
}

/// Spec: c2s, "Logout".
async fn logout_all(
    server: Arc<Server>,
    session: Arc<Session>,
    _request: logout_all::v3::Request,
) -> Result<logout_all::v3::Response, Error> {
    server
        .accounts
        .log_out_all(session.user_number, None)
        .await?;
    Ok(logout_all::v3::Response::new())
}

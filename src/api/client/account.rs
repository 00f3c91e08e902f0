//! Accounts: who one is, password, deactivation, contact addresses (which the server does not have yet).

mod register;

use std::sync::Arc;

use http::StatusCode;
use ruma::{
    api::{
        client::account::{
            ThirdPartyIdRemovalStatus, add_3pid, bind_3pid, change_password,
            check_registration_token_validity, deactivate, delete_3pid, get_3pids,
            get_username_availability, request_3pid_management_token_via_email,
            request_3pid_management_token_via_msisdn, request_openid_token,
            request_password_change_token_via_email, request_password_change_token_via_msisdn,
            request_registration_token_via_email, request_registration_token_via_msisdn,
            unbind_3pid, whoami,
        },
        error::ErrorCode,
    },
    authentication::TokenType,
};

use super::uiaa::{self, WithAuth};
use crate::{
    accounts::{Erase, LocalUser, Session},
    api::{error::Error, limits::Bucket, routes::Routes},
    server::Server,
};

pub(super) fn routes() -> Routes {
    Routes::default()
        .limited(Bucket::Registration, register::register)
        .limited(Bucket::Registration, get_username_availability)
        .limited(Bucket::Registration, check_registration_token_validity)
        .endpoint(whoami)
        .limited(Bucket::Login, change_password)
        .limited(Bucket::Login, deactivate)
        .endpoint(request_openid_token)
        .endpoint(get_3pids)
        .endpoint(delete_3pid)
        .endpoint(unbind_3pid)
        .endpoint(add_3pid)
        .endpoint(bind_3pid)
        .endpoint(request_registration_token_via_email)
        .endpoint(request_registration_token_via_msisdn)
        .endpoint(request_password_change_token_via_email)
        .endpoint(request_password_change_token_via_msisdn)
        .endpoint(request_3pid_management_token_via_email)
        .endpoint(request_3pid_management_token_via_msisdn)
}

/// Spec: c2s, "Current account information".
async fn whoami(
    _server: Arc<Server>,
    session: Arc<Session>,
    _request: whoami::v3::Request,
) -> Result<whoami::v3::Response, Error> {
    let mut response = whoami::v3::Response::new(session.user.clone(), session.is_guest);
    response.device_id.clone_from(&session.device);
    Ok(response)
}

/// Spec: c2s, "Account registration".
async fn get_username_availability(
    server: Arc<Server>,
    (): (),
    request: get_username_availability::v3::Request,
) -> Result<get_username_availability::v3::Response, Error> {
    server.accounts.check_available(&request.username).await?;
    Ok(get_username_availability::v3::Response::new(true))
}

/// Spec: c2s, "Token-authenticated registration".
async fn check_registration_token_validity(
    server: Arc<Server>,
    (): (),
    request: check_registration_token_validity::v1::Request,
) -> Result<check_registration_token_validity::v1::Response, Error> {
    let valid = server
        .accounts
        .is_registration_token(&request.token)
        .await?;
    Ok(check_registration_token_validity::v1::Response::new(valid))
}

/// Spec: c2s, "Password management".
async fn change_password(
    server: Arc<Server>,
    session: Option<Arc<Session>>,
    WithAuth(request): WithAuth<change_password::v3::Request>,
) -> Result<change_password::v3::Response, Error> {
    let session = session.ok_or_else(Error::missing_token)?;
    let user = LocalUser {
        id: session.user.clone(),
        number: session.user_number,
    };
    server
        .accounts
        .judge_password(&request.new_password, user.id.localpart())
        .await?;
    let bound = [request.new_password.as_str()];
    let passed = uiaa::confirm(
        &server,
        &session,
        request.auth.as_ref(),
        "change_password",
        &bound,
    )
    .await?;
    server
        .accounts
        .set_password(&user, &request.new_password)
        .await?;
    if request.logout_devices {
        server
            .accounts
            .log_out_all(user.number, session.device.clone())
            .await?;
    }
    server.accounts.spend(&passed).await?;
    Ok(change_password::v3::Response::new())
}

/// Spec: c2s, "Account deactivation".
async fn deactivate(
    server: Arc<Server>,
    session: Option<Arc<Session>>,
    WithAuth(request): WithAuth<deactivate::v3::Request>,
) -> Result<deactivate::v3::Response, Error> {
    let session = session.ok_or_else(Error::missing_token)?;
    let passed = uiaa::confirm(&server, &session, request.auth.as_ref(), "deactivate", &[]).await?;
    let erase = if request.erase { Erase::Yes } else { Erase::No };
    server
        .accounts
        .deactivate(session.user_number, erase)
        .await?;
    server.accounts.spend(&passed).await?;
    Ok(deactivate::v3::Response::new(
        ThirdPartyIdRemovalStatus::NoSupport,
    ))
}

/// Spec: c2s, "OpenID".
async fn request_openid_token(
    server: Arc<Server>,
    session: Arc<Session>,
    request: request_openid_token::v3::Request,
) -> Result<request_openid_token::v3::Response, Error> {
    super::require_self(&session, &request.user_id)?;
    let (token, expires_in) = server
        .accounts
        .create_openid_token(session.user_number)
        .await?;
    let server_name = session.user.server_name().to_owned();
    Ok(request_openid_token::v3::Response::new(
        token,
        TokenType::Bearer,
        server_name,
        expires_in,
    ))
}

/// Spec: c2s, "Adding Account Administrative Contact Information".
async fn get_3pids(
    _server: Arc<Server>,
    _session: Arc<Session>,
    _request: get_3pids::v3::Request,
) -> Result<get_3pids::v3::Response, Error> {
    Ok(get_3pids::v3::Response::new(Vec::new()))
}

/// No account has an address, so the one named is gone already.
async fn delete_3pid(
    _server: Arc<Server>,
    _session: Arc<Session>,
    _request: delete_3pid::v3::Request,
) -> Result<delete_3pid::v3::Response, Error> {
    Ok(delete_3pid::v3::Response::new(
        ThirdPartyIdRemovalStatus::NoSupport,
    ))
}

async fn unbind_3pid(
    _server: Arc<Server>,
    _session: Arc<Session>,
    _request: unbind_3pid::v3::Request,
) -> Result<unbind_3pid::v3::Response, Error> {
    Ok(unbind_3pid::v3::Response::new(
        ThirdPartyIdRemovalStatus::NoSupport,
    ))
}

async fn add_3pid(
    _server: Arc<Server>,
    _session: Arc<Session>,
    _request: WithAuth<add_3pid::v3::Request>,
) -> Result<add_3pid::v3::Response, Error> {
    Err(Error::new(
        StatusCode::BAD_REQUEST,
        ErrorCode::ThreepidAuthFailed,
        "No address was validated",
    ))
}

async fn bind_3pid(
    _server: Arc<Server>,
    _session: Arc<Session>,
    _request: bind_3pid::v3::Request,
) -> Result<bind_3pid::v3::Response, Error> {
    Err(Error::new(
        StatusCode::BAD_REQUEST,
        ErrorCode::ThreepidAuthFailed,
        "No address was validated",
    ))
}

async fn request_registration_token_via_email(
    _server: Arc<Server>,
    (): (),
    _request: request_registration_token_via_email::v3::Request,
) -> Result<request_registration_token_via_email::v3::Response, Error> {
    Err(no_mail())
}

async fn request_registration_token_via_msisdn(
    _server: Arc<Server>,
    (): (),
    _request: request_registration_token_via_msisdn::v3::Request,
) -> Result<request_registration_token_via_msisdn::v3::Response, Error> {
    Err(no_phone())
}

async fn request_password_change_token_via_email(
    _server: Arc<Server>,
    (): (),
    _request: request_password_change_token_via_email::v3::Request,
) -> Result<request_password_change_token_via_email::v3::Response, Error> {
    Err(no_mail())
}

async fn request_password_change_token_via_msisdn(
    _server: Arc<Server>,
    (): (),
    _request: request_password_change_token_via_msisdn::v3::Request,
) -> Result<request_password_change_token_via_msisdn::v3::Response, Error> {
    Err(no_phone())
}

async fn request_3pid_management_token_via_email(
    _server: Arc<Server>,
    (): (),
    _request: request_3pid_management_token_via_email::v3::Request,
) -> Result<request_3pid_management_token_via_email::v3::Response, Error> {
    Err(no_mail())
}

async fn request_3pid_management_token_via_msisdn(
    _server: Arc<Server>,
    (): (),
    _request: request_3pid_management_token_via_msisdn::v3::Request,
) -> Result<request_3pid_management_token_via_msisdn::v3::Response, Error> {
    Err(no_phone())
}

fn no_mail() -> Error {
    Error::new(
        StatusCode::FORBIDDEN,
        ErrorCode::ThreepidDenied,
        "This server does not send mail",
    )
}

fn no_phone() -> Error {
    let text = "This server does not use phone numbers";
    Error::new(
        StatusCode::BAD_REQUEST,
        ErrorCode::ThreepidMediumNotSupported,
        text,
    )
}

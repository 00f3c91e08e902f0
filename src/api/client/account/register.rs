//! Registration.

use std::sync::Arc;

use http::StatusCode;
use ruma::api::{
    client::{
        account::register::{LoginType, RegistrationKind, v3},
        uiaa::AuthType,
    },
    error::ErrorCode,
};

use crate::{
    accounts::{NewDevice, NewUser, Operation, RegistrationMode},
    api::{client::uiaa::WithAuth, error::Error},
    server::Server,
};

/// Spec: c2s, "Account registration".
pub(super) async fn register(
    server: Arc<Server>,
    (): (),
    WithAuth(request): WithAuth<v3::Request>,
) -> Result<v3::Response, Error> {
    check_kind(&request)?;
    let flow: &[AuthType] = match server.accounts.registration_mode() {
        RegistrationMode::Closed => {
            return Err(Error::forbidden("Registration is closed on this server"));
        }
        RegistrationMode::Token => &[AuthType::RegistrationToken],
        RegistrationMode::Open => &[AuthType::Dummy],
    };
    if let Some(username) = &request.username {
        server.accounts.check_available(username).await?;
    }
    let bound = [request.username.as_deref().unwrap_or_default()];
    let operation = Operation {
        name: "register",
        bound: &bound,
        user: None,
        flows: &[flow],
    };
    let passed = server
        .accounts
        .authorize(&operation, request.auth.as_ref())
        .await?;
    let password = request
        .password
        .ok_or_else(|| Error::missing_param("Missing parameter: password"))?;
    let new = NewUser {
        localpart: request.username,
        password: Some(password),
        ..NewUser::default()
    };
    let device = (!request.inhibit_login).then(|| NewDevice {
        id: request.device_id,
        display_name: request.initial_device_display_name,
        refreshable: request.refresh_token.into(),
    });
    let (user, issued) = server.accounts.register(new, device, passed).await?;
    let mut response = v3::Response::new(user.id);
    if let Some(issued) = issued {
        response.access_token = Some(issued.access_token);
        response.device_id = Some(issued.device);
        response.refresh_token = issued.refresh_token;
        response.expires_in = issued.expires_in;
    }
    Ok(response)
}

fn check_kind(request: &v3::Request) -> Result<(), Error> {
    match request.kind {
        RegistrationKind::User => {}
        RegistrationKind::Guest => {
            let text = "This server has no guests";
            return Err(Error::new(
                StatusCode::FORBIDDEN,
                ErrorCode::GuestAccessForbidden,
                text,
            ));
        }
        _ => return Err(Error::invalid_param("The kind is \"user\" or \"guest\"")),
    }
    match request.login_type {
        Some(LoginType::ApplicationService) => Err(Error::forbidden(
            "The token is not one of an application service",
        )),
        _ => Ok(()),
    }
}

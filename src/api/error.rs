//! What goes wrong, as clients are told: the one page where errors of the domain meet status codes and Matrix error codes.
//!
//! Only text made here goes out. The source of an internal error is logged once, by the dispatcher.

use std::{borrow::Cow, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use ruma::api::error::{DeserializationError, ErrorCode, ErrorKind, FromHttpRequestError};
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};

use super::routes::{Body, Response};
use crate::{
    accounts, encryption, ephemeral,
    federation::{self, MembershipError},
    push, rooms,
    server::NoticeError,
    storage, sync,
};

/// The answer to a request that is not served as asked.
#[derive(Debug)]
pub struct Error {
    status: StatusCode,
    body: ErrorBody,
    retry_after: Option<Duration>,
    /// What was behind an internal error; goes to the log only.
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

#[derive(Debug)]
enum ErrorBody {
    Matrix {
        code: ErrorCode,
        text: Cow<'static, str>,
        fields: Option<Box<Map<String, Value>>>,
    },
    /// A body of its own shape, as user-interactive authentication has.
    Json(Box<Value>),
}

impl Error {
    /// An error with the usual body `{"errcode": …, "error": …}`.
    pub fn new(status: StatusCode, code: ErrorCode, text: impl Into<Cow<'static, str>>) -> Self {
        let body = ErrorBody::Matrix {
            code,
            text: text.into(),
            fields: None,
        };
        Self {
            status,
            body,
            retry_after: None,
            source: None,
        }
    }

    /// An error whose whole body is `value`.
    pub fn json(status: StatusCode, value: Value) -> Self {
        Self {
            status,
            body: ErrorBody::Json(Box::new(value)),
            retry_after: None,
            source: None,
        }
    }

    /// Adds a field to the body.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        let value = value.into();
        match &mut self.body {
            ErrorBody::Matrix { fields, .. } => {
                fields.get_or_insert_default().insert(key.to_owned(), value);
            }
            ErrorBody::Json(body) => {
                if let Value::Object(fields) = body.as_mut() {
                    fields.insert(key.to_owned(), value);
                }
            }
        }
        self
    }

    /// 400 `M_BAD_JSON`: the JSON is well-formed but does not say what it should.
    pub fn bad_json(text: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorCode::BadJson, text)
    }

    /// 400 `M_NOT_JSON`.
    pub fn not_json(text: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorCode::NotJson, text)
    }

    /// 400 `M_INVALID_PARAM`.
    pub fn invalid_param(text: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorCode::InvalidParam, text)
    }

    /// 400 `M_MISSING_PARAM`.
    pub fn missing_param(text: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorCode::MissingParam, text)
    }

    /// 413 `M_TOO_LARGE`.
    pub fn too_large(text: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::TooLarge, text)
    }

    /// 403 `M_FORBIDDEN`.
    pub fn forbidden(text: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::FORBIDDEN, ErrorCode::Forbidden, text)
    }

    /// 404 `M_NOT_FOUND`.
    pub fn not_found(text: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::NOT_FOUND, ErrorCode::NotFound, text)
    }

    /// 404 `M_UNRECOGNIZED`: no such endpoint.
    pub fn unrecognized() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            ErrorCode::Unrecognized,
            "Unrecognized request",
        )
    }

    /// 405 `M_UNRECOGNIZED`: the endpoint has other methods.
    pub fn method_not_allowed() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            ErrorCode::Unrecognized,
            "This endpoint has no such method",
        )
    }

    /// 401 `M_MISSING_TOKEN`.
    pub fn missing_token() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            ErrorCode::MissingToken,
            "This endpoint needs an access token",
        )
    }

    /// 401 `M_UNKNOWN_TOKEN`. With `SoftLogout::Yes` the client keeps its keys and signs in again on the same device.
    pub fn unknown_token(soft_logout: SoftLogout) -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            ErrorCode::UnknownToken,
            "The access token is not known",
        )
        .with("soft_logout", matches!(soft_logout, SoftLogout::Yes))
    }

    /// 401 `M_USER_LOCKED`.
    pub fn user_locked() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            ErrorCode::UserLocked,
            "This account is locked",
        )
        .with("soft_logout", true)
    }

    /// 400 `M_UNKNOWN`: a way to sign in that the server does not have.
    pub fn unknown_login_type(login_type: &str) -> Self {
        let text = format!("The login type {login_type} is not known");
        Self::new(StatusCode::BAD_REQUEST, ErrorCode::Unknown, text)
    }

    /// 403 `M_USER_SUSPENDED`.
    pub fn user_suspended() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            ErrorCode::UserSuspended,
            "This account is suspended",
        )
    }

    /// 429 `M_LIMIT_EXCEEDED`.
    pub fn limit_exceeded(retry_after: Duration) -> Self {
        let millis = u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX);
        let mut error = Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            ErrorCode::LimitExceeded,
            "Too many requests",
        )
        .with("retry_after_ms", millis);
        error.retry_after = Some(retry_after);
        error
    }

    /// 500 `M_UNKNOWN`. `source` goes to the log and not to the client.
    pub fn internal(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        let mut error = Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            ErrorCode::Unknown,
            "Internal server error",
        );
        error.source = Some(source.into());
        error
    }

    /// 503 `CHAT.HEARTH.UNAVAILABLE`: not now.
    pub fn unavailable(retry_after: Duration) -> Self {
        let millis = u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX);
        let code = ErrorCode::from("CHAT.HEARTH.UNAVAILABLE");
        let mut error = Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            code,
            "The server cannot answer now",
        )
        .with("retry_after_ms", millis);
        error.retry_after = Some(retry_after);
        error
    }

    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    /// What was behind the error, from the outermost to the innermost; empty if nothing was.
    pub(super) fn chain(&self) -> String {
        let mut chain = String::new();
        let mut next: Option<&dyn std::error::Error> = match &self.source {
            Some(source) => Some(source.as_ref()),
            None => None,
        };
        while let Some(error) = next {
            if !chain.is_empty() {
                chain.push_str(": ");
            }
            chain.push_str(&error.to_string());
            next = error.source();
        }
        chain
    }

    pub(super) fn into_response(self) -> Response {
        let value = match self.body {
            ErrorBody::Json(value) => *value,
            ErrorBody::Matrix { code, text, fields } => {
                let mut body = json!({ "errcode": code.as_str(), "error": text });
                if let (Value::Object(body), Some(fields)) = (&mut body, fields) {
                    body.extend(*fields);
                }
                body
            }
        };
        let mut response = Response::new(Body::from(Bytes::from(value.to_string())));
        *response.status_mut() = self.status;
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        if let Some(retry_after) = self.retry_after {
            let seconds = retry_after.as_millis().div_ceil(1_000);
            let seconds = u64::try_from(seconds).unwrap_or(u64::MAX);
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }

    /// The error of a request that ruma could not read. `body` is what was sent.
    pub(super) fn unreadable(error: FromHttpRequestError, body: &[u8]) -> Self {
        match error {
            FromHttpRequestError::Deserialization(error) => Self::from_deserialization(error, body),
            FromHttpRequestError::MethodMismatch { .. } => Self::method_not_allowed(),
            error => Self::internal(error),
        }
    }

    fn from_deserialization(error: DeserializationError, body: &[u8]) -> Self {
        match error {
            DeserializationError::Utf8(_) => Self::not_json("The body is not UTF-8"),
            DeserializationError::Json(error) => Self::from_json(&error, body),
            DeserializationError::Query(error) => Self::from_parameters(&error.to_string()),
            DeserializationError::Ident(error) => {
                Self::invalid_param(format!("Invalid identifier: {error}"))
            }
            DeserializationError::Header(error) => {
                Self::invalid_param(format!("Invalid header: {error}"))
            }
            error => Self::bad_json(format!("The request cannot be read: {error}")),
        }
    }

    /// Malformed text is `M_NOT_JSON`, also where serde met a wrong type before it came to the broken place.
    pub fn from_json(error: &serde_json::Error, body: &[u8]) -> Self {
        let text = if body.is_empty() { b"{}" } else { body };
        match serde_json::from_slice::<IgnoredAny>(text) {
            Ok(_) => Self::bad_json(format!("The JSON is not as expected: {error}")),
            Err(error) => Self::not_json(format!("The body is not JSON: {error}")),
        }
    }

    /// Path and query parameters: serde's text is all that tells a missing one from a wrong one.
    fn from_parameters(text: &str) -> Self {
        match text
            .strip_prefix("missing field `")
            .and_then(|rest| rest.split('`').next())
        {
            Some(name) => Self::missing_param(format!("Missing parameter: {name}")),
            None => Self::invalid_param(format!("Invalid parameter: {text}")),
        }
    }
}

/// Whether a client whose token is refused may go on with the same device after signing in again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SoftLogout {
    Yes,
    No,
}

impl From<storage::Error> for Error {
    fn from(error: storage::Error) -> Self {
        match error {
            storage::Error::Closed => Self::unavailable(Duration::from_secs(1)),
            error => Self::internal(error),
        }
    }
}

impl From<rooms::Error> for Error {
    fn from(error: rooms::Error) -> Self {
        use rooms::Error as E;
        let bad = |code, text: String| Self::new(StatusCode::BAD_REQUEST, code, text);
        match error {
            E::NotFound => Self::not_found("There is no such room or event"),
            E::Forbidden(text) => Self::forbidden(text),
            E::NotAllowed(error) => Self::forbidden(error.to_string()),
            E::Build(error) => Self::too_large(error.to_string()),
            E::Invalid(text) => Self::bad_json(text),
            E::UnsupportedVersion => bad(
                ErrorCode::UnsupportedRoomVersion,
                "This server does not make rooms of this version".to_owned(),
            ),
            E::BadAlias => bad(
                ErrorCode::BadAlias,
                "An alias does not lead to this room".to_owned(),
            ),
            E::InvalidAlias => Self::invalid_param("This is not a room alias"),
            error @ E::NoThreadRoot => bad(ErrorCode::Unknown, error.to_string()),
            error @ E::DuplicateAnnotation => {
                bad(ErrorCode::DuplicateAnnotation, error.to_string())
            }
            error @ (E::UnableToAuthorizeJoin | E::UnableToGrantJoin) => {
                Self::forbidden(error.to_string())
            }
            E::AliasInUse => bad(ErrorCode::RoomInUse, "This alias is taken".to_owned()),
            E::Storage(error) => error.into(),
            E::Accounts(error) => error.into(),
            error @ (E::NotInMemory | E::Full) => Self::internal(error),
        }
    }
}

impl From<sync::Error> for Error {
    fn from(error: sync::Error) -> Self {
        use sync::Error as E;
        match error {
            E::Token(error) => Self::invalid_param(error.to_string()),
            E::Ephemeral(error) => error.into(),
            E::Encryption(error) => error.into(),
            E::Rooms(error) => error.into(),
            E::Accounts(error) => error.into(),
            E::Storage(error) => error.into(),
        }
    }
}

impl From<encryption::Error> for Error {
    fn from(error: encryption::Error) -> Self {
        use encryption::Error as E;
        match error {
            E::UnknownDevice => Self::not_found("There is no such device"),
            error @ (E::KeyInUse(_) | E::TooManyKeys) => Self::invalid_param(error.to_string()),
            E::Accounts(error) => error.into(),
            E::Rooms(error) => error.into(),
            E::Storage(error) => error.into(),
        }
    }
}

impl From<ephemeral::Error> for Error {
    fn from(error: ephemeral::Error) -> Self {
        use ephemeral::Error as E;
        match error {
            E::NotJoined => Self::forbidden("You are not in this room"),
            E::NotShared => Self::forbidden("You share no room with this user"),
            E::UnknownEvent => Self::not_found("There is no such event in this room"),
            error @ (E::WrongThread | E::UnknownState | E::StatusTooLong) => {
                Self::invalid_param(error.to_string())
            }
            E::Rooms(error) => error.into(),
            E::Accounts(error) => error.into(),
            E::Storage(error) => error.into(),
        }
    }
}

impl From<accounts::Error> for Error {
    fn from(error: accounts::Error) -> Self {
        use accounts::Error as E;
        let bad = |code, text: String| Self::new(StatusCode::BAD_REQUEST, code, text);
        match error {
            E::Storage(error) => error.into(),
            E::UserInUse => bad(ErrorCode::UserInUse, "This user name is taken".to_owned()),
            E::InvalidUsername(text) => bad(ErrorCode::InvalidUsername, text.to_owned()),
            E::Reserved => bad(
                ErrorCode::Exclusive,
                "This user name is reserved".to_owned(),
            ),
            E::WeakPassword(text) => bad(ErrorCode::WeakPassword, text),
            E::BadCredentials => Self::forbidden("Invalid user name or password"),
            E::Deactivated => {
                let text = "This account has been deactivated";
                Self::new(StatusCode::FORBIDDEN, ErrorCode::UserDeactivated, text)
            }
            E::Locked => Self::user_locked(),
            E::UnknownToken { soft_logout: true } => Self::unknown_token(SoftLogout::Yes),
            E::UnknownToken { soft_logout: false } => Self::unknown_token(SoftLogout::No),
            E::InvalidLoginToken => Self::forbidden("The login token is not valid"),
            E::Interactive(info) => match serde_json::to_value(info) {
                Ok(body) => Self::json(StatusCode::UNAUTHORIZED, body),
                Err(error) => Self::internal(error),
            },
            E::UnknownUser => Self::not_found("There is no such user"),
            E::UnknownDevice => Self::not_found("There is no such device"),
            E::InvalidDevice(text) | E::InvalidProfile(text) => Self::invalid_param(text),
            E::ProfileTooLarge => bad(
                ErrorCode::ProfileTooLarge,
                "The profile would be larger than 64 KiB".to_owned(),
            ),
            E::KeyTooLarge => bad(
                ErrorCode::KeyTooLarge,
                "The name of a profile field has at most 255 bytes".to_owned(),
            ),
            E::AccountDataTooLarge => Self::too_large("The account data is too large"),
            E::InvalidFilter(text) => Self::bad_json(text),
            E::PushRule(error) => error.into(),
            error @ E::InvalidRegistrationToken => Self::invalid_param(error.to_string()),
            error @ E::RegistrationTokenInUse => Self::invalid_param(error.to_string()),
            error @ (E::UnknownNumber(_)
            | E::DamagedAccountData
            | E::PasswordCosts(_)
            | E::Aborted) => Self::internal(error),
        }
    }
}

impl From<NoticeError> for Error {
    fn from(error: NoticeError) -> Self {
        match error {
            NoticeError::Storage(error) => error.into(),
            NoticeError::Accounts(error) => error.into(),
            NoticeError::Rooms(error) => error.into(),
        }
    }
}

impl From<push::Error> for Error {
    fn from(error: push::Error) -> Self {
        match error {
            push::Error::Storage(error) => error.into(),
            push::Error::Accounts(error) => error.into(),
            push::Error::Invalid(text) => Self::invalid_param(text),
        }
    }
}

impl From<accounts::PushRuleError> for Error {
    fn from(error: accounts::PushRuleError) -> Self {
        use accounts::PushRuleError as E;
        match error {
            E::NotFound => Self::not_found("There is no such push rule"),
            E::UnknownPlace | E::ImpossiblePlace => Self::new(
                StatusCode::BAD_REQUEST,
                ErrorCode::Unknown,
                error.to_string(),
            ),
            E::ServerDefault | E::InvalidId | E::TooMany => Self::invalid_param(error.to_string()),
        }
    }
}

impl Error {
    /// What a client is told when another server was asked for its request. To be called on purpose: where a handler has
    /// something better to do than to fail, it looks at the error itself.
    pub fn of_federation(error: federation::Error) -> Self {
        use federation::Error as E;
        let bad_gateway = |text| Self::new(StatusCode::BAD_GATEWAY, ErrorCode::Unknown, text);
        match error {
            E::Remote {
                status,
                kind,
                retry_after,
                ..
            } => Self::of_remote(status, &kind, retry_after),
            E::Unreachable { .. } => bad_gateway("The other server cannot be reached"),
            E::TimedOut(_) => Self::new(
                StatusCode::GATEWAY_TIMEOUT,
                ErrorCode::Unknown,
                "The other server did not answer in time",
            ),
            E::TooLarge { .. } | E::Malformed { .. } => {
                bad_gateway("The other server's answer cannot be used")
            }
            E::Denied(_) => Self::forbidden("This server does not talk to the other server"),
            E::Rooms(error) => error.into(),
            E::Accounts(error) => error.into(),
            E::Storage(error) => error.into(),
            E::Ephemeral(error) => error.into(),
            E::Encryption(error) => error.into(),
            error @ E::Request(_) => Self::internal(error),
        }
    }

    /// What a server is told whose transaction is not taken.
    pub fn of_transaction(refused: federation::Refused) -> Self {
        use federation::Refused as E;
        match refused {
            error @ E::TooMany => Self::bad_json(error.to_string()),
            E::Busy => Self::limit_exceeded(Duration::from_secs(30)),
            E::Failed(error) => Self::internal(error),
        }
    }

    /// A refusal is handed on with its code; what went wrong over there is not the client's fault.
    fn of_remote(status: u16, kind: &ErrorKind, retry_after: Option<Duration>) -> Self {
        if status == StatusCode::TOO_MANY_REQUESTS {
            return Self::limit_exceeded(retry_after.unwrap_or(Duration::from_secs(1)));
        }
        let text = "The other server refused";
        match StatusCode::from_u16(status) {
            // 401 is about our signature, which the client has no part in.
            Ok(status) if status.is_client_error() && status != StatusCode::UNAUTHORIZED => {
                let error = Self::new(status, kind.errcode(), text);
                match kind {
                    ErrorKind::IncompatibleRoomVersion(data) => {
                        error.with("room_version", data.room_version.as_str())
                    }
                    _ => error,
                }
            }
            _ => Self::new(
                StatusCode::BAD_GATEWAY,
                ErrorCode::Unknown,
                "The other server failed",
            ),
        }
    }

    /// What a client is told of a membership that needed other servers.
    pub fn of_membership(error: MembershipError) -> Self {
        use MembershipError as E;
        match error {
            E::NotFound => Self::not_found("There is no such room"),
            E::Forbidden(text) => Self::forbidden(text),
            E::Invalid(text) => Self::bad_json(text),
            E::IncompatibleVersion(version) => Self::new(
                StatusCode::BAD_REQUEST,
                ErrorCode::IncompatibleRoomVersion,
                "This server does not support the version of the room",
            )
            .with("room_version", version.as_str()),
            E::NoCandidates => Self::not_found("No server is known that is in the room"),
            E::BadAnswer { .. } => Self::new(
                StatusCode::BAD_GATEWAY,
                ErrorCode::Unknown,
                "The other server's answer cannot be used",
            ),
            E::Federation(error) => Self::of_federation(error),
            E::Rooms(error) => error.into(),
            E::Accounts(error) => error.into(),
            E::Storage(error) => error.into(),
        }
    }
}

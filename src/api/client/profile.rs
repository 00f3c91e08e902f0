//! Profiles.
//!
//! Spec: c2s, "Profiles".

use std::sync::Arc;

use http::StatusCode;
use ruma::{
    OwnedUserId, UserId,
    api::{
        client::profile::{
            delete_profile_field, get_profile, get_profile_field, set_profile_field,
        },
        error::{DeserializationError, ErrorCode},
    },
};
use serde_json::{Value, json};

use crate::{
    accounts::{Profile, Session},
    api::{
        content::{Read, Reading, fields},
        error::Error,
        limits::Bucket,
        routes::{RawJson, Routes},
    },
    server::Server,
};

pub(super) fn routes() -> Routes {
    Routes::default()
        .endpoint(get_profile)
        .endpoint(get_profile_field)
        .limited(Bucket::Profile, set_profile_field)
        .limited(Bucket::Profile, delete_profile_field)
}

async fn get_profile(
    server: Arc<Server>,
    (): (),
    request: get_profile::v3::Request,
) -> Result<RawJson, Error> {
    let profile = find_anywhere(&server, request.user_id).await?;
    reply(&Value::Object(
        profile.fields.into_iter().filter(is_shown).collect(),
    ))
}

async fn get_profile_field(
    server: Arc<Server>,
    (): (),
    request: get_profile_field::v3::Request,
) -> Result<RawJson, Error> {
    let mut profile = find_anywhere(&server, request.user_id).await?;
    let name = request.field.to_string();
    let field = profile.fields.remove_entry(&name).filter(is_shown);
    let (name, value) = field.ok_or_else(|| Error::not_found("The profile has no such field"))?;
    reply(&json!({ name: value }))
}

/// A field with any JSON value. ruma's own type would refuse values that the server may keep.
struct SetField {
    user_id: OwnedUserId,
    name: String,
    value: Option<Value>,
}

impl Reading for SetField {
    type Of = set_profile_field::v3::Request;

    fn read(
        request: http::Request<&[u8]>,
        path_args: &[&str],
    ) -> Result<Self, DeserializationError> {
        let (user_id, name) = match path_args {
            [user_id, name] => (UserId::parse(user_id)?, (*name).to_owned()),
            _ => (UserId::parse("")?, String::new()),
        };
        let mut fields = fields(request.body())?;
        let value = fields.remove(&name);
        Ok(Self {
            user_id,
            name,
            value,
        })
    }
}

async fn set_profile_field(
    server: Arc<Server>,
    session: Arc<Session>,
    Read(request): Read<SetField>,
) -> Result<set_profile_field::v3::Response, Error> {
    may_change(&session, &request.user_id)?;
    let missing = || Error::missing_param(format!("Missing parameter: {}", request.name));
    let value = request.value.ok_or_else(missing)?;
    server
        .accounts
        .set_profile_field(session.user_number, &request.name, Some(value))
        .await?;
    Ok(set_profile_field::v3::Response::new())
}

async fn delete_profile_field(
    server: Arc<Server>,
    session: Arc<Session>,
    request: delete_profile_field::v3::Request,
) -> Result<delete_profile_field::v3::Response, Error> {
    may_change(&session, &request.user_id)?;
    server
        .accounts
        .set_profile_field(session.user_number, request.field.as_str(), None)
        .await?;
    Ok(delete_profile_field::v3::Response::new())
}

fn may_change(session: &Session, user: &UserId) -> Result<(), Error> {
    super::require_self(session, user)?;
    super::require_active(session)
}

/// The profile of a user; of one elsewhere as that server tells it.
async fn find_anywhere(server: &Server, user: OwnedUserId) -> Result<Profile, Error> {
    if server.accounts.is_local(&user) {
        return find(server, user).await;
    }
    match server.federation.profile(&user).await {
        Ok(profile) => Ok(Arc::unwrap_or_clone(profile)),
        Err(error) if error.is_status(404) => Err(Error::not_found("There is no such user")),
        Err(error) => Err(Error::of_federation(error)),
    }
}

/// The profile of a local user.
pub(in crate::api) async fn find(server: &Server, user: OwnedUserId) -> Result<Profile, Error> {
    let accounts = server.accounts.clone();
    let found = server
        .store
        .read(move |snapshot| {
            let Some(account) = accounts.account_info(snapshot, &user)? else {
                return Ok(None);
            };
            match account.is_deactivated {
                true => Ok(None),
                false => accounts
                    .profile(snapshot, account.number)
                    .map(Option::unwrap_or_default)
                    .map(Some),
            }
        })
        .await?;
    found.ok_or_else(|| {
        Error::new(
            StatusCode::NOT_FOUND,
            ErrorCode::NotFound,
            "There is no such user",
        )
    })
}

/// An empty avatar is how clients before `DELETE` took it away.
pub(in crate::api) fn is_shown((name, value): &(String, Value)) -> bool {
    name != crate::accounts::AVATAR_URL || value != ""
}

fn reply(value: &Value) -> Result<RawJson, Error> {
    Ok(RawJson(value.to_string().into()))
}

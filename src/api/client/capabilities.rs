//! What this server can do for the caller.
//!
//! Spec: c2s, "Capabilities negotiation".

use std::{collections::BTreeMap, sync::Arc};

use ruma::api::client::discovery::get_capabilities;
use serde_json::json;

use crate::{
    accounts::Session,
    api::{
        error::Error,
        routes::{RawJson, Routes},
    },
    events::version,
    server::Server,
};

pub(super) fn routes() -> Routes {
    Routes::default().endpoint(get_capabilities)
}

/// Every capability is said, also those with the value that clients would assume: some look whether it is there.
async fn get_capabilities(
    server: Arc<Server>,
    session: Arc<Session>,
    _request: get_capabilities::v3::Request,
) -> Result<RawJson, Error> {
    let available: BTreeMap<&str, &str> = version::CREATABLE
        .iter()
        .map(|version| (version.as_str(), "stable"))
        .collect();
    let default = server.config.rooms.default_version.as_str();
    let mut capabilities = json!({
        "m.change_password": { "enabled": true },
        "m.room_versions": { "default": default, "available": available },
        "m.set_displayname": { "enabled": true },
        "m.set_avatar_url": { "enabled": true },
        "m.profile_fields": { "enabled": true },
        "m.3pid_changes": { "enabled": false },
        "m.get_login_token": { "enabled": true },
        "m.forget_forced_upon_leave": { "enabled": false },
    });
    if let (true, Some(capabilities)) = (session.is_admin, capabilities.as_object_mut()) {
        let moderation = json!({ "lock": true, "suspend": true });
        capabilities.insert("m.account_moderation".to_owned(), moderation);
    }
    Ok(RawJson(
        json!({ "capabilities": capabilities }).to_string().into(),
    ))
}

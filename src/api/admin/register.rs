//! Registration by a secret that the operator and a tool share: `/_synapse/admin/v1/register`.
//!
//! The tool asks for a nonce and proves that it knows the secret by an HMAC over the nonce and what it registers.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use hmac::{Hmac, KeyInit, Mac};
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;
use sha1::Sha1;

use crate::{
    accounts::{NewDevice, NewUser, Passed, Refreshable},
    api::{
        error::Error,
        routes::{self, PlainRequest, Response, Routes},
    },
    server::Server,
};

const PATH: &str = "/_synapse/admin/v1/register";
const NONCE_LIFETIME_MS: u64 = 60_000;
/// Nonces given out and not used; the oldest are forgotten first.
const MAX_NONCES: usize = 10_000;

/// Nonces that were given out, by the time at which they end.
#[derive(Debug, Default)]
struct Nonces(BTreeSet<(u64, String)>);

#[derive(Deserialize)]
struct Body {
    nonce: String,
    username: String,
    password: String,
    mac: String,
    #[serde(default)]
    admin: bool,
    #[serde(default)]
    displayname: Option<String>,
    #[serde(default)]
    user_type: Option<String>,
}

pub(super) fn routes() -> Routes {
    let nonces = Arc::new(Mutex::new(Nonces::default()));
    let given = Arc::clone(&nonces);
    Routes::default()
        .plain(Method::GET, PATH, move |server, _request| {
            std::future::ready(nonce(&server, &given))
        })
        .plain(Method::POST, PATH, move |server, request| {
            register(server, request, Arc::clone(&nonces))
        })
}

fn nonce(server: &Server, nonces: &Mutex<Nonces>) -> Result<Response, Error> {
    secret(server)?;
    let now_ms = server.clock.now_ms();
    let nonce = server.clock.random_string(32);
    nonces
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .give(&nonce, now_ms);
    routes::json(StatusCode::OK, &json!({ "nonce": nonce }))
}

async fn register(
    server: Arc<Server>,
    request: PlainRequest,
    nonces: Arc<Mutex<Nonces>>,
) -> Result<Response, Error> {
    let secret = secret(&server)?;
    let body: Body = request.json()?;
    let now_ms = server.clock.now_ms();
    if !nonces
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take(&body.nonce, now_ms)
    {
        return Err(Error::invalid_param("The nonce is not known"));
    }
    if body.username.contains('\0') || body.password.contains('\0') {
        return Err(Error::invalid_param("A zero byte is not allowed"));
    }
    if !is_signed(&body, secret) {
        return Err(Error::forbidden("The HMAC is not right"));
    }
    let new = NewUser {
        localpart: Some(body.username),
        password: Some(body.password),
        displayname: body.displayname,
        is_admin: body.admin,
        is_service: false,
    };
    let device = NewDevice {
        id: None,
        display_name: None,
        refreshable: Refreshable::No,
    };
    let (user, issued) = server
        .accounts
        .register(new, Some(device), Passed::default())
        .await?;
    let mut answer = json!({ "user_id": user.id, "home_server": user.id.server_name() });
    if let (Some(issued), Some(answer)) = (issued, answer.as_object_mut()) {
        answer.insert("access_token".to_owned(), issued.access_token.into());
        answer.insert("device_id".to_owned(), issued.device.as_str().into());
    }
    routes::json(StatusCode::OK, &answer)
}

fn secret(server: &Server) -> Result<&str, Error> {
    let secret = server.config.registration.shared_secret.as_ref();
    secret
        .map(|secret| secret.expose())
        .ok_or_else(|| Error::invalid_param("There is no shared secret"))
}

fn is_signed(body: &Body, secret: &str) -> bool {
    let mut mac = Hmac::<Sha1>::new_from_slice(secret.as_bytes()).expect("any length is a key");
    let role = if body.admin { "admin" } else { "notadmin" };
    let fields = [
        Some(body.nonce.as_str()),
        Some(&body.username),
        Some(&body.password),
        Some(role),
    ];
    for (place, field) in fields
        .into_iter()
        .chain([body.user_type.as_deref()])
        .flatten()
        .enumerate()
    {
        if place > 0 {
            mac.update(b"\0");
        }
        mac.update(field.as_bytes());
    }
    decode_hex(&body.mac).is_some_and(|given| mac.verify_slice(&given).is_ok())
}

fn decode_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text
        .chars()
        .map(|digit| {
            digit
                .to_digit(16)
                .and_then(|digit| u8::try_from(digit).ok())
        })
        .collect();
    let digits = digits.filter(|digits| digits.len() % 2 == 0)?;
    Some(
        digits
            .chunks_exact(2)
            .map(|pair| pair.iter().fold(0, |byte, digit| (byte << 4) | digit))
            .collect(),
    )
}

impl Nonces {
    fn give(&mut self, nonce: &str, now_ms: u64) {
        self.drop_old(now_ms);
        if self.0.len() >= MAX_NONCES {
            self.0.pop_first();
        }
        self.0
            .insert((now_ms + NONCE_LIFETIME_MS, nonce.to_owned()));
    }

    /// Whether `nonce` was given out; it is used up.
    fn take(&mut self, nonce: &str, now_ms: u64) -> bool {
        self.drop_old(now_ms);
        let before = self.0.len();
        self.0.retain(|(_, given)| given != nonce);
        self.0.len() < before
    }

    fn drop_old(&mut self, now_ms: u64) {
        self.0 = self.0.split_off(&(now_ms, String::new()));
    }
}

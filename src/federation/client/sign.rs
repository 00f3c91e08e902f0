//! The `Authorization` header of a request.
//!
//! Spec: s2s, "Request Authentication".

use bytes::Bytes;
use http::{HeaderValue, header};
use ruma::ServerName;

use crate::{
    events::{
        Signer,
        canonical::{self, Loose},
    },
    federation::Error,
};

/// Makes the body of `request`, an object if there is one, canonical JSON: what is signed is what is sent. Events of old rooms in it keep
/// their numbers.
pub(super) fn canonicalize(request: &mut http::Request<Bytes>) -> Result<(), Error> {
    if !request.body().is_empty() {
        let content = Loose::parse(request.body()).map_err(|error| Error::Request(error.into()))?;
        *request.body_mut() = content.to_vec().into();
    }
    Ok(())
}

/// Signs `request` for `server`. Its body is empty or canonical JSON.
pub(super) fn sign(
    signer: &Signer,
    server: &ServerName,
    request: &mut http::Request<Bytes>,
) -> Result<(), Error> {
    let origin = signer.server_name();
    let key = signer.key_id();
    let signature = signer.sign_canonical(&signed(origin, server, request));
    // All values in quotes and no spaces: as older servers read it.
    let value = format!(
        "X-Matrix origin=\"{origin}\",destination=\"{server}\",key=\"{key}\",sig=\"{signature}\""
    );
    let value = HeaderValue::from_str(&value).map_err(|error| Error::Request(error.into()))?;
    let has_body = !request.body().is_empty();
    let headers = request.headers_mut();
    headers.insert(header::AUTHORIZATION, value);
    if has_body {
        let json = HeaderValue::from_static("application/json");
        headers.insert(header::CONTENT_TYPE, json);
    }
    Ok(())
}

/// The object that is signed, as canonical JSON. The body goes in as it is, without being read again.
fn signed(
    origin: &ServerName,
    destination: &ServerName,
    request: &http::Request<Bytes>,
) -> Vec<u8> {
    let body = request.body();
    let uri = request
        .uri()
        .path_and_query()
        .map_or("/", http::uri::PathAndQuery::as_str);
    let mut object = Vec::with_capacity(body.len() + uri.len() + 256);
    object.push(b'{');
    if !body.is_empty() {
        object.extend_from_slice(b"\"content\":");
        object.extend_from_slice(body);
        object.push(b',');
    }
    let fields = [
        ("destination", destination.as_str()),
        ("method", request.method().as_str()),
        ("origin", origin.as_str()),
        ("uri", uri),
    ];
    for (index, (key, value)) in fields.into_iter().enumerate() {
        if index > 0 {
            object.push(b',');
        }
        canonical::write_string(key, &mut object);
        object.push(b':');
        canonical::write_string(value, &mut object);
    }
    object.push(b'}');
    object
}

//! Messages from device to device.
//!
//! Spec: c2s, "Send-to-device messaging".

use std::sync::Arc;

use ruma::api::client::to_device::send_event_to_device;

use crate::{
    accounts::Session,
    api::{content, error::Error, routes::Routes},
    encryption::{Letter, MAX_CONTENT_BYTES, MAX_RECIPIENTS, MAX_TYPE_BYTES, Recipient},
    events::canonical,
    server::Server,
};

pub(super) fn routes() -> Routes {
    Routes::default().endpoint(send_event_to_device)
}

/// Spec: c2s, "PUT /_matrix/client/v3/sendToDevice/{eventType}/{txnId}".
async fn send_event_to_device(
    server: Arc<Server>,
    session: Arc<Session>,
    request: send_event_to_device::v3::Request,
) -> Result<send_event_to_device::v3::Response, Error> {
    let event_type = request.event_type.to_string();
    if event_type.len() > MAX_TYPE_BYTES {
        return Err(Error::invalid_param("An event type has at most 255 bytes"));
    }
    let sender = (
        session.user.clone(),
        session.user_number,
        session.device_hash,
    );
    let mut letter = Letter::of_client(sender, event_type, request.txn_id.as_str());
    letter.recipients = recipients(request.messages)?;
    server
        .federation
        .send_to_device(letter)
        .await
        .map_err(Error::of_federation)?;
    Ok(send_event_to_device::v3::Response::new())
}

/// Every message with the one device or the devices that it is for.
fn recipients(messages: send_event_to_device::v3::Messages) -> Result<Vec<Recipient>, Error> {
    let count: usize = messages.values().map(|devices| devices.len()).sum();
    if count > MAX_RECIPIENTS {
        return Err(Error::too_large("At most 10000 messages at once"));
    }
    let mut recipients = Vec::with_capacity(count);
    for (user, devices) in messages {
        for (device, content) in devices {
            let content = canonical::to_vec(&content::content(&content)?);
            if content.len() > MAX_CONTENT_BYTES {
                return Err(Error::too_large("A message has at most 65536 bytes"));
            }
            recipients.push(Recipient {
                user: user.clone(),
                device,
                content,
            });
        }
    }
    Ok(recipients)
}

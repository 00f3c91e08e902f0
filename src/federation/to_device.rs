//! Messages from device to device, to and from other servers.
//!
//! What goes out is queued in the same batch in which what stays here is stored; what comes in is stored once for each of the
//! IDs that the sender's server has given.
//!
//! Spec: s2s, "Send-to-device messaging".

use std::collections::BTreeMap;

use ruma::{OwnedServerName, OwnedUserId, ServerName, to_device::DeviceIdOrAllDevices};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Error, Federation};
use crate::{
    encryption::{Letter, MAX_CONTENT_BYTES, MAX_RECIPIENTS, MAX_TYPE_BYTES, Recipient},
    events::canonical::{self, Loose},
    storage::Batch,
};

/// Messages for one server are put into one EDU up to this size.
const EDU_BYTES: usize = MAX_CONTENT_BYTES;
const MESSAGE_ID_CHARS: usize = 32;
/// Longer ones are no IDs. The specification has servers make them of at most 32.
const MAX_MESSAGE_ID_BYTES: usize = 255;

/// The messages of one EDU: by user and device, in canonical JSON.
type Messages = BTreeMap<String, BTreeMap<String, Vec<u8>>>;

#[derive(Deserialize)]
struct DirectToDevice<'a> {
    sender: OwnedUserId,
    #[serde(rename = "type")]
    event_type: String,
    message_id: String,
    #[serde(borrow)]
    messages: BTreeMap<String, BTreeMap<String, &'a RawValue>>,
}

impl Federation {
    /// Sends a letter of a client: stores what is for devices of this server, and queues the rest for the other servers.
    ///
    /// # Errors
    /// The store failed.
    pub async fn send_to_device(&self, mut letter: Letter) -> Result<(), Error> {
        let own = self.inner.rooms.own_name();
        let (local, remote): (Vec<_>, Vec<_>) = letter
            .recipients
            .into_iter()
            .partition(|recipient| recipient.user.server_name() == own);
        letter.recipients = local;
        letter.outgoing = self.put_up(&letter.sender, &letter.event_type, remote);
        Ok(self.inner.encryption.deliver(letter).await?)
    }

    /// The EDUs that hold these messages, each in a batch that queues it.
    fn put_up(
        &self,
        sender: &OwnedUserId,
        event_type: &str,
        recipients: Vec<Recipient>,
    ) -> Vec<Batch> {
        let mut by_server: BTreeMap<OwnedServerName, Vec<Recipient>> = BTreeMap::new();
        for recipient in recipients {
            let server = recipient.user.server_name().to_owned();
            by_server.entry(server).or_default().push(recipient);
        }
        let mut batches = Vec::new();
        for (server, recipients) in by_server {
            let servers = [server];
            for messages in in_parts(recipients) {
                let id = self.inner.clock.random_string(MESSAGE_ID_CHARS);
                let edu = write_edu(sender, event_type, &id, &messages);
                batches.push(self.queue_canonical(&servers, &edu));
            }
        }
        batches
    }

    /// Stores what another server sends to devices of this one.
    pub(super) async fn receive_to_device(
        &self,
        origin: &ServerName,
        content: &str,
    ) -> Result<(), Error> {
        let Ok(content) = serde_json::from_str::<DirectToDevice<'_>>(content) else {
            return Ok(());
        };
        let DirectToDevice {
            sender,
            event_type,
            message_id,
            messages,
        } = content;
        if sender.server_name() != origin
            || event_type.len() > MAX_TYPE_BYTES
            || message_id.len() > MAX_MESSAGE_ID_BYTES
        {
            return Ok(());
        }
        let mut letter = Letter::of_server(origin, sender, event_type, &message_id);
        let own = self.inner.rooms.own_name();
        for (user, devices) in messages {
            let Some(user) = OwnedUserId::try_from(user)
                .ok()
                .filter(|user| user.server_name() == own)
            else {
                continue;
            };
            for (device, content) in devices {
                letter.recipients.extend(recipient(&user, &device, content));
            }
        }
        letter.recipients.truncate(MAX_RECIPIENTS);
        if letter.recipients.is_empty() {
            return Ok(());
        }
        Ok(self.inner.encryption.deliver(letter).await?)
    }
}

/// `None` if the content is none, or too large.
fn recipient(user: &OwnedUserId, device: &str, content: &RawValue) -> Option<Recipient> {
    let device = DeviceIdOrAllDevices::try_from(device).ok()?;
    // Numbers that events may not hold come through: the message is between the devices.
    let content = Loose::parse(content.get().as_bytes()).ok()?.to_vec();
    (content.len() <= MAX_CONTENT_BYTES).then(|| Recipient {
        user: user.clone(),
        device,
        content,
    })
}

/// Messages of one server, in parts of which each fits an EDU.
fn in_parts(recipients: Vec<Recipient>) -> Vec<Messages> {
    let mut parts = Vec::new();
    let mut part = Messages::new();
    let mut bytes = 0;
    for Recipient {
        user,
        device,
        content,
    } in recipients
    {
        let (user, device) = (String::from(user), device.to_string());
        let size = user.len() + device.len() + content.len() + 10;
        if bytes + size > EDU_BYTES && !part.is_empty() {
            parts.push(std::mem::take(&mut part));
            bytes = 0;
        }
        bytes += size;
        part.entry(user).or_default().insert(device, content);
    }
    if !part.is_empty() {
        parts.push(part);
    }
    parts
}

/// The EDU in canonical JSON.
fn write_edu(
    sender: &OwnedUserId,
    event_type: &str,
    message_id: &str,
    messages: &Messages,
) -> String {
    let mut edu = b"{\"content\":{\"message_id\":".to_vec();
    canonical::write_string(message_id, &mut edu);
    edu.extend_from_slice(b",\"messages\":{");
    for (at, (user, devices)) in messages.iter().enumerate() {
        begin_field(&mut edu, at, user);
        edu.push(b'{');
        for (at, (device, content)) in devices.iter().enumerate() {
            begin_field(&mut edu, at, device);
            edu.extend_from_slice(content);
        }
        edu.push(b'}');
    }
    edu.extend_from_slice(b"},\"sender\":");
    canonical::write_string(sender.as_str(), &mut edu);
    edu.extend_from_slice(b",\"type\":");
    canonical::write_string(event_type, &mut edu);
    edu.extend_from_slice(b"},\"edu_type\":\"m.direct_to_device\"}");
    String::from_utf8_lossy(&edu).into_owned()
}

fn begin_field(to: &mut Vec<u8>, at: usize, name: &str) {
    if at > 0 {
        to.push(b',');
    }
    canonical::write_string(name, to);
    to.push(b':');
}

#[cfg(test)]
mod tests;

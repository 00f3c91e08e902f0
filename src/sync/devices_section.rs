//! What concerns encryption: messages from other devices, whose devices have changed, and the keys that are left.
//!
//! Spec: c2s, "Send-to-device messaging", "End-to-End Encryption" (extensions to /sync).

use std::collections::BTreeSet;

use super::{
    Error, Sync,
    v3::{View, write_count},
};
use crate::{
    accounts::UserNumber,
    encryption::{Asker, KeyCounts, Messages},
    rooms::client_event::{write_number, write_text},
};

/// The algorithm of one-time keys that clients use.
const USUAL_ALGORITHM: &str = "signed_curve25519";

impl Sync {
    /// Whose devices are to be looked up anew, and whose are of no concern any more; true if there is anybody. Who knows
    /// nothing yet has to look up everybody anyway.
    pub(super) fn write_device_lists(
        &self,
        to: &mut Vec<u8>,
        view: &View<'_>,
    ) -> Result<bool, Error> {
        let changed_rooms = view.changed_rooms.take();
        let lists = match view.since {
            Some(since) => {
                let asker = Asker {
                    user: view.request.viewer.user,
                    id: &view.request.user,
                    since: since.position,
                    knows_partial_rooms: view.request.filter.has_lazy_members,
                };
                let encryption = &self.inner.encryption;
                encryption.device_lists(view.snapshot, asker, &changed_rooms)?
            }
            None => Default::default(),
        };
        to.extend_from_slice(b",\"device_lists\":{\"changed\":");
        self.write_users(to, view, &lists.changed)?;
        to.extend_from_slice(b",\"left\":");
        self.write_users(to, view, &lists.left)?;
        to.push(b'}');
        Ok(!lists.is_empty())
    }

    fn write_users(
        &self,
        to: &mut Vec<u8>,
        view: &View<'_>,
        users: &BTreeSet<UserNumber>,
    ) -> Result<(), Error> {
        to.push(b'[');
        if !users.is_empty() {
            let users: Vec<UserNumber> = users.iter().copied().collect();
            let ids = self.inner.accounts.user_ids(view.snapshot, &users)?;
            for (at, id) in ids.iter().enumerate() {
                if at > 0 {
                    to.push(b',');
                }
                write_text(to, id.as_str());
            }
        }
        to.push(b']');
        Ok(())
    }
}

/// What other devices have sent to this one; true if they have.
pub(super) fn write_messages(to: &mut Vec<u8>, messages: &Messages) -> bool {
    to.extend_from_slice(b",\"to_device\":{\"events\":[");
    for (at, event) in messages.events.iter().enumerate() {
        if at > 0 {
            to.push(b',');
        }
        to.extend_from_slice(event);
    }
    to.extend_from_slice(b"]}");
    !messages.events.is_empty()
}

/// The one-time keys that are held for the device, and the algorithms of its fallback keys that nobody has got yet. Of the
/// algorithm that clients use a number is always told, as its absence may be taken for none.
pub(super) fn write_key_counts(to: &mut Vec<u8>, counts: &KeyCounts) {
    to.extend_from_slice(b",\"device_one_time_keys_count\":{\"signed_curve25519\":");
    let count = |algorithm: &str| counts.one_time.get(algorithm).copied();
    write_number(to, count(USUAL_ALGORITHM).unwrap_or_default());
    for (algorithm, count) in &counts.one_time {
        if algorithm != USUAL_ALGORITHM {
            write_count(to, algorithm, *count);
        }
    }
    to.extend_from_slice(b"},\"device_unused_fallback_key_types\":[");
    for (at, algorithm) in counts.unused_fallback.iter().enumerate() {
        if at > 0 {
            to.push(b',');
        }
        write_text(to, algorithm);
    }
    to.push(b']');
}

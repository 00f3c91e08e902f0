//! A number that is equal for equal room states, kept up to date in constant time per change.
//!
//! The sum modulo 2^128 of one keyed hash per entry: adding and removing commute, so the order of changes does not matter. The key is
//! secret and differs per database: nobody outside can make two states collide, and a fingerprint means nothing elsewhere.

use ruma::{EventId, events::StateEventType};
use serde::{Deserialize, Serialize};

/// The secret key of fingerprints, of one database.
#[derive(Clone)]
pub struct FingerprintKey(pub [u8; 32]);

/// The fingerprint of a state; the default is that of no state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(u128);

impl FingerprintKey {
    /// What one entry of a state adds to its fingerprint.
    pub fn entry(
        &self,
        event_type: &StateEventType,
        state_key: &str,
        event_id: &EventId,
    ) -> Fingerprint {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(event_type.to_string().as_bytes());
        hasher.update(&[0]);
        hasher.update(state_key.as_bytes());
        hasher.update(&[0]);
        hasher.update(event_id.as_bytes());
        let mut first = [0; 16];
        hasher.finalize_xof().fill(&mut first);
        Fingerprint(u128::from_be_bytes(first))
    }
}

impl Fingerprint {
    /// This state with an entry more.
    #[must_use]
    pub fn with(self, entry: Self) -> Self {
        Self(self.0.wrapping_add(entry.0))
    }

    /// This state with an entry less.
    #[must_use]
    pub fn without(self, entry: Self) -> Self {
        Self(self.0.wrapping_sub(entry.0))
    }

    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    use ruma::event_id;

    use super::*;

    #[test]
    fn order_does_not_matter_and_removing_undoes_adding() {
        let key = FingerprintKey([7; 32]);
        let name = key.entry(&StateEventType::RoomName, "", event_id!("$a"));
        let topic = key.entry(&StateEventType::RoomTopic, "", event_id!("$b"));
        let empty = Fingerprint::default();

        assert_eq!(empty.with(name).with(topic), empty.with(topic).with(name));
        assert_eq!(
            empty.with(name).with(topic).without(name),
            empty.with(topic)
        );
        assert_ne!(name, topic);
        assert_eq!(Fingerprint::from_bytes(name.to_bytes()), name);
    }

    #[test]
    fn every_part_of_an_entry_and_the_key_count() {
        let key = FingerprintKey([7; 32]);
        let entry = key.entry(&StateEventType::from("a"), "b", event_id!("$c"));

        assert_ne!(
            entry,
            key.entry(&StateEventType::from("a"), "", event_id!("$c"))
        );
        assert_ne!(
            entry,
            key.entry(&StateEventType::from("ab"), "", event_id!("$c"))
        );
        assert_ne!(
            entry,
            key.entry(&StateEventType::from("a"), "b", event_id!("$d"))
        );
        assert_ne!(
            entry,
            FingerprintKey([8; 32]).entry(&StateEventType::from("a"), "b", event_id!("$c"))
        );
    }
}

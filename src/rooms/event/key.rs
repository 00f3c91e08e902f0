//! Event IDs as rows have them: the 32 bytes of a hash, or the text where an ID is something else.
//!
//! From version 4 on, an ID is a hash in URL-safe base64 and leads back to itself from its bytes. In versions 1 and 2 servers choose the
//! text, and in version 3 most hashes have a letter of the other alphabet: these are kept as they are. engine.md sections 5.1 and 5.2.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ruma::{EventId, OwnedEventId};

use super::{EventPlace, Reader, put_varint};
use crate::{
    events::format::MAX_IDENTIFIER_BYTES,
    rooms::Error,
    storage::{Batch, Family, Record, Snapshot, Table, Text},
};

/// The 32 bytes that an event ID of room version 4 and later is made of.
type EventHash = [u8; 32];

static BY_HASH: Table<(EventHash,), EventPlace> = Table::new("event_ids", Family::EventIds, b'e');
static BY_TEXT: Table<(Text,), EventPlace> = Table::new("old_event_ids", Family::EventIds, b'o');

/// What an event ID is in keys and rows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum EventKey {
    Hash(EventHash),
    Text(Arc<str>),
}

impl EventKey {
    pub(crate) fn of(event_id: &EventId) -> Self {
        let text = event_id.as_str();
        let mut hash = [0; 32];
        // Longer text than that of a hash does not fit; what is read is what would be written.
        let read = text.get(1..).filter(|text| text.len() == HASH_CHARS);
        match read.map(|read| URL_SAFE_NO_PAD.decode_slice(read, &mut hash)) {
            Some(Ok(32)) => Self::Hash(hash),
            _ => Self::Text(text.into()),
        }
    }

    pub(crate) fn id(&self) -> OwnedEventId {
        match self {
            Self::Hash(hash) => {
                let text = format!("${}", URL_SAFE_NO_PAD.encode(hash));
                EventId::parse(text).expect("a sigil and 43 characters are an event ID")
            }
            Self::Text(text) => EventId::parse(&**text).expect("only event IDs become keys"),
        }
    }

    /// What it costs in memory, in bytes.
    pub(crate) fn weight(&self) -> usize {
        let text = match self {
            Self::Hash(_) => 0,
            Self::Text(text) => text.len(),
        };
        size_of::<Self>() + text
    }

    /// Appends the key where its length is known from elsewhere, as at the end of a row: a hash as it is, and text so that it is never
    /// 32 bytes long.
    pub(in crate::rooms) fn put_last(&self, to: &mut Vec<u8>) {
        match self {
            Self::Hash(hash) => to.extend_from_slice(hash),
            Self::Text(text) => {
                put_text(to, text);
                if text.len() + 1 == size_of::<EventHash>() {
                    to.push(0);
                }
            }
        }
    }

    /// Takes what [`Self::put_last`] wrote.
    pub(in crate::rooms) fn take_last(from: &[u8]) -> Result<Self, String> {
        match EventHash::try_from(from) {
            Ok(hash) => Ok(Self::Hash(hash)),
            Err(_other_length) => take_text(&mut Reader(from)).map(Self::Text),
        }
    }
}

/// Characters of a hash in base64.
const HASH_CHARS: usize = 43;

impl Record for EventKey {
    fn encode(&self, to: &mut Vec<u8>) {
        self.put_last(to);
    }
    fn decode(from: &[u8]) -> Result<Self, String> {
        Self::take_last(from)
    }
}

/// Appends text behind its length.
pub(in crate::rooms) fn put_text(to: &mut Vec<u8>, text: &str) {
    put_varint(to, text.len() as u64);
    to.extend_from_slice(text.as_bytes());
}

/// Takes what [`put_text`] wrote off the front of a row.
pub(in crate::rooms) fn take_text(reader: &mut Reader<'_>) -> Result<Arc<str>, String> {
    let length = usize::try_from(reader.varint()?).map_err(|large| large.to_string())?;
    let text = std::str::from_utf8(reader.take(length)?).map_err(|invalid| invalid.to_string())?;
    EventId::parse(text).map_err(|invalid| invalid.to_string())?;
    Ok(text.into())
}

/// Where the event of this ID lies, if this server has it.
pub(in crate::rooms) fn place(
    snapshot: &Snapshot,
    key: &EventKey,
) -> Result<Option<EventPlace>, Error> {
    Ok(match key {
        EventKey::Hash(hash) => snapshot.get(&BY_HASH, &(*hash,))?,
        // No event has such an ID, and no table such keys.
        EventKey::Text(text) if text.len() > MAX_IDENTIFIER_BYTES => None,
        EventKey::Text(text) => snapshot.get(&BY_TEXT, &(Text::from(&**text),))?,
    })
}

/// The same for several, in their order, with one read for each of both kinds.
pub(in crate::rooms) fn places(
    snapshot: &Snapshot,
    keys: &[EventKey],
) -> Result<Vec<Option<EventPlace>>, Error> {
    let (mut hashes, mut texts) = (Vec::with_capacity(keys.len()), Vec::new());
    for key in keys {
        match key {
            EventKey::Hash(hash) => hashes.push((*hash,)),
            EventKey::Text(text) => texts.push((Text::from(&**text),)),
        }
    }
    let mut by_hash = snapshot.get_many(&BY_HASH, &hashes)?.into_iter();
    let mut by_text = match texts.is_empty() {
        true => Vec::new(),
        false => snapshot.get_many(&BY_TEXT, &texts)?,
    }
    .into_iter();
    let found = keys.iter().map(|key| match key {
        EventKey::Hash(_) => by_hash.next().flatten(),
        EventKey::Text(_) => by_text.next().flatten(),
    });
    Ok(found.collect())
}

/// Lets an ID lead to its event.
pub(super) fn insert(batch: &mut Batch, key: &EventKey, place: EventPlace) {
    match key {
        EventKey::Hash(hash) => batch.put(&BY_HASH, &(*hash,), &place),
        EventKey::Text(text) => batch.put(&BY_TEXT, &(Text::from(&**text),), &place),
    }
}

#[cfg(test)]
mod tests {
    use ruma::event_id;

    use super::*;
    use crate::rooms::event::Body;

    fn check(event_id: &EventId, is_hash: bool) {
        let key = EventKey::of(event_id);
        assert_eq!(matches!(key, EventKey::Hash(_)), is_hash, "{event_id}");
        assert_eq!(key.id(), event_id);
        let mut row = Vec::new();
        key.encode(&mut row);
        assert_eq!(row.len() == 32, is_hash, "{event_id}");
        assert_eq!(EventKey::decode(&row), Ok(key));
    }

    #[test]
    fn every_event_id_is_read_back_from_its_key() {
        check(
            event_id!("$Rqnc-F-dvnEYJTyHq_iKxU2bZ1CI92-kuZq3a5lr5Zg"),
            true,
        );
        // Both alphabets write this hash alike.
        check(
            event_id!("$acR1l0raoZnm60CBwAVgqbZqoOxmYU81xysh1u7XcJk"),
            true,
        );
        check(
            event_id!("$acR1l0raoZnm60CBwAVgqbZqoO/mYU81xysh1u7XcJk"),
            false,
        );
        // The last letter says more than a hash has bits.
        check(
            event_id!("$Rqnc-F-dvnEYJTyHq_iKxU2bZ1CI92-kuZq3a5lr5Zh"),
            false,
        );
        check(event_id!("$a"), false);
        check(event_id!("$a4ecee13e2accdadf56c1025:example.com"), false);
        for length in 1..=242 {
            let id = format!("${}:x.example", "a".repeat(length));
            check(&EventId::parse(id).expect("this is an event ID"), false);
        }
    }

    #[test]
    fn bodies_keep_their_bytes() {
        let check = |event_id: &EventId, head: &[u8]| {
            let body = Body {
                id: EventKey::of(event_id),
                json: "{}".into(),
            };
            let mut row = Vec::new();
            body.encode(&mut row);
            assert_eq!(row, [head, b"{}"].concat());
            assert_eq!(Body::decode(&row), Ok(body));
        };
        let zeros = event_id!("$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA");
        check(zeros, &[0; 33]);
        check(event_id!("$a:x.example"), b"\x02\x0c$a:x.example");
    }

    #[test]
    fn damaged_rows_are_errors() {
        for row in [&b""[..], b"\x05$a", b"\x02ab", b"\x02\xff\xff"] {
            assert!(EventKey::decode(row).is_err(), "{row:?}");
        }
    }
}

//! The events that an event cites: IDs, or in versions 1 and 2 pairs of an ID and hashes.
//!
//! Spec: rooms/v1, "Event format"; rooms/v3, "Event format".

use std::{collections::BTreeMap, fmt};

use ruma::{EventId, OwnedEventId};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny, SeqAccess, Visitor},
};

/// Cited events, in either form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct References {
    pub ids: Vec<OwnedEventId>,
    /// The reference hashes that are told with them.
    pub hashes: BTreeMap<OwnedEventId, String>,
}

/// One cited event.
struct Reference(OwnedEventId, Option<String>);

/// Anything may stand there: nobody compares it.
#[derive(Deserialize)]
struct Hashes {
    sha256: Option<serde_json::Value>,
}

impl<'de> Deserialize<'de> for References {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(List)
    }
}

struct List;

impl<'de> Visitor<'de> for List {
    type Value = References;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of events")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<References, A::Error> {
        let mut references = References {
            ids: Vec::with_capacity(access.size_hint().unwrap_or_default()),
            hashes: BTreeMap::new(),
        };
        while let Some(Reference(id, hash)) = access.next_element()? {
            if let Some(hash) = hash {
                references.hashes.insert(id.clone(), hash);
            }
            references.ids.push(id);
        }
        Ok(references)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(One)
    }
}

struct One;

impl<'de> Visitor<'de> for One {
    type Value = Reference;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an event ID, or a pair of an event ID and hashes")
    }

    fn visit_str<E: serde::de::Error>(self, id: &str) -> Result<Reference, E> {
        let id = EventId::parse(id).map_err(E::custom)?;
        Ok(Reference(id, None))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Reference, A::Error> {
        let missing = || A::Error::custom("half of a pair is missing");
        let id: OwnedEventId = access.next_element()?.ok_or_else(missing)?;
        let hashes: Hashes = access.next_element()?.ok_or_else(missing)?;
        match access.next_element::<IgnoredAny>()? {
            Some(_) => Err(A::Error::custom("a pair has two halves")),
            None => {
                let hash = hashes.sha256.as_ref().and_then(serde_json::Value::as_str);
                Ok(Reference(id, hash.map(str::to_owned)))
            }
        }
    }
}

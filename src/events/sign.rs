//! Making events of our own, and checking hashes and signatures of others'.
//!
//! [`Signer::build`] writes the canonical form in pieces and hashes, signs and joins these, instead of building and serializing the event
//! three times: it runs for every message. That the result is what the library makes is a property test.
//!
//! The library knows canonical JSON only. Events with other numbers, which rooms before version 6 hold, are signed and checked here.

use std::collections::{BTreeMap, BTreeSet};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use ruma::{
    CanonicalJsonObject, EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId,
    OwnedServerName, OwnedServerSigningKeyId, OwnedUserId, ServerName, ServerSigningKeyId,
    SigningKeyAlgorithm,
    canonical_json::{CanonicalJsonFieldError, CanonicalJsonValue, redact_in_place},
    events::TimelineEventType,
    room_version_rules::{EventIdFormatVersion, RedactionRules, RoomVersionRules, SignaturesRules},
    serde::{Base64, base64::Standard},
    signatures::{
        self, Ed25519KeyPair, Ed25519KeyPairParseError, JsonError, KeyPair as _, PublicKeyMap,
        VerificationError,
    },
};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use crate::events::{
    canonical::{self, Loose},
    format::{MAX_IDENTIFIER_BYTES, MAX_PDU_BYTES, Parsed},
    pdu::{Malformed, Pdu},
    redact::{self, RedactError},
};

/// What precedes the 32 bytes of a secret key in a PKCS#8 document of version 1.
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// The identity of a server: its name and the key that its events are signed with.
#[derive(Debug)]
pub struct Signer {
    server: OwnedServerName,
    key: Ed25519KeyPair,
    key_id: OwnedServerSigningKeyId,
    document: Document,
}

/// The secret key as PKCS#8, which must not end up in a log.
struct Document(Vec<u8>);

impl std::fmt::Debug for Document {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Document(..)")
    }
}

/// A stored key that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("the signing key cannot be read")]
    Document(#[from] Ed25519KeyPairParseError),
    #[error("`{0}` is not the version of a signing key")]
    Version(String),
}

/// What makes an event, before hashes and signatures.
#[derive(Clone, Debug)]
pub struct NewPdu {
    /// `None` for the create event of a room whose ID is made from that event.
    pub room_id: Option<OwnedRoomId>,
    pub sender: OwnedUserId,
    pub event_type: TimelineEventType,
    pub state_key: Option<String>,
    pub content: CanonicalJsonObject,
    pub origin_server_ts: MilliSecondsSinceUnixEpoch,
    /// Lowered to what canonical JSON can say: others may have sent events of any depth.
    pub depth: u64,
    pub prev_events: Vec<OwnedEventId>,
    pub auth_events: Vec<OwnedEventId>,
    /// The target of a redaction; goes into the content or beside it as the version says.
    pub redacts: Option<OwnedEventId>,
    /// In versions whose event IDs are not hashes.
    pub named: Option<Named>,
}

/// What an event has beside the rest in versions 1 and 2: an ID that its server gives it, and the hashes of the events that it cites.
///
/// Spec: rooms/v1, "Event format".
#[derive(Clone, Debug)]
pub struct Named {
    pub event_id: OwnedEventId,
    /// The reference hashes of `prev_events` and `auth_events`.
    pub hashes: BTreeMap<OwnedEventId, String>,
}

/// Why an event cannot be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    #[error("the event is larger than {MAX_PDU_BYTES} bytes")]
    TooLarge,
    #[error("`{0}` is longer than {MAX_IDENTIFIER_BYTES} bytes")]
    IdentifierTooLong(&'static str),
    #[error("events of this room version need an ID of their own")]
    NotNamed,
}

/// An event whose hashes and signatures are right: made here, or checked.
#[derive(Clone, Debug)]
pub struct Verified(Pdu);

impl std::ops::Deref for Verified {
    type Target = Pdu;

    fn deref(&self) -> &Pdu {
        &self.0
    }
}

impl Verified {
    pub fn into_pdu(self) -> Pdu {
        self.0
    }

    /// An event that was verified when it was stored: in the inbox, or as an outlier.
    pub fn from_stored(pdu: Pdu) -> Self {
        Self(pdu)
    }
}

impl From<Verified> for Pdu {
    fn from(verified: Verified) -> Self {
        verified.0
    }
}

impl Signer {
    /// A new identity from 32 random bytes.
    ///
    /// # Panics
    ///
    /// Never: every 32 bytes are a secret key.
    pub fn generate(server: OwnedServerName, seed: &[u8; 32]) -> Self {
        let document = [PKCS8_PREFIX.as_slice(), seed.as_slice()].concat();
        let key = Ed25519KeyPair::from_der(&document, String::new())
            .expect("the document has the form of a secret key");
        // Named after the public key, so that keys never share a name.
        let version = format!(
            "h{}",
            blake3::hash(&key.public_key())
                .to_hex()
                .get(..8)
                .unwrap_or_default()
        );
        Self::from_document(server, &document, &version)
            .expect("the document has just been read, hexadecimal digits make a name")
    }

    /// The identity whose key [`Signer::document`] returned.
    ///
    /// # Errors
    ///
    /// If the document is not an Ed25519 key, or `version` has characters other than letters, digits and `_`.
    pub fn from_document(
        server: OwnedServerName,
        document: &[u8],
        version: &str,
    ) -> Result<Self, KeyError> {
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let key_id = ServerSigningKeyId::parse(format!("ed25519:{version}"))
            .ok()
            .filter(|_| !version.is_empty() && version.bytes().all(is_name))
            .ok_or_else(|| KeyError::Version(version.to_owned()))?;
        let key = Ed25519KeyPair::from_der(document, version.to_owned())?;
        Ok(Self {
            server,
            key,
            key_id,
            document: Document(document.to_vec()),
        })
    }

    /// The secret key as a PKCS#8 document, to be stored.
    pub fn document(&self) -> &[u8] {
        &self.document.0
    }

    /// The version of the key: its ID without the algorithm.
    pub fn version(&self) -> &str {
        self.key.version()
    }

    pub fn key_id(&self) -> &ServerSigningKeyId {
        &self.key_id
    }

    /// The public key in unpadded base64.
    pub fn verify_key(&self) -> String {
        STANDARD_NO_PAD.encode(self.key.public_key())
    }

    pub fn server_name(&self) -> &ServerName {
        &self.server
    }

    /// Signs a JSON object that is no event: server keys, requests.
    ///
    /// # Errors
    ///
    /// If `object` has `signatures` that are no object.
    ///
    /// Spec: appendices, "Signing JSON".
    pub fn sign_json(&self, object: &mut CanonicalJsonObject) -> Result<(), JsonError> {
        signatures::sign_json(self.server.as_str(), &self.key, object)
    }

    /// The signature of an object that is canonical JSON already, in unpadded base64.
    pub fn sign_canonical(&self, object: &[u8]) -> String {
        STANDARD_NO_PAD.encode(self.key.sign(object).as_bytes())
    }

    /// Adds our signature to an event of another server, made for us or to be vouched for (joins, invites, knocks).
    ///
    /// # Errors
    ///
    /// If `event` is not of the form of an event.
    pub fn countersign(
        &self,
        event: &mut Parsed,
        rules: &RoomVersionRules,
    ) -> Result<(), JsonError> {
        let object = &mut event.object;
        if !event.has_other_numbers {
            return signatures::sign_event(
                self.server.as_str(),
                &self.key,
                object,
                &rules.redaction,
            );
        }
        let signed = signed_form(Loose::with_other_numbers(object.clone()), &rules.redaction)?;
        let signature = self.sign_canonical(&signed);
        let empty = || CanonicalJsonValue::Object(CanonicalJsonObject::new());
        let signatures = object.entry("signatures".to_owned()).or_insert_with(empty);
        if let CanonicalJsonValue::Object(signatures) = signatures
            && let CanonicalJsonValue::Object(own) = signatures
                .entry(self.server.to_string())
                .or_insert_with(empty)
        {
            own.insert(self.key_id.to_string(), signature.into());
        }
        Ok(())
    }

    /// Makes an event: content hash, signature, event ID.
    ///
    /// # Errors
    ///
    /// If the event is larger than other servers accept.
    ///
    /// Spec: s2s, "Signing Events".
    pub fn build(&self, new: NewPdu, rules: &RoomVersionRules) -> Result<Verified, BuildError> {
        let event_type = new.event_type.to_string();
        check_identifiers(&new, &event_type)?;
        if rules.event_format.require_event_id && new.named.is_none() {
            return Err(BuildError::NotNamed);
        }
        let mut new = new;
        if rules.redaction.content_field_redacts
            && let Some(target) = &new.redacts
        {
            new.content
                .insert("redacts".to_owned(), target.as_str().into());
        }
        let depth = new.depth.min(canonical::MAX_INTEGER);
        let pieces = Pieces::new(&new, &event_type, depth, rules);
        let hash = pieces.hash_field();
        let signed = pieces.signed(
            &redact::content(&event_type, &new.content, &rules.redaction),
            &hash,
        );
        let event_id = match new.named {
            Some(named) => named.event_id,
            None => event_id(&signed, rules),
        };
        let signature = STANDARD_NO_PAD.encode(self.key.sign(&signed).as_bytes());
        let json = pieces.join(&hash, &self.signature_field(&signature));
        if json.len() > MAX_PDU_BYTES {
            return Err(BuildError::TooLarge);
        }
        let content =
            String::from_utf8(pieces.content().to_vec()).expect("canonical JSON is UTF-8");
        Ok(Verified(Pdu {
            event_id,
            room_id: new.room_id,
            sender: new.sender,
            event_type: new.event_type,
            state_key: new.state_key,
            content: RawValue::from_string(content).expect("canonical JSON is JSON"),
            // It holds no floats.
            judged: None,
            origin_server_ts: new.origin_server_ts,
            depth,
            prev_events: new.prev_events,
            auth_events: new.auth_events,
            redacts: new.redacts,
            rejected: false,
            json: json.into(),
        }))
    }

    fn signature_field(&self, signature: &str) -> Vec<u8> {
        let mut out = Vec::with_capacity(192);
        out.extend_from_slice(b",\"signatures\":{");
        canonical::write_string(self.server.as_str(), &mut out);
        out.extend_from_slice(b":{");
        canonical::write_string(self.key_id.as_str(), &mut out);
        out.push(b':');
        canonical::write_string(signature, &mut out);
        out.extend_from_slice(b"}}");
        out
    }
}

fn check_identifiers(new: &NewPdu, event_type: &str) -> Result<(), BuildError> {
    let lengths = [
        ("type", event_type.len()),
        ("sender", new.sender.as_bytes().len()),
        (
            "room_id",
            new.room_id.as_ref().map_or(0, |id| id.as_bytes().len()),
        ),
        ("state_key", new.state_key.as_ref().map_or(0, String::len)),
        (
            "event_id",
            new.named
                .as_ref()
                .map_or(0, |named| named.event_id.as_bytes().len()),
        ),
    ];
    match lengths
        .into_iter()
        .find(|(_, length)| *length > MAX_IDENTIFIER_BYTES)
    {
        Some((field, _)) => Err(BuildError::IdentifierTooLong(field)),
        None => Ok(()),
    }
}

/// The canonical form of an event, cut where `hashes` and `signatures` go: the keys of an object are sorted.
struct Pieces {
    /// `{"auth_events":…,"content":…,"depth":…,"event_id":…`
    head: Vec<u8>,
    /// Where the content lies in `head`.
    content: std::ops::Range<usize>,
    /// `,"origin_server_ts":…,"prev_events":…,"redacts":…,"room_id":…,"sender":…`
    middle: Vec<u8>,
    /// Where `,"redacts":…` lies in `middle`; redaction removes it.
    redacts: std::ops::Range<usize>,
    /// `,"state_key":…,"type":…}`
    tail: Vec<u8>,
}

impl Pieces {
    fn new(new: &NewPdu, event_type: &str, depth: u64, rules: &RoomVersionRules) -> Self {
        let mut head = Vec::with_capacity(1024);
        head.extend_from_slice(b"{\"auth_events\":");
        write_references(&new.auth_events, new.named.as_ref(), &mut head);
        head.extend_from_slice(b",\"content\":");
        let start = head.len();
        canonical::write_object(&new.content, &mut head);
        let content = start..head.len();
        head.extend_from_slice(b",\"depth\":");
        write_number(depth, &mut head);
        let named = new.named.as_ref();
        write_field(
            "event_id",
            named.map(|named| named.event_id.as_str()),
            &mut head,
        );

        let mut middle = Vec::with_capacity(512);
        middle.extend_from_slice(b",\"origin_server_ts\":");
        write_number(new.origin_server_ts.get().into(), &mut middle);
        middle.extend_from_slice(b",\"prev_events\":");
        write_references(&new.prev_events, named, &mut middle);
        let start = middle.len();
        if !rules.redaction.content_field_redacts {
            write_field(
                "redacts",
                new.redacts.as_deref().map(EventId::as_str),
                &mut middle,
            );
        }
        let redacts = start..middle.len();
        write_field(
            "room_id",
            new.room_id.as_ref().map(|id| id.as_str()),
            &mut middle,
        );
        write_field("sender", Some(new.sender.as_str()), &mut middle);

        let mut tail = Vec::with_capacity(128);
        write_field("state_key", new.state_key.as_deref(), &mut tail);
        write_field("type", Some(event_type), &mut tail);
        tail.push(b'}');
        Self {
            head,
            content,
            middle,
            redacts,
            tail,
        }
    }

    fn content(&self) -> &[u8] {
        self.head.get(self.content.clone()).unwrap_or_default()
    }

    /// `,"hashes":…` over the whole event.
    ///
    /// Spec: s2s, "Calculating the content hash for an event".
    fn hash_field(&self) -> Vec<u8> {
        let hash = Sha256::new()
            .chain_update(&self.head)
            .chain_update(&self.middle)
            .chain_update(&self.tail)
            .finalize();
        let mut out = Vec::with_capacity(80);
        out.extend_from_slice(b",\"hashes\":{\"sha256\":");
        canonical::write_string(&STANDARD_NO_PAD.encode(hash), &mut out);
        out.push(b'}');
        out
    }

    /// What is signed, and what the event ID is the hash of: the redacted event without signatures.
    ///
    /// Spec: s2s, "Signing Events" and "Calculating the reference hash for an event".
    fn signed(&self, redacted_content: &CanonicalJsonObject, hash: &[u8]) -> Vec<u8> {
        let (before_content, _) = self.head.split_at(self.content.start);
        let (_, after_content) = self.head.split_at(self.content.end);
        let (before_redacts, _) = self.middle.split_at(self.redacts.start);
        let (_, after_redacts) = self.middle.split_at(self.redacts.end);

        let mut out = Vec::with_capacity(1024);
        out.extend_from_slice(before_content);
        canonical::write_object(redacted_content, &mut out);
        for piece in [
            after_content,
            hash,
            before_redacts,
            after_redacts,
            &self.tail,
        ] {
            out.extend_from_slice(piece);
        }
        out
    }

    /// The whole event.
    fn join(&self, hash: &[u8], signatures: &[u8]) -> Vec<u8> {
        [
            self.head.as_slice(),
            hash,
            &self.middle,
            signatures,
            &self.tail,
        ]
        .concat()
    }
}

fn write_references(ids: &[OwnedEventId], named: Option<&Named>, out: &mut Vec<u8>) {
    out.push(b'[');
    for (index, id) in ids.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        let Some(named) = named else {
            canonical::write_string(id.as_str(), out);
            continue;
        };
        out.push(b'[');
        canonical::write_string(id.as_str(), out);
        out.extend_from_slice(b",{");
        if let Some(hash) = named.hashes.get(id) {
            out.extend_from_slice(b"\"sha256\":");
            canonical::write_string(hash, out);
        }
        out.extend_from_slice(b"}]");
    }
    out.push(b']');
}

fn write_number(number: u64, out: &mut Vec<u8>) {
    canonical::write_integer(i64::try_from(number).unwrap_or(i64::MAX), out);
}

fn write_field(name: &str, value: Option<&str>, out: &mut Vec<u8>) {
    let Some(value) = value else { return };
    out.push(b',');
    canonical::write_string(name, out);
    out.push(b':');
    canonical::write_string(value, out);
}

fn event_id(signed: &[u8], rules: &RoomVersionRules) -> OwnedEventId {
    let hash = encoded_hash(signed, rules);
    EventId::parse(format!("${hash}")).expect("a hash after a dollar sign is an event ID")
}

fn encoded_hash(signed: &[u8], rules: &RoomVersionRules) -> String {
    let hash = Sha256::digest(signed);
    match rules.event_id_format {
        EventIdFormatVersion::V1 | EventIdFormatVersion::V2 => STANDARD_NO_PAD.encode(hash),
        _ => URL_SAFE_NO_PAD.encode(hash),
    }
}

/// What is signed of an event, and what its reference hash is made of.
fn signed_form(
    mut event: Loose,
    rules: &RedactionRules,
) -> Result<Vec<u8>, CanonicalJsonFieldError> {
    redact_in_place(&mut event.object, rules, None)?;
    for field in ["signatures", "unsigned"] {
        event.object.remove(field);
    }
    Ok(event.to_vec())
}

/// The reference hash of an event that was read: what stands after the dollar sign of its ID, from version 3 on.
pub(in crate::events) fn hash_of(
    event: &Loose,
    rules: &RoomVersionRules,
) -> Result<String, JsonError> {
    if event.is_canonical() {
        return signatures::reference_hash(&event.object, rules);
    }
    let signed = signed_form(event.clone(), &rules.redaction)?;
    Ok(encoded_hash(&signed, rules))
}

/// The reference hash of an event, as others cite it in versions 1 and 2.
///
/// # Errors
///
/// If its JSON is not that of an event, that is: the database is damaged.
///
/// Spec: s2s, "Calculating the reference hash for an event".
pub fn reference_hash(event: &Pdu, rules: &RoomVersionRules) -> Result<String, RedactError> {
    let signed = signed_form(Loose::parse(&event.json)?, &rules.redaction)?;
    Ok(encoded_hash(&signed, rules))
}

/// Why a received event is dropped.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("the signatures are not right")]
    Signatures(#[source] Box<VerificationError>),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("the event cannot be redacted: {0}")]
    Redaction(#[from] CanonicalJsonFieldError),
}

/// The servers whose keys [`verify`] needs.
///
/// # Errors
///
/// If an ID that names a server is malformed: the event is dropped.
///
/// Spec: s2s, "Validating hashes and signatures on received events".
pub fn required_servers(
    parsed: &Parsed,
    rules: &SignaturesRules,
) -> Result<BTreeSet<OwnedServerName>, VerifyError> {
    signatures::required_server_signatures_to_verify_event(&parsed.object, rules)
        .map_err(|error| VerifyError::Signatures(Box::new(error)))
}

/// Checks signatures and content hash. An event with a wrong hash is redacted: what is left of it is what was signed.
///
/// `keys` are those that were valid at the event's `origin_server_ts`, where the version asks for that.
///
/// # Errors
///
/// If the event is to be dropped.
///
/// Spec: s2s, "Checks performed on receipt of a PDU".
pub fn verify(
    parsed: Parsed,
    rules: &RoomVersionRules,
    keys: &PublicKeyMap,
) -> Result<Verified, VerifyError> {
    let checked = match parsed.has_other_numbers {
        true => verify_loose(&parsed, rules, keys),
        false => signatures::verify_event(keys, &parsed.object, rules),
    };
    let mut parsed = parsed;
    match checked {
        Ok(signatures::Verified::All) => {}
        Ok(signatures::Verified::Signatures) => {
            redact_in_place(&mut parsed.object, &rules.redaction, None)?;
        }
        Err(error) => return Err(VerifyError::Signatures(Box::new(error))),
    }
    let json = parsed.to_vec().into();
    let Parsed {
        event_id, rejected, ..
    } = parsed;
    Ok(Verified(Pdu::from_stored(event_id, json, rejected)?))
}

/// What the library does, for an event with numbers that it does not know.
///
/// Spec: s2s, "Validating hashes and signatures on received events".
fn verify_loose(
    parsed: &Parsed,
    rules: &RoomVersionRules,
    keys: &PublicKeyMap,
) -> Result<signatures::Verified, VerificationError> {
    let event = Loose::with_other_numbers(parsed.object.clone());
    let signed = signed_form(event.clone(), &rules.redaction)?;
    for server in
        signatures::required_server_signatures_to_verify_event(&event.object, &rules.signatures)?
    {
        verify_signature_of(server.as_str(), &event.object, &signed, keys)?;
    }
    let told = match event.object.get("hashes") {
        Some(CanonicalJsonValue::Object(hashes)) => hashes.get("sha256").cloned(),
        _ => None,
    };
    let mut hashed = event;
    for field in ["hashes", "signatures", "unsigned"] {
        hashed.object.remove(field);
    }
    let hash = Sha256::digest(hashed.to_vec());
    let is_right = told
        .as_ref()
        .and_then(CanonicalJsonValue::as_str)
        .and_then(|told| Base64::<Standard>::parse(told).ok())
        .is_some_and(|told| told.as_bytes() == hash.as_slice());
    Ok(match is_right {
        true => signatures::Verified::All,
        false => signatures::Verified::Signatures,
    })
}

/// That at least one key of the server has signed, and none of its known keys wrongly.
fn verify_signature_of(
    server: &str,
    event: &CanonicalJsonObject,
    signed: &[u8],
    keys: &PublicKeyMap,
) -> Result<(), VerificationError> {
    let missing = || VerificationError::NoSignaturesForEntity(server.to_owned());
    let of_server = match event.get("signatures") {
        Some(CanonicalJsonValue::Object(signatures)) => signatures.get(server),
        _ => None,
    };
    let Some(CanonicalJsonValue::Object(of_server)) = of_server else {
        return Err(missing());
    };
    let mut is_signed = false;
    for (key_id, signature) in of_server {
        let key = keys.get(server).and_then(|known| known.get(key_id));
        let (Some(key), true) = (key, key_id.starts_with("ed25519:")) else {
            continue;
        };
        let signature = signature.as_str().ok_or_else(missing)?;
        let signature = Base64::<Standard>::parse(signature).map_err(|source| {
            VerificationError::InvalidBase64Signature {
                path: format!("signatures.{server}.{key_id}"),
                source,
            }
        })?;
        signatures::verify_canonical_json_bytes(
            &SigningKeyAlgorithm::Ed25519,
            key.as_bytes(),
            signature.as_bytes(),
            signed,
        )?;
        is_signed = true;
    }
    match is_signed {
        true => Ok(()),
        false => Err(VerificationError::NoSupportedSignatureForEntity(
            server.to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests;

//! Making events of our own, and checking hashes and signatures of others'.
//!
//! [`Signer::build`] writes the canonical form in pieces and hashes, signs and joins these, instead of building and serializing the event
//! three times: it runs for every message. That the result is what the library makes is a property test.

use std::collections::BTreeSet;

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use ruma::{
    CanonicalJsonObject, EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId,
    OwnedServerName, OwnedServerSigningKeyId, OwnedUserId, ServerName, ServerSigningKeyId,
    canonical_json::redact_in_place,
    events::TimelineEventType,
    room_version_rules::{EventIdFormatVersion, RoomVersionRules, SignaturesRules},
    signatures::{
        self, Ed25519KeyPair, Ed25519KeyPairParseError, JsonError, KeyPair as _, PublicKeyMap,
        VerificationError,
    },
};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use crate::events::{
    canonical,
    format::{MAX_IDENTIFIER_BYTES, MAX_PDU_BYTES, Parsed},
    pdu::{Malformed, Pdu},
    redact,
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
}

/// Why an event cannot be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    #[error("the event is larger than {MAX_PDU_BYTES} bytes")]
    TooLarge,
    #[error("`{0}` is longer than {MAX_IDENTIFIER_BYTES} bytes")]
    IdentifierTooLong(&'static str),
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
    /// If `object` is not of the form of an event.
    pub fn countersign(
        &self,
        object: &mut CanonicalJsonObject,
        rules: &RoomVersionRules,
    ) -> Result<(), JsonError> {
        signatures::sign_event(self.server.as_str(), &self.key, object, &rules.redaction)
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
        let event_id = event_id(&signed, rules);
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
    /// `{"auth_events":…,"content":…,"depth":…`
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
        write_ids(&new.auth_events, &mut head);
        head.extend_from_slice(b",\"content\":");
        let start = head.len();
        canonical::write_object(&new.content, &mut head);
        let content = start..head.len();
        head.extend_from_slice(b",\"depth\":");
        write_number(depth, &mut head);

        let mut middle = Vec::with_capacity(512);
        middle.extend_from_slice(b",\"origin_server_ts\":");
        write_number(new.origin_server_ts.get().into(), &mut middle);
        middle.extend_from_slice(b",\"prev_events\":");
        write_ids(&new.prev_events, &mut middle);
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

fn write_ids(ids: &[OwnedEventId], out: &mut Vec<u8>) {
    out.push(b'[');
    for (index, id) in ids.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        canonical::write_string(id.as_str(), out);
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
    let hash = Sha256::digest(signed);
    let hash = match rules.event_id_format {
        EventIdFormatVersion::V1 | EventIdFormatVersion::V2 => STANDARD_NO_PAD.encode(hash),
        _ => URL_SAFE_NO_PAD.encode(hash),
    };
    EventId::parse(format!("${hash}")).expect("a hash after a dollar sign is an event ID")
}

/// Why a received event is dropped.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("the signatures are not right")]
    Signatures(#[source] Box<VerificationError>),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("the event cannot be redacted: {0}")]
    Redaction(#[from] ruma::canonical_json::CanonicalJsonFieldError),
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
    let Parsed {
        mut object,
        event_id,
        rejected,
    } = parsed;
    match signatures::verify_event(keys, &object, rules) {
        Ok(signatures::Verified::All) => {}
        Ok(signatures::Verified::Signatures) => {
            redact_in_place(&mut object, &rules.redaction, None)?
        }
        Err(error) => return Err(VerifyError::Signatures(Box::new(error))),
    }
    let json = canonical::to_vec(&object).into();
    Ok(Verified(Pdu::from_stored(event_id, json, rejected)?))
}

#[cfg(test)]
mod tests;

//! Our events against the library's, and the checks on them.

use proptest::prelude::*;
use ruma::{
    CanonicalJsonValue, RoomId, UserId, room_version_rules::RoomVersionRules, serde::Base64,
    server_name,
};

use super::*;
use crate::events::{
    canonical::tests::any_value,
    format,
    redact::tests::{any_content, any_rules, any_type},
};

fn signer() -> Signer {
    Signer::generate(server_name!("x.example").to_owned(), &[3; 32])
}

fn keys(signer: &Signer) -> PublicKeyMap {
    let key = Base64::parse(signer.verify_key()).expect("the key is base64");
    [(
        signer.server_name().to_string(),
        [(signer.key_id().to_string(), key)].into(),
    )]
    .into()
}

fn ids(numbers: &[u32]) -> Vec<OwnedEventId> {
    numbers
        .iter()
        .map(|number| EventId::parse(format!("${number}")).expect("this is an event ID"))
        .collect()
}

prop_compose! {
    fn any_event()(
        event_type in any_type(),
        content in prop_oneof![any_content(), prop::collection::btree_map(any::<String>(), any_value(), 0..5)],
        state_key in prop::option::of("\\PC{0,20}"),
        localpart in "[a-z\"\\\\é]{1,10}",
        has_room in prop::bool::weighted(0.9),
        timestamp in 0..10_000_000_000_000_u64,
        depth in prop_oneof![0..1000_u64, any::<u64>()],
        prev_events in prop::collection::vec(any::<u32>(), 0..5),
        auth_events in prop::collection::vec(any::<u32>(), 0..5),
        redacts in prop::option::of(any::<u32>()),
        name in "[A-Za-z0-9]{18}",
    ) -> NewPdu {
        NewPdu {
            room_id: has_room.then(|| RoomId::parse("!r:x.example").expect("this is a room ID")),
            sender: UserId::parse(format!("@{localpart}:x.example")).expect("this is a user ID"),
            event_type: event_type.into(),
            state_key,
            content,
            origin_server_ts: MilliSecondsSinceUnixEpoch(timestamp.try_into().expect("the time is in range")),
            depth,
            prev_events: ids(&prev_events),
            auth_events: ids(&auth_events),
            redacts: redacts.and_then(|number| ids(&[number]).pop()),
            named: Some(Named {
                event_id: EventId::parse(format!("${name}:x.example")).expect("this is an event ID"),
                hashes: ids(&prev_events)
                    .into_iter()
                    .chain(ids(&auth_events))
                    .map(|id| (id.clone(), format!("hash of {id}")))
                    .collect(),
            }),
        }
    }
}

/// As the event would be made in a room of these rules.
fn of(new: NewPdu, rules: &RoomVersionRules) -> NewPdu {
    NewPdu {
        named: new.named.filter(|_| rules.event_format.require_event_id),
        ..new
    }
}

/// The event as the library makes it.
fn by_library(
    signer: &Signer,
    new: &NewPdu,
    rules: &RoomVersionRules,
) -> (CanonicalJsonObject, String) {
    let mut content = new.content.clone();
    let mut object = CanonicalJsonObject::new();
    let reference = |id: &OwnedEventId| match &new.named {
        None => id.as_str().into(),
        Some(named) => {
            let hashes = [("sha256".to_owned(), named.hashes[id].as_str().into())];
            CanonicalJsonValue::Array(vec![
                id.as_str().into(),
                CanonicalJsonValue::Object(hashes.into()),
            ])
        }
    };
    let list =
        |ids: &[OwnedEventId]| CanonicalJsonValue::Array(ids.iter().map(reference).collect());
    let number = |number: u64| {
        CanonicalJsonValue::Integer(number.try_into().expect("the number is in range"))
    };
    if let Some(target) = &new.redacts {
        match rules.redaction.content_field_redacts {
            true => content.insert("redacts".to_owned(), target.as_str().into()),
            false => object.insert("redacts".to_owned(), target.as_str().into()),
        };
    }
    let fields = [
        ("type", new.event_type.to_string().into()),
        ("content", content.into()),
        ("sender", new.sender.as_str().into()),
        (
            "origin_server_ts",
            number(new.origin_server_ts.get().into()),
        ),
        ("depth", number(new.depth.min((1 << 53) - 1))),
        ("prev_events", list(&new.prev_events)),
        ("auth_events", list(&new.auth_events)),
    ];
    object.extend(fields.map(|(field, value)| (field.to_owned(), value)));
    object.extend(
        new.named
            .as_ref()
            .map(|named| ("event_id".to_owned(), named.event_id.as_str().into())),
    );
    object.extend(
        new.room_id
            .as_ref()
            .map(|id| ("room_id".to_owned(), id.as_str().into())),
    );
    object.extend(
        new.state_key
            .as_ref()
            .map(|key| ("state_key".to_owned(), key.as_str().into())),
    );
    signatures::hash_and_sign_event(
        signer.server.as_str(),
        &signer.key,
        &mut object,
        &rules.redaction,
    )
    .expect("the event is sound");
    let hash = signatures::reference_hash(&object, rules).expect("the event is sound");
    (object, hash)
}

proptest! {
    #[test]
    fn an_event_of_ours_is_what_the_library_makes(new in any_event(), rules in any_rules()) {
        let (signer, new) = (signer(), of(new, rules));
        let (object, hash) = by_library(&signer, &new, rules);
        let named = new.named.as_ref().map(|named| named.event_id.to_string());
        let built = signer.build(new, rules).expect("the event is small");

        prop_assert_eq!(std::str::from_utf8(&built.json), Ok(&*serde_json::to_string(&object).expect("an object is JSON")));
        prop_assert_eq!(built.event_id.to_string(), named.unwrap_or(format!("${hash}")));
        prop_assert_eq!(reference_hash(&built, rules).expect("we made it"), hash);
    }

    #[test]
    fn an_event_of_ours_is_read_back_and_verified(new in any_event(), rules in any_rules()) {
        let signer = signer();
        let built = signer.build(of(new, rules), rules).expect("the event is small");

        let stored = Pdu::from_stored(built.event_id.clone(), built.json.clone(), false).expect("the event has all fields");
        prop_assert_eq!(fields(&stored), fields(&built));

        // The library looks into the content of members for who has to sign, which random content does not say.
        let is_checked = built.event_type.to_string() != "m.room.member" && !built.content.get().contains("join_authorised");
        if is_checked && let Ok(parsed) = format::parse(&built.json, rules) {
            prop_assert_eq!(&parsed.event_id, &built.event_id);
            let verified = verify(parsed, rules, &keys(&signer)).expect("we signed it");
            prop_assert_eq!(fields(&verified), fields(&built));
            prop_assert_eq!(&verified.json, &built.json);
        }
    }
}

/// What is compared of an event. A redaction's target counts only where it is one.
fn fields(pdu: &Pdu) -> String {
    let Pdu {
        event_id,
        room_id,
        sender,
        event_type,
        state_key,
        content,
        origin_server_ts,
        depth,
        prev_events,
        auth_events,
        ..
    } = pdu;
    format!(
        "{event_id} {room_id:?} {sender} {event_type} {state_key:?} {content} {origin_server_ts:?} {depth} {prev_events:?} {auth_events:?}"
    )
}

fn message(body: String) -> NewPdu {
    NewPdu {
        room_id: RoomId::parse("!r:x.example").ok(),
        sender: UserId::parse("@a:x.example").expect("this is a user ID"),
        event_type: TimelineEventType::RoomMessage,
        state_key: None,
        content: [("body".to_owned(), body.into())].into(),
        origin_server_ts: MilliSecondsSinceUnixEpoch(ruma::uint!(1)),
        depth: 1,
        prev_events: ids(&[1]),
        auth_events: ids(&[2]),
        redacts: None,
        named: None,
    }
}

#[test]
fn the_size_limits_are_those_of_the_format_check() {
    let (signer, rules) = (signer(), &RoomVersionRules::V11);
    let overhead = signer
        .build(message(String::new()), rules)
        .expect("the event is small")
        .json
        .len();
    let largest = signer
        .build(message("x".repeat(65_536 - overhead)), rules)
        .expect("the event is not too large");
    assert!(format::parse(&largest.json, rules).is_ok());
    assert_eq!(
        signer
            .build(message("x".repeat(65_537 - overhead)), rules)
            .err(),
        Some(BuildError::TooLarge)
    );

    let mut new = message(String::new());
    new.state_key = Some("é".repeat(128));
    assert_eq!(
        signer.build(new, rules).err(),
        Some(BuildError::IdentifierTooLong("state_key"))
    );
}

#[test]
fn a_changed_event_is_redacted_and_a_forged_one_dropped() {
    let (signer, rules) = (signer(), &RoomVersionRules::V11);
    let built = signer
        .build(message("hi".to_owned()), rules)
        .expect("the event is small");
    let changed = |from: &str, to: &str| {
        let json = String::from_utf8(built.json.to_vec())
            .expect("JSON is UTF-8")
            .replace(from, to);
        let parsed = format::parse(json.as_bytes(), rules).expect("the event is sound");
        verify(parsed, rules, &keys(&signer))
    };

    let redacted = changed("hi", "ho").expect("the signature does not cover the text");
    assert_eq!(redacted.content.get(), "{}");
    assert_eq!(redacted.event_id, built.event_id);
    assert!(matches!(
        changed("\"depth\":1", "\"depth\":2"),
        Err(VerifyError::Signatures(_))
    ));
    let other = Signer::generate(server_name!("x.example").to_owned(), &[4; 32]);
    let parsed = format::parse(&built.json, rules).expect("the event is sound");
    assert!(verify(parsed, rules, &keys(&other)).is_err());
}

#[test]
fn an_identity_is_read_back_from_its_document() {
    let signer = signer();
    let again = Signer::from_document(
        signer.server_name().to_owned(),
        signer.document(),
        signer.version(),
    );
    let again = again.expect("the document was just written");
    assert_eq!(
        (again.verify_key(), again.key_id()),
        (signer.verify_key(), signer.key_id())
    );
    assert!(signer.key_id().as_str().starts_with("ed25519:h"));
    assert!(
        !format!("{signer:?}").contains("48, 46"),
        "the secret key is not printed"
    );

    let server = || server_name!("x.example").to_owned();
    assert!(matches!(
        Signer::from_document(server(), b"junk", "1"),
        Err(KeyError::Document(_))
    ));
    assert!(matches!(
        Signer::from_document(server(), signer.document(), "a b"),
        Err(KeyError::Version(_))
    ));
}

#[test]
fn the_servers_that_must_sign_are_named() {
    let (signer, rules) = (signer(), &RoomVersionRules::V11);
    let mut new = message(String::new());
    new.event_type = TimelineEventType::RoomMember;
    new.state_key = Some("@a:x.example".to_owned());
    let vouched = [
        ("membership", "join"),
        ("join_authorised_via_users_server", "@b:y.example"),
    ];
    new.content = vouched
        .map(|(key, value)| (key.to_owned(), value.into()))
        .into();
    let built = signer.build(new, rules).expect("the event is small");
    let mut parsed = format::parse(&built.json, rules).expect("the event is sound");
    let servers = required_servers(&parsed, &rules.signatures).expect("the IDs are sound");
    assert_eq!(
        servers,
        [
            server_name!("x.example").to_owned(),
            server_name!("y.example").to_owned()
        ]
        .into()
    );

    let other = Signer::generate(server_name!("y.example").to_owned(), &[4; 32]);
    let both: PublicKeyMap = keys(&signer).into_iter().chain(keys(&other)).collect();
    assert!(
        verify(parsed.clone(), rules, &both).is_err(),
        "the other server has not signed"
    );
    other
        .countersign(&mut parsed, rules)
        .expect("the event is sound");
    assert!(verify(parsed, rules, &both).is_ok());
}

/// An event with a float, as a server signs it that does not know of canonical JSON's numbers.
fn with_float(version: &str) -> (String, String) {
    let head = r#"{"auth_events":[],"content":{"ban":50.0,"x":1e3},"depth":9007199254740993"#;
    let named = match version {
        "1" => r#","event_id":"$e:x.example""#,
        _ => "",
    };
    let tail = r#","origin_server_ts":1,"prev_events":[],"room_id":"!r:x.example","sender":"@a:x.example","#;
    let end = r#""state_key":"","type":"m.room.power_levels"}"#;
    let hash = STANDARD_NO_PAD.encode(Sha256::digest(format!("{head}{named}{tail}{end}")));
    let hashes = format!(r#","hashes":{{"sha256":"{hash}"}}"#);
    let redacted = format!("{head}{named}{hashes}{tail}{end}").replace(r#","x":1e3"#, "");
    let signer = signer();
    let signature = signer.sign_canonical(redacted.as_bytes());
    let signatures = format!(
        r#""signatures":{{"x.example":{{"{}":"{signature}"}}}},"#,
        signer.key_id()
    );
    let whole = format!("{head}{named}{hashes}{tail}{signatures}{end}");
    (whole, redacted)
}

#[test]
fn events_with_floats_are_verified_where_rooms_hold_them() {
    for (version, rules) in [
        ("1", &RoomVersionRules::V1),
        ("3", &RoomVersionRules::V3),
        ("5", &RoomVersionRules::V5),
    ] {
        let (event, redacted) = with_float(version);
        assert!(format::parse(event.as_bytes(), &RoomVersionRules::V6).is_err());
        let parsed = format::parse(event.as_bytes(), rules).expect("the event is sound");
        let expected = match version {
            "1" => "$e:x.example".to_owned(),
            _ => event_id(redacted.as_bytes(), rules).to_string(),
        };
        assert_eq!(parsed.event_id.as_str(), expected);
        let verified = verify(parsed, rules, &keys(&signer())).expect("we signed it");
        assert_eq!(std::str::from_utf8(&verified.json), Ok(&*event));
        assert_eq!(verified.depth, 9_007_199_254_740_993);
        assert_eq!(
            verified.judged_content().get(),
            r#"{"ban":50,"x":1000}"#,
            "the rules see whole numbers"
        );

        let read = |text: &str| format::parse(text.as_bytes(), rules).expect("the event is sound");
        let changed = verify(read(&event.replace("1e3", "1e4")), rules, &keys(&signer()));
        let changed = changed.expect("the signature does not cover it");
        assert_eq!(changed.content.get(), r#"{"ban":50.0}"#);
        for (from, to) in [("50.0", "50.1"), ("\"x.example\":{", "\"y.example\":{")] {
            let forged = verify(read(&event.replace(from, to)), rules, &keys(&signer()));
            assert!(matches!(forged, Err(VerifyError::Signatures(_))));
        }
    }
}

#[test]
fn events_with_floats_are_countersigned() {
    let (event, _) = with_float("1");
    let rules = &RoomVersionRules::V1;
    let mut parsed = format::parse(event.as_bytes(), rules).expect("the event is sound");
    let other = Signer::generate(server_name!("y.example").to_owned(), &[4; 32]);
    other
        .countersign(&mut parsed, rules)
        .expect("the event is sound");
    parsed
        .object
        .insert("sender".to_owned(), "@a:y.example".into());
    assert!(
        verify(parsed.clone(), rules, &keys(&other)).is_err(),
        "another has signed"
    );
    parsed
        .object
        .insert("sender".to_owned(), "@a:x.example".into());
    parsed
        .object
        .insert("event_id".to_owned(), "$e:y.example".into());
    assert!(
        verify(parsed, rules, &keys(&other)).is_err(),
        "both the sender's server and that of the ID have to sign"
    );
}

#[test]
fn an_event_of_version_1_needs_an_id_of_its_own() {
    let (signer, rules) = (signer(), &RoomVersionRules::V1);
    assert_eq!(
        signer.build(message(String::new()), rules).err(),
        Some(BuildError::NotNamed)
    );
    let named = Named {
        event_id: EventId::parse("$e:x.example").expect("this is an event ID"),
        hashes: BTreeMap::new(),
    };
    let new = NewPdu {
        named: Some(named),
        ..message("hi".to_owned())
    };
    let built = signer.build(new, rules).expect("the event is small");
    let servers = |json: &str| {
        let parsed = format::parse(json.as_bytes(), rules).expect("the event is sound");
        required_servers(&parsed, &rules.signatures).expect("the IDs are sound")
    };
    let json = String::from_utf8(built.json.to_vec()).expect("JSON is UTF-8");
    assert_eq!(servers(&json).len(), 1);
    assert_eq!(
        servers(&json.replace("$e:x.example", "$e:y.example")).len(),
        2
    );
}

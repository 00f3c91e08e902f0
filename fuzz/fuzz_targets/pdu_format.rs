//! PDUs of other servers: nothing panics, and what passes can be stored, read, redacted and looked at by the auth rules.

#![no_main]

use hearth::events::{Pdu, auth, format, redact, version};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    for version in version::SERVED {
        let rules = version::rules(&version).expect("served versions have rules");
        let Ok(parsed) = format::parse(text, rules) else {
            continue;
        };
        let json = parsed.to_vec();
        assert!(json.len() <= format::MAX_PDU_BYTES);

        let pdu = Pdu::from_stored(parsed.event_id.clone(), json.into(), parsed.rejected);
        let pdu = pdu.expect("what passes the format check can be stored");
        let redacted =
            redact::redacted(&pdu, &rules.redaction).expect("a stored event can be redacted");
        let again = format::parse(&redacted.json, rules).expect("a redacted event is sound");
        assert_eq!(
            again.event_id, parsed.event_id,
            "redaction keeps the event ID"
        );

        let authorization = &rules.authorization;
        auth::selection(
            authorization,
            &pdu.event_type,
            &pdu.sender,
            pdu.state_key.as_deref(),
            &pdu.content,
        );
        assert!(
            auth::check(authorization, &pdu, |_, _| None).is_err()
                || pdu.event_type.to_string() == "m.room.create"
        );
        redact::target(&pdu, &rules.redaction);
    }
});

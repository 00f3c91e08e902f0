//! The bytes of stored records: a change of them needs a migration.

use std::fmt::Debug;

use super::*;
use crate::storage::Record;

#[track_caller]
fn check<T: Record + PartialEq + Debug>(record: &T, expected: &str) {
    let mut bytes = Vec::new();
    record.encode(&mut bytes);
    assert_eq!(bytes.escape_ascii().to_string(), expected);
    assert_eq!(T::decode(&bytes).as_ref(), Ok(record));
}

#[test]
fn an_account_has_these_bytes() {
    let small = Account {
        created_ms: 1,
        ..Account::default()
    };
    check(&Cbor(small), r"\xa1jcreated_ms\x01");
    let full = Account {
        password: Some("p".to_owned()),
        created_ms: 1,
        admin: true,
        deactivated: true,
        erased: true,
        locked: true,
        suspended: true,
    };
    check(
        &Cbor(full),
        r"\xa7hpasswordapjcreated_ms\x01eadmin\xf5kdeactivated\xf5ferased\xf5flocked\xf5isuspended\xf5",
    );
}

#[test]
fn a_device_has_these_bytes() {
    let device = Device {
        display_name: Some("d".to_owned()),
        created_ms: 1,
        tokens: vec![TokenHash([7; 32])],
    };
    check(
        &Cbor(device),
        r"\xa3ldisplay_nameadjcreated_ms\x01ftokens\x81X \x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07",
    );
}

#[test]
fn tokens_have_these_bytes() {
    let row = |kind| {
        Cbor(Token {
            user: UserNumber(1),
            device: "D".to_owned(),
            kind,
            expires_ms: Some(2),
        })
    };
    check(
        &row(TokenKind::Access { replaces: None }),
        r"\xa4duser\x01fdeviceaDdkind\xa1fAccess\xa1hreplaces\xf6jexpires_ms\x02",
    );
    check(
        &row(TokenKind::Access {
            replaces: Some(TokenHash([7; 32])),
        }),
        r"\xa4duser\x01fdeviceaDdkind\xa1fAccess\xa1hreplacesX \x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07jexpires_ms\x02",
    );
    check(
        &row(TokenKind::Refresh {
            access: TokenHash([7; 32]),
        }),
        r"\xa4duser\x01fdeviceaDdkind\xa1gRefresh\xa1faccessX \x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07jexpires_ms\x02",
    );
    let (nonce, access) = (TokenHash([8; 32]), TokenHash([7; 32]));
    check(
        &row(TokenKind::Exchanged {
            at_ms: 3,
            nonce,
            access,
        }),
        r"\xa4duser\x01fdeviceaDdkind\xa1iExchanged\xa3eat_ms\x03enonceX \x08\x08\x08\x08\x08\x08\x08\x08\x08\x08\x08\x08\x08\x08\x08\x08\x08\x08\x08\x08\x08\x08\x08\x08\x08\x08\x08\x08\x08\x08\x08\x08faccessX \x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07jexpires_ms\x02",
    );
}

#[test]
fn what_registration_keeps_has_these_bytes() {
    let row = Interactive {
        operation: TokenHash([7; 32]),
        completed: vec!["m.login.dummy".to_owned()],
        registration_token: Some("t".to_owned()),
    };
    check(
        &Cbor(row),
        r"\xa3ioperationX \x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07icompleted\x81mm.login.dummyrregistration_tokenat",
    );
    let row = RegistrationToken {
        uses_allowed: Some(2),
        completed: 1,
        pending_until_ms: vec![3],
        expires_ms: Some(4),
    };
    check(
        &Cbor(row),
        r"\xa4luses_allowed\x02icompleted\x01ppending_until_ms\x81\x03jexpires_ms\x04",
    );
}

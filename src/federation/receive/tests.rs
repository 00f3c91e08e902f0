//! Answers to transactions.

use ruma::{owned_event_id, server_name};

use super::*;
use crate::storage::{Cbor, Record as _};

#[test]
fn an_answer_comes_back_as_it_was() {
    let mut answer = Answer::new();
    answer.insert(owned_event_id!("$fine"), Ok(()));
    answer.insert(owned_event_id!("$bad"), Err("no".to_owned()));
    let mut bytes = Vec::new();
    Cbor(AnswerRow::new(&answer)).encode(&mut bytes);
    let Cbor(row) = Cbor::<AnswerRow>::decode(&bytes).expect("the row was just written");
    assert_eq!(row.answer(), answer);
}

#[test]
fn the_stored_form_of_an_answer_stays() {
    let row = AnswerRow {
        pdus: vec![(owned_event_id!("$a"), None)],
    };
    let mut bytes = Vec::new();
    Cbor(row).encode(&mut bytes);
    assert_eq!(bytes, b"\xa1dpdus\x81\x82b$a\xf6");
}

#[test]
fn transactions_of_different_servers_are_told_apart() {
    let key = |server, id: &str| answer_key(server, id.into());
    let (one, other) = (server_name!("a.test"), server_name!("b.test"));
    assert_eq!(key(one, "1"), key(one, "1"));
    assert_ne!(key(one, "1"), key(other, "1"));
    assert_ne!(key(one, "1"), key(one, "2"));
}

#[test]
fn an_error_does_not_grow_with_what_others_wrote() {
    assert_eq!(bounded("short".to_owned()), "short");
    let long = bounded("é".repeat(1_000));
    assert_eq!(long.chars().count(), MAX_ERROR_CHARS);
}

//! Tests of sync tokens.

use proptest::prelude::*;

use super::{Malformed, Token};
use crate::{ephemeral::Volatile, storage::Position};

#[test]
fn a_token_names_its_writer_and_counts_in_base_36() {
    let token = Token {
        position: Position::new(3, 36 * 36 + 35),
        volatile: Volatile {
            start: 36,
            count: 0,
        },
        to_device: None,
    };
    assert_eq!(token.to_string(), "s3.10z~10.0");
    let token = Token {
        to_device: Some(Position(36)),
        ..token
    };
    assert_eq!(token.to_string(), "s3.10z~10.0-10");
}

#[test]
fn the_highest_position_of_several_writers_counts() {
    let token: Token = "s1.zz_2.5~a.b".parse().expect("a token");
    assert_eq!(token.position, Position::new(2, 5));
}

#[test]
fn what_is_no_token_is_refused() {
    for text in [
        "",
        "s",
        "nonsense",
        "s1.5",
        "s1.5~",
        "s1.5~1",
        "s1~1.1",
        "s.5~1.1",
        "s1.~1.1",
        "s1.5~.1",
        "s1.5~1.",
        "1.5~1.1",
        "s70000.5~1.1",
        "s+1.5~1.1",
        "s1.+5~1.1",
        "s1.5A~1.1",
        "s1.5~1.1.1",
        "s1.5~1.1-",
        "s1.5~1.1-1-1",
        "s1.5~1.1-+1",
        "s1.5_~1.1",
        "s1.zzzzzzzzzzzz~1.1",
        "s1.5~1.zzzzzzzzzzzzzzzz",
        "t5",
        "s1.5~1.1 ",
        "s1.5~ö.1",
    ] {
        assert_eq!(text.parse::<Token>(), Err(Malformed), "{text}");
    }
}

proptest! {
    #[test]
    fn a_token_reads_back_as_it_was(writer: u16, sequence in 0..1_u64 << 48, start: u64, count: u64, to_device: Option<u64>) {
        let to_device = to_device.map(Position);
        let token = Token { position: Position::new(writer, sequence), volatile: Volatile { start, count }, to_device };
        prop_assert_eq!(token.to_string().parse::<Token>(), Ok(token));
    }

    #[test]
    fn any_text_is_read_without_panic(text in "\\PC*") {
        if let Ok(token) = text.parse::<Token>() {
            prop_assert_eq!(token.to_string().parse::<Token>(), Ok(token));
        }
    }
}

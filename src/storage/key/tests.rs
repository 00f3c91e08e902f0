//! Property tests of keys: round trips, and byte order is value order.

use proptest::prelude::*;

use super::*;

fn bytes_of<K: TableKey>(key: &K) -> Vec<u8> {
    let mut bytes = Vec::new();
    key.encode(&mut bytes);
    bytes
}

fn check<K: TableKey + Ord + std::fmt::Debug>(a: &K, b: &K) -> Result<(), TestCaseError> {
    prop_assert_eq!(&K::decode(&bytes_of(a)).unwrap(), a);
    prop_assert_eq!(bytes_of(a).cmp(&bytes_of(b)), a.cmp(b));
    Ok(())
}

/// Few letters, so that common prefixes and the escaped bytes are frequent.
fn text() -> impl Strategy<Value = Text> {
    proptest::collection::vec(
        prop_oneof![
            Just('\0'),
            Just('\u{1}'),
            Just('\u{2}'),
            Just('a'),
            Just('é')
        ],
        0..6,
    )
    .prop_map(|letters| Text(letters.into_iter().collect::<String>().into()))
}

fn index() -> impl Strategy<Value = i64> {
    prop_oneof![-3..3i64, any::<i64>(), Just(i64::MIN), Just(i64::MAX)]
}

proptest! {
    #[test]
    fn numbers_keep_their_order(a: (u8, u16, u32, u64), b: (u8, u16, u32, u64)) {
        check(&a, &b)?;
        check(&(a.3,), &(b.3,))?;
        check(&(Position(a.3), a.0), &(Position(b.3), b.0))?;
    }

    #[test]
    fn texts_followed_by_parts_keep_their_order(a in (text(), any::<u8>(), text()), b in (text(), any::<u8>(), text())) {
        check(&a, &b)?;
    }

    #[test]
    fn signed_numbers_keep_their_order(a in index(), b in index()) {
        check(&(1u32, Index(a)), &(1u32, Index(b)))?;
        check(&(1u32, Descending(a), 1u8), &(1u32, Descending(b), 1u8))?;
    }

    #[test]
    fn times_and_hashes_keep_their_order(a in (0..1u64 << 48, any::<[u8; 32]>()), b in (0..1u64 << 48, any::<[u8; 32]>())) {
        check(&(Millis48(a.0), a.1), &(Millis48(b.0), b.1))?;
    }

    #[test]
    fn no_bytes_make_decoding_panic(bytes: Vec<u8>) {
        drop(<(Text, u32, Index, Millis48, [u8; 3])>::decode(&bytes));
        drop(<(String,)>::decode(&bytes));
    }

    #[test]
    fn a_shorter_tuple_is_a_prefix(a in text(), b: u32, c in index()) {
        prop_assert!(bytes_of(&(a.clone(), b, Index(c))).starts_with(&bytes_of(&(a.clone(), b))));
        prop_assert!(bytes_of(&(a.clone(), b, 1u8, 2u16, 3u64)).starts_with(&bytes_of(&(a,))));
    }
}

#[test]
fn a_time_too_large_becomes_the_largest() {
    assert_eq!(bytes_of(&(Millis48(u64::MAX),)), [0xff; 6]);
}

#[test]
fn a_key_with_a_rest_is_malformed() {
    assert_eq!(<(u8,)>::decode(&[1, 2]), Err(KeyError));
    assert_eq!(<()>::decode(&[1]), Err(KeyError));
    assert_eq!(<(Text,)>::decode(&[1, 3, 0]), Err(KeyError));
}

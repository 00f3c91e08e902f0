//! Tests of records: what is written comes back, and some bytes that must not change.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde::Deserialize;

use super::*;

fn bytes_of<V: Record>(value: &V) -> Vec<u8> {
    let mut bytes = Vec::new();
    value.encode(&mut bytes);
    bytes
}

fn check<V: Record + PartialEq + std::fmt::Debug>(value: &V) {
    assert_eq!(&V::decode(&bytes_of(value)).unwrap(), value);
}

fn check_cbor<T: Serialize + DeserializeOwned + Clone + PartialEq + std::fmt::Debug>(value: T) {
    check(&Cbor(value.clone()));
    check(&Json(value.clone()));
    check(&Stamped(Position(7), value.clone()));
    check(&Expiring(Millis48(9), value));
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Everything {
    flag: bool,
    small: u8,
    large: u64,
    negative: i64,
    ratio: f64,
    text: String,
    letter: char,
    some: Option<u32>,
    none: Option<String>,
    bytes: Vec<u8>,
    array: [u8; 4],
    list: Vec<String>,
    set: BTreeSet<u32>,
    by_text: BTreeMap<String, Option<u8>>,
    by_number: BTreeMap<u32, Vec<u8>>,
    pair: (u8, String),
    choice: Choice,
    choices: Vec<Choice>,
    tagged: Vec<Tagged>,
    untagged: Vec<Untagged>,
    json: serde_json::Value,
    position: Position,
    nested: Option<Box<Everything>>,
    #[serde(flatten)]
    rest: BTreeMap<String, serde_json::Value>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
enum Choice {
    #[default]
    Unit,
    Newtype(u32),
    Optional(Option<u8>),
    Tuple(u8, String),
    Struct {
        a: Option<bool>,
        b: Vec<u8>,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Tagged {
    Empty,
    Full { value: Option<u64>, bytes: Vec<u8> },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Untagged {
    Number(u64),
    Text(String),
    List(Vec<Option<u8>>),
}

fn everything() -> Everything {
    Everything {
        flag: true,
        small: 255,
        large: u64::MAX,
        negative: i64::MIN,
        ratio: 0.1,
        text: "é\0".to_owned(),
        letter: '✓',
        some: Some(3),
        bytes: vec![0, 1, 255],
        list: vec![String::new(), "a".to_owned()],
        set: BTreeSet::from([1, 2]),
        by_text: BTreeMap::from([("a".to_owned(), None), ("b".to_owned(), Some(1))]),
        by_number: BTreeMap::from([(5, vec![1]), (6, vec![])]),
        choice: Choice::Struct {
            a: None,
            b: vec![9],
        },
        choices: vec![
            Choice::Unit,
            Choice::Newtype(1),
            Choice::Optional(None),
            Choice::Optional(Some(1)),
            Choice::Tuple(1, "x".to_owned()),
        ],
        tagged: vec![
            Tagged::Empty,
            Tagged::Full {
                value: None,
                bytes: vec![1, 2],
            },
        ],
        untagged: vec![
            Untagged::Number(1),
            Untagged::Text("t".to_owned()),
            Untagged::List(vec![None, Some(2)]),
        ],
        json: serde_json::json!({"a": [1, -2, 0.5, null, true, "x", {}, []], "b": {"c": null}}),
        nested: Some(Box::default()),
        rest: BTreeMap::from([("other".to_owned(), serde_json::json!({"x": [null]}))]),
        ..Everything::default()
    }
}

#[test]
fn every_shape_of_serde_comes_back() {
    check_cbor(everything());
    check_cbor(Everything::default());
    check_cbor(Some(5u8));
    check_cbor(None::<u8>);
    check_cbor(Vec::<u8>::new());
    check_cbor(serde_json::Value::Null);
    check_cbor(serde_json::json!([[], {}, null]));
}

#[test]
fn a_record_may_grow_by_an_optional_field() {
    #[derive(Serialize, Deserialize)]
    struct Old {
        a: u8,
    }
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct New {
        a: u8,
        #[serde(default)]
        b: Option<String>,
    }
    let new = Cbor::<New>::decode(&bytes_of(&Cbor(Old { a: 1 }))).unwrap();
    assert_eq!(new.0, New { a: 1, b: None });
    let old = Cbor::<Old>::decode(&bytes_of(&Cbor(New {
        a: 2,
        b: Some("x".to_owned()),
    })))
    .unwrap();
    assert_eq!(old.0.a, 2);
}

#[test]
fn raw_json_comes_back_from_json_records() {
    #[derive(Serialize, Deserialize)]
    struct Row {
        content: Box<serde_json::value::RawValue>,
    }
    let content =
        serde_json::value::RawValue::from_string(r#"{"b":1,  "a":2}"#.to_owned()).unwrap();
    let row = Json::<Row>::decode(&bytes_of(&Json(Row { content }))).unwrap();
    assert_eq!(row.0.content.get(), r#"{"b":1,  "a":2}"#);
}

#[test]
fn the_bytes_of_records_stay_as_they_are() {
    assert_eq!(
        bytes_of(&Counter(-2)),
        [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]
    );
    assert_eq!(bytes_of(&0x0102_0304u32), [1, 2, 3, 4]);
    assert_eq!(
        bytes_of(&Stamped(Position(1), 5u8)),
        [0, 0, 0, 0, 0, 0, 0, 1, 5]
    );
    assert_eq!(
        bytes_of(&Expiring(Millis48(1), "a".to_owned())),
        [0, 0, 0, 0, 0, 1, 0x61, b'a']
    );
    let row = Choice::Struct {
        a: None,
        b: vec![1],
    };
    assert_eq!(
        bytes_of(&Cbor(row)),
        b"\xa1\x66Struct\xa2\x61a\xf6\x61b\x81\x01"
    );
}

#[test]
fn what_is_too_short_or_malformed_is_refused() {
    assert!(u32::decode(&[1, 2, 3]).is_err());
    assert!(Counter::decode(&[]).is_err());
    assert!(Stamped::<u8>::decode(&[0; 8]).is_err());
    assert!(Expiring::<u8>::decode(&[0; 5]).is_err());
    assert!(String::decode(&[0xff]).is_err());
    assert!(Cbor::<Everything>::decode(&[0xa0]).is_err());
}

proptest! {
    #[test]
    fn plain_records_come_back(a: (u8, u16, u32, u64), counter: i64, text: String, bytes: Vec<u8>) {
        check(&a.0);
        check(&a.1);
        check(&a.2);
        check(&a.3);
        check(&Position(a.3));
        check(&Counter(counter));
        check(&text);
        check(&bytes);
        check(&Bytes::from(bytes.clone()));
        check(&Raw(Bytes::from(bytes)));
    }

    #[test]
    fn cbor_comes_back(value: (Option<u64>, Vec<u8>, BTreeMap<String, i64>, Vec<Option<String>>, bool)) {
        check(&Cbor(value));
    }

    #[test]
    fn no_bytes_make_decoding_panic(bytes: Vec<u8>) {
        drop(Cbor::<Everything>::decode(&bytes));
        drop(Stamped::<serde_json::Value>::decode(&bytes));
    }
}

//! Places in a timeline as text.

use super::*;

#[test]
fn a_place_survives_being_printed() {
    for index in [0, 1, -1, 35, 36, -36, 1 << 40, i64::MAX, i64::MIN] {
        let place = Place(index);
        assert_eq!(place.to_string().parse(), Ok(place));
    }
    assert_eq!(Place(36).to_string(), "t10");
}

#[test]
fn other_text_is_no_place() {
    for text in [
        "",
        "t",
        "s1.2~3.4",
        "t+1",
        "t1.5",
        "tzzzzzzzzzzzzzzzz",
        "10",
    ] {
        assert_eq!(text.parse::<Place>(), Err(NoPlace), "{text}");
    }
}

//! Who is let in.

use super::*;

#[test]
fn only_the_token_is_let_in_and_only_while_it_is_open() {
    let setup = Setup::new(&Clock::system());
    let token = setup.token.clone();
    assert!(!setup.admits(&token), "it is closed");
    setup.open();
    assert!(!setup.admits("wrong"));
    assert!(setup.admits(&token));
    setup.close();
    assert!(!setup.admits(&token));
}

#[test]
fn ten_wrong_tokens_close_it() {
    let setup = Setup::new(&Clock::system());
    let token = setup.open().to_owned();
    for _ in 0..10 {
        assert!(!setup.admits(""));
    }
    assert!(!setup.admits(&token));
}

//! Tests of passwords.

use super::*;

fn cheap() -> Passwords {
    Passwords::new(Config {
        m_cost: 64,
        t_cost: 1,
        ..Config::default()
    })
}

#[tokio::test]
async fn a_password_is_told_from_others() {
    let passwords = cheap();
    let stored = passwords.hash("secret", [1; 16]).await.expect("a hash");
    assert!(stored.starts_with("$argon2id$v=19$m=64,t=1,p=1$"));
    assert!(
        passwords
            .is_correct("secret", Some(stored.clone()))
            .await
            .expect("an answer")
    );
    assert!(
        !passwords
            .is_correct("Secret", Some(stored.clone()))
            .await
            .expect("an answer")
    );
    assert!(
        !passwords
            .is_correct("secret", None)
            .await
            .expect("an answer")
    );
    assert!(!passwords.is_outdated(&stored));
    assert!(Passwords::new(Config::default()).is_outdated(&stored));
}

#[tokio::test]
async fn a_hash_of_another_program_is_understood() {
    // From the reference implementation's test of Argon2id v1.3: t=2, m=64 KiB, p=1, "password", "somesalt".
    let stored =
        "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";
    assert!(
        cheap()
            .is_correct("password", Some(stored.to_owned()))
            .await
            .expect("an answer")
    );
}

#[tokio::test]
async fn strength_is_judged_with_what_is_known_of_the_owner() {
    let passwords = cheap();
    let judge = async |password: &str| passwords.judge(password, "cleopatra").await;
    assert!(matches!(judge("short").await, Err(Error::WeakPassword(_))));
    assert!(matches!(
        judge("password1").await,
        Err(Error::WeakPassword(_))
    ));
    assert!(matches!(
        judge("cleopatra").await,
        Err(Error::WeakPassword(_))
    ));
    assert!(matches!(
        judge(&"x9".repeat(300)).await,
        Err(Error::WeakPassword(_))
    ));
    assert!(judge("three small owls at dusk").await.is_ok());
}

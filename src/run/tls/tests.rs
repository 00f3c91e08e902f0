//! Files that change, and files that are wrong.

use super::*;

fn copy(name: &str, to: &Path, second: u64) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/it/tls")
        .join(name);
    fs::copy(from, to).expect("it can be copied");
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
    fs::File::options()
        .write(true)
        .open(to)
        .and_then(|file| file.set_modified(time))
        .expect("a time can be set");
}

#[test]
fn a_renewed_certificate_is_taken_over_and_a_broken_one_is_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let (cert, key) = (
        folder.path().join("cert.pem"),
        folder.path().join("key.pem"),
    );
    copy("first.pem", &cert, 1);
    copy("first.key.pem", &key, 1);
    let section = TlsSection {
        mode: TlsMode::Files,
        cert: Some(cert.clone()),
        key: Some(key.clone()),
    };
    let certificates = Certificates::open(&section)
        .expect("good files")
        .expect("TLS is on");
    let first = certificates.current.load_full();
    assert!(
        !certificates.read_if_changed().expect("good files"),
        "nothing changed"
    );

    copy("second.pem", &cert, 2);
    assert!(
        certificates.read_if_changed().is_err(),
        "the key is that of the first"
    );
    assert_eq!(certificates.current.load().cert, first.cert);

    copy("second.key.pem", &key, 2);
    assert!(certificates.read_if_changed().expect("good files"));
    assert_ne!(certificates.current.load().cert, first.cert);
}

#[test]
fn files_that_are_missing_are_named() {
    let section = TlsSection {
        mode: TlsMode::Files,
        cert: Some("/nonsense".into()),
        key: Some("/nonsense".into()),
    };
    let error = Certificates::open(&section).expect_err("there is no such file");
    assert!(error.to_string().contains("/nonsense"), "{error}");
}

//! Several servers that speak to each other over TLS, each on a loopback address of its own.
//!
//! A server's name is its address and port, so that nothing has to be resolved, and access lists, which know no ports, can
//! tell servers apart. One certificate authority per test process signs for all of them.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    },
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};

use hearth::{
    clock::Clock,
    storage::{self, Store},
};

use super::TestServer;

/// Loopback addresses of one process before the port changes.
const ADDRESSES: u32 = 250;
const FIRST_PORT: u16 = 18_448;

/// What signs the certificates of this test process.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    folder: tempfile::TempDir,
}

/// The certificate of a server, as files.
pub struct CertificateFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
}

pub static AUTHORITY: LazyLock<Authority> = LazyLock::new(Authority::new);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let key = KeyPair::generate().expect("a key");
        let folder = tempfile::tempdir().expect("a folder");
        let cert = params.self_signed(&key).expect("a certificate");
        std::fs::write(folder.path().join("ca.pem"), cert.pem()).expect("it is written");
        let issuer = Issuer::new(params, key);
        Self { issuer, folder }
    }

    /// The certificate that others must trust.
    pub fn file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// A certificate for `name`: an address, or the name of a host.
    pub fn sign(&self, name: &str) -> CertificateFiles {
        let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        let key = KeyPair::generate().expect("a key");
        let signed = params.signed_by(&key, &self.issuer).expect("it is signed");
        let files = CertificateFiles {
            cert: self.folder.path().join(format!("{name}.pem")),
            key: self.folder.path().join(format!("{name}.key.pem")),
        };
        std::fs::write(&files.cert, signed.pem()).expect("it is written");
        std::fs::write(&files.key, key.serialize_pem()).expect("it is written");
        files
    }
}

/// The store in a folder, which one server after the other has.
pub fn open_store(folder: &Path) -> Store {
    let config = storage::Config::default();
    Store::open(&config, folder, Clock::system()).expect("it opens")
}

/// An address that nobody else listens on: no other server of this process has it, and hardly one of another.
pub fn free_address() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let [_, _, high, low] = std::process::id().to_be_bytes();
        let last = u8::try_from(next % ADDRESSES + 1).expect("below 256");
        let port = FIRST_PORT + u16::try_from(next / ADDRESSES).expect("few servers");
        let ip = IpAddr::V4(Ipv4Addr::new(127, high % 200 + 20, low, last));
        let address = SocketAddr::new(ip, port);
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

impl TestServer {
    /// Servers that federate with each other, with open registration and without rate limits.
    pub async fn federated<const N: usize>() -> [Self; N] {
        Self::federated_with(&[]).await
    }

    /// As [`TestServer::federated`], with more settings for each of them.
    pub async fn federated_with<const N: usize>(settings: &[&str]) -> [Self; N] {
        let mut servers = Vec::with_capacity(N);
        for _ in 0..N {
            servers.push(Self::federating(settings).await);
        }
        match servers.try_into() {
            Ok(servers) => servers,
            Err(_other) => panic!("as many as asked for"),
        }
    }

    /// One more server that federates with all others of this process.
    pub async fn federating(settings: &[&str]) -> Self {
        let address = free_address();
        Self::federating_at(address, settings).await
    }

    /// As [`TestServer::federating`], with the address as its name.
    pub async fn federating_at(address: SocketAddr, settings: &[&str]) -> Self {
        let own = federation_settings(address);
        let own: Vec<&str> = own.iter().map(String::as_str).collect();
        Self::start_with(&[&own, settings].concat()).await
    }

    /// As [`TestServer::federating_at`], on a store that may hold something.
    pub async fn federating_on(address: SocketAddr, store: Store) -> Self {
        let own = federation_settings(address);
        let own: Vec<&str> = own.iter().map(String::as_str).collect();
        Self::start_on(store, &own).await
    }
}

/// What makes a server federate at `address`. The listener without TLS, for clients, also takes what tests sign themselves.
pub fn federation_settings(address: SocketAddr) -> Vec<String> {
    let files = AUTHORITY.sign(&address.ip().to_string());
    let path = |path: &PathBuf| path.display().to_string();
    let plain = "{ bind = \"127.0.0.1:0\", resources = [\"client\", \"federation\", \"web\", \"health\", \"metrics\"] }";
    let tls = format!("{{ bind = \"{address}\", tls = true, resources = [\"federation\"] }}");
    vec![
        format!("server.name={address}"),
        format!("listeners=[{plain}, {tls}]"),
        "tls.mode=files".to_owned(),
        format!("tls.cert={}", path(&files.cert)),
        format!("tls.key={}", path(&files.key)),
        format!("net.ca_files=[\"{}\"]", path(&AUTHORITY.file())),
        "net.allowed_ranges=[\"127.0.0.0/8\"]".to_owned(),
        "directory.public_rooms_federated=true".to_owned(),
    ]
}

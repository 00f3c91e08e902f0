//! Certificates of the listeners. They are read anew when their files change; connections that stand are not touched.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    config::sections::{TlsMode, TlsSection},
    tasks::Stop,
};

/// How often the files are looked at.
const CHECK_INTERVAL: Duration = Duration::from_secs(30);

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {path}: {source}")]
    Open { path: PathBuf, source: io::Error },
    #[error("there is no certificate or key in {path}: {source}")]
    Read {
        path: PathBuf,
        source: rustls::pki_types::pem::Error,
    },
    #[error("tls.mode = \"files\" needs tls.cert and tls.key")]
    NoFiles,
    #[error("the certificate and its key cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
}

/// A certificate and its key, from two files.
#[derive(Debug)]
pub(super) struct Certificates {
    cert: PathBuf,
    key: PathBuf,
    current: ArcSwap<CertifiedKey>,
    /// When the files had been changed that are in use.
    changed: Mutex<Changed>,
}

type Changed = (SystemTime, SystemTime);

impl Certificates {
    /// Reads the files of `section`; `None` when TLS is off.
    pub(super) fn open(section: &TlsSection) -> Result<Option<Arc<Self>>, Error> {
        if section.mode == TlsMode::Off {
            return Ok(None);
        }
        let (Some(cert), Some(key)) = (section.cert.clone(), section.key.clone()) else {
            return Err(Error::NoFiles);
        };
        let changed = (changed_at(&cert)?, changed_at(&key)?);
        let current = ArcSwap::from_pointee(read(&cert, &key)?);
        Ok(Some(Arc::new(Self {
            cert,
            key,
            current,
            changed: Mutex::new(changed),
        })))
    }

    /// What speaks TLS with the newest certificate.
    pub(super) fn acceptor(self: &Arc<Self>) -> Result<TlsAcceptor, Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::<Self>::clone(self));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// Looks at the files until `stop`.
    pub(super) async fn follow(&self, stop: &Stop) {
        while tokio::time::timeout(CHECK_INTERVAL, stop.requested())
            .await
            .is_err()
        {
            match self.read_if_changed() {
                Ok(true) => tracing::info!("the certificate was read anew"),
                Ok(false) => {}
                Err(error) => tracing::error!(%error, "the certificate stays as it was"),
            }
        }
    }

    /// Takes over files that have changed; true if they had. On an error the old ones stay.
    fn read_if_changed(&self) -> Result<bool, Error> {
        let now = (changed_at(&self.cert)?, changed_at(&self.key)?);
        let mut changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
        if *changed == now {
            return Ok(false);
        }
        self.current.store(Arc::new(read(&self.cert, &self.key)?));
        *changed = now;
        Ok(true)
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

fn changed_at(path: &Path) -> Result<SystemTime, Error> {
    fs::metadata(path)
        .and_then(|metadata| metadata.modified())
        .map_err(|source| Error::Open {
            path: path.to_owned(),
            source,
        })
}

fn read(cert: &Path, key: &Path) -> Result<CertifiedKey, Error> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Read { path, source }
    };
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(failed(cert))?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(failed(key))?;
    let provider = aws_lc_rs::default_provider();
    Ok(CertifiedKey::from_der(chain, private, &provider)?)
}

#[cfg(test)]
mod tests;

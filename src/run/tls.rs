//! Certificates of the listeners.

use std::{path::PathBuf, sync::Arc};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio_rustls::TlsAcceptor;

use crate::config::sections::{TlsMode, TlsSection};

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read the certificate or key {path}: {source}")]
    Read {
        path: PathBuf,
        source: rustls::pki_types::pem::Error,
    },
    #[error("tls.mode = \"files\" needs tls.cert and tls.key")]
    NoFiles,
    #[error("the certificate and its key cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
}

/// What speaks TLS for the listeners that ask for it; `None` when TLS is off.
pub(super) fn acceptor(section: &TlsSection) -> Result<Option<TlsAcceptor>, Error> {
    if section.mode == TlsMode::Off {
        return Ok(None);
    }
    let (Some(cert), Some(key)) = (&section.cert, &section.key) else {
        return Err(Error::NoFiles);
    };
    let read = |path: &PathBuf| {
        let path = path.clone();
        move |source| Error::Read { path, source }
    };
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(read(cert))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(read(key))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}

//! TLS of the listeners: the files that prove who this daemon is, and whom it takes for a client.
//!
//! Pure code, but for [`Tls::server`], which reads the files: once when the configuration is checked, so
//! that what does not fit together is one of its mistakes, and whenever they come into force.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use super::settings::Section;

/// The files of `http.tls_…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// The certificate and what leads to its authority, in PEM.
    pub cert: PathBuf,
    /// Its key, in PEM.
    pub key: PathBuf,
    /// The authorities whose certificates clients must show; `None` asks for none.
    pub client_ca: Option<PathBuf>,
}

impl Tls {
    /// What the files say, by now. The error names the file and never shows what is in it.
    pub fn server(&self) -> Result<Arc<ServerConfig>, String> {
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("TLS cannot be set up: {error}"))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(file) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(file)? {
                    roots.add(certificate).map_err(|error| wrong(file, error))?;
                }
                let provider = Arc::new(ring::default_provider());
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(verifier.map_err(|error| wrong(file, error))?)
            }
        };
        let key = PrivateKeyDer::from_pem_slice(&read(&self.key)?)
            .map_err(|_| format!("{} holds no private key in PEM", self.key.display()))?;
        let mut server = builder.with_single_cert(certificates(&self.cert)?, key).map_err(|error| {
            format!("{} and {} do not fit together: {error}", self.cert.display(), self.key.display())
        })?;
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(server))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(format!("{} holds no certificate in PEM", path.display())),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))
}

fn wrong(path: &Path, error: impl std::fmt::Display) -> String {
    format!("{}: {error}", path.display())
}

/// Reads the keys; what the files hold is checked at once.
pub(super) fn read_keys(s: &mut Section) -> Option<Tls> {
    let (cert, key) = (s.file("tls_cert"), s.file("tls_key"));
    let client_ca = s.file("tls_client_ca");
    let (cert, key) = match (cert, key) {
        (Some(cert), Some(key)) => (cert, key),
        (None, None) => {
            if client_ca.is_some() {
                s.mistake("`http.tls_client_ca` needs `http.tls_cert` and `http.tls_key`".to_owned());
            }
            return None;
        }
        (Some(_), None) => {
            s.mistake("`http.tls_cert` needs `http.tls_key`".to_owned());
            return None;
        }
        (None, Some(_)) => {
            s.mistake("`http.tls_key` needs `http.tls_cert`".to_owned());
            return None;
        }
    };
    let tls = Tls { cert, key, client_ca };
    if let Err(wrong) = tls.server() {
        s.mistake(format!("`http.tls_cert`: {wrong}"));
    }
    Some(tls)
}

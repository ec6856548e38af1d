//! Owns TLS on both legs (rustls with ring): certificates and their reloading, trust, handshakes off the data thread.
//!
//! Refuses to know what flows through it, and who may do without it.

mod backends;
mod clients;
mod files;
mod handshakes;
mod reloaded;
mod trust;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, pem};
use x509_certificate::{DigestAlgorithm, SignatureAlgorithm, X509Certificate};

pub use backends::{BackendTls, https};
pub use clients::{ClientTls, Identity};
pub use handshakes::Handshakes;

/// The name of PostgreSQL's protocol in ALPN (protocol chapter 55.2.11).
pub const ALPN: &[u8] = b"postgresql";

/// The name of HTTP/1.1 in ALPN (RFC 7301).
pub const HTTP: &[u8] = b"http/1.1";

/// Whether a certificate bears this name: as its subject's common name, or among its alternative names.
#[must_use]
pub fn is_named(certificate: &CertificateDer<'_>, name: &str) -> bool {
    trust::is_named(certificate, name)
}

/// Why there is no TLS with these files.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{}: can't be read: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{}: not PEM: {source}", path.display())]
    Pem { path: PathBuf, source: pem::Error },
    #[error("{}: holds no {what}", path.display())]
    Empty { path: PathBuf, what: &'static str },
    #[error("{} and {}: not a certificate and its key: {source}", cert.display(), key.display())]
    Pair {
        cert: PathBuf,
        key: PathBuf,
        source: rustls::Error,
    },
    #[error("{}: can't be trusted: {why}", path.display())]
    Roots { path: PathBuf, why: String },
    #[error("the system's certificate store holds nothing")]
    NoSystemRoots,
    #[error("`{host}` is no name that a certificate could have")]
    Name { host: String },
    #[error(transparent)]
    Setup(#[from] rustls::Error),
}

/// The one crypto library.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// What `tls-server-end-point` binds to (RFC 5929): the hash of the certificate that one side showed.
///
/// `None` where the certificate's signature names no hash that both sides would agree on.
#[must_use]
pub fn end_point(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let parsed = X509Certificate::from_der(certificate).ok()?;
    let digest = match parsed.signature_signature_algorithm()? {
        SignatureAlgorithm::RsaSha1
        | SignatureAlgorithm::RsaSha256
        | SignatureAlgorithm::EcdsaSha256 => DigestAlgorithm::Sha256,
        SignatureAlgorithm::RsaSha384 | SignatureAlgorithm::EcdsaSha384 => DigestAlgorithm::Sha384,
        SignatureAlgorithm::RsaSha512 => DigestAlgorithm::Sha512,
        SignatureAlgorithm::Ed25519 | SignatureAlgorithm::NoSignature(_) => return None,
    };
    Some(digest.digest_data(certificate))
}

//! Owns the judgement of certificates: what libpq and PostgreSQL accept, shall be accepted here.
//!
//! webpki builds the chains. By hand is what it refuses to look at, and OpenSSL takes: a certificate that is itself a root
//! (`openssl req -x509` makes it a CA's), one of X.509 version 1 (`openssl x509 -req` makes those) that a root has
//! signed, and a name that stands in the subject only.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
};
use x509_certificate::rfc5280::{Certificate, Version};
use x509_certificate::{
    CapturedX509Certificate, KeyAlgorithm, SignatureAlgorithm, X509Certificate,
};

use super::{TlsError, provider};

/// The extension subjectAltName (2.5.29.17).
const ALTERNATIVE_NAMES: &[u8] = &[0x55, 0x1d, 0x11];

/// Whom we trust.
#[derive(Debug)]
pub(super) struct Roots {
    store: Arc<RootCertStore>,
    known: Vec<CertificateDer<'static>>,
}

/// What of PostgreSQL's certificate is checked.
#[derive(Debug)]
pub(super) enum Check {
    /// Nothing: the connection is encrypted, with whomever.
    Nothing,
    /// One of these has signed it.
    Chain(Roots),
    /// That, and the host's name is in it.
    ChainAndName(Roots),
}

impl Roots {
    pub(super) fn new(store: RootCertStore, known: Vec<CertificateDer<'static>>) -> Self {
        let store = Arc::new(store);
        Self { store, known }
    }

    /// The judgement on a certificate that webpki wouldn't look at; `None` where it would.
    fn judge_plainly(&self, leaf: &CertificateDer<'_>) -> Option<Result<(), Error>> {
        let itself = self.known.iter().any(|root| root == leaf);
        if !itself && !is_version_1(leaf) {
            return None;
        }
        let Ok(parsed) = CapturedX509Certificate::from_der(leaf.to_vec()) else {
            return Some(Err(CertificateError::BadEncoding.into()));
        };
        let signed = itself || self.known.iter().any(|root| has_signed(root, &parsed));
        Some(if !signed {
            Err(CertificateError::UnknownIssuer.into())
        } else if !parsed.time_constraints_valid(None) {
            Err(CertificateError::Expired.into())
        } else {
            Ok(())
        })
    }

    fn judge_backend(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        self.judge_plainly(leaf).unwrap_or_else(|| {
            verify_server_cert_signed_by_trust_anchor(
                &ParsedCertificate::try_from(leaf)?,
                &self.store,
                intermediates,
                now,
                provider().signature_verification_algorithms.all,
            )
        })
    }
}

fn has_signed(root: &CertificateDer<'_>, leaf: &CapturedX509Certificate) -> bool {
    let Ok(root) = CapturedX509Certificate::from_der(root.to_vec()) else {
        return false;
    };
    // The crate's own check takes the kind of the signer's key to be that of the signed one.
    let signed: &Certificate = (**leaf).as_ref();
    let info = &root.tbs_certificate().subject_public_key_info;
    let (Ok(key), Ok(signature)) = (
        KeyAlgorithm::try_from(&info.algorithm),
        SignatureAlgorithm::try_from(&signed.signature_algorithm),
    ) else {
        return false;
    };
    if signature == SignatureAlgorithm::RsaSha1 {
        return false;
    }
    let (Some(text), Ok(algorithm)) = (
        &signed.tbs_certificate.raw_data,
        signature.resolve_verification_algorithm(key),
    ) else {
        return false;
    };
    let proof = signed.signature.octet_bytes();
    root.subject_name() == leaf.issuer_name()
        && root
            .verify_signed_data_with_algorithm(text, proof, algorithm)
            .is_ok()
}

fn is_version_1(leaf: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(leaf).is_ok_and(|parsed| {
        matches!(
            parsed.tbs_certificate().version,
            None | Some(Version::V1 | Version::V2)
        )
    })
}

/// Whether a certificate bears the host's name: among its alternative names, or, where it has none, as its subject's.
fn judge_name(leaf: &CertificateDer<'_>, name: &ServerName<'_>) -> Result<(), Error> {
    let parsed = X509Certificate::from_der(leaf).map_err(|_| CertificateError::BadEncoding)?;
    let has_names = parsed
        .iter_extensions()
        .any(|extension| extension.id.as_ref() == ALTERNATIVE_NAMES);
    if has_names {
        return verify_server_name(&ParsedCertificate::try_from(leaf)?, name);
    }
    let subject = parsed.subject_common_name().unwrap_or_default();
    if is_called(&name.to_str(), &subject) {
        Ok(())
    } else {
        Err(CertificateError::NotValidForNameContext {
            expected: name.to_owned(),
            presented: vec![format!("CN={subject}")],
        }
        .into())
    }
}

/// Whether a certificate bears this name: as its subject's common name, or among its alternative names.
pub(super) fn is_named(certificate: &CertificateDer<'_>, name: &str) -> bool {
    let Ok(parsed) = X509Certificate::from_der(certificate) else {
        return false;
    };
    let alternative = || {
        let name = ServerName::try_from(name).ok()?;
        let parsed = ParsedCertificate::try_from(certificate).ok()?;
        verify_server_name(&parsed, &name).ok()
    };
    parsed.subject_common_name().as_deref() == Some(name) || alternative().is_some()
}

/// Whether a host is meant by a name, of which the first label may be `*`.
fn is_called(host: &str, name: &str) -> bool {
    let host = host.trim_end_matches('.');
    match name.strip_prefix("*.") {
        Some(domain) if domain.contains('.') => host
            .split_once('.')
            .is_some_and(|(label, rest)| !label.is_empty() && rest.eq_ignore_ascii_case(domain)),
        Some(_) => false,
        None => !name.is_empty() && host.eq_ignore_ascii_case(name),
    }
}

/// How a signature of the handshake is checked, by TLS version.
#[derive(Clone, Copy)]
enum Handshake {
    Tls12,
    Tls13,
}

fn judge_signature(
    handshake: Handshake,
    message: &[u8],
    leaf: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let supported = provider().signature_verification_algorithms;
    if is_version_1(leaf) {
        return judge_version_1_signature(handshake, message, leaf, signed, &supported);
    }
    match handshake {
        Handshake::Tls12 => verify_tls12_signature(message, leaf, signed, &supported),
        Handshake::Tls13 => verify_tls13_signature(message, leaf, signed, &supported),
    }
}

/// As rustls does it, less its refusal of the version.
fn judge_version_1_signature(
    handshake: Handshake,
    message: &[u8],
    leaf: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
    supported: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    let bad = || Error::from(CertificateError::BadSignature);
    let parsed = X509Certificate::from_der(leaf).map_err(|_| CertificateError::BadEncoding)?;
    let of_scheme = supported
        .mapping
        .iter()
        .find(|(scheme, _)| *scheme == signed.scheme);
    let (scheme, algorithms) = of_scheme.ok_or_else(bad)?;
    let algorithms = match handshake {
        Handshake::Tls12 => algorithms,
        Handshake::Tls13 if is_of_tls13(*scheme) => &algorithms[..1],
        Handshake::Tls13 => return Err(bad()),
    };
    let key = parsed.public_key_data();
    let valid = |algorithm: &&dyn rustls::pki_types::SignatureVerificationAlgorithm| {
        let verified = algorithm.verify_signature(&key, message, signed.signature());
        verified.is_ok()
    };
    if algorithms.iter().any(valid) {
        Ok(HandshakeSignatureValid::assertion())
    } else {
        Err(bad())
    }
}

/// TLS 1.3 has left PKCS #1 and SHA-1 behind.
fn is_of_tls13(scheme: SignatureScheme) -> bool {
    use SignatureScheme as S;
    [
        S::ECDSA_NISTP256_SHA256,
        S::ECDSA_NISTP384_SHA384,
        S::RSA_PSS_SHA256,
        S::RSA_PSS_SHA384,
        S::RSA_PSS_SHA512,
        S::ED25519,
    ]
    .contains(&scheme)
}

impl ServerCertVerifier for Check {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match self {
            Self::Nothing => {}
            Self::Chain(roots) => roots.judge_backend(leaf, intermediates, now)?,
            Self::ChainAndName(roots) => {
                roots.judge_backend(leaf, intermediates, now)?;
                judge_name(leaf, name)?;
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        judge_signature(Handshake::Tls12, message, leaf, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        judge_signature(Handshake::Tls13, message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Judges clients' certificates. One that shows none gets through: who may, is decided where PostgreSQL would, with words.
#[derive(Debug)]
pub(super) struct ClientCheck {
    roots: Roots,
    webpki: Arc<dyn ClientCertVerifier>,
}

impl ClientCheck {
    pub(super) fn new(roots: Roots) -> Result<Self, TlsError> {
        let webpki = WebPkiClientVerifier::builder_with_provider(roots.store.clone(), provider())
            .allow_unauthenticated()
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        Ok(Self { roots, webpki })
    }
}

impl ClientCertVerifier for ClientCheck {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.webpki.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match self.roots.judge_plainly(leaf) {
            Some(judged) => judged.map(|()| ClientCertVerified::assertion()),
            None => self.webpki.verify_client_cert(leaf, intermediates, now),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        judge_signature(Handshake::Tls12, message, leaf, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        judge_signature(Handshake::Tls13, message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::is_called;

    #[test]
    fn a_name_may_begin_with_a_star_that_stands_for_one_label() {
        assert!(is_called("db.example.com", "DB.example.com"));
        assert!(is_called("db.example.com", "*.example.com"));
        assert!(!is_called("a.db.example.com", "*.example.com"));
        assert!(!is_called("example.com", "*.example.com"));
        assert!(!is_called("db.com", "*.com"));
        assert!(!is_called("db", ""));
        assert!(is_called("127.0.0.1", "127.0.0.1"));
    }
}

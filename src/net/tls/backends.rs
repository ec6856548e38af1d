//! Owns TLS towards PostgreSQL: what of its certificate is checked, and the certificate that we show.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

use super::reloaded::Reloaded;
use super::trust::{Check, Roots};
use super::{ALPN, HTTP, Handshakes, TlsError, files, provider};
use crate::config::{Place, RootSource, SslMode, Upstream, UpstreamHost, UpstreamTls};
use crate::net::Stream;

/// How PostgreSQL is met with TLS. Clones share what is reloaded.
#[derive(Clone, Debug)]
pub struct BackendTls {
    config: Arc<Reloaded<ClientConfig>>,
    /// Whom we want to meet, for each host of the upstream; sent along (SNI) where it is a name. None for unix sockets.
    names: Arc<[Option<ServerName<'static>>]>,
}

impl BackendTls {
    /// Reads the files that the upstream URL names. `None` where it wants no TLS, or has unix sockets only.
    ///
    /// # Errors
    /// What is wrong with the files.
    pub fn load(upstream: &Upstream) -> Result<Option<Self>, TlsError> {
        let name = |place: &Place| match &place.host {
            UpstreamHost::Unix(_) => Ok(None),
            UpstreamHost::Tcp(host) => ServerName::try_from(host.clone())
                .map(Some)
                .map_err(|_| TlsError::Name { host: host.clone() }),
        };
        let unix = |place: &Place| matches!(place.host, UpstreamHost::Unix(_));
        if upstream.tls.mode == SslMode::Disable || upstream.places.iter().all(unix) {
            return Ok(None);
        }
        let names = upstream.places.iter().map(name);
        let names = names.collect::<Result<_, _>>()?;
        let wanted = upstream.tls.clone();
        let paths = files_of(&wanted);
        let config = Reloaded::new(paths, move || configure(&wanted))?;
        Ok(Some(Self {
            config: Arc::new(config),
            names,
        }))
    }

    /// Reads the files again where they have changed; backends keep what they have.
    pub fn refresh(&self) {
        self.config.refresh();
    }

    /// Looks at the files from time to time, for as long as it runs.
    pub async fn watch(self) {
        self.config.watch().await;
    }

    /// Shakes hands with the upstream's host of this number. Cancel safe: the connection is closed.
    ///
    /// # Errors
    /// The handshake failed, PostgreSQL isn't whom the URL trusts, or it isn't a TCP connection.
    pub async fn connect(
        &self,
        handshakes: &Handshakes,
        stream: Stream,
        host: usize,
    ) -> io::Result<Stream> {
        let (Stream::Tcp(socket), Some(Some(name))) = (stream, self.names.get(host)) else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let config = self.config.current();
        handshakes.connect(socket, config, name.clone()).await
    }
}

/// TLS towards somebody who speaks HTTP, with a certificate for the host's name.
///
/// # Errors
/// What is wrong with the files: `root`, or the certificate and key that we show.
pub fn https(
    root: Option<PathBuf>,
    shown: Option<(PathBuf, PathBuf)>,
) -> Result<ClientConfig, TlsError> {
    let (cert, key) = shown.unzip();
    let wanted = UpstreamTls {
        mode: SslMode::VerifyFull,
        root: Some(root.map_or(RootSource::System, RootSource::File)),
        cert,
        key,
    };
    let mut config = configure(&wanted)?;
    config.alpn_protocols = vec![HTTP.to_vec()];
    Ok(config)
}

fn files_of(wanted: &UpstreamTls) -> Vec<PathBuf> {
    let root = match &wanted.root {
        Some(RootSource::File(path)) => Some(path.clone()),
        Some(RootSource::System) | None => None,
    };
    [root, wanted.cert.clone(), wanted.key.clone()]
        .into_iter()
        .flatten()
        .collect()
}

fn configure(wanted: &UpstreamTls) -> Result<ClientConfig, TlsError> {
    let roots = match &wanted.root {
        None => None,
        Some(RootSource::File(path)) => Some(files::roots(path)?),
        Some(RootSource::System) => Some(system_roots()?),
    };
    let roots = roots.map(|(store, known)| Roots::new(store, known));
    let check = match (wanted.mode, roots) {
        (SslMode::VerifyFull, Some(roots)) => Check::ChainAndName(roots),
        // As in libpq: with a root at hand, `require` checks the chain, too.
        (SslMode::VerifyCa | SslMode::Require, Some(roots)) => Check::Chain(roots),
        (SslMode::VerifyFull | SslMode::VerifyCa, None) => return Err(TlsError::NoSystemRoots),
        (SslMode::Disable | SslMode::Allow | SslMode::Prefer, _) | (SslMode::Require, None) => {
            Check::Nothing
        }
    };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(check));
    let mut config = match (&wanted.cert, &wanted.key) {
        (Some(cert), Some(key)) => builder
            .with_client_auth_cert(files::certificates(cert)?, files::key(key)?)
            .map_err(|source| TlsError::Pair {
                cert: cert.clone(),
                key: key.clone(),
                source,
            })?,
        (None, _) | (_, None) => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    // PostgreSQL never resumes; and who is trusted is judged each time.
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn system_roots() -> Result<(RootCertStore, Vec<CertificateDer<'static>>), TlsError> {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!("the system's certificate store: {error}");
    }
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(found.certs);
    if store.is_empty() {
        return Err(TlsError::NoSystemRoots);
    }
    // Those are authorities: none of them is anybody's own certificate.
    Ok((store, Vec::new()))
}

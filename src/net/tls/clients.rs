//! Owns TLS towards clients: the certificate that we show, and the roots that theirs must have.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::server::NoServerSessionStorage;

use super::reloaded::Reloaded;
use super::trust::{ClientCheck, Roots};
use super::{ALPN, HTTP, Handshakes, TlsError, files, provider};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::config::{AdminAccess, Config, Tls};
use crate::net::Stream;

/// How clients are met with TLS. Clones share what is reloaded.
#[derive(Clone, Debug)]
pub struct ClientTls {
    identity: Arc<Reloaded<Identity>>,
}

/// What one handshake is made with: a reload leaves it as it was.
#[derive(Debug)]
pub struct Identity {
    config: Arc<ServerConfig>,
    /// The certificate that clients see.
    pub certificate: CertificateDer<'static>,
}

impl ClientTls {
    /// Reads the files that the configuration names. `None` where it wants no TLS.
    ///
    /// # Errors
    /// What is wrong with the files.
    pub fn load(config: &Config) -> Result<Option<Self>, TlsError> {
        if config.tls == Tls::Disable {
            return Ok(None);
        }
        let files = [&config.tls_cert, &config.tls_key, &config.tls_client_ca];
        Self::of(files, ALPN)
    }

    /// The same for the admin listener, which speaks HTTP.
    ///
    /// # Errors
    /// What is wrong with the files.
    pub fn load_for_admin(access: &AdminAccess) -> Result<Option<Self>, TlsError> {
        let files = [&access.tls_cert, &access.tls_key, &access.tls_client_ca];
        Self::of(files, HTTP)
    }

    fn of(
        [cert, key, authority]: [&Option<PathBuf>; 3],
        protocol: &'static [u8],
    ) -> Result<Option<Self>, TlsError> {
        let (Some(cert), Some(key)) = (cert.clone(), key.clone()) else {
            return Ok(None);
        };
        let authority = authority.clone();
        let paths = [Some(cert.clone()), Some(key.clone()), authority.clone()];
        let paths: Vec<PathBuf> = paths.into_iter().flatten().collect();
        let make = move || Identity::load(&cert, &key, authority.as_deref(), protocol);
        Ok(Some(Self {
            identity: Arc::new(Reloaded::new(paths, make)?),
        }))
    }

    /// Reads the files again where they have changed; sessions keep what they have.
    pub fn refresh(&self) {
        self.identity.refresh();
    }

    /// Looks at the files from time to time, for as long as it runs.
    pub async fn watch(self) {
        self.identity.watch().await;
    }

    /// Shakes hands. Cancel safe: the connection is closed.
    ///
    /// # Errors
    /// The handshake failed, or it isn't a TCP connection.
    pub async fn accept(
        &self,
        handshakes: &Handshakes,
        stream: Stream,
    ) -> io::Result<(Stream, Arc<Identity>)> {
        let Stream::Tcp(socket) = stream else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let identity = self.identity.current();
        let config = identity.config.clone();
        let stream = handshakes.accept(socket, config).await?;
        Ok((stream, identity))
    }

    /// Shakes hands on a connection of another runtime's. Cancel safe: the connection is closed.
    ///
    /// # Errors
    /// The handshake failed.
    pub async fn accept_there(
        &self,
        handshakes: &Handshakes,
        stream: TcpStream,
    ) -> io::Result<TlsStream<TcpStream>> {
        let config = self.identity.current().config.clone();
        handshakes.accept_there(stream, config).await
    }
}

impl Identity {
    fn load(
        cert: &Path,
        key: &Path,
        authority: Option<&Path>,
        protocol: &[u8],
    ) -> Result<Self, TlsError> {
        let chain = files::certificates(cert)?;
        let certificate = chain[0].clone();
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?;
        let builder = match authority {
            Some(path) => {
                let (store, known) = files::roots(path)?;
                let check = ClientCheck::new(Roots::new(store, known))?;
                builder.with_client_cert_verifier(Arc::new(check))
            }
            None => builder.with_no_client_auth(),
        };
        let pair = |source| TlsError::Pair {
            cert: cert.to_owned(),
            key: key.to_owned(),
            source,
        };
        let mut config = builder
            .with_single_cert(chain, files::key(key)?)
            .map_err(pair)?;
        config.alpn_protocols = vec![protocol.to_vec()];
        // libpq never resumes; what nobody uses costs nothing.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self {
            config: Arc::new(config),
            certificate,
        })
    }
}

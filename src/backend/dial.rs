//! Owns the way to PostgreSQL: a socket, and its encryption as the upstream URL wants it (protocol chapter 55.2.11).

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::config::{Config, SslMode, Upstream, UpstreamHost};
use crate::net::Stream;
use crate::net::tls::{BackendTls, Handshakes};

/// SSLRequest.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// Opens sockets to PostgreSQL. Clones share what is reloaded.
#[derive(Clone, Debug)]
pub struct Dialer {
    config: Arc<Config>,
    /// None where it is never encrypted.
    tls: Option<BackendTls>,
    handshakes: Handshakes,
}

/// How one attempt is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// Not at all.
    None,
    /// Where PostgreSQL offers it, and it works.
    Offered,
    /// Or there is no connection.
    Required,
}

impl Dialer {
    /// The way that the configuration describes.
    #[must_use]
    pub fn new(config: Arc<Config>, tls: Option<BackendTls>, handshakes: Handshakes) -> Self {
        Self {
            config,
            tls,
            handshakes,
        }
    }

    /// Where PostgreSQL is.
    #[must_use]
    pub fn upstream(&self) -> &Upstream {
        &self.config.upstream
    }

    /// How the first attempt is encrypted.
    #[must_use]
    pub fn encryption(&self) -> Encryption {
        match (&self.tls, self.upstream().tls.mode) {
            (None, _) | (Some(_), SslMode::Disable | SslMode::Allow) => Encryption::None,
            (Some(_), SslMode::Prefer) => Encryption::Offered,
            (Some(_), SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull) => {
                Encryption::Required
            }
        }
    }

    /// How a second attempt is encrypted, after PostgreSQL's own rules have refused the first one. As in libpq.
    #[must_use]
    pub fn otherwise(&self, stream: &Stream) -> Option<Encryption> {
        self.tls.as_ref()?;
        match self.upstream().tls.mode {
            SslMode::Allow => Some(Encryption::Required),
            SslMode::Prefer if stream.is_tls() => Some(Encryption::None),
            SslMode::Prefer
            | SslMode::Disable
            | SslMode::Require
            | SslMode::VerifyCa
            | SslMode::VerifyFull => None,
        }
    }

    /// Opens a socket. Cancel safe: it is closed.
    ///
    /// # Errors
    /// The resolver's, the kernel's, or that of TLS.
    pub async fn dial(&self, encryption: Encryption) -> io::Result<Stream> {
        let stream = self.connect().await?;
        let (Encryption::Offered | Encryption::Required, Some(tls)) = (encryption, &self.tls)
        else {
            return Ok(stream);
        };
        let required = encryption == Encryption::Required;
        let stream = match request(stream).await? {
            Answer::Willing(stream) => stream,
            Answer::Unwilling(stream) if !required => return Ok(stream),
            Answer::Unwilling(_) => {
                return Err(io::Error::other(
                    "it doesn't offer TLS, and sslmode demands it",
                ));
            }
        };
        match tls.connect(&self.handshakes, stream).await {
            Err(error) if !required => {
                tracing::info!("no TLS with PostgreSQL, sslmode lets it be: {error}");
                self.connect().await
            }
            shaken => shaken,
        }
    }

    async fn connect(&self) -> io::Result<Stream> {
        let port = self.upstream().port;
        match &self.upstream().host {
            UpstreamHost::Tcp(host) => {
                Stream::connect_tcp(host, port, self.config.tcp_user_timeout).await
            }
            UpstreamHost::Unix(directory) => {
                Stream::connect_unix(&directory.join(format!(".s.PGSQL.{port}"))).await
            }
        }
    }
}

/// What PostgreSQL says to a request for encryption.
enum Answer {
    Willing(Stream),
    Unwilling(Stream),
}

async fn request(mut stream: Stream) -> io::Result<Answer> {
    stream.write_all(&SSL_REQUEST).await?;
    let mut answer = [0];
    stream.read_exact(&mut answer).await?;
    match answer {
        [b'S'] => {
            // CVE-2021-23222: what comes in clear before our first word could be anybody's.
            let ahead = stream.try_read(&mut [0]);
            if !matches!(ahead, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
                return Err(io::Error::other(
                    "unencrypted bytes came behind its answer to SSLRequest",
                ));
            }
            Ok(Answer::Willing(stream))
        }
        [b'N'] => Ok(Answer::Unwilling(stream)),
        _ => Err(io::Error::other(
            "its answer to SSLRequest isn't the protocol's",
        )),
    }
}

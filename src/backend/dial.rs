//! Owns the way to PostgreSQL: a socket, and its encryption as the upstream URL wants it (protocol chapter 55.2.11).

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::backend::hosts::Hosts;
use crate::clock::timers;
use crate::config::{Config, SslMode, Upstream, UpstreamHost};
use crate::net::resolve::Resolver;
use crate::net::stream::Spot;
use crate::net::tls::{BackendTls, Handshakes};
use crate::net::{Socket, Stream};

/// SSLRequest.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// Opens sockets to PostgreSQL. Clones share what is reloaded.
#[derive(Clone, Debug)]
pub struct Dialer {
    config: Arc<Config>,
    /// None where it is never encrypted.
    tls: Option<BackendTls>,
    handshakes: Handshakes,
    resolver: Resolver,
    hosts: Arc<Hosts>,
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
        let hosts = Arc::new(Hosts::new(&config.upstream));
        Self {
            config,
            tls,
            handshakes,
            resolver: Resolver::system(),
            hosts,
        }
    }

    /// The same, with names looked up in another way.
    #[must_use]
    pub fn with_resolver(self, resolver: Resolver) -> Self {
        Self { resolver, ..self }
    }

    /// What is remembered of the upstream's hosts.
    #[must_use]
    pub fn hosts(&self) -> &Hosts {
        &self.hosts
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

    /// Opens a socket to the upstream's host of this number, and says where it leads. Cancel safe: it is closed.
    ///
    /// # Errors
    /// The resolver's, the kernel's, or that of TLS.
    pub async fn dial(&self, host: usize, encryption: Encryption) -> io::Result<(Stream, Spot)> {
        let stream = self.connect(host).await?;
        let address = stream.tcp().and_then(Socket::peer_address);
        let spot = Spot { host, address };
        Ok((self.encrypt(stream, spot, encryption).await?, spot))
    }

    /// Opens one more socket to just where another one leads. Cancel safe: it is closed.
    ///
    /// # Errors
    /// The kernel's, or that of TLS.
    pub async fn dial_again(&self, spot: Spot) -> io::Result<Stream> {
        let stream = self.connect_to(spot).await?;
        self.encrypt(stream, spot, self.encryption()).await
    }

    async fn encrypt(
        &self,
        stream: Stream,
        spot: Spot,
        encryption: Encryption,
    ) -> io::Result<Stream> {
        let (Encryption::Offered | Encryption::Required, Some(tls), Stream::Tcp(_)) =
            (encryption, &self.tls, &stream)
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
        match tls.connect(&self.handshakes, stream, spot.host).await {
            Err(error) if !required => {
                tracing::info!("no TLS with PostgreSQL, sslmode lets it be: {error}");
                self.connect_to(spot).await
            }
            shaken => shaken,
        }
    }

    /// Connects to the first of a host's addresses that lets us; each has its share of `connect_timeout`.
    async fn connect(&self, host: usize) -> io::Result<Stream> {
        let place = &self.upstream().places[host];
        let name = match &place.host {
            UpstreamHost::Unix(_) => {
                return self
                    .connect_to(Spot {
                        host,
                        address: None,
                    })
                    .await;
            }
            UpstreamHost::Tcp(name) => name,
        };
        let mut addresses = self.resolver.look_up(name, place.port).await?;
        self.hosts.balance(&mut addresses);
        let count = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
        let share = self.config.connect_timeout / count;
        let mut last = None;
        for address in addresses {
            let spot = Spot {
                host,
                address: Some(address),
            };
            let attempt = self.connect_to(spot);
            let outcome = if count == 1 || share.is_zero() {
                attempt.await
            } else {
                let limited = timers::timeout(share, attempt).await;
                limited.unwrap_or_else(|late| Err(late.into()))
            };
            match outcome {
                Ok(stream) => return Ok(stream),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| io::ErrorKind::NotFound.into()))
    }

    async fn connect_to(&self, spot: Spot) -> io::Result<Stream> {
        let place = &self.upstream().places[spot.host];
        match (&place.host, spot.address) {
            (UpstreamHost::Tcp(_), Some(address)) => {
                Stream::connect_tcp(address, self.config.tcp).await
            }
            (UpstreamHost::Tcp(_), None) => Err(io::ErrorKind::NotConnected.into()),
            (UpstreamHost::Unix(directory), _) => {
                let name = format!(".s.PGSQL.{}", place.port);
                Stream::connect_unix(&directory.join(name))
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

#[cfg(test)]
mod tests;

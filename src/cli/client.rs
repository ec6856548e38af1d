//! Owns the talk with the admin API: one request, one answer, over TCP or a unix socket.
//!
//! Refuses to interpret answers, but for errors, which it turns into text.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderName};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Proof;
use super::stream::{Flow, Reader, Told};
use crate::clock::timers;

/// An answer longer than this isn't pgvalet's: 10,000 sessions are some 8 MB.
const LONGEST_ANSWER: usize = 256 << 20;
/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// One request.
#[derive(Debug)]
pub struct Ask<'a> {
    pub method: Method,
    pub path: &'a str,
    /// A JSON text, or nothing.
    pub body: Bytes,
    pub headers: Vec<(HeaderName, String)>,
}

/// Where an admin API listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminAddress {
    /// `host:port`.
    Tcp(String),
    /// `host:port`, encrypted.
    Tls(String),
    /// A socket's path.
    Unix(PathBuf),
}

/// `http://host:port`, `https://host:port`, `host:port`, or `unix:/path`.
impl std::str::FromStr for AdminAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const ALLOWED: &str =
            "allowed: host:port, http://host:port, https://host:port or unix:/path";
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path
                .strip_prefix("//")
                .filter(|path| path.starts_with('/'))
                .unwrap_or(path);
            return if path.starts_with('/') {
                Ok(Self::Unix(path.into()))
            } else {
                Err(ALLOWED)
            };
        }
        let encrypted = text.strip_prefix("https://");
        let authority = encrypted
            .or_else(|| text.strip_prefix("http://"))
            .unwrap_or(text)
            .trim_end_matches('/');
        let port = authority
            .rsplit_once(':')
            .map(|(host, port)| (host, port.parse::<u16>()));
        match port {
            Some((host, Ok(_))) if !host.is_empty() && !host.contains(['/', '@']) => {
                let kind = if encrypted.is_some() {
                    Self::Tls
                } else {
                    Self::Tcp
                };
                Ok(kind(authority.to_owned()))
            }
            Some(_) | None => Err(ALLOWED),
        }
    }
}

impl fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(authority) => f.write_str(authority),
            Self::Tls(authority) => write!(f, "https://{authority}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Why there is no answer to work with.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error(
        "no pgvalet answers at {address} ({source}); is it running? Start it with `pgvalet serve`, or say where it is \
         with --admin or PGVALET_ADMIN_URL"
    )]
    Unreachable {
        address: AdminAddress,
        source: std::io::Error,
    },
    /// Somebody listens there, and says nothing.
    #[error("no pgvalet answers at {address}: nothing came within {}", humantime::format_duration(*within))]
    Silent {
        address: AdminAddress,
        within: Duration,
    },
    /// Somebody listens there, and isn't pgvalet.
    #[error("what answers at {address} isn't the admin API of a pgvalet: {detail}")]
    NotPgvalet {
        address: AdminAddress,
        detail: String,
    },
    /// pgvalet says no.
    #[error("{problem}")]
    Refused { status: u16, problem: Problem },
}

/// An error body, application/problem+json (RFC 9457).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Problem {
    /// The kind of problem, in a few words.
    pub title: String,
    /// What is wrong this time.
    pub detail: Option<String>,
    /// Why a lease was not returned.
    pub outcome: Option<String>,
    /// The reason behind the outcome.
    pub reason: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.title)?;
        if let Some(detail) = &self.detail {
            write!(f, ": {detail}")?;
        }
        let said = |text: &String| {
            self.detail
                .as_ref()
                .is_some_and(|detail| detail.contains(text))
        };
        match (&self.outcome, &self.reason) {
            (Some(outcome), Some(reason)) if !said(reason) => write!(f, " ({outcome}: {reason})"),
            (Some(outcome), _) if !said(outcome) => write!(f, " ({outcome})"),
            (Some(_) | None, _) => Ok(()),
        }
    }
}

/// The admin API at one address; a connection for each request.
#[derive(Clone, Debug)]
pub struct Client {
    address: AdminAddress,
    /// How long an answer may take.
    patience: Duration,
    proof: Proof,
}

impl Client {
    /// Asks at `address`, and waits `patience` for each answer.
    pub fn new(address: AdminAddress, patience: Duration) -> Self {
        Self {
            address,
            patience,
            proof: Proof::default(),
        }
    }

    /// The same, showing this.
    #[must_use]
    pub fn showing(mut self, proof: Proof) -> Self {
        self.proof = proof;
        self
    }

    /// GETs `path`, and returns the body.
    ///
    /// # Errors
    ///
    /// Where nobody answers, or the answer is an error.
    pub async fn get(&self, path: &str) -> Result<Bytes, ClientError> {
        self.request(Method::GET, path, Bytes::new()).await
    }

    /// POSTs `body`, a JSON text, to `path`, and returns the answer's body.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub async fn post(&self, path: &str, body: impl Into<Bytes>) -> Result<Bytes, ClientError> {
        self.request(Method::POST, path, body.into()).await
    }

    async fn request(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, ClientError> {
        let ask = Ask {
            method,
            path,
            body,
            headers: vec![(ACCEPT, "application/json".to_owned())],
        };
        let answer = self.ask(ask, async |response| self.read(response).await);
        timers::timeout(self.patience, answer)
            .await
            .unwrap_or_else(|_| Err(self.silent(self.patience)))
    }

    /// Asks for server-sent events, and hands each one over, until there are no more, or `take` has had enough.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get); a connection that breaks later is an end, not an error.
    pub async fn follow(
        &self,
        mut ask: Ask<'_>,
        take: &mut dyn FnMut(Told) -> Flow,
    ) -> Result<(), ClientError> {
        ask.headers.push((ACCEPT, "text/event-stream".to_owned()));
        self.ask(ask, async |response| {
            let status = response.status();
            if !status.is_success() {
                return self.read(response).await.map(drop);
            }
            let mut body = response.into_body();
            let mut reader = Reader::default();
            while let Some(Ok(frame)) = body.frame().await {
                let Ok(bytes) = frame.into_data() else {
                    continue;
                };
                if reader.read(&bytes, take) == Flow::Enough {
                    break;
                }
            }
            Ok(())
        })
        .await
    }

    async fn ask<T>(
        &self,
        ask: Ask<'_>,
        read: impl AsyncFnOnce(Response<Incoming>) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        match &self.address {
            AdminAddress::Tcp(authority) => {
                let stream = self
                    .connected(TcpStream::connect(authority.as_str()))
                    .await?;
                self.exchange(stream, ask, read).await
            }
            AdminAddress::Tls(authority) => {
                let stream = self
                    .connected(TcpStream::connect(authority.as_str()))
                    .await?;
                let stream = self.encrypted(authority, stream).await?;
                self.exchange(stream, ask, read).await
            }
            AdminAddress::Unix(socket) => {
                let stream = self.connected(UnixStream::connect(socket)).await?;
                self.exchange(stream, ask, read).await
            }
        }
    }

    async fn connected<S>(
        &self,
        connect: impl Future<Output = std::io::Result<S>>,
    ) -> Result<S, ClientError> {
        match timers::timeout(CONNECT_TIMEOUT, connect).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(source)) => Err(ClientError::Unreachable {
                address: self.address.clone(),
                source,
            }),
            Err(_) => Err(self.silent(CONNECT_TIMEOUT)),
        }
    }

    async fn encrypted(
        &self,
        authority: &str,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, ClientError> {
        let strange = |detail: String| self.not_pgvalet(detail);
        let host = authority
            .rsplit_once(':')
            .map_or(authority, |(host, _)| host);
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let name = ServerName::try_from(host).map_err(|error| strange(error.to_string()))?;
        let config = self.proof.tls.clone();
        let config = config.ok_or_else(|| strange("no TLS was set up".to_owned()))?;
        let shaken = TlsConnector::from(config).connect(name, stream).await;
        shaken.map_err(|error| strange(format!("TLS: {error}")))
    }

    async fn exchange<S, T>(
        &self,
        stream: S,
        ask: Ask<'_>,
        read: impl AsyncFnOnce(Response<Incoming>) -> Result<T, ClientError>,
    ) -> Result<T, ClientError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let strange = |error: hyper::Error| self.not_pgvalet(error.to_string());
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(strange)?;
        let request = self.to_request(ask)?;
        // The connection moves the bytes; it ends with the sender, or before where the peer speaks something else.
        let exchange = async {
            let response = sender.send_request(request).await.map_err(strange)?;
            read(response).await
        };
        tokio::pin!(exchange);
        tokio::select! {
            answer = &mut exchange => answer,
            _ = connection => exchange.await,
        }
    }

    fn to_request(&self, ask: Ask<'_>) -> Result<Request<Full<Bytes>>, ClientError> {
        let host = match &self.address {
            AdminAddress::Tcp(authority) | AdminAddress::Tls(authority) => authority.as_str(),
            AdminAddress::Unix(_) => "localhost",
        };
        let mut request = Request::builder()
            .method(ask.method)
            .uri(ask.path)
            .header(HOST, host);
        if let Some(authorization) = &self.proof.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        for (name, value) in ask.headers {
            request = request.header(name, value);
        }
        if !ask.body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        request
            .body(Full::new(ask.body))
            .map_err(|error| self.not_pgvalet(error.to_string()))
    }

    async fn read(&self, response: Response<Incoming>) -> Result<Bytes, ClientError> {
        let status = response.status();
        let body = Limited::new(response.into_body(), LONGEST_ANSWER)
            .collect()
            .await;
        let body = body
            .map_err(|error| self.not_pgvalet(error.to_string()))?
            .to_bytes();
        if status.is_success() {
            return Ok(body);
        }
        Err(self.refused(status, &body))
    }

    /// An error that isn't problem+json isn't pgvalet's.
    fn refused(&self, status: StatusCode, body: &[u8]) -> ClientError {
        match serde_json::from_slice::<Problem>(body) {
            Ok(problem) if !problem.title.is_empty() => ClientError::Refused {
                status: status.as_u16(),
                problem,
            },
            Ok(_) | Err(_) => self.not_pgvalet(format!("it says {status}")),
        }
    }

    /// The error that a body tells.
    pub fn problem(&self, body: &[u8]) -> ClientError {
        self.refused(StatusCode::SERVICE_UNAVAILABLE, body)
    }

    /// Somebody else listens at the address, as `detail` shows.
    pub fn not_pgvalet(&self, detail: String) -> ClientError {
        ClientError::NotPgvalet {
            address: self.address.clone(),
            detail,
        }
    }

    fn silent(&self, within: Duration) -> ClientError {
        ClientError::Silent {
            address: self.address.clone(),
            within,
        }
    }
}

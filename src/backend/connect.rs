//! Owns the login on one of the upstream's hosts: from a socket to an authenticated backend (protocol chapter 55.2.1).

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::backend::dial::{Dialer, Encryption};
use crate::backend::hosts::Dialect;
use crate::backend::login::Credentials;
use crate::backend::login::Proof;
use crate::backend::parameters::{self, Baseline, Parameters};
use crate::backend::prepared::Prepared;
use crate::backend::{Backend, Home, Pace};
use crate::lease::{BackendId, Generation, Moment};
use crate::ledger::CancelTarget;
use crate::net::stream::Spot;
use crate::net::{Socket, Stream};
use crate::wire::frame::{HEADER, Header};
use crate::wire::reply::{ClientError, Fault};
use crate::wire::startup::{CancelKey, MAX_KEY};

/// The longest message that a login may bring, in bytes.
const MAX_MESSAGE: usize = 64 << 10;

/// What PostgreSQL remarks at a login is kept up to this length, in bytes.
const MAX_NOTICES: usize = 4 << 10;

/// Who logs in where, and with which settings.
#[derive(Clone, Debug)]
pub struct Login<'a> {
    pub dialer: &'a Dialer,
    pub database: &'a str,
    pub user: &'a str,
    pub proof: Proof,
    pub credentials: &'a Credentials,
    pub application: &'a str,
    pub baseline: Rc<Baseline>,
    /// Zero means without limit.
    pub timeout: Duration,
}

pub(super) fn unreachable(
    login: &Login<'_>,
    host: usize,
    why: &dyn std::fmt::Display,
) -> ClientError {
    let place = &login.dialer.upstream().places[host];
    let message = format!("pgvalet can't reach PostgreSQL at {place}: {why}");
    ClientError::new(Fault::Backend, "08001", message)
        .hint("Is the database up, and is `upstream` right?")
}

pub(super) fn broken(why: &dyn std::fmt::Display) -> ClientError {
    ClientError::new(
        Fault::Backend,
        "08006",
        format!("PostgreSQL broke off pgvalet's login: {why}"),
    )
}

/// The conversation of a login.
pub(super) struct Talk<'a> {
    pub(super) stream: Stream,
    spot: Spot,
    buf: BytesMut,
    pub(super) login: &'a Login<'a>,
    /// Whether anything but an error was answered.
    answered: bool,
    pub(super) reported: Parameters,
    notices: Vec<u8>,
    key: CancelKey,
}

impl<'a> Talk<'a> {
    pub(super) async fn begin(
        login: &'a Login<'a>,
        host: usize,
        encryption: Encryption,
    ) -> Result<Self, ClientError> {
        let dialed = login.dialer.dial(host, encryption).await;
        let (stream, spot) = dialed.map_err(|error| unreachable(login, host, &error))?;
        Ok(Self {
            stream,
            spot,
            buf: BytesMut::new(),
            login,
            answered: false,
            reported: Parameters::default(),
            notices: Vec::new(),
            key: CancelKey {
                pid: 0,
                secret: Box::default(),
            },
        })
    }

    /// Asks for protocol 3.`minor`; whoever knows only older ones says so, in the same round trip.
    pub(super) async fn log_in(&mut self, minor: u16) -> Result<(), ClientError> {
        let mut parameters: BTreeMap<&str, &str> = self
            .login
            .baseline
            .0
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        parameters.insert("user", self.login.user);
        parameters.insert("database", self.login.database);
        if !self.login.application.is_empty() {
            parameters.insert("application_name", parameters::cut(self.login.application));
        }
        let mut out = BytesMut::new();
        frontend::startup_message(parameters, &mut out).map_err(|error| broken(&error))?;
        out[6..8].copy_from_slice(&minor.to_be_bytes());
        self.send(&out).await?;
        loop {
            let (kind, body) = self.receive().await?;
            match kind {
                b'v' if !self.answered => negotiated(&body, minor)?,
                b'R' if self.authenticate(&body).await? => return Ok(()),
                b'R' => {}
                _ => {
                    return Err(broken(
                        &"something else than an authentication request came",
                    ));
                }
            }
            self.note_answer();
        }
    }

    /// It has taken our startup packet, whatever it answers next.
    fn note_answer(&mut self) {
        if !std::mem::replace(&mut self.answered, true) {
            let hosts = self.login.dialer.hosts();
            if hosts.dialect(self.spot.host) == Dialect::Unknown {
                hosts.note_dialect(self.spot.host, Dialect::Negotiates);
            }
        }
    }

    /// Whether a refusal may be one of the protocol's version: servers and poolers that don't negotiate say so, or hang up.
    pub(super) fn is_about_version(&self, error: &ClientError) -> bool {
        !self.answered && matches!(&*error.code, "0A000" | "08P01" | "08006")
    }

    /// Says goodbye to a host that won't be used.
    pub(super) async fn leave(&mut self) {
        // It may be gone already.
        let _ = self.send(&[b'X', 0, 0, 0, 4]).await;
    }

    /// Reads the reports that follow the login, up to ReadyForQuery.
    pub(super) async fn finish(&mut self) -> Result<(), ClientError> {
        loop {
            let (kind, body) = self.receive().await?;
            match kind {
                b'S' => {
                    if let Some((name, value)) = parameters::read_status(&body) {
                        self.reported.set(name, value);
                    }
                }
                b'K' => self.key = cancel_key(&body)?,
                b'Z' => return Ok(()),
                _ => {}
            }
        }
    }

    pub(super) fn into_backend(
        self,
        id: BackendId,
        now: Moment,
        generation: Generation,
    ) -> Backend {
        let local = self.stream.tcp().and_then(Socket::local_address);
        Backend {
            id,
            target: self.login.dialer.upstream().target,
            key: Rc::new(CancelTarget {
                key: self.key,
                spot: self.spot,
                born: now,
                local,
                encrypted: self.stream.is_tls(),
                in_flight: Cell::new(0),
                held: Cell::new(None),
            }),
            stream: self.stream,
            application: self
                .reported
                .get("application_name")
                .unwrap_or_default()
                .into(),
            parameters: Rc::new(self.reported),
            notices: self.notices,
            baseline: self.login.baseline.clone(),
            home: Home::Clean,
            rested: now,
            generation,
            carries: Rc::default(),
            prepared: Prepared::default(),
            spent: false,
            opaque: false,
            stained: false,
            pace: Pace::Brisk,
            unread: self.buf.to_vec(),
        }
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        let sent = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        sent.await.map_err(|error: io::Error| broken(&error))
    }

    fn note(&mut self, notice: &[u8]) {
        if self.notices.len() + notice.len() <= MAX_NOTICES {
            self.notices.extend_from_slice(notice);
        }
    }

    /// Reads one message. Notices are kept; an ErrorResponse becomes the error that the client sees.
    pub(super) async fn receive(&mut self) -> Result<(u8, Vec<u8>), ClientError> {
        loop {
            let header = Header::read(&self.buf).map_err(|error| broken(&error))?;
            if let Some(header) = header {
                if header.body > MAX_MESSAGE {
                    return Err(broken(&"a message that is too long for a login"));
                }
                if self.buf.len() >= header.total() {
                    let frame = self.buf.split_to(header.total());
                    match header.kind {
                        b'N' => {
                            self.note(&frame);
                            continue;
                        }
                        b'E' => return Err(refused(&frame)),
                        kind => return Ok((kind, frame[5..].to_vec())),
                    }
                }
            }
            let count = self
                .stream
                .read_buf(&mut self.buf)
                .await
                .map_err(|error| broken(&error))?;
            if count == 0 {
                return Err(broken(&"it closed the connection"));
            }
        }
    }
}

/// Reads NegotiateProtocolVersion: an older version than we asked for is fine.
fn negotiated(body: &[u8], asked: u16) -> Result<(), ClientError> {
    let version = body
        .first_chunk::<4>()
        .map(|bytes| u32::from_be_bytes(*bytes));
    match version {
        Some(version) if version >> 16 == 3 && version & 0xFFFF <= u32::from(asked) => Ok(()),
        Some(_) | None => Err(broken(
            &"it negotiates a protocol version that we didn't offer",
        )),
    }
}

/// Reads BackendKeyData: 4 bytes up to protocol 3.0, up to 256 from 3.2 on.
fn cancel_key(body: &[u8]) -> Result<CancelKey, ClientError> {
    match body.split_first_chunk::<4>() {
        Some((pid, secret)) if (4..=MAX_KEY).contains(&secret.len()) => Ok(CancelKey {
            pid: u32::from_be_bytes(*pid),
            secret: secret.into(),
        }),
        Some(_) | None => Err(broken(
            &"a cancel key of a length that the protocol doesn't know",
        )),
    }
}

fn refused(frame: &[u8]) -> ClientError {
    let error = ClientError::from_postgresql(&frame[HEADER..]);
    if error.code.is_empty() {
        return broken(&"an error without an SQLSTATE came");
    }
    error
}

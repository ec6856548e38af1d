//! Owns the upstream login: from a socket to an authenticated backend (protocol chapter 55.2.1).

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::backend::dial::{Dialer, Encryption};
use crate::backend::login::{Credentials, Proof};
use crate::backend::parameters::{self, Baseline, Parameters};
use crate::backend::prepared::Prepared;
use crate::backend::{Backend, Home};
use crate::config::{Upstream, UpstreamHost};
use crate::lease::{BackendId, Generation, Moment};
use crate::ledger::CancelTarget;
use crate::net::Stream;
use crate::wire::frame::Header;
use crate::wire::reply::{ClientError, Fault, Fields};
use crate::wire::startup::{CancelKey, MAX_KEY};

/// The longest message that a login may bring, in bytes.
const MAX_MESSAGE: usize = 64 << 10;

/// The SQLSTATE of what pg_hba.conf doesn't let in.
const UNWELCOME: &str = "28000";

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

/// Opens a backend. Cancel safe: what was begun is closed.
///
/// # Errors
/// What the client that waits for it may see: PostgreSQL's own error where there is one.
pub async fn open(
    login: &Login<'_>,
    id: BackendId,
    now: Moment,
    generation: Generation,
) -> Result<Backend, ClientError> {
    let attempt = async {
        let talk = log_in(login).await?;
        talk.finish(id, now, generation).await
    };
    if login.timeout.is_zero() {
        return attempt.await;
    }
    match tokio::time::timeout(login.timeout, attempt).await {
        Ok(outcome) => outcome,
        Err(_) => Err(unreachable(login, &"no answer within connect_timeout")),
    }
}

/// Logs in, and where PostgreSQL's own rules want it the other way (`hostssl`, `hostnossl`) and sslmode doesn't care, that way.
async fn log_in<'a>(login: &'a Login<'a>) -> Result<Talk<'a>, ClientError> {
    let mut talk = Talk::begin(login, login.dialer.encryption()).await?;
    let refused = match talk.log_in().await {
        Ok(()) => return Ok(talk),
        Err(error) => error,
    };
    let otherwise = login.dialer.otherwise(&talk.stream);
    let Some(encryption) = otherwise.filter(|_| refused.code == UNWELCOME) else {
        return Err(refused);
    };
    let Ok(mut talk) = Talk::begin(login, encryption).await else {
        return Err(refused);
    };
    talk.log_in().await?;
    Ok(talk)
}

fn place(upstream: &Upstream) -> String {
    match &upstream.host {
        UpstreamHost::Tcp(host) => format!("{host}:{}", upstream.port),
        UpstreamHost::Unix(directory) => {
            format!("{}/.s.PGSQL.{}", directory.display(), upstream.port)
        }
    }
}

fn unreachable(login: &Login<'_>, why: &dyn std::fmt::Display) -> ClientError {
    let message = format!(
        "pgvalet can't reach PostgreSQL at {}: {why}",
        place(login.dialer.upstream())
    );
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
    buf: BytesMut,
    pub(super) login: &'a Login<'a>,
}

impl<'a> Talk<'a> {
    async fn begin(login: &'a Login<'a>, encryption: Encryption) -> Result<Self, ClientError> {
        let stream = login
            .dialer
            .dial(encryption)
            .await
            .map_err(|error| unreachable(login, &error))?;
        Ok(Self {
            stream,
            buf: BytesMut::new(),
            login,
        })
    }

    async fn log_in(&mut self) -> Result<(), ClientError> {
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
            parameters.insert("application_name", self.login.application);
        }
        let mut out = BytesMut::new();
        frontend::startup_message(parameters, &mut out).map_err(|error| broken(&error))?;
        self.send(&out).await?;
        loop {
            let (kind, body) = self.receive().await?;
            if kind != b'R' {
                return Err(broken(
                    &"something else than an authentication request came",
                ));
            }
            if self.authenticate(&body).await? {
                return Ok(());
            }
        }
    }

    /// Reads the reports that follow the login, up to ReadyForQuery.
    async fn finish(
        mut self,
        id: BackendId,
        now: Moment,
        generation: Generation,
    ) -> Result<Backend, ClientError> {
        let mut reported = Parameters::default();
        let mut key = CancelKey {
            pid: 0,
            secret: Box::default(),
        };
        loop {
            let (kind, body) = self.receive().await?;
            match kind {
                b'S' => {
                    if let Some((name, value)) = parameters::read_status(&body) {
                        reported.set(name, value);
                    }
                }
                b'K' => {
                    let (pid, secret) = body
                        .split_first_chunk::<4>()
                        .ok_or_else(|| broken(&"a short key"))?;
                    if !(4..=MAX_KEY).contains(&secret.len()) {
                        return Err(broken(
                            &"a cancel key of a length that the protocol doesn't know",
                        ));
                    }
                    key = CancelKey {
                        pid: u32::from_be_bytes(*pid),
                        secret: secret.into(),
                    };
                }
                b'Z' => break,
                _ => {}
            }
        }
        Ok(Backend {
            id,
            stream: self.stream,
            armed: false,
            key: Rc::new(CancelTarget {
                key,
                in_flight: Cell::new(0),
            }),
            parameters: Rc::new(reported),
            baseline: self.login.baseline.clone(),
            application: self.login.application.into(),
            home: Home::Clean,
            born: now,
            rested: now,
            generation,
            carries: Rc::default(),
            prepared: Prepared::default(),
            spent: false,
            opaque: false,
            unread: self.buf.to_vec(),
        })
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        let sent = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        sent.await.map_err(|error: io::Error| broken(&error))
    }

    /// Reads one message. Notices are dropped; an ErrorResponse becomes the error that the client sees.
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
                        b'N' => continue,
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

fn refused(frame: &[u8]) -> ClientError {
    let fields = Fields::read(&frame[5..]);
    if fields.code.is_empty() {
        return broken(&"an error without an SQLSTATE came");
    }
    let mut error = ClientError::new(Fault::Backend, &fields.code, fields.message);
    error.verbatim = Some(frame.into());
    error
}

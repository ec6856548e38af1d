//! Owns the passwords that commands give, for clouds whose passwords are tokens that end: each is asked for ahead of
//! its end, beside the data threads, one command of a user's at a time.
//!
//! Refuses to write them anywhere: they go from the command's standard output to the login.

use std::collections::BTreeMap;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use secrecy::SecretString;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::sync::{Notify, watch};

use crate::clock::{Clock, timers};
use crate::config::{Config, UpstreamHost};
use crate::lease::Moment;
use crate::net::tls::Handshakes;
use crate::wire::reply::{ClientError, Fault};

#[cfg(test)]
mod tests;

/// How long the command may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest password that is taken, in bytes.
const MAX_PASSWORD: usize = 64 << 10;
/// How much of what the command complains of is logged, in bytes.
const MAX_COMPLAINT: usize = 300;
/// The least and the most time between two attempts while it fails.
const RETRY: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];
/// The least time between two attempts when PostgreSQL refuses what the command gave.
const DOUBT: Duration = Duration::from_secs(5);

/// The users whose passwords commands print. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Tokens(Arc<BTreeMap<String, Token>>);

/// What is known of one password. Clones share it.
#[derive(Clone, Debug)]
pub struct Token {
    known: watch::Receiver<Known>,
    /// PostgreSQL has refused the password.
    doubted: Arc<Notify>,
    clock: Clock,
}

#[derive(Clone, Debug)]
enum Known {
    /// The first command is still under way.
    NotYet,
    /// It holds until then.
    Password(SecretString, Moment),
    /// There is none.
    Failed,
}

/// Why a command gave no password.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("can't be run: {0}")]
    Run(#[from] std::io::Error),
    #[error("no end within {0:?}")]
    Late(Duration),
    #[error("{0}{1}")]
    Status(ExitStatus, String),
    #[error("its output is {0}")]
    Output(&'static str),
}

impl Tokens {
    /// Begins to run the configuration's commands, on the thread for handshakes.
    #[must_use]
    pub fn start(config: &Config, clock: Clock, handshakes: &Handshakes) -> Self {
        let start = |(user, command, lifetime): (&str, &str, Duration)| {
            let source = Source {
                user: user.to_owned(),
                command: command.to_owned(),
                lifetime,
                variables: variables(config, user),
                clock,
            };
            let (sender, known) = watch::channel(Known::NotYet);
            let doubted = Arc::new(Notify::new());
            handshakes.spawn(source.supply(sender, doubted.clone()));
            let token = Token {
                known,
                doubted,
                clock,
            };
            (user.to_owned(), token)
        };
        Self(Arc::new(config.password_commands().map(start).collect()))
    }

    /// That of this user; `None` where no command prints it.
    #[must_use]
    pub fn of(&self, user: &str) -> Option<&Token> {
        self.0.get(user)
    }
}

impl Token {
    /// The password as it is now; the first one is waited for, for at most `limit` (zero means without).
    ///
    /// # Errors
    /// What the client that waits for a backend may see: the log says more.
    pub async fn current(&self, limit: Duration) -> Result<SecretString, ClientError> {
        let mut known = self.known.clone();
        let limit = if limit.is_zero() { PATIENCE } else { limit };
        let first = timers::timeout(
            limit,
            known.wait_for(|known| !matches!(known, Known::NotYet)),
        )
        .await;
        let now = self.clock.now();
        match first.ok().and_then(Result::ok).as_deref() {
            Some(Known::Password(password, until)) if now < *until => Ok(password.clone()),
            Some(Known::Password(..) | Known::Failed | Known::NotYet) | None => {
                let text = "pgvalet has no password for PostgreSQL: password_command gave none";
                let error = ClientError::new(Fault::Proxy, "28000", text);
                Err(error.hint("pgvalet's log says why; it is tried again within half a minute."))
            }
        }
    }

    /// PostgreSQL has refused it: it may have been revoked.
    pub fn doubt(&self) {
        self.doubted.notify_one();
    }
}

/// What the command is told of whom the password is for, in libpq's names.
fn variables(config: &Config, user: &str) -> Vec<(&'static str, String)> {
    let upstream = &config.upstream;
    let mut variables = vec![
        ("PGUSER", user.to_owned()),
        ("PGDATABASE", upstream.database.clone()),
    ];
    if let Some(place) = upstream.places.first() {
        let host = match &place.host {
            UpstreamHost::Tcp(host) => host.clone(),
            UpstreamHost::Unix(directory) => directory.to_string_lossy().into_owned(),
        };
        variables.extend([("PGHOST", host), ("PGPORT", place.port.to_string())]);
    }
    variables
}

/// Where a password comes from.
struct Source {
    user: String,
    command: String,
    lifetime: Duration,
    variables: Vec<(&'static str, String)>,
    clock: Clock,
}

impl Source {
    /// Runs the command again and again, for as long as anybody wants the password.
    async fn supply(self, known: watch::Sender<Known>, doubted: Arc<Notify>) {
        let mut failures = 0_u32;
        while !known.is_closed() {
            let began = self.clock.now();
            match run(&self.command, &self.variables, PATIENCE).await {
                Ok(password) => {
                    if failures > 0 {
                        tracing::info!(user = %self.user, "password_command works again");
                    }
                    failures = 0;
                    known.send_replace(Known::Password(password, began.after(self.lifetime)));
                    self.rest(&doubted).await;
                }
                Err(why) => {
                    if failures == 0 {
                        tracing::error!(user = %self.user, "password_command failed, and is tried again: {why}");
                    }
                    failures = failures.saturating_add(1);
                    known.send_modify(|known| self.keep(known));
                    timers::sleep(
                        (RETRY[0] * 2_u32.saturating_pow(failures.min(6) - 1)).min(RETRY[1]),
                    )
                    .await;
                }
            }
        }
    }

    /// An old password serves until its own end.
    fn keep(&self, known: &mut Known) {
        let holds = matches!(known, Known::Password(_, until) if self.clock.now() < *until);
        if !holds {
            *known = Known::Failed;
        }
    }

    /// Waits until a new password is due: a quarter of the lifetime ahead of its end, or when this one is refused.
    async fn rest(&self, doubted: &Notify) {
        let due = self.lifetime * 3 / 4;
        let refused = async {
            timers::sleep(DOUBT).await;
            doubted.notified().await;
        };
        tokio::select! {
            () = timers::sleep(due) => {}
            () = refused => {}
        }
    }
}

/// Runs a command, and takes its output for a password, without the line end. Cancel safe: it is killed.
async fn run(
    command: &str,
    variables: &[(&'static str, String)],
    patience: Duration,
) -> Result<SecretString, Failure> {
    let child = Command::new("/bin/sh")
        .args(["-c", command])
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let mut group = Group(child);
    let finished = timers::timeout(patience, group.finish()).await;
    let (status, output, complaint) = finished.map_err(|_| Failure::Late(patience))??;
    if !status.success() {
        return Err(Failure::Status(status, quoted(&complaint)));
    }
    if output.len() > MAX_PASSWORD {
        return Err(Failure::Output("too long for a password"));
    }
    let text = String::from_utf8(output).map_err(|_| Failure::Output("not UTF-8"))?;
    let password = text.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        return Err(Failure::Output("empty"));
    }
    if password.contains(['\0', '\n']) {
        return Err(Failure::Output("more than one line"));
    }
    Ok(SecretString::from(password))
}

/// The end of what a command wrote to its standard error, on one line.
fn quoted(complaint: &[u8]) -> String {
    let text = String::from_utf8_lossy(complaint);
    match text.lines().rev().find(|line| !line.trim().is_empty()) {
        Some(line) => format!(": {}", line.trim()),
        None => String::new(),
    }
}

/// A command and whatever it has started: killed when it is dropped.
struct Group(Child);

impl Group {
    async fn finish(&mut self) -> std::io::Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
        let (output, complaint) = (self.0.stdout.take(), self.0.stderr.take());
        let (output, complaint) = tokio::join!(
            first_of(output, MAX_PASSWORD + 1),
            first_of(complaint, MAX_COMPLAINT)
        );
        Ok((self.0.wait().await?, output?, complaint?))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Without an id it has ended, and was waited for.
        let id = self.0.id().and_then(|id| i32::try_from(id).ok());
        if let Some(group) = id.and_then(Pid::from_raw) {
            // It may have ended just now.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Reads a pipe to its end, and keeps the first `most` bytes.
async fn first_of(pipe: Option<impl AsyncRead + Unpin>, most: usize) -> std::io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    if let Some(mut pipe) = pipe {
        (&mut pipe).take(most as u64).read_to_end(&mut kept).await?;
        tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await?;
    }
    Ok(kept)
}

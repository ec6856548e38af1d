//! Owns the demo's pgvalet: the same program, run as `pgvalet serve` in a process of its own, as anybody would run it.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use super::DemoError;
use super::postgres::ThrowawayPostgres;
use super::scratch::Scratch;
use crate::cli::client::{AdminAddress, Client};
use crate::clock::timers;

/// How long the start and the end may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often readiness is asked for.
const INTERVAL: Duration = Duration::from_millis(20);
/// The backends of the one pool: as many as the app holds at once, so that one more has to wait.
const MAX_BACKENDS: usize = 3;

/// A running pgvalet, killed when dropped.
#[derive(Debug)]
pub(super) struct Proxy {
    child: Child,
    pub(super) addresses: Addresses,
    /// How it was started, for the reader.
    pub(super) command_line: String,
    scratch: Scratch,
    _claim: Option<UsualPorts>,
}

/// The right to the usual ports. One demo of this program has it at a time: the lock is on the program's own file, and
/// goes with the process.
#[derive(Debug)]
struct UsualPorts {
    _lock: File,
}

impl UsualPorts {
    fn claim() -> Option<Self> {
        let lock = File::open(std::env::current_exe().ok()?).ok()?;
        lock.try_lock().ok()?;
        Some(Self { _lock: lock })
    }
}

/// Where a pgvalet listens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Addresses {
    /// For clients.
    pub(super) listen: SocketAddr,
    /// For the admin API.
    pub(super) admin: SocketAddr,
    /// For metrics.
    pub(super) metrics: SocketAddr,
}

impl Proxy {
    /// Starts one in front of `postgres`, and waits until it is ready.
    pub(super) async fn start(postgres: &ThrowawayPostgres) -> Result<Self, DemoError> {
        let scratch = Scratch::new("pgvalet-demo")?;
        let claim = UsualPorts::claim();
        let addresses = Addresses::free(claim.as_ref())?;
        let arguments = addresses.arguments(postgres);
        let command_line = format!("pgvalet {}", arguments.join(" "));
        let log = File::create(scratch.path().join("log"))?;
        let mut command = Command::new(std::env::current_exe()?);
        let own_keys = std::env::vars_os().map(|(name, _)| name);
        for name in own_keys.filter(|name| name.to_string_lossy().starts_with("PGVALET_")) {
            command.env_remove(name);
        }
        command
            .args(&arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        // Out of the reach of the terminal's Ctrl-C: we stop it ourselves, in order.
        let child = command.process_group(0).kill_on_drop(true).spawn()?;
        let mut proxy = Self {
            child,
            addresses,
            command_line,
            scratch,
            _claim: claim,
        };
        if let Some(pid) = proxy.child.id() {
            proxy.scratch.note_pid("pgvalet", pid)?;
        }
        match timers::timeout(PATIENCE, proxy.ready()).await {
            Ok(Ok(())) => Ok(proxy),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(DemoError::Proxy(proxy.end_of_log())),
        }
    }

    /// The admin API.
    pub(super) fn admin(&self) -> Client {
        Client::new(
            AdminAddress::Tcp(self.addresses.admin.to_string()),
            PATIENCE,
        )
    }

    /// What `/metrics` says.
    pub(super) async fn metrics(&self) -> Result<String, DemoError> {
        let client = Client::new(
            AdminAddress::Tcp(self.addresses.metrics.to_string()),
            PATIENCE,
        );
        let body = client.get("/metrics").await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// Ends it as an operator would. Not cancel safe: a dropped future kills it.
    pub(super) async fn stop(mut self) -> Result<(), DemoError> {
        if let Some(pid) = self
            .child
            .id()
            .and_then(|pid| i32::try_from(pid).ok())
            .and_then(Pid::from_raw)
        {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::TERM);
        }
        if timers::timeout(PATIENCE, self.child.wait()).await.is_err() {
            self.child.kill().await?;
        }
        self.scratch.forget_pid("pgvalet");
        Ok(())
    }

    async fn ready(&mut self) -> Result<(), DemoError> {
        let admin = self.admin();
        while admin.get("/readyz").await.is_err() {
            if self.child.try_wait()?.is_some() {
                return Err(DemoError::Proxy(self.end_of_log()));
            }
            timers::sleep(INTERVAL).await;
        }
        Ok(())
    }

    fn end_of_log(&self) -> String {
        let log: PathBuf = self.scratch.path().join("log");
        let text = std::fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }
}

impl Addresses {
    /// The usual ports where they are free and claimed, others where not.
    fn free(claim: Option<&UsualPorts>) -> std::io::Result<Self> {
        let bind = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port))?.local_addr();
        let free = |usual| match claim {
            Some(UsualPorts { .. }) => bind(usual).or_else(|_| bind(0)),
            None => bind(0),
        };
        Ok(Self {
            listen: free(6432)?,
            admin: free(6433)?,
            metrics: free(9127)?,
        })
    }

    /// The arguments that make a pgvalet listen here.
    fn arguments(&self, postgres: &ThrowawayPostgres) -> Vec<String> {
        let flags = [
            ("--upstream", postgres.url()),
            ("--listen", self.listen.to_string()),
            ("--admin", self.admin.to_string()),
            ("--metrics", self.metrics.to_string()),
            ("--auth", "trust".to_owned()),
            ("--max-backends", MAX_BACKENDS.to_string()),
            ("--park-after", "1s".to_owned()),
            ("--drain-timeout", "2s".to_owned()),
        ];
        let flags = flags
            .into_iter()
            .flat_map(|(flag, value)| [flag.to_owned(), value]);
        std::iter::once("serve".to_owned()).chain(flags).collect()
    }
}

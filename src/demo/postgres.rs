//! Owns a throwaway PostgreSQL on a free loopback port: its processes and its data are gone when it is dropped, or when
//! this process dies.
//!
//! Refuses to run as root, and to keep anything. All calls block: call them beside an asynchronous runtime.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::scratch::Scratch;

mod binaries;
mod template;

use binaries::Binaries;
pub use binaries::Fetch;

/// How long a start or a stop may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a free port may turn out to be taken after all.
const ATTEMPTS: usize = 5;

/// What PostgreSQL logs when clients may come; a standby says "read-only connections".
const READY: &str = "database system is ready to accept";

/// How clients log in on TCP and on the unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoginMethod {
    /// Everybody is trusted.
    Trust,
    /// SCRAM-SHA-256, with this password for `postgres`.
    Scram(String),
}

/// What kind of PostgreSQL is wanted.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// How clients log in.
    pub login: LoginMethod,
    /// PostgreSQL's bound of connections.
    pub max_connections: u16,
    /// Further `name=value` settings.
    pub settings: Vec<String>,
    /// Whether programs may be fetched.
    pub fetch: Fetch,
    /// Where a data directory of each version is kept, for the next one to begin with a copy of it.
    pub templates: Option<PathBuf>,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            login: LoginMethod::Trust,
            max_connections: 100,
            settings: Vec::new(),
            fetch: Fetch::Never,
            templates: None,
        }
    }
}

/// How PostgreSQL is told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Roll back, disconnect everybody, end (SIGINT).
    Fast,
    /// As in a crash (SIGQUIT).
    Immediate,
}

/// Why there is no PostgreSQL.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// No programs.
    #[error(
        "no PostgreSQL server found: install one (Debian, Ubuntu: apt-get install postgresql; Fedora: dnf install \
         postgresql-server; macOS: brew install postgresql), or put npm on PATH, or set PGVALET_PG_BIN to the directory \
         of initdb and postgres"
    )]
    NotFound,
    /// No programs where PGVALET_PG_BIN says.
    #[error("PGVALET_PG_BIN: {}: no initdb and postgres that run there", directory.display())]
    NotThere { directory: PathBuf },
    /// Root, and nobody else.
    #[error(
        "PostgreSQL refuses to run as root, and there is no user `postgres` or `nobody` to run it"
    )]
    OnlyRoot,
    /// npm failed.
    #[error("npm could not install PostgreSQL: {0}")]
    Npm(String),
    /// initdb failed.
    #[error("initdb failed: {0}")]
    Initdb(String),
    /// The server ended, or wasn't ready in time.
    #[error("PostgreSQL didn't start: {0}")]
    Start(String),
    /// The server didn't end in time.
    #[error("PostgreSQL didn't stop")]
    Stop,
    /// The system.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A running (or stopped) PostgreSQL. Superuser `postgres`, database `postgres`.
#[derive(Debug)]
pub struct ThrowawayPostgres {
    // Dropped in this order: the server before the directory that it works in.
    server: Option<Server>,
    scratch: Scratch,
    binaries: Binaries,
    wanted: Wanted,
    port: u16,
}

#[derive(Debug)]
struct Server {
    child: Child,
    /// Says when the server is ready; disconnects once all its processes have ended.
    log: Receiver<String>,
}

impl ThrowawayPostgres {
    /// Makes one, and waits until it is ready.
    ///
    /// # Errors
    ///
    /// Where there are no programs, or they fail.
    pub fn start(wanted: Wanted) -> Result<Self, PostgresError> {
        let binaries = Binaries::find(wanted.fetch)?;
        let scratch = Scratch::new("pgvalet-postgres")?;
        binaries.run_as.own(scratch.path())?;
        let mut postgres = Self {
            server: None,
            scratch,
            binaries,
            wanted,
            port: 0,
        };
        postgres.make_data()?;
        for attempt in 1.. {
            postgres.port = free_port()?;
            match postgres.start_again() {
                Err(PostgresError::Start(why)) if attempt < ATTEMPTS && why.contains("in use") => {}
                Err(error) => return Err(error),
                Ok(()) => break,
            }
        }
        Ok(postgres)
    }

    /// Where clients connect; without a password.
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// The TCP port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The directory of its unix socket.
    pub fn socket_dir(&self) -> &Path {
        self.scratch.path()
    }

    /// Its version, such as "15.14".
    pub fn version(&self) -> &str {
        &self.binaries.version
    }

    /// The user id that runs it, where that isn't our own.
    pub fn other_user(&self) -> Option<u32> {
        match self.binaries.run_as {
            binaries::RunAs::Ourselves => None,
            binaries::RunAs::Other { uid, .. } => Some(uid),
        }
    }

    /// Starts it on its port, unless it runs.
    ///
    /// # Errors
    ///
    /// Where it ends at once, or isn't ready in time.
    pub fn start_again(&mut self) -> Result<(), PostgresError> {
        if self.server.is_some() {
            return Ok(());
        }
        let mut child = self.server_command().spawn()?;
        self.scratch.note_pid("postgres", child.id())?;
        let stderr = child
            .stderr
            .take()
            .ok_or_else(|| io::Error::other("no stderr"))?;
        let (lines, log) = mpsc::channel();
        std::thread::spawn(move || forward(stderr, &lines));
        let mut server = Server { child, log };
        server.wait_until_ready().map_err(|why| {
            self.scratch.forget_pid("postgres");
            PostgresError::Start(why)
        })?;
        self.server = Some(server);
        Ok(())
    }

    /// Stops it; its data stay.
    ///
    /// # Errors
    ///
    /// Where it doesn't end in time.
    pub fn stop(&mut self, how: Stop) -> Result<(), PostgresError> {
        let Some(mut server) = self.server.take() else {
            return Ok(());
        };
        let stopped = server.stop(how);
        self.scratch.forget_pid("postgres");
        stopped
    }

    /// Stops and starts it.
    ///
    /// # Errors
    ///
    /// As [`stop`](Self::stop) and [`start_again`](Self::start_again).
    pub fn restart(&mut self, how: Stop) -> Result<(), PostgresError> {
        self.stop(how)?;
        self.start_again()
    }

    fn data(&self) -> PathBuf {
        self.scratch.path().join("data")
    }

    /// A password is part of the data, so only those without one are shared.
    fn make_data(&self) -> Result<(), PostgresError> {
        match (&self.wanted.templates, &self.wanted.login) {
            (Some(templates), LoginMethod::Trust) => {
                let template = templates.join(format!("postgres-{}", self.binaries.version));
                template::fill(&self.data(), &template, self.binaries.run_as, || {
                    self.initdb()
                })
            }
            (Some(_), LoginMethod::Scram(_)) | (None, _) => self.initdb(),
        }
    }

    fn initdb(&self) -> Result<(), PostgresError> {
        let mut command = self.binaries.command("initdb");
        command
            .args([
                "--username=postgres",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
                "--pgdata",
            ])
            .arg(self.data());
        match &self.wanted.login {
            LoginMethod::Trust => {
                command.arg("--auth=trust");
            }
            LoginMethod::Scram(password) => {
                let file = self.scratch.path().join("password");
                std::fs::write(&file, password)?;
                self.binaries.run_as.own(&file)?;
                command
                    .arg("--auth=scram-sha-256")
                    .arg("--pwfile")
                    .arg(file);
            }
        }
        let output = command.output()?;
        if output.status.success() {
            return Ok(());
        }
        Err(PostgresError::Initdb(
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        ))
    }

    fn server_command(&self) -> std::process::Command {
        let directory = self.scratch.path().display();
        let mut command = self.binaries.command("postgres");
        command.arg("-D").arg(self.data());
        let settings = [
            "listen_addresses=127.0.0.1".to_owned(),
            format!("port={}", self.port),
            format!("unix_socket_directories={directory}"),
            format!("max_connections={}", self.wanted.max_connections),
            "fsync=off".to_owned(),
            "logging_collector=off".to_owned(),
            "log_destination=stderr".to_owned(),
        ];
        for setting in settings.iter().chain(&self.wanted.settings) {
            command.arg("-c").arg(setting);
        }
        // Out of the reach of the terminal's Ctrl-C: we stop it ourselves, in order.
        command
            .process_group(0)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }
}

impl Server {
    /// Waits for the line that says so, else returns the last lines of the log.
    fn wait_until_ready(&mut self) -> Result<(), String> {
        let mut last = VecDeque::new();
        loop {
            match self.log.recv_timeout(PATIENCE) {
                Ok(line) if line.contains(READY) => return Ok(()),
                Ok(line) => {
                    last.push_back(line);
                    last.drain(..last.len().saturating_sub(5));
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    let _ = self.stop(Stop::Immediate);
                    return Err(last.make_contiguous().join("; "));
                }
            }
        }
    }

    /// Signals it, and waits until all of its processes have let go of the log.
    fn stop(&mut self, how: Stop) -> Result<(), PostgresError> {
        let signal = match how {
            Stop::Fast => Signal::INT,
            Stop::Immediate => Signal::QUIT,
        };
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // It may have ended by itself.
            let _ = kill_process(pid, signal);
        }
        loop {
            match self.log.recv_timeout(PATIENCE) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    self.child.kill()?;
                    self.child.wait()?;
                    return Err(PostgresError::Stop);
                }
            }
        }
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // Nothing can be done where even this fails; the watchdog tries again.
            let _ = self.stop(Stop::Immediate);
        }
    }
}

/// Passes the log on until the server is ready, and reads it to its end, so that the server never waits for us.
fn forward(stderr: ChildStderr, lines: &Sender<String>) {
    let mut phase = Phase::Starting;
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        match phase {
            Phase::Starting => {
                if line.contains(READY) {
                    phase = Phase::Ready;
                }
                // Nobody may listen any more.
                let _ = lines.send(line);
            }
            Phase::Ready => {}
        }
    }
}

#[derive(Clone, Copy)]
enum Phase {
    Starting,
    Ready,
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}

//! Owns what all measurements share: the options, PostgreSQL, the programs that are compared, and their directory.

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use pgvalet::demo::postgres::{Fetch, ThrowawayPostgres, Wanted};
use pgvalet::demo::scratch::Scratch;

use crate::Failure;
use crate::report::Report;
use crate::wire::Address;

/// What `run` takes.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// The program, a release build
    #[arg(long, default_value = "target/release/pgvalet")]
    pub pgvalet: PathBuf,
    /// PgBouncer, which all are compared with
    #[arg(long, default_value = "pgbouncer")]
    pub pgbouncer: PathBuf,
    /// HAProxy, in TCP mode
    #[arg(long, default_value = "haproxy")]
    pub haproxy: PathBuf,
    /// A pooler that runs already, in front of `--postgres`, as name=host:port:pid
    #[arg(long)]
    pub peer: Vec<Peer>,
    /// A PostgreSQL that runs already on this port of 127.0.0.1 and trusts `postgres`, instead of a throwaway one
    #[arg(long)]
    pub postgres: Option<u16>,
    /// Under three minutes: fewer figures, shorter and fewer rounds
    #[arg(long)]
    pub quick: bool,
    /// Only these groups of figures
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<crate::figures::Group>,
    /// Rounds; in each, every target has its turn
    #[arg(long)]
    pub rounds: Option<usize>,
    /// How long a turn is
    #[arg(long, value_name = "SECONDS")]
    pub seconds: Option<u64>,
    /// The pool of each target in transaction mode; in session mode there is a backend for each client
    #[arg(long, default_value_t = 20)]
    pub pool: usize,
    /// Encrypt towards PostgreSQL, for all targets alike
    #[arg(long)]
    pub upstream_tls: bool,
    /// Where the report is written
    #[arg(long, default_value = "target/bench/report.md")]
    pub markdown: PathBuf,
    /// Where all numbers are written
    #[arg(long, default_value = "target/bench/report.json")]
    pub json: PathBuf,
    /// Where the picture of how the cost grows is written
    #[arg(long, default_value = "target/bench/growth.svg")]
    pub svg: PathBuf,
    /// A document that gets the whole report, between its two `bench` marks
    #[arg(long)]
    pub into: Option<PathBuf>,
    /// A document that gets the few figures that say most, between its two `bench` marks
    #[arg(long)]
    pub table: Option<PathBuf>,
}

/// A pooler that somebody else started.
#[derive(Clone, Debug)]
pub struct Peer {
    pub name: String,
    pub address: Address,
    pub pid: u32,
}

impl std::str::FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (name, rest) = text.split_once('=')?;
            let (rest, pid) = rest.rsplit_once(':')?;
            let (host, port) = rest.rsplit_once(':')?;
            let port = port.parse().ok()?;
            let address = match host {
                "127.0.0.1" | "localhost" => Address::Tcp(port),
                directory if directory.starts_with('/') => Address::Unix(directory.into(), port),
                _ => return None,
            };
            Some(Self {
                name: name.to_owned(),
                address,
                pid: pid.parse().ok()?,
            })
        };
        parse().ok_or_else(|| "name=127.0.0.1:port:pid is wanted".to_owned())
    }
}

/// What all measurements share.
#[derive(Debug)]
pub struct Stage {
    pub options: Options,
    pub report: Report,
    /// PostgreSQL's port on 127.0.0.1.
    pub postgres: u16,
    /// The directory of PostgreSQL's unix socket.
    pub sockets: PathBuf,
    throwaway: Option<ThrowawayPostgres>,
    /// Dropped last: it is also where the targets' files are.
    scratch: Scratch,
}

impl Stage {
    pub fn set(options: Options) -> Result<Self, Failure> {
        let scratch = Scratch::new("pgvalet-bench")?;
        let throwaway = match options.postgres {
            Some(_) => None,
            None => Some(throwaway(&scratch, options.upstream_tls)?),
        };
        let port = throwaway.as_ref().map(ThrowawayPostgres::port);
        let postgres = options.postgres.or(port).ok_or("no PostgreSQL")?;
        let sockets = throwaway
            .as_ref()
            .map_or("/var/run/postgresql".into(), |it| {
                it.socket_dir().to_owned()
            });
        let stage = Self {
            report: Report::default(),
            options,
            postgres,
            sockets,
            throwaway,
            scratch,
        };
        if let Some(uid) = stage.other_user() {
            chown(stage.scratch.path(), Some(uid), None)?;
        }
        stage.fill()?;
        Ok(stage)
    }

    /// Who runs what refuses root, where we are root.
    pub fn other_user(&self) -> Option<u32> {
        self.throwaway
            .as_ref()
            .and_then(ThrowawayPostgres::other_user)
    }

    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// Writes a file that the other user can read; where it is.
    pub fn file(&self, name: &str, text: &str) -> Result<PathBuf, Failure> {
        let path = self.scratch.path().join(name);
        std::fs::write(&path, text)?;
        if let Some(uid) = self.other_user() {
            chown(&path, Some(uid), None)?;
        }
        Ok(path)
    }

    pub fn direct(&self) -> Address {
        Address::Tcp(self.postgres)
    }

    pub fn rounds(&self) -> usize {
        let usual = if self.options.quick { 3 } else { 7 };
        self.options.rounds.unwrap_or(usual)
    }

    /// How long a turn is.
    pub fn turn(&self) -> u64 {
        let usual = if self.options.quick { 1 } else { 2 };
        self.options.seconds.unwrap_or(usual)
    }

    /// `quick` or `full`, whichever is asked for.
    pub fn either<T>(&self, quick: T, full: T) -> T {
        if self.options.quick { quick } else { full }
    }

    pub fn say(&self, what: &str) {
        eprintln!("bench: {what}");
    }

    /// pgbench's tables.
    fn fill(&self) -> Result<(), Failure> {
        let mut command = client("pgbench", &self.direct());
        succeed(command.args(["--initialize", "--quiet", "--scale=10"]))?;
        let mut command = client("psql", &self.direct());
        let sql = "CREATE UNLOGGED TABLE IF NOT EXISTS sink (line text)";
        succeed(command.args(["-X", "-q", "-c", sql]))?;
        std::thread::sleep(Duration::from_millis(200));
        Ok(())
    }
}

fn throwaway(scratch: &Scratch, tls: bool) -> Result<ThrowawayPostgres, Failure> {
    let mut settings: Vec<String> = [
        "shared_buffers=256MB",
        "full_page_writes=off",
        "synchronous_commit=off",
        "autovacuum=off",
        "jit=off",
        "log_min_messages=log",
    ]
    .map(str::to_owned)
    .to_vec();
    if tls {
        let pair = certificate(scratch.path())?;
        settings.push("ssl=on".to_owned());
        settings.push(format!("ssl_cert_file={}", pair.cert.display()));
        settings.push(format!("ssl_key_file={}", pair.key.display()));
    }
    let wanted = Wanted {
        max_connections: 2500,
        settings,
        fetch: Fetch::IfMissing,
        ..Wanted::default()
    };
    Ok(ThrowawayPostgres::start(wanted)?)
}

/// The files of a certificate and its key.
#[derive(Debug)]
pub struct Pair {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// Makes a certificate for localhost that signs itself.
pub fn certificate(directory: &Path) -> Result<Pair, Failure> {
    let pair = Pair {
        cert: directory.join("bench.crt"),
        key: directory.join("bench.key"),
    };
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-nodes", "-days", "30", "-newkey", "ec"]);
    command.args(["-pkeyopt", "ec_paramgen_curve:prime256v1"]);
    command.args(["-subj", "/CN=localhost", "-keyout"]);
    succeed(command.arg(&pair.key).arg("-out").arg(&pair.cert))?;
    Ok(pair)
}

/// A client program of PostgreSQL's against `address`, in an environment without settings of its own.
pub fn client(program: &str, address: &Address) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
    command
        .env("PGHOST", address.host())
        .env("PGPORT", address.port().to_string())
        .env("PGUSER", "postgres")
        .env("PGDATABASE", "postgres")
        .env("PGSSLMODE", "disable");
    command
}

/// What a command prints, which must succeed.
pub fn succeed(command: &mut Command) -> Result<String, Failure> {
    let program = command.get_program().display().to_string();
    let output = command
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text.lines().collect();
    let last = lines[lines.len().saturating_sub(3)..].join("; ");
    Err(format!("{program} failed: {last}").into())
}

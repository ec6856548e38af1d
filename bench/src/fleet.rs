//! Owns the targets of one comparison: pgvalet, PgBouncer, HAProxy and peers, set up alike, in front of the same PostgreSQL.

use std::fmt;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::pgvalet::{Pgvalet, Program};
use crate::stage::{Pair, Stage, certificate};
use crate::wire::{Address, Client, Login};
use crate::{Failure, scram, tls};

pub const PGVALET: &str = "pgvalet";
pub const PGBOUNCER: &str = "PgBouncer";
pub const HAPROXY: &str = "HAProxy";
pub const DIRECT: &str = "direct";

/// The password where one is asked for.
pub const PASSWORD: &str = "benchmark";

/// How long a target may take to listen.
const PATIENCE: Duration = Duration::from_secs(10);

/// When a backend is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Session,
    Transaction,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Session => "session",
            Self::Transaction => "transaction",
        })
    }
}

/// How clients come, and how targets reach PostgreSQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    /// Unix sockets on both sides.
    Unix,
    /// TCP, with TLS from the client.
    Tls,
}

/// How clients log in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auth {
    Trust,
    Scram,
}

/// How all targets of a fleet are set up.
#[derive(Clone, Debug)]
pub struct Setup {
    pub mode: Mode,
    pub transport: Transport,
    pub auth: Auth,
    /// Backends of each target, at most.
    pub pool: usize,
    /// Another PostgreSQL than the stage's: the port.
    pub upstream: Option<u16>,
    /// Further flags of pgvalet.
    pub flags: Vec<String>,
}

impl Setup {
    pub fn new(mode: Mode, pool: usize) -> Self {
        Self {
            mode,
            transport: Transport::Tcp,
            auth: Auth::Trust,
            pool,
            upstream: None,
            flags: Vec::new(),
        }
    }
}

/// Who takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guests {
    /// pgvalet and PgBouncer.
    Poolers,
    /// HAProxy and the peers, too.
    All,
}

/// Something that clients connect to.
#[derive(Debug)]
pub struct Target {
    pub name: String,
    pub address: Address,
    /// None for PostgreSQL itself.
    pub pid: Option<u32>,
    pub login: Login,
    /// pgvalet's further ports.
    pub admin: u16,
    pub metrics: u16,
    process: Process,
}

#[derive(Debug)]
enum Process {
    None,
    Pgvalet(#[expect(dead_code, reason = "killed when it is dropped")] Pgvalet),
    Other(Other),
}

/// A process that doesn't outlive us.
#[derive(Debug)]
struct Other(Child);

impl Process {
    fn has_ended(&mut self) -> bool {
        match self {
            Self::None | Self::Pgvalet(_) => false,
            Self::Other(Other(child)) => !matches!(child.try_wait(), Ok(None)),
        }
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // Gone already where this fails.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the targets: PgBouncer and pgvalet first.
pub fn start(stage: &Stage, setup: &Setup, guests: Guests) -> Result<Vec<Target>, Failure> {
    let pair = match setup.transport {
        Transport::Tls => Some(certificate(stage.scratch().path())?),
        Transport::Tcp | Transport::Unix => None,
    };
    if let (Some(pair), Some(uid)) = (&pair, stage.other_user()) {
        std::os::unix::fs::chown(&pair.key, Some(uid), None)?;
    }
    let mut targets = vec![
        pgbouncer(stage, setup, pair.as_ref())?,
        pgvalet(stage, setup, pair.as_ref())?,
    ];
    if guests == Guests::All {
        targets.push(haproxy(stage, setup)?);
        targets.extend(stage.options.peer.iter().map(|peer| Target {
            name: peer.name.clone(),
            address: peer.address.clone(),
            pid: Some(peer.pid),
            login: Login::default(),
            admin: 0,
            metrics: 0,
            process: Process::None,
        }));
    }
    Ok(targets)
}

/// PostgreSQL itself.
pub fn direct(stage: &Stage) -> Target {
    Target {
        name: DIRECT.to_owned(),
        address: stage.direct(),
        pid: None,
        login: Login::default(),
        admin: 0,
        metrics: 0,
        process: Process::None,
    }
}

impl Target {
    /// Its processor time until now.
    pub fn cpu(&self) -> Result<Duration, Failure> {
        self.pid.map_or(Ok(Duration::ZERO), crate::accounting::cpu)
    }

    pub fn connect(&self) -> Result<Client, Failure> {
        Client::connect(&self.address, &self.login)
            .map_err(|error| format!("{}: {error}", self.name).into())
    }
}

fn login(setup: &Setup) -> Result<Login, Failure> {
    Ok(Login {
        scram: (setup.auth == Auth::Scram).then(|| scram::Scram::new(PASSWORD)),
        tls: match setup.transport {
            Transport::Tls => Some(tls::Tls::new()?),
            Transport::Tcp | Transport::Unix => None,
        },
        application: None,
    })
}

/// A directory for a target's unix socket, which the other user can write to.
fn directory(stage: &Stage, name: &str) -> Result<PathBuf, Failure> {
    let path = stage.scratch().path().join(name);
    std::fs::create_dir_all(&path)?;
    if let Some(uid) = stage.other_user() {
        std::os::unix::fs::chown(&path, Some(uid), None)?;
    }
    Ok(path)
}

fn pgvalet(stage: &Stage, setup: &Setup, pair: Option<&Pair>) -> Result<Target, Failure> {
    let port = setup.upstream.unwrap_or(stage.postgres);
    let ssl = if stage.options.upstream_tls && setup.upstream.is_none() {
        "require"
    } else {
        "disable"
    };
    let sockets = directory(stage, "pgvalet")?;
    let unix = setup.transport == Transport::Unix;
    let (upstream, listen) = if unix {
        let place = stage.sockets.display();
        let upstream = format!("postgres://postgres:{PASSWORD}@:{port}/postgres?host={place}");
        (upstream, format!("unix:{}", sockets.display()))
    } else {
        let place = format!("127.0.0.1:{port}");
        let upstream = format!("postgres://postgres:{PASSWORD}@{place}/postgres?sslmode={ssl}");
        (upstream, "127.0.0.1:0".to_owned())
    };
    let auth = match setup.auth {
        Auth::Trust => "trust",
        Auth::Scram => "scram",
    };
    let (mode, pool) = (setup.mode.to_string(), setup.pool.to_string());
    let mut flags: Vec<String> = [
        ["--upstream", &upstream],
        ["--listen", &listen],
        ["--auth", auth],
        ["--mode", &mode],
        ["--max-backends", &pool],
        ["--max-sessions", "20000"],
    ]
    .concat()
    .into_iter()
    .map(str::to_owned)
    .collect();
    if let Some(pair) = pair {
        let (cert, key) = (pair.cert.display(), pair.key.display());
        flags.extend(["--tls".into(), "allow".into()]);
        flags.extend(["--tls-cert".into(), cert.to_string()]);
        flags.extend(["--tls-key".into(), key.to_string()]);
    }
    flags.extend(setup.flags.iter().cloned());
    let running = Program::new(&stage.options.pgvalet).serve(&flags)?;
    stage.scratch().note_pid("pgvalet", running.pid())?;
    Ok(Target {
        name: PGVALET.to_owned(),
        address: if unix {
            Address::Unix(sockets, 6432)
        } else {
            Address::Tcp(running.port)
        },
        pid: Some(running.pid()),
        login: login(setup)?,
        admin: running.admin,
        metrics: running.metrics,
        process: Process::Pgvalet(running),
    })
}

fn pgbouncer(stage: &Stage, setup: &Setup, pair: Option<&Pair>) -> Result<Target, Failure> {
    let port = free_port()?;
    let upstream = setup.upstream.unwrap_or(stage.postgres);
    let sockets = directory(stage, "pgbouncer")?;
    let host = match setup.transport {
        Transport::Unix => stage.sockets.display().to_string(),
        Transport::Tcp | Transport::Tls => "127.0.0.1".to_owned(),
    };
    let tls = if stage.options.upstream_tls && setup.upstream.is_none() {
        "require"
    } else {
        "disable"
    };
    let client_tls = pair.map(|pair| {
        let (cert, key) = (pair.cert.display(), pair.key.display());
        format!("client_tls_sslmode = allow\nclient_tls_cert_file = {cert}\nclient_tls_key_file = {key}\n")
    });
    let auth = match setup.auth {
        Auth::Trust => "trust",
        Auth::Scram => "scram-sha-256",
    };
    let verifier = scram::verifier(PASSWORD, b"0123456789abcdef");
    let users = stage.file("users.txt", &format!("\"postgres\" \"{verifier}\"\n"))?;
    let (mode, pool) = (setup.mode, setup.pool);
    // What passes is measured, so no line is logged for a connection; pgvalet logs none either.
    let config = format!(
        "[databases]\n* = host={host} port={upstream}\n\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
         unix_socket_dir = {}\nauth_type = {auth}\nauth_file = {}\npool_mode = {mode}\ndefault_pool_size = {pool}\n\
         max_client_conn = 20000\nserver_tls_sslmode = {tls}\nlog_connections = 0\nlog_disconnections = 0\n{}{}",
        sockets.display(),
        users.display(),
        client_tls.unwrap_or_default(),
        if prepares(stage)? {
            "max_prepared_statements = 200\n"
        } else {
            ""
        },
    );
    let file = stage.file("pgbouncer.ini", &config)?;
    let mut command = Command::new(&stage.options.pgbouncer);
    command.arg("-q").arg(file);
    if let Some(uid) = stage.other_user() {
        command.uid(uid);
    }
    let address = match setup.transport {
        Transport::Unix => Address::Unix(sockets, port),
        Transport::Tcp | Transport::Tls => Address::Tcp(port),
    };
    other(stage, PGBOUNCER, command, address, login(setup)?)
}

/// Whether this PgBouncer knows prepared statements in transaction mode (1.21 and on).
pub fn prepares(stage: &Stage) -> Result<bool, Failure> {
    let mut command = Command::new(&stage.options.pgbouncer);
    let version = crate::stage::succeed(command.arg("--version"))?;
    let number = version.split_whitespace().nth(1).unwrap_or_default();
    let mut parts = number.split('.').map(|part| part.parse().unwrap_or(0));
    Ok((parts.next(), parts.next()) >= (Some(1), Some(21)))
}

fn haproxy(stage: &Stage, setup: &Setup) -> Result<Target, Failure> {
    let port = free_port()?;
    let upstream = setup.upstream.unwrap_or(stage.postgres);
    let config = format!(
        "global\n    maxconn 2000\n    nbthread 1\n\ndefaults\n    mode tcp\n    timeout connect 5s\n    timeout client 1h\n    \
         timeout server 1h\n\nlisten postgres\n    bind 127.0.0.1:{port}\n    server postgres 127.0.0.1:{upstream}\n"
    );
    let file = stage.file("haproxy.cfg", &config)?;
    let mut command = Command::new(&stage.options.haproxy);
    command.args(["-db", "-f"]).arg(file);
    other(
        stage,
        HAPROXY,
        command,
        Address::Tcp(port),
        Login::default(),
    )
}

/// Starts a program, and waits until clients can log in.
fn other(
    stage: &Stage,
    name: &str,
    mut command: Command,
    address: Address,
    login: Login,
) -> Result<Target, Failure> {
    let log = stage.scratch().path().join(format!("{name}.log"));
    let file = std::fs::File::create(&log)?;
    let child = command
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()
        .map_err(|error| format!("{name}: {}: {error}", command.get_program().display()))?;
    stage.scratch().note_pid(name, child.id())?;
    let mut target = Target {
        name: name.to_owned(),
        address,
        pid: Some(child.id()),
        login,
        admin: 0,
        metrics: 0,
        process: Process::Other(Other(child)),
    };
    let began = Instant::now();
    loop {
        let failed = match target.connect() {
            Ok(client) => break client.goodbye()?,
            Err(error) => error,
        };
        if target.process.has_ended() || began.elapsed() > PATIENCE {
            let text = last_lines(&log);
            return Err(format!("{failed}; its log: {text}").into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(target)
}

fn last_lines(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("; ")
}

fn free_port() -> Result<u16, Failure> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?.port())
}

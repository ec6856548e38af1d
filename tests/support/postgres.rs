//! A throwaway PostgreSQL on a free loopback port. Owns its process and its data; both are gone when it is dropped.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::users::{Unprivileged, copy_tree};
use super::watchdog::Watchdog;
use super::{DEADLINE, eventually_some};

/// How PostgreSQL asks TCP clients to log in. Its own unix socket trusts everybody.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    Trust,
    Scram,
    Md5,
    Cleartext,
}

/// How PostgreSQL is told to stop.
#[derive(Clone, Copy)]
pub enum Stop {
    /// SIGINT: rolls back, disconnects everybody with 57P01, and ends.
    Fast,
    /// SIGQUIT: as after a crash.
    Immediate,
}

/// A running (or just now stopped) PostgreSQL. Superuser `postgres`, password `postgres`, database `postgres`.
pub struct Postgres {
    server: Option<Server>,
    /// Holds `data/` and the unix socket.
    directory: TempDir,
    port: u16,
    user: Option<Unprivileged>,
}

struct Server {
    child: Child,
    _watchdog: Watchdog,
}

impl Postgres {
    /// Starts one that trusts everybody on loopback.
    pub fn start() -> Self {
        Self::start_with(Auth::Trust, &[])
    }

    /// Starts one with `settings` (`name=value`) on top of what makes tests fast.
    pub fn start_with(auth: Auth, settings: &[&str]) -> Self {
        let user = Unprivileged::find();
        let directory = tempfile::Builder::new()
            .prefix("pgvalet-test-")
            .tempdir()
            .expect("a temporary directory");
        Unprivileged::own(user, directory.path());
        let data = directory.path().join("data");
        copy_tree(&template(user), &data, user).expect("the template can be copied");
        fs::write(data.join("pg_hba.conf"), hba(auth)).expect("pg_hba.conf can be written");
        fs::write(
            data.join("postgresql.auto.conf"),
            settings.join("\n") + "\n",
        )
        .expect("settings can be written");
        let mut postgres = Self {
            server: None,
            directory,
            port: 0,
            user,
        };
        for _ in 0..10 {
            postgres.port = free_port();
            if postgres.try_start() {
                return postgres;
            }
        }
        panic!("PostgreSQL didn't start on any of ten ports");
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The directory of its unix socket.
    pub fn socket_directory(&self) -> &Path {
        self.directory.path()
    }

    /// `postgres://user@127.0.0.1:port/database`; a password may be part of `user` (`name:secret`).
    pub fn url(&self, user: &str, database: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/{database}", self.port)
    }

    /// Runs SQL as superuser over the unix socket, past any proxy; unaligned rows as text.
    #[track_caller]
    pub fn sql(&self, sql: &str) -> String {
        let output = Command::new("psql")
            .args([
                "-X",
                "-q",
                "-A",
                "-t",
                "-v",
                "ON_ERROR_STOP=1",
                "-U",
                "postgres",
                "-d",
                "postgres",
                "-c",
                sql,
            ])
            .arg("-h")
            .arg(self.socket_directory())
            .args(["-p", &self.port.to_string()])
            .env("PGAPPNAME", "pgvalet-test-harness")
            .output()
            .expect("psql can be run");
        assert!(
            output.status.success(),
            "{sql}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout)
            .trim_end()
            .to_owned()
    }

    /// How many backends other than the harness's own serve clients.
    pub fn client_backends(&self) -> usize {
        let count = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
        self.sql(count).parse().expect("a count")
    }

    pub fn stop(&mut self, how: Stop) {
        if let Some(mut server) = self.server.take() {
            end(&mut server.child, how);
        }
    }

    /// Starts it again after [`Self::stop`], on the same port, with the same data.
    #[track_caller]
    pub fn start_again(&mut self) {
        assert!(self.server.is_none(), "it is still running");
        let port = self.port;
        eventually_some("PostgreSQL starts again on its port", || {
            self.try_start().then_some(())
        });
        assert_eq!(port, self.port);
    }

    pub fn restart(&mut self) {
        self.stop(Stop::Fast);
        self.start_again();
    }

    /// Starts the server, and waits until it says that it accepts connections. False where it ended instead.
    fn try_start(&mut self) -> bool {
        let mut command = Command::new(bin("postgres"));
        command
            .arg("-D")
            .arg(self.directory.path().join("data"))
            .arg("-k")
            .arg(self.directory.path());
        command.args(["-p", &self.port.to_string()]);
        for setting in FAST {
            command.args(["-c", setting]);
        }
        command
            .env("LC_ALL", "C")
            .current_dir(self.directory.path());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = Unprivileged::run(self.user, &mut command)
            .spawn()
            .expect("postgres can be run");
        let watchdog = Watchdog::watch(child.id(), Some(self.directory.path()));
        let ready = watch_log(&mut child);
        if ready.recv_timeout(DEADLINE).is_err() {
            end(&mut child, Stop::Immediate);
            return false;
        }
        self.server = Some(Server {
            child,
            _watchdog: watchdog,
        });
        true
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop(Stop::Immediate);
    }
}

const FAST: [&str; 12] = [
    "listen_addresses=127.0.0.1",
    "fsync=off",
    "full_page_writes=off",
    "synchronous_commit=off",
    "shared_buffers=16MB",
    "max_connections=60",
    "max_prepared_transactions=10",
    "autovacuum=off",
    "jit=off",
    "lc_messages=C",
    "TimeZone=GMT",
    "log_min_messages=log",
];

/// Passes PostgreSQL's log to the test's own stderr, and reports when it is ready. The sender goes when the log ends.
fn watch_log(child: &mut Child) -> mpsc::Receiver<()> {
    let log = BufReader::new(child.stderr.take().expect("stderr is piped"));
    let (sender, ready) = mpsc::channel();
    std::thread::spawn(move || {
        for line in log.lines().map_while(Result::ok) {
            if line.contains("database system is ready to accept connections") {
                let _ = sender.send(());
            }
            if std::env::var_os("PGVALET_TEST_VERBOSE").is_some() {
                eprintln!("postgres: {line}");
            }
        }
    });
    ready
}

fn end(child: &mut Child, how: Stop) {
    let signal = match how {
        Stop::Fast => Signal::INT,
        Stop::Immediate => Signal::QUIT,
    };
    let pid = Pid::from_child(child);
    let _ = kill_process(pid, signal);
    let _ = child.wait();
}

fn hba(auth: Auth) -> String {
    let method = match auth {
        Auth::Trust => "trust",
        Auth::Scram => "scram-sha-256",
        Auth::Md5 => "md5",
        Auth::Cleartext => "password",
    };
    format!(
        "local all all trust\nhost all all 127.0.0.1/32 {method}\nhost replication all 127.0.0.1/32 {method}\n"
    )
}

/// A freshly initialised data directory, made once for a target directory and shared by all test processes.
fn template(user: Option<Unprivileged>) -> PathBuf {
    let initdb = bin("initdb");
    let name = initdb
        .display()
        .to_string()
        .replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    let shared = Path::new(env!("CARGO_TARGET_TMPDIR"));
    fs::create_dir_all(shared).expect("the target directory can be written");
    let template = shared.join(format!("postgres-template{name}"));
    let lock = File::create(shared.join("postgres-template.lock")).expect("a lock file");
    lock.lock().expect("the lock file can be locked");
    if !template.exists() {
        let scratch = tempfile::Builder::new()
            .prefix("pgvalet-initdb-")
            .tempdir()
            .expect("a temporary directory");
        Unprivileged::own(user, scratch.path());
        let password = scratch.path().join("password");
        fs::write(&password, "postgres\n").expect("the password file can be written");
        Unprivileged::own(user, &password);
        let mut command = Command::new(&initdb);
        command
            .arg("-D")
            .arg(scratch.path().join("data"))
            .arg("--pwfile")
            .arg(&password);
        command.args([
            "-U",
            "postgres",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
            "--wal-segsize=1",
            "-A",
            "trust",
        ]);
        command.current_dir(scratch.path());
        let output = Unprivileged::run(user, &mut command)
            .output()
            .expect("initdb can be run");
        assert!(
            output.status.success(),
            "initdb: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let fresh = shared.join("postgres-template.fresh");
        let _ = fs::remove_dir_all(&fresh);
        copy_tree(&scratch.path().join("data"), &fresh, None).expect("the template can be kept");
        fs::rename(&fresh, &template).expect("the template can take its name");
    }
    template
}

/// The PostgreSQL program `name`, beside the real file behind `initdb` on PATH, or in the newest /usr/lib/postgresql/*/bin.
fn bin(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path)
        .filter_map(|directory| fs::canonicalize(directory.join("initdb")).ok());
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            Some((
                entry.file_name().to_str()?.parse().ok()?,
                entry.path().join("bin/initdb"),
            ))
        })
        .collect();
    versions.sort();
    let packaged = versions.into_iter().rev().map(|(_, path)| path);
    on_path
        .chain(packaged)
        .map(|initdb| initdb.with_file_name(name))
        .find(|program| program.exists())
        .unwrap_or_else(|| {
            panic!("{name} is neither on PATH nor under /usr/lib/postgresql: install PostgreSQL")
        })
}

/// A free loopback port below the ephemeral range, so that no client's own port takes it while PostgreSQL restarts.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() as u16).wrapping_mul(7);
    loop {
        let step = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed).wrapping_mul(13));
        let port = 12_000 + step % 20_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

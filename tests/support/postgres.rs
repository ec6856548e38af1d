//! The throwaway PostgreSQL of `pgvalet demo`, with settings that make tests fast, and words for tests.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use pgvalet::demo::postgres::{Fetch, ThrowawayPostgres, Wanted};

pub use pgvalet::demo::postgres::Stop;

use super::eventually_some;

/// A version of npm's package for each major version; scripts/bootstrap installs them.
const VERSIONS: &str = include_str!("postgres-versions");

/// How PostgreSQL asks TCP clients to log in. Its own unix socket trusts everybody.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    Trust,
    Scram,
    Md5,
}

/// A running (or just now stopped) PostgreSQL. Superuser `postgres`, password `postgres`, database `postgres`.
pub struct Postgres(ThrowawayPostgres);

impl Postgres {
    /// Starts one that trusts everybody on loopback.
    pub fn start() -> Self {
        Self::start_with(Auth::Trust, &[])
    }

    /// Starts one with `settings` (`name=value`) on top of what makes tests fast.
    #[track_caller]
    pub fn start_with(auth: Auth, settings: &[&str]) -> Self {
        Self::fetched(Fetch::IfMissing, auth, settings).unwrap_or_else(|why| panic!("{why}"))
    }

    /// One of this major version, whatever the machine has; or why there is none.
    pub fn start_version(major: u16, auth: Auth, settings: &[&str]) -> Result<Self, String> {
        let start = format!("{major}.");
        let version = (VERSIONS.lines().find(|line| line.starts_with(&start)))
            .ok_or(format!("postgres-versions has none of {major}"))?;
        Self::fetched(Fetch::Version(version), auth, settings)
    }

    fn fetched(fetch: Fetch, auth: Auth, settings: &[&str]) -> Result<Self, String> {
        let settings = FAST
            .iter()
            .chain(settings)
            .map(|&setting| setting.to_owned())
            .collect();
        let templates = Some(PathBuf::from(env!("CARGO_TARGET_TMPDIR")));
        let wanted = Wanted {
            max_connections: 60,
            settings,
            fetch,
            templates,
            ..Wanted::default()
        };
        let started = ThrowawayPostgres::start(wanted).map_err(|error| error.to_string());
        let mut postgres = Self(started?);
        if auth != Auth::Trust {
            postgres.ask_for_passwords(auth);
        }
        Ok(postgres)
    }

    /// Makes a standby of it: one without a primary, which takes no writes until it is promoted.
    #[track_caller]
    pub fn become_standby(&mut self) {
        self.stop(Stop::Fast);
        let data = self.socket_directory().join("data");
        std::fs::write(data.join("standby.signal"), "").expect("a file can be written");
        let owner = std::fs::metadata(&data).expect("there are data");
        let (uid, gid) = (owner.uid(), owner.gid());
        std::os::unix::fs::chown(data.join("standby.signal"), Some(uid), Some(gid))
            .expect("ours to give");
        self.start_again();
        assert_eq!(self.sql("SELECT pg_is_in_recovery()"), "t");
    }

    fn ask_for_passwords(&mut self, auth: Auth) {
        self.sql("ALTER ROLE postgres PASSWORD 'postgres'");
        let method = match auth {
            Auth::Trust => "trust",
            Auth::Scram => "scram-sha-256",
            Auth::Md5 => "md5",
        };
        let hba = format!("local all all trust\nhost all all 127.0.0.1/32 {method}\n");
        std::fs::write(self.socket_directory().join("data/pg_hba.conf"), hba)
            .expect("pg_hba.conf can be written");
        self.restart();
    }

    pub fn port(&self) -> u16 {
        self.0.port()
    }

    /// The directory of its unix socket.
    pub fn socket_directory(&self) -> &Path {
        self.0.socket_dir()
    }

    /// `postgres://user@127.0.0.1:port/database`; a password may be part of `user` (`name:secret`).
    pub fn url(&self, user: &str, database: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/{database}", self.port())
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
            .args(["-p", &self.port().to_string()])
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

    #[track_caller]
    pub fn stop(&mut self, how: Stop) {
        self.0.stop(how).expect("PostgreSQL stops");
    }

    /// Starts it again after [`Self::stop`], on the same port, with the same data.
    #[track_caller]
    pub fn start_again(&mut self) {
        // Somebody else's socket may have the port for a moment.
        eventually_some("PostgreSQL starts again on its port", || {
            self.0.start_again().ok()
        });
    }

    #[track_caller]
    pub fn restart(&mut self) {
        self.stop(Stop::Fast);
        self.start_again();
    }
}

const FAST: [&str; 9] = [
    "full_page_writes=off",
    "synchronous_commit=off",
    "shared_buffers=16MB",
    "max_prepared_transactions=10",
    "autovacuum=off",
    "jit=off",
    "lc_messages=C",
    "log_min_messages=log",
    "TimeZone=GMT",
];

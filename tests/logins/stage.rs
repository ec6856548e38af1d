//! A pgvalet with a configuration file, and psql as a client with a password.

use std::path::{Path, PathBuf};

use crate::programs::{everything, psql};
use crate::support::{Postgres, Valet};

/// A pgvalet with its configuration, and a unix socket, in a directory that lives as long.
pub struct Stage {
    pub valet: Valet,
    directory: tempfile::TempDir,
}

impl Stage {
    /// In front of `postgres`, where `user` logs in, with `config` besides. `DIR` stands for the stage's directory.
    #[track_caller]
    pub fn new(postgres: &Postgres, user: &str, config: &str) -> Self {
        Self::with(
            tempfile::tempdir().expect("a directory"),
            postgres,
            user,
            config,
        )
    }

    #[track_caller]
    pub fn with(
        directory: tempfile::TempDir,
        postgres: &Postgres,
        user: &str,
        config: &str,
    ) -> Self {
        let file = directory.path().join("pgvalet.toml");
        let config = config.replace("DIR", &directory.path().display().to_string());
        std::fs::write(&file, config).expect("written");
        let upstream = postgres.url(user, "postgres");
        let unix = format!("unix:{}", directory.path().display());
        let flags = [
            "--config",
            file.to_str().expect("UTF-8"),
            "--upstream",
            &upstream,
            "--listen",
            "127.0.0.1:0",
            "--listen",
            &unix,
        ];
        let valet = Valet::serve(&flags).unwrap_or_else(|exit| panic!("{}", exit.log));
        Self { valet, directory }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What psql answers to `SELECT session_user`, or what it says instead.
    pub fn login(&self, user: &str, password: &str) -> Result<String, String> {
        self.login_with(user, password, "host=localhost hostaddr=127.0.0.1")
    }

    pub fn login_with(
        &self,
        user: &str,
        password: &str,
        parameters: &str,
    ) -> Result<String, String> {
        let mut command = psql(self.valet.port());
        command.env("HOME", "/nonexistent").env("PGUSER", user);
        command
            .env("PGPASSWORD", password)
            .env("PGSSLMODE", "disable");
        said(command.args([parameters, "-w", "-c", "SELECT session_user"]))
    }

    /// The same through the unix socket in the stage's directory.
    pub fn login_by_unix(&self, user: &str, password: &str) -> Result<String, String> {
        let mut command = psql(6432);
        command
            .env("PGHOST", self.directory.path())
            .env("PGUSER", user);
        command.env("PGPASSWORD", password);
        said(command.args(["-w", "-c", "SELECT session_user"]))
    }
}

fn said(command: &mut std::process::Command) -> Result<String, String> {
    let (status, out, err) = everything(command);
    if status == Some(0) {
        Ok(out.trim_end().to_owned())
    } else {
        Err(err)
    }
}

/// What PostgreSQL keeps of a role's password.
pub fn kept(postgres: &Postgres, role: &str) -> String {
    postgres.sql(&format!(
        "SELECT rolpassword FROM pg_authid WHERE rolname = '{role}'"
    ))
}

/// The operating system's name of whoever runs the tests.
pub fn os_user() -> String {
    crate::programs::run(std::process::Command::new("id").arg("-un"))
}

/// Writes a file as a mounted secret changes: another file takes its place at once.
pub fn replace(path: &Path, text: &str) {
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, text).expect("written");
    std::fs::rename(fresh, path).expect("renamed");
}

pub const WRONG: &str = "password authentication failed for user";

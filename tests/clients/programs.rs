//! Runs client programs, and gets those that no machine has by nature: a Python with drivers, Node's driver, a C program.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::{Postgres, Valet};

/// What a client program needs to know to connect, and nothing of the caller's own environment.
pub fn client(program: impl AsRef<std::ffi::OsStr>, port: u16) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
    command
        .env("PGHOST", "127.0.0.1")
        .env("PGPORT", port.to_string());
    command
        .env("PGUSER", "postgres")
        .env("PGDATABASE", "postgres")
        .env("LC_ALL", "C.UTF-8");
    command
}

/// `psql` that prints bare rows, and reads no psqlrc.
pub fn psql(port: u16) -> Command {
    let mut command = client("psql", port);
    command.args(["-X", "-q", "-A", "-t"]);
    command
}

/// Runs a program that must succeed; its standard output.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{error}",
        output.status
    );
    String::from_utf8_lossy(&output.stdout)
        .trim_end()
        .to_owned()
}

/// Everything a program says, and how it ends: what must be the same with and without pgvalet.
pub fn everything(command: &mut Command) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("the program can be run");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (status.code(), text(stdout), text(stderr))
}

/// A fresh PostgreSQL with pgvalet in front of it.
pub fn stage() -> (Postgres, Valet) {
    let postgres = Postgres::start();
    let valet = Valet::front(&postgres);
    (postgres, valet)
}

/// The directory of the client scripts.
pub fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients")
}

/// A Python that has psycopg 3 and asyncpg, in an environment of our own; or why there is none.
pub fn python() -> Result<PathBuf, String> {
    let requirements = scripts().join("requirements.txt");
    let python = |home: &Path| home.join("bin/python");
    let home = installed("python-clients", &requirements, |home| {
        attempt(
            Command::new("python3")
                .args(["-m", "venv", "--clear"])
                .arg(home),
        )?;
        let mut pip = Command::new(python(home));
        attempt(
            pip.args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "-r",
            ])
            .arg(&requirements),
        )
    })?;
    Ok(python(&home))
}

/// A directory whose node_modules holds node-postgres; or why there is none.
pub fn node_modules() -> Result<PathBuf, String> {
    attempt(Command::new("node").arg("--version"))?;
    let manifest = scripts().join("package.json");
    installed("node-clients", &manifest, |home| {
        fs::create_dir_all(home).map_err(|error| error.to_string())?;
        fs::copy(&manifest, home.join("package.json")).map_err(|error| error.to_string())?;
        attempt(
            Command::new("npm")
                .args(["install", "--no-audit", "--no-fund", "--loglevel=error"])
                .current_dir(home),
        )
    })
}

/// The program of libpq.c, compiled; or why it can't be.
pub fn libpq_program() -> Result<PathBuf, String> {
    let source = scripts().join("libpq.c");
    let home = installed("libpq-client", &source, |home| {
        fs::create_dir_all(home).map_err(|error| error.to_string())?;
        let config = |what: &str| -> Result<String, String> {
            let output = Command::new("pg_config")
                .arg(what)
                .output()
                .map_err(|error| format!("pg_config: {error}"))?;
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let (include, library) = (config("--includedir")?, config("--libdir")?);
        let mut compiler = Command::new("cc");
        compiler
            .args(["-Wall", "-Werror", "-O1", "-o"])
            .arg(home.join("libpq-client"))
            .arg(&source);
        attempt(compiler.args([
            format!("-I{include}"),
            format!("-L{library}"),
            "-lpq".to_owned(),
        ]))
    })?;
    Ok(home.join("libpq-client"))
}

/// `install`s into a directory under target/ once, again only when `recipe` changes; other test processes wait for it.
fn installed(
    name: &str,
    recipe: &Path,
    install: impl FnOnce(&Path) -> Result<(), String>,
) -> Result<PathBuf, String> {
    let shared = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let home = shared.join(name);
    let lock =
        File::create(shared.join(format!("{name}.lock"))).map_err(|error| error.to_string())?;
    lock.lock().map_err(|error| error.to_string())?;
    let recipe = fs::read(recipe).map_err(|error| error.to_string())?;
    let stamp = shared.join(format!("{name}.stamp"));
    if fs::read(&stamp).is_ok_and(|installed| installed == recipe) {
        return Ok(home);
    }
    let _ = fs::remove_dir_all(&home);
    install(&home)?;
    fs::write(&stamp, recipe).map_err(|error| error.to_string())?;
    Ok(home)
}

fn attempt(command: &mut Command) -> Result<(), String> {
    let output = command
        .output()
        .map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    ))
}

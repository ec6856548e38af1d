//! Drivers, each with all that its script has, encrypted and in clear, in each mode; and libpq's pipelines, line by line.

use std::path::PathBuf;
use std::process::Command;

use crate::certificates::{Authority, KeyKind};
use crate::programs::{client, node_modules, python, run, scripts};
use crate::support::{Postgres, Valet, no_valet, skip};

/// Flags, and how libpq and those that know its variables encrypt.
const MODES: [(&[&str], &str); 4] = [
    (&[], "disable"),
    (&[], "require"),
    (&["--mode", "transaction"], "require"),
    (&["--chaos-return", "always"], "disable"),
];

/// Runs `act` with each mode's port and sslmode; the public schema is empty each time.
fn in_each_mode(mut act: impl FnMut(&Postgres, u16, &str, bool)) {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start();
    let authority = Authority::new("root");
    let pair = authority.issue("server", "localhost", KeyKind::Ec);
    for (flags, sslmode) in MODES {
        let tls = [
            "--tls",
            "allow",
            "--tls-cert",
            pair.cert(),
            "--tls-key",
            pair.key(),
        ];
        let valet = Valet::front_with(&postgres, &[&tls, flags].concat());
        act(&postgres, valet.port(), sslmode, !flags.is_empty());
    }
}

/// Runs each case of a script in each mode.
fn all_cases(script: &str, cases: &[String], program: impl Fn(u16) -> Command) {
    assert!(cases.len() > 5, "{script} has cases: {cases:?}");
    in_each_mode(|postgres, port, sslmode, _| {
        for case in cases {
            postgres.sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public");
            run(program(port).env("PGSSLMODE", sslmode).arg(case));
        }
    });
}

/// The cases of a script: what follows `before` at the start of a line, up to `after`.
fn cases(script: &str, before: &str, after: &str) -> Vec<String> {
    let text = std::fs::read_to_string(scripts().join(script)).expect("the script is there");
    let named = text.lines().filter_map(|line| line.strip_prefix(before));
    let named = named.filter_map(|line| line.split_once(after));
    named.map(|(name, _)| name.to_owned()).collect()
}

fn by_python(script: &str, before: &str) {
    match python() {
        Err(why) => skip(&format!("no Python with psycopg and asyncpg: {why}")),
        Ok(python) => all_cases(script, &cases(script, before, "():"), |port| {
            let mut command = client(&python, port);
            command.arg(scripts().join(script));
            command
        }),
    }
}

#[test]
fn psycopg3() {
    by_python("psycopg3.py", "def ");
}

#[test]
fn asyncpg() {
    by_python("asyncpg_client.py", "async def ");
}

#[test]
fn node_postgres() {
    match node_modules() {
        Err(why) => skip(&format!("no Node with node-postgres: {why}")),
        Ok(home) => {
            let script = home.join(format!("matrix.{}.mjs", std::process::id()));
            std::fs::copy(scripts().join("node_postgres.mjs"), &script).expect("it can be copied");
            let cases = cases("node_postgres.mjs", "  async ", "(client)");
            all_cases("node_postgres.mjs", &cases, |port| {
                let mut command = client("node", port);
                command.env("NODE_TLS_REJECT_UNAUTHORIZED", "0");
                command.arg(&script);
                command
            });
            std::fs::remove_file(script).expect("it is ours");
        }
    }
}

#[test]
fn jdbc() {
    let jar = PathBuf::from("/usr/share/java/postgresql.jar");
    let java = Command::new("java").args(["--list-modules"]).output();
    let compiles =
        java.is_ok_and(|java| String::from_utf8_lossy(&java.stdout).contains("jdk.compiler"));
    if !jar.exists() || !compiles {
        return skip("no Java that compiles, or no libpostgresql-jdbc-java");
    }
    in_each_mode(|_, port, sslmode, moves| {
        let url =
            format!("jdbc:postgresql://127.0.0.1:{port}/postgres?user=postgres&sslmode={sslmode}");
        let mut java = client("java", port);
        java.args(["-Xshare:auto", "-cp"]).arg(&jar);
        java.arg(here("Jdbc.java")).arg(url);
        let said = run(java.args(moves.then_some("moves")));
        assert!(said.ends_with("all well"), "{said}");
    });
}

#[test]
fn lib_pq() {
    let source = "/usr/share/gocode/src/github.com/lib/pq";
    let go = Command::new("go").arg("version").output();
    if !go.is_ok_and(|go| go.status.success()) || !PathBuf::from(source).exists() {
        return skip("no Go, or no golang-github-lib-pq-dev");
    }
    let home = tempfile::tempdir().expect("a directory");
    let program = home.path().join("lib_pq");
    let mut build = Command::new("go");
    build
        .env("GO111MODULE", "off")
        .env("GOPATH", "/usr/share/gocode")
        .env("GOFLAGS", "");
    build.env(
        "GOCACHE",
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("go-cache"),
    );
    run(build
        .args(["build", "-o"])
        .arg(&program)
        .arg(here("go/main.go")));
    in_each_mode(|_, port, sslmode, _| {
        let said = run(client(&program, port).env("PGSSLMODE", sslmode));
        assert!(said.ends_with("all well"), "{said}");
    });
}

#[test]
fn ruby_pg() {
    let has_pg = Command::new("ruby").args(["-e", "require 'pg'"]).output();
    if !has_pg.is_ok_and(|output| output.status.success()) {
        return skip("no Ruby with the gem pg");
    }
    let said = |port: u16, sslmode: &str| {
        let mut ruby = client("ruby", port);
        let said = run(ruby.env("PGSSLMODE", sslmode).arg(here("ruby_pg.rb")));
        said.replace(&port.to_string(), "PORT")
    };
    in_each_mode(|postgres, port, sslmode, _| {
        let straight = said(postgres.port(), "disable");
        assert!(straight.lines().count() > 40, "{straight}");
        assert_eq!(said(port, sslmode), straight);
    });
}

fn here(name: &str) -> PathBuf {
    scripts().with_file_name("matrix").join(name)
}

/// What libpq_pipeline of PostgreSQL's own tests does.
#[test]
fn pipelines_of_libpq() {
    let python = match python() {
        Err(why) => return skip(&format!("no Python with psycopg: {why}")),
        Ok(python) => python,
    };
    let said = |port: u16, sslmode: &str| {
        let mut command = client(&python, port);
        run(command.env("PGSSLMODE", sslmode).arg(here("pipelines.py")))
    };
    in_each_mode(|postgres, port, sslmode, _| {
        let straight = said(postgres.port(), "disable");
        assert!(straight.lines().count() > 300, "{straight}");
        assert_eq!(said(port, sslmode), straight);
    });
}

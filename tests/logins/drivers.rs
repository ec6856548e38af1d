//! Real drivers with each method: psycopg on libpq 18 with require_auth, asyncpg, ruby-pg.

use std::process::Command;

use crate::programs::{client, python, run, scripts};
use crate::stage::Stage;
use crate::support::{Auth, Postgres, no_valet, skip};

/// One user for each method; all know the password "pencil", and so does PostgreSQL, which asks for it by SCRAM.
const METHODS: [&str; 4] = ["scram", "md5", "password", "trust"];

fn stage() -> (Postgres, Stage) {
    let postgres = Postgres::start_with(Auth::Scram, &[]);
    let mut config = "auth_query = \"default\"\n[users.by_trust]\npassword = \"pencil\"\n[users.by_md5]\npassword = \"pencil\"\n".to_owned();
    for method in METHODS {
        postgres.sql(&format!("CREATE ROLE by_{method} LOGIN PASSWORD 'pencil'"));
        config += &format!("[[logins]]\nuser = \"by_{method}\"\nmethod = \"{method}\"\n");
    }
    postgres.sql("CREATE ROLE late LOGIN PASSWORD 'pencil' VALID UNTIL '2020-01-01'");
    let config = config + "[[logins]]\nuser = [\"late\", \"mallory\"]\nmethod = \"scram\"\n";
    let stage = Stage::new(&postgres, "postgres:postgres", &config);
    (postgres, stage)
}

fn passes(program: impl AsRef<std::ffi::OsStr>, script: &str) {
    let (_postgres, stage) = stage();
    let script = scripts().with_file_name("logins").join(script);
    let said = run(client(program, stage.valet.port())
        .env("HOME", "/nonexistent")
        .arg(script));
    assert!(said.ends_with("all well"), "{said}");
}

#[test]
fn python_drivers_log_in_by_each_method() {
    if no_valet() {
        return;
    }
    match python() {
        Ok(python) => passes(python, "drivers.py"),
        Err(why) => skip(&why),
    }
}

#[test]
fn ruby_logs_in_by_each_method() {
    if no_valet() {
        return;
    }
    let has_pg = Command::new("ruby").args(["-e", "require 'pg'"]).output();
    if has_pg.is_ok_and(|output| output.status.success()) {
        passes("ruby", "drivers.rb");
    } else {
        skip("no Ruby with the gem pg");
    }
}
